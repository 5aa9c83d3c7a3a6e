"""What families are built from: activations, norms, blocks, and how weights start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.trained.spec import Architecture


class Square(nn.Module):
    """The square of its input, element by element."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * x


class Cube(nn.Module):
    """The third power of its input, element by element."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * x * x


class Exponential(nn.Module):
    """exp(x) - 1, without a bound."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.exp(x) - 1


class TenfoldSiLU(nn.Module):
    """Ten times SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return 10 * nn.functional.silu(x)


class Sine(nn.Module):
    """sin(omega x)."""

    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.sin(self.omega * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "hardtanh": nn.Hardtanh,
    "softsign": nn.Softsign,
    "square": Square,
    "cube": Cube,
    "exp": Exponential,
    "tenfold_silu": TenfoldSiLU,
}


class RMSNorm(nn.Module):
    """Division by the root mean square of the last axis, with learned weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width)."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Rows(nn.Module):
    """Batch norm over every axis but the last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width)."""
        return self.norm(x.flatten(0, -2)).view_as(x)


class OwnStart(nn.Linear):
    """A linear layer whose initial weights are its family's own."""


def norm(name: str, width: int, *, image: bool = False) -> nn.Module:
    """The norm of that name over `width` features, or over `width` channels of an image."""
    if name == "none":
        return nn.Identity()
    if image:
        return nn.BatchNorm2d(width) if name == "batch" else nn.GroupNorm(1, width)
    if name == "batch":
        return Rows(width)
    return nn.LayerNorm(width) if name == "layer" else RMSNorm(width)


def active(shape: Architecture) -> nn.Module:
    """The activation of the architecture."""
    return ACTIVATIONS[shape.act]()


class Block(nn.Module):
    """act(norm(mix(x))), added to x times `branch` where blocks are residual."""

    def __init__(self, mix: nn.Module, shape: Architecture, width: int, *, image: bool = False) -> None:
        super().__init__()
        self.mix, self.norm, self.act = mix, norm(shape.norm, width, image=image), active(shape)
        self.residual, self.branch = shape.residual, shape.branch

    def forward(self, x: Tensor) -> Tensor:
        """From (..., width), or (batch, width, height, width of the image), to the same."""
        out = self.act(self.norm(self.mix(x)))
        return x + self.branch * out if self.residual else out


def dense(shape: Architecture, depth: int | None = None) -> nn.Sequential:
    """A stack of `depth` blocks of linear layers, of the architecture's depth if none is given."""
    width = shape.width
    count = shape.depth if depth is None else depth
    return nn.Sequential(*(Block(nn.Linear(width, width), shape, width) for _ in range(count)))


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A convolution of 3 x 3 that keeps the size of its image, or halves it at stride 2."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


def mixing(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d | nn.ConvTranspose2d]]:
    """Linear layers and convolutions with their paths."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            yield name, module


def start(model: nn.Module, shape: Architecture) -> None:
    """Draw the weights of linear layers and convolutions by the architecture's scheme; `OwnStart` keeps its own."""
    for _, module in mixing(model):
        if shape.init != "default" and not isinstance(module, OwnStart):
            if shape.init == "kaiming":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif shape.init == "xavier":
                nn.init.xavier_normal_(module.weight)
            else:
                nn.init.orthogonal_(module.weight, math.sqrt(2) if shape.act in {"relu", "gelu", "silu", "leaky"} else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            module.weight.mul_(shape.gain)
