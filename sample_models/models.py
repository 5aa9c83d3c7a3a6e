"""Ten broken models and their healthy twins, which differ by the one cure.

Each factory takes no argument and returns (module, args), as `gradlint sample_models/models.py:NAME` wants it. SAMPLES says
what gradlint must find in each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

BATCH, WIDTH = 8, 24

Built = tuple[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Sample:
    """A broken model: the verdict and the rule that gradlint must show. Its twin is healthy and shows no error."""

    name: str
    verdict: str
    rule: str

    @property
    def broken(self) -> str:
        """Name of the factory, and of the ONNX file, of the broken model."""
        return f"{self.name}_broken"

    @property
    def healthy(self) -> str:
        """Name of the factory, and of the ONNX file, of its twin."""
        return f"{self.name}_healthy"


SAMPLES = (
    Sample("tanh_gain", "explodes", "GL101"),
    Sample("unit_normal", "explodes", "GL101"),
    Sample("default_init", "vanishes", "GL103"),
    Sample("sigmoid_chain", "vanishes", "GL402"),
    Sample("residual_no_norm", "explodes", "GL202"),
    Sample("batch_norm_no_skip", "explodes", "GL302"),
    Sample("relu_rnn", "explodes", "GL501"),
    Sample("zero_init", "untrainable", "GL104"),
    Sample("nan_weight", "non-finite", "GL604"),
    Sample("transformer_no_norm", "explodes", "GL301"),
)


class Plain(nn.Module):
    """`depth` times linear and activation, then a head."""

    def __init__(self, depth: int, act: Callable[[Tensor], Tensor], init: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.act = act
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 4)
        for layer in self.layers if init else ():
            init(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, WIDTH) to (batch, 4)."""
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(x)


class ResidualBlock(nn.Module):
    """x + scale * W2 relu(W1 x), He initialization."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.fc1 = nn.Linear(WIDTH, WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)
        nn.init.kaiming_normal_(self.fc1.weight, nonlinearity="relu")
        nn.init.normal_(self.fc2.weight, std=WIDTH**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, WIDTH) to the same."""
        return x + self.scale * self.fc2(torch.relu(self.fc1(x)))


class NormBlock(nn.Module):
    """relu(BatchNorm(W x)), with or without a skip connection around it."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.fc = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, WIDTH) to the same."""
        h = torch.relu(self.norm(self.fc(x)))
        return x + h if self.skip else h


class LastStep(nn.Module):
    """A ReLU RNN that starts as `radius` times the identity (Le 2015), read at its last step."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 16, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(16, 4)
        nn.init.normal_(self.rnn.weight_ih_l0, std=0.3)
        with torch.no_grad():
            self.rnn.weight_hh_l0.copy_(radius * torch.eye(16))
            self.rnn.bias_ih_l0.zero_()
            self.rnn.bias_hh_l0.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, steps, 4) to (batch, 4)."""
        return self.head(self.rnn(x)[0][:, -1])


