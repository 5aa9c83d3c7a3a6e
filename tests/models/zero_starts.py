"""Models that start with zeros by design: their zeros open after one or more updates."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def zeroed(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def branch(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def frozen(width: int) -> nn.Linear:
    layer = nn.Linear(width, width)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer.requires_grad_(False)


class Stack(nn.Module):
    """Blocks between an embedding and a head."""

    def __init__(self, block: Callable[[int], nn.Module], depth: int, head: nn.Module | None = None, width: int = 24) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(6, width), nn.ModuleList(block(width) for _ in range(depth))
        self.head = head or nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ReZero(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch, self.alpha = branch(width), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.branch(x)


class LayerScale(nn.Module):
    """A scale of zeros for each channel, behind a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.branch, self.scale = nn.LayerNorm(width), branch(width), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(self.norm(x)) * self.scale


class Fixup(nn.Module):
    """The last layer of a branch starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = branch(width)
        zeroed(self.branch[2])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class ZeroGamma(nn.Module):
    """The scale of the last norm of a branch starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm, self.second, self.last = (
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
        )
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.last(self.second(torch.relu(self.norm(self.first(x))))))


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter, whose second factor starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base = frozen(width)
        self.down, self.up = nn.Linear(width, 4, bias=False), zeroed(nn.Linear(4, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.base(x) + self.up(self.down(x)))


class Diffusion(nn.Module):
    """Patches, blocks modulated by a layer of zeros, a modulated head of zeros, and the way back to a picture."""

    def __init__(self, depth: int, unpatch: str, width: int = 24) -> None:
        super().__init__()
        self.unpatch, self.embed, self.time = unpatch, nn.Conv2d(3, width, 2, 2), nn.Sequential(nn.Linear(4, width), nn.SiLU())
        self.blocks = nn.ModuleList(Modulated(width) for _ in range(depth))
        self.norm, self.modulation = nn.LayerNorm(width, elementwise_affine=False), zeroed(nn.Linear(width, 2 * width))
        self.head = zeroed(nn.Linear(width, 12))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        side = x.shape[-1] // 2
        x, c = self.embed(x).flatten(2).transpose(1, 2), self.time(t)[:, None]
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, -1)
        x = self.head(self.norm(x) * (1 + scale) + shift).reshape(-1, side, side, 2, 2, 3)
        x = torch.einsum("nhwpqc->nchpwq", x) if self.unpatch == "einsum" else x.permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, 3, 2 * side, 2 * side)


class Modulated(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(width, elementwise_affine=False), branch(width)
        self.modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 3 * width)))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(c).chunk(3, -1)
        return x + gate * self.branch(self.norm(x) * (1 + scale) + shift)


class Gained(nn.Module):
    """A network with a gain of zero on its output, and gains of zero inside."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.net = Stack(ReZero, depth)
        self.gain = nn.Parameter(torch.zeros([]))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.gain


class Controlled(nn.Module):
    """A trained copy beside a frozen stack, joined by layers of zeros."""

    def __init__(self, depth: int, width: int = 24) -> None:
        super().__init__()
        self.base = nn.ModuleList(frozen(width) for _ in range(depth))
        self.copy = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.zeros = nn.ModuleList(zeroed(nn.Linear(width, width)) for _ in range(depth))
        self.hint = zeroed(nn.Linear(5, width))

    def forward(self, x: Tensor, hint: Tensor) -> Tensor:
        y = x + self.hint(hint)
        for base, copy, zero in zip(self.base, self.copy, self.zeros, strict=True):
            y = torch.tanh(copy(y))
            x = torch.tanh(base(x)) + zero(y)
        return x


class Cell(nn.Module):
    """A hand-written cell from a state of zeros; reset and candidate see the state only from the second step on."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated, self.input, self.state = gated, nn.Linear(5, 16), nn.Linear(16, 16, bias=False)
        self.reset, self.head = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 16)
        for step in range(x.shape[1]):
            held = torch.sigmoid(self.reset(h)) * h if self.gated else h
            h = torch.tanh(self.input(x[:, step]) + self.state(held))
        return self.head(h)


class Positions(nn.Module):
    """Tokens with a position embedding of zeros and a class token of zeros."""

    def __init__(self, depth: int, width: int = 24) -> None:
        super().__init__()
        self.embed, self.token, self.place = (
            nn.Linear(7, width),
            nn.Parameter(torch.zeros(1, 1, width)),
            nn.Parameter(torch.zeros(1, 9, width)),
        )
        layer = nn.TransformerEncoderLayer(width, 4, 48, dropout=0.0, batch_first=True, norm_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False), zeroed(nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.place
        return self.head(F.layer_norm(self.body(x), (24,))[:, 0])


Start = Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]

STARTS: dict[str, Start] = {
    "ReZero": lambda depth: (Stack(ReZero, depth), (torch.randn(16, 6),)),
    "ReZero before a head of zeros": lambda depth: (Stack(ReZero, depth, zeroed(nn.Linear(24, 6))), (torch.randn(16, 6),)),
    "LayerScale of zeros": lambda depth: (Stack(LayerScale, depth), (torch.randn(16, 6),)),
    "Fixup": lambda depth: (Stack(Fixup, depth, zeroed(nn.Linear(24, 6))), (torch.randn(16, 6),)),
    "gamma of zeros": lambda depth: (Stack(ZeroGamma, depth), (torch.randn(16, 6),)),
    "adapters": lambda depth: (Stack(Adapted, depth), (torch.randn(16, 6),)),
    "adaLN-Zero, permuted": lambda depth: (Diffusion(depth, "permute"), (torch.randn(4, 3, 8, 8), torch.randn(4, 4))),
    "adaLN-Zero, einsum": lambda depth: (Diffusion(depth, "einsum"), (torch.randn(4, 3, 8, 8), torch.randn(4, 4))),
    "gain of zero on the output": lambda depth: (Gained(depth), (torch.randn(16, 6),)),
    "control by layers of zeros": lambda depth: (Controlled(depth), (torch.randn(16, 24), torch.randn(16, 5))),
    "state of zeros": lambda depth: (Cell(gated=False), (torch.randn(16, 2 * depth, 5),)),
    "state of zeros, gated": lambda depth: (Cell(gated=True), (torch.randn(16, 2 * depth, 5),)),
    "class token and head of zeros": lambda depth: (Positions(depth), (torch.randn(8, 8, 7),)),
}
"""By name and depth."""
