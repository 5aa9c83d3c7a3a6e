"""Families of images: plain convolutions, ResNet, DenseNet, U-Net and Mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.trained.families.parts import Block, active, conv, norm
from benchmarks.trained.spec import Architecture


class CNN(nn.Module):
    """Convolutions, halved once, averaged at the end."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        del inputs
        width = shape.width
        self.stem, self.act = conv(1, width, 2), active(shape)
        self.body = nn.Sequential(*(Block(conv(width, width), shape, width, image=True) for _ in range(shape.depth)))
        self.head = nn.Linear(width * 4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 1, 8, 8) to (batch, outputs)."""
        return self.head(nn.functional.avg_pool2d(self.body(self.act(self.stem(x))), 2).flatten(1))


class Basic(nn.Module):
    """A basic block: two convolutions with norms, and a skip."""

    def __init__(self, shape: Architecture, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(width, width), norm(shape.norm, width, image=True)
        self.conv2, self.norm2 = conv(width, width), norm(shape.norm, width, image=True)
        self.act, self.branch, self.residual = active(shape), shape.branch, shape.residual

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, width, side, side) to the same."""
        out = self.branch * self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(x + out if self.residual else out)


class ResNet(nn.Module):
    """Basic blocks; the image is halved at the start."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        del inputs
        width = shape.width
        self.stem, self.norm, self.act = conv(1, width, 2), norm(shape.norm, width, image=True), active(shape)
        self.body = nn.Sequential(*(Basic(shape, width) for _ in range(shape.depth)))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 1, 8, 8) to (batch, outputs)."""
        return self.head(self.body(self.act(self.norm(self.stem(x)))).mean((2, 3)))


class Grow(nn.Module):
    """A dense layer: norm, activation, convolution, joined to its input."""

    def __init__(self, shape: Architecture, width: int, growth: int) -> None:
        super().__init__()
        self.norm, self.act, self.conv = norm(shape.norm, width, image=True), active(shape), conv(width, growth)
        self.branch = shape.branch

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, width, side, side) to (batch, width + growth, side, side)."""
        return torch.cat([x, self.branch * self.conv(self.act(self.norm(x)))], 1)


class DenseNet(nn.Module):
    """Dense layers that add four channels each."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        del inputs
        self.stem = conv(1, shape.width, 2)
        widths = [shape.width + 4 * index for index in range(shape.depth + 1)]
        self.body = nn.Sequential(*(Grow(shape, width, 4) for width in widths[:-1]))
        self.norm, self.act = norm(shape.norm, widths[-1], image=True), active(shape)
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 1, 8, 8) to (batch, outputs)."""
        return self.head(self.act(self.norm(self.body(self.stem(x)))).mean((2, 3)))


class UNet(nn.Module):
    """Two scales, joined by a skip; `depth` blocks at each."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        del inputs, outputs
        width = shape.width
        self.stem, self.act = conv(1, width), active(shape)
        self.down = self._stage(shape)
        self.shrink = conv(width, width, 2)
        self.middle = self._stage(shape)
        self.grow = nn.ConvTranspose2d(width, width, 2, 2)
        self.join = conv(2 * width, width)
        self.up = self._stage(shape)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 1, 8, 8) to the same."""
        fine = self.down(self.act(self.stem(x)))
        coarse = self.grow(self.middle(self.act(self.shrink(fine))))
        return self.head(self.up(self.act(self.join(torch.cat([fine, coarse], 1)))))

    @staticmethod
    def _stage(shape: Architecture) -> nn.Sequential:
        width = shape.width
        return nn.Sequential(*(Block(conv(width, width), shape, width, image=True) for _ in range(shape.depth)))


class Mix(nn.Module):
    """Two linear layers along the last axis after a norm, added to their input."""

    def __init__(self, shape: Architecture, size: int) -> None:
        super().__init__()
        self.norm, self.act = norm(shape.norm, size), active(shape)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        self.residual, self.branch = shape.residual, shape.branch

    def forward(self, x: Tensor) -> Tensor:
        """From (..., size) to the same."""
        out = self.branch * self.down(self.act(self.up(self.norm(x))))
        return x + out if self.residual else out


class Both(nn.Module):
    """Mix tokens, then channels."""

    def __init__(self, shape: Architecture, tokens: int) -> None:
        super().__init__()
        self.tokens, self.channels = Mix(shape, tokens), Mix(shape, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, tokens, width) to the same."""
        return self.channels(self.tokens(x.transpose(1, 2)).transpose(1, 2))


class Mixer(nn.Module):
    """An MLP-Mixer (Tolstikhin 2021, arXiv 2105.01601) of patches of 2 x 2."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        del inputs
        self.stem = nn.Conv2d(1, shape.width, 2, 2)
        self.body = nn.Sequential(*(Both(shape, 16) for _ in range(shape.depth)))
        self.norm = norm(shape.norm, shape.width)
        self.head = nn.Linear(shape.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 1, 8, 8) to (batch, outputs)."""
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.body(tokens)).mean(1))