class TransformerBlock(nn.Module):
    """Attention and a ReLU network, each in a residual branch, He initialization; `norm` puts a LayerNorm before each."""

    def __init__(self, width: int, *, norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if norm else nn.Identity()
        self.norm2 = nn.LayerNorm(width) if norm else nn.Identity()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.fc1 = nn.Linear(width, 2 * width, bias=False)
        self.fc2 = nn.Linear(2 * width, width, bias=False)
        nn.init.kaiming_normal_(self.fc1.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.fc2.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, tokens, width) to the same."""
        h = self.norm1(x)
        logits = self.query(h) @ self.key(h).transpose(1, 2) / math.sqrt(x.shape[-1])
        x = x + self.out(logits.softmax(-1) @ self.value(h))
        return x + self.fc2(torch.relu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """`depth` blocks and a head on the mean over tokens."""

    def __init__(self, depth: int, width: int, *, norm: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(width, norm=norm) for _ in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, tokens, width) to (batch, 4)."""
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class SameBits(TorchDispatchMode):
    """Draw numbers that are the same bits on every processor, by numpy's legacy generator, whose stream is frozen.

    torch draws with vectorized logarithms and cosines, whose last bit depends on the processor; a chaotic network makes another
    growth of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.RandomState(0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Fill with draws where torch would have, leave every other operator alone."""
        if func is torch.ops.aten.randn.default:
            return torch.from_numpy(self.random.normal(0.0, 1.0, args[0]).astype(np.float32))
        draws = {torch.ops.aten.uniform_.default: self.random.uniform, torch.ops.aten.normal_.default: self.random.normal}
        if func not in draws:
            return func(*args, **(kwargs or {}))
        tensor, *given = args
        ends = (*given, *(0.0, 1.0)[len(given) :])
        return tensor.copy_(torch.from_numpy(draws[func](*ends, tensor.shape)))


def _seeded(build: Callable[[], nn.Module], *shape: int) -> Built:
    with SameBits():
        model = build()
        return model, (torch.randn(shape or (BATCH, WIDTH)),)


def _he(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _orthogonal(weight: Tensor, gain: float) -> None:
    """What nn.init.orthogonal_ does, by Gram-Schmidt in operations that IEEE 754 rounds exactly; LAPACK's are not."""
    rows = nn.init.normal_(weight).detach().double().numpy()
    for k in range(len(rows)):
        for other in rows[:k]:
            rows[k] -= math.fsum(rows[k] * other) * other
        rows[k] /= math.sqrt(math.fsum(rows[k] * rows[k]))
    with torch.no_grad():
        weight.copy_(torch.from_numpy(gain * rows))


def tanh_gain_broken() -> Built:
    """Orthogonal weights of gain 2.5 under tanh, which is critical at 1."""
    return _seeded(lambda: Plain(64, torch.tanh, lambda w: _orthogonal(w, 2.5)))


def tanh_gain_healthy() -> Built:
    """The same with gain 1."""
    return _seeded(lambda: Plain(64, torch.tanh, lambda w: _orthogonal(w, 1.0)))


def unit_normal_broken() -> Built:
    """Weights drawn from N(0, 1) under ReLU."""
    return _seeded(lambda: Plain(16, torch.relu, nn.init.normal_))


def unit_normal_healthy() -> Built:
    """The same with He initialization."""
    return _seeded(lambda: Plain(16, torch.relu, _he))


def default_init_broken() -> Built:
    """What torch.nn.Linear starts with, under 40 ReLU layers."""
    return _seeded(lambda: Plain(40, torch.relu, None))


def default_init_healthy() -> Built:
    """The same with He initialization."""
    return _seeded(lambda: Plain(40, torch.relu, _he))


def sigmoid_chain_broken() -> Built:
    """Sixteen sigmoid layers, Xavier initialization."""
    return _seeded(lambda: Plain(16, torch.sigmoid, nn.init.xavier_normal_))


def sigmoid_chain_healthy() -> Built:
    """The same with tanh."""
    return _seeded(lambda: Plain(16, torch.tanh, nn.init.xavier_normal_))


def _residual(scale: float) -> nn.Module:
    return nn.Sequential(*(ResidualBlock(scale) for _ in range(32)), nn.Linear(WIDTH, 4))


def residual_no_norm_broken() -> Built:
    """Thirty-two residual blocks whose sums double the variance."""
    return _seeded(lambda: _residual(1.0))


def residual_no_norm_healthy() -> Built:
    """The same with each branch scaled by 1/sqrt(2 x 32)."""
    return _seeded(lambda: _residual(1.0 / math.sqrt(64.0)))


def _batch_norm(*, skip: bool) -> nn.Module:
    blocks = [NormBlock(skip=skip) for _ in range(60)]
    _train_statistics(blocks)
    return nn.Sequential(*blocks, nn.Linear(WIDTH, 4))


def _train_statistics(blocks: list[NormBlock]) -> None:
    """Set the running statistics to the averages over eight batches of training, in exactly rounded sums of a fixed order."""
    h = torch.randn(8, 256, WIDTH).double().numpy()
    for block in blocks:
        weight = block.fc.weight.detach().double().numpy()
        x = sum(h[..., k, None] * weight[:, k] for k in range(WIDTH))
        centered = x - _mean(x, 1)
        variance = _mean(centered * centered, 1)
        block.norm.running_mean.copy_(torch.from_numpy(_mean(x, 1, 0).ravel()))
        block.norm.running_var.copy_(torch.from_numpy(_mean(variance, 0).ravel() * (256.0 / 255.0)))
        block.norm.num_batches_tracked.fill_(8)
        out = np.maximum(centered / np.sqrt(variance + block.norm.eps), 0.0)
        h = h + out if block.skip else out


def _mean(x: np.ndarray, *axes: int) -> np.ndarray:
    """Mean over axes of a size that is a power of 2, by adding halves."""
    for axis in axes:
        size = x.shape[axis]
        while x.shape[axis] > 1:
            first, second = np.split(x, 2, axis)
            x = first + second
        x = x / size
    return x


def batch_norm_no_skip_broken() -> Built:
    """Sixty layers with BatchNorm and no skip connection."""
    return _seeded(lambda: _batch_norm(skip=False), 64, WIDTH)


def batch_norm_no_skip_healthy() -> Built:
    """The same with skip connections."""
    return _seeded(lambda: _batch_norm(skip=True), 64, WIDTH)


def relu_rnn_broken() -> Built:
    """A ReLU RNN over 48 steps with a recurrent radius of 1.3."""
    return _seeded(lambda: LastStep(1.3), BATCH, 48, 4)


def relu_rnn_healthy() -> Built:
    """The same with radius 1."""
    return _seeded(lambda: LastStep(1.0), BATCH, 48, 4)


def zero_init_broken() -> Built:
    """Every weight and bias is zero."""
    model, args = _seeded(lambda: Plain(6, torch.relu, nn.init.zeros_))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model, args


def zero_init_healthy() -> Built:
    """The same with He initialization."""
    return _seeded(lambda: Plain(6, torch.relu, _he))


def nan_weight_broken() -> Built:
    """One weight of one layer is NaN."""
    model, args = _seeded(lambda: Plain(6, torch.relu, _he))
    assert isinstance(model, Plain)
    with torch.no_grad():
        model.layers[2].weight[3, 5] = math.nan
    return model, args


def nan_weight_healthy() -> Built:
    """The same without it."""
    return _seeded(lambda: Plain(6, torch.relu, _he))


def transformer_no_norm_broken() -> Built:
    """Twenty transformer blocks without normalization."""
    return _seeded(lambda: Transformer(20, 12, norm=False), BATCH, 10, 12)


def transformer_no_norm_healthy() -> Built:
    """The same with a LayerNorm before each branch."""
    return _seeded(lambda: Transformer(20, 12, norm=True), BATCH, 10, 12)
