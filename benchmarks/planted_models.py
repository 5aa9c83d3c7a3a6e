"""Healthy models of many parts, in which one part can be broken: the families of `planted_faults.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate


def critical(layer: nn.Module, gain: float = math.sqrt(2.0)) -> nn.Module:
    """The layer at the critical gain of a rectifier (He et al. 2015)."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def plain(depth: int, width: int) -> nn.Sequential:
    """Linear layers and rectifiers in turn, at criticality."""
    pairs = ((critical(nn.Linear(width, width)), nn.ReLU()) for _ in range(depth))
    return nn.Sequential(*(module for pair in pairs for module in pair))


def filters(depth: int, channels: int) -> nn.Sequential:
    """Convolutions and rectifiers in turn, at criticality."""
    pairs = ((critical(nn.Conv2d(channels, channels, 3, padding=1)), nn.ReLU()) for _ in range(depth))
    return nn.Sequential(*(module for pair in pairs for module in pair))


def encoder(depth: int, width: int) -> nn.Module:
    """Transformer blocks with norms in their branches."""
    layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)


class Towers(nn.Module):
    """Towers over one input, joined by a concatenation or a sum."""

    def __init__(self, depth: int, width: int, how: str) -> None:
        super().__init__()
        self.how, self.left, self.right = how, plain(depth, width), plain(depth // 2, width)
        self.short, self.head = nn.Linear(width, width), nn.Linear(3 * width if how == "cat" else width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """From [batch, width] to [batch, 5]."""
        parts = [torch.tanh(self.short(x)), self.left(x), self.right(x)]
        return self.head(torch.cat(parts, 1) if self.how == "cat" else sum(parts))


class UNet(nn.Module):
    """Two levels, each with skips, and a chain at the bottom."""

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.stem, self.out = critical(nn.Conv2d(3, channels, 3, padding=1)), nn.Conv2d(channels, 3, 1)
        self.down = nn.ModuleList(filters(2, channels) for _ in range(2))
        self.bottom = filters(depth, channels)
        self.up = nn.ModuleList(critical(nn.Conv2d(2 * channels, channels, 3, padding=1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """From [batch, 3, side, side] to the same."""
        levels = [torch.relu(self.stem(x))]
        for stage in self.down:
            levels.append(avg_pool2d(stage(levels[-1]), 2))
        x = self.bottom(levels[-1])
        for layer, skip in zip(self.up, reversed(levels[:-1]), strict=True):
            x = torch.relu(layer(torch.cat([interpolate(x, scale_factor=2.0), skip], 1)))
        return self.out(x)


class Several(nn.Module):
    """Numbers, a picture and words, each through layers of its own."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.numbers = nn.Sequential(critical(nn.Linear(6, width)), *plain(depth, width))
        self.picture = nn.Sequential(critical(nn.Conv2d(3, 12, 3, padding=1)), nn.ReLU(), *filters(depth, 12))
        self.words, self.reader = nn.Embedding(50, width), encoder(2, width)
        self.head = nn.Linear(2 * width + 12, 4)

    def forward(self, numbers: Tensor, picture: Tensor, words: Tensor) -> Tensor:
        """From [batch, 6], [batch, 3, side, side] and [batch, length] to [batch, 4]."""
        read = self.reader(self.words(words)).mean(1)
        return self.head(torch.cat([self.numbers(numbers), self.picture(picture).mean((2, 3)), read], 1))


class Conditioned(nn.Module):
    """Residual layers that a condition, which is encoded by a chain of its own, scales and shifts."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.encoded = nn.Sequential(critical(nn.Linear(8, width)), *plain(depth, width))
        self.film, self.head = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth)), nn.Linear(width, 4)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """From [batch, width] and [batch, 8] to [batch, 4]."""
        condition = self.encoded(condition)
        for layer, film in zip(self.layers, self.film, strict=True):
            scale, shift = film(condition).chunk(2, 1)
            x = x + 0.3 * torch.tanh(layer(x) * (1.0 + 0.1 * scale) + 0.1 * shift)
        return self.head(x)


class Heads(nn.Module):
    """A normalized residual trunk with a short head and a deep one."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.embed, self.trunk = nn.Linear(10, width), encoder(depth // 3, width)
        self.short, self.deep = nn.Linear(width, 3), nn.Sequential(*plain(depth, width), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From [batch, length, 10] to [batch, 3] and [batch, 2]."""
        h = self.trunk(self.embed(x)).mean(1)
        return self.short(h), self.deep(h)


class Sequence(nn.Module):
    """A recurrent layer over features that a chain makes at every step, with a chain behind the last state."""

    def __init__(self, depth: int, width: int, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.features = nn.Sequential(critical(nn.Linear(7, width)), *plain(depth, width))
        self.cell, self.tail = kind(width, width, batch_first=True), plain(depth, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """From [batch, length, 7] to [batch, 3]."""
        return self.head(self.tail(self.cell(self.features(x))[0][:, -1]))


class Experts(nn.Module):
    """Deep experts, mixed by a gate."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(plain(depth, width) for _ in range(3))
        self.gate, self.head = nn.Linear(width, 3), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """From [batch, width] to [batch, 4]."""
        shares = torch.softmax(self.gate(x), 1)
        return self.head(sum(shares[:, i, None] * expert(x) for i, expert in enumerate(self.experts)))


@dataclass(frozen=True)
class Family:
    """How to build one model of a size, and which of its parts are plain chains or single layers that a fault can be put into."""

    build: Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]
    chains: tuple[str, ...]
    layers: tuple[str, ...] = ()


def _vector(*shape: int) -> Tensor:
    return torch.randn(*shape)


FAMILIES = {
    "towers, cat": Family(lambda n: (Towers(n, 32, "cat"), (_vector(16, 32),)), ("left", "right"), ("short",)),
    "towers, sum": Family(lambda n: (Towers(n, 40, "sum"), (_vector(16, 40),)), ("left", "right"), ("short",)),
    "U-Net": Family(lambda n: (UNet(n, 8), (_vector(4, 3, 16, 16),)), ("bottom",), ("down.1",)),
    "several inputs": Family(
        lambda n: (Several(n, 24), (_vector(8, 6), _vector(8, 3, 8, 8), torch.randint(0, 50, (8, 9)))),
        ("numbers", "picture"),
        ("reader.layers.0",),
    ),
    "conditioned": Family(lambda n: (Conditioned(n, 24), (_vector(16, 24), _vector(16, 8))), ("encoded",), ("layers.1",)),
    "heads": Family(lambda n: (Heads(n, 24), (_vector(8, 6, 10),)), ("deep",), ("trunk.layers.1",)),
    "LSTM": Family(lambda n: (Sequence(n, 24, nn.LSTM), (_vector(8, 9, 7),)), ("features", "tail"), ("cell",)),
    "GRU": Family(lambda n: (Sequence(n, 20, nn.GRU), (_vector(8, 9, 7),)), ("features", "tail"), ("cell",)),
    "experts": Family(lambda n: (Experts(n, 24), (_vector(32, 24),)), ("experts.0", "experts.2"), ("gate",)),
}
"""By name; the size is a number of layers."""

SIZES = (12, 16, 20, 24)
