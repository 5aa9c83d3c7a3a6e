"""Models of which a part beside the spine fails, each with a healthy twin."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HE = math.sqrt(2.0)


def drawn(layer: nn.Module, gain: float | None) -> nn.Module:
    """The layer with weights of a gain, sigma_w, or as torch draws them for None."""
    if gain is not None:
        nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
        nn.init.zeros_(layer.bias)
    return layer


def stack(depth: int, width: int, gain: float | None, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    pairs = ((drawn(nn.Linear(width, width), gain), act()) for _ in range(depth))
    return nn.Sequential(*(module for pair in pairs for module in pair))


def convolutions(depth: int, channels: int, gain: float | None, dims: int = 2) -> nn.Sequential:
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
    pairs = ((drawn(kind(channels, channels, 3, padding=1), gain), nn.ReLU()) for _ in range(depth))
    return nn.Sequential(*(module for pair in pairs for module in pair))


class Joined(nn.Module):
    """Towers over one input, joined by a sum, a product or a concatenation; the deep one is the last."""

    def __init__(self, how: str, gain: float | None, *, depth: int = 24, towers: int = 2, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.how, self.short = how, nn.ModuleList(nn.Linear(40, 40) for _ in range(towers - 1))
        self.deep = stack(depth, 40, gain, act)
        self.head = nn.Linear(40 * towers if how == "cat" else 40, 6)

    def forward(self, x: Tensor) -> Tensor:
        parts = [*(torch.tanh(layer(x)) for layer in self.short), self.deep(x)]
        if self.how == "cat":
            return self.head(torch.cat(parts, 1))
        return self.head(sum(parts) if self.how == "sum" else math.prod(parts))


class Heads(nn.Module):
    """A trunk with a short head and a deep one; both are outputs."""

    def __init__(self, gain: float | None) -> None:
        super().__init__()
        self.trunk, self.short = nn.Linear(20, 36), nn.Linear(36, 3)
        self.deep, self.end = stack(24, 36, gain), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.trunk(x))
        return self.short(h), self.end(self.deep(h))


class Ladder(nn.Module):
    """A U-Net of two levels with a chain at the bottom."""

    def __init__(self, gain: float | None, depth: int = 18) -> None:
        super().__init__()
        self.down = nn.ModuleList(drawn(nn.Conv1d(8, 8, 3, padding=1), HE) for _ in range(2))
        self.bottom = convolutions(depth, 8, gain, dims=1)
        self.up = nn.ModuleList(drawn(nn.Conv1d(16, 8, 3, padding=1), HE) for _ in range(2))
        self.stem, self.out = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [torch.relu(self.stem(x))]
        for layer in self.down:
            levels.append(F.max_pool1d(torch.relu(layer(levels[-1])), 2))
        x = self.bottom(levels[-1])
        for layer, skip in zip(self.up, reversed(levels[:-1]), strict=True):
            x = torch.relu(layer(torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1)))
        return self.out(x)


class Fed(nn.Module):
    """Layers that a condition enters again, by a sum, a scale and shift, or a concatenation; with or without skips."""

    def __init__(self, how: str, depth: int = 30, *, skip: bool = False) -> None:
        super().__init__()
        self.how, self.skip, wide = how, skip, 48 if how == "cat" else 32
        self.layers = nn.ModuleList(nn.Linear(wide, 32) for _ in range(depth))
        self.made = nn.ModuleList(nn.Linear(16, 64 if how == "film" else 32) for _ in range(depth))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for layer, make in zip(self.layers, self.made, strict=True):
            y = self._layer(layer, make, x, condition)
            x = x + 0.2 * y if self.skip else y
        return self.head(x)

    def _layer(self, layer: nn.Module, make: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
        if self.how == "cat":
            return torch.relu(layer(torch.cat([x, condition], 1)))
        if self.how == "sum":
            return torch.relu(layer(x) + 0.1 * make(condition))
        scale, shift = make(condition).chunk(2, 1)
        return torch.relu(layer(x) * (1.0 + 0.1 * scale) + 0.1 * shift)


class Pair(nn.Module):
    """Two inputs: numbers through one layer, a picture through many."""

    def __init__(self, gain: float | None) -> None:
        super().__init__()
        self.numbers, self.stem = nn.Linear(5, 16), nn.Conv2d(3, 12, 3, padding=1)
        self.picture, self.head = convolutions(20, 12, gain), nn.Linear(28, 4)

    def forward(self, numbers: Tensor, picture: Tensor) -> Tensor:
        seen = self.picture(torch.relu(self.stem(picture))).mean((2, 3))
        return self.head(torch.cat([torch.tanh(self.numbers(numbers)), seen], 1))
