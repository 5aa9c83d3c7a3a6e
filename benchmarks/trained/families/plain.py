"""Families of vectors: MLP, highway, mixture of experts, hypernetwork, sine network, autoencoders, flow and two towers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.trained.families.parts import Block, OwnStart, Sine, active, dense
from benchmarks.trained.spec import Architecture


class MLP(nn.Module):
    """Linear layers."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, shape.width)
        self.act = active(shape)
        self.body = dense(shape)
        self.head = nn.Linear(shape.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, inputs) to (batch, outputs)."""
        return self.head(self.body(self.act(self.stem(x))))


class Gate(nn.Module):
    """A highway layer: t h(x) + (1 - t) x."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.change = Block(nn.Linear(shape.width, shape.width), shape, shape.width)
        self.gate = OwnStart(shape.width, shape.width)
        nn.init.constant_(self.gate.bias, -1.0 if shape.gate_bias is None else shape.gate_bias)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, width) to the same."""
        t = torch.sigmoid(self.gate(x))
        return t * self.change(x) + (1 - t) * x


class Highway(nn.Module):
    """Highway layers."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, shape.width)
        self.body = nn.Sequential(*(Gate(shape) for _ in range(shape.depth)))
        self.head = nn.Linear(shape.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, inputs) to (batch, outputs)."""
        return self.head(self.body(self.stem(x)))


class Experts(nn.Module):
    """A residual layer of four experts, each of two linear layers, weighted by a softmax gate."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        width = shape.width
        self.gate = nn.Linear(width, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(Block(nn.Linear(width, width), shape, width), nn.Linear(width, width)) for _ in range(4)
        )
        self.residual, self.branch, self.logits = shape.residual, shape.branch, shape.logits

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, width) to the same."""
        share = torch.softmax(self.logits * self.gate(x), -1)
        out = sum(share[..., i, None] * expert(x) for i, expert in enumerate(self.experts))
        return x + self.branch * out if self.residual else out


class MoE(nn.Module):
    """Layers of experts."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, shape.width)
        self.body = nn.Sequential(*(Experts(shape) for _ in range(shape.depth)))
        self.head = nn.Linear(shape.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, inputs) to (batch, outputs)."""
        return self.head(self.body(self.stem(x)))


class Hypernet(nn.Module):
    """A network that makes the weights of a second one from half of the inputs, and applies it to the other half."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        self.middle, self.inner, self.outputs = inputs // 2, 8, outputs
        self.stem = nn.Linear(inputs - self.middle, shape.width)
        self.body = dense(shape)
        self.first = nn.Linear(shape.width, self.inner * (self.middle + 1))
        self.last = nn.Linear(shape.width, outputs * (self.inner + 1))
        self.act = active(shape)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, inputs) to (batch, outputs)."""
        code = self.body(self.act(self.stem(x[:, self.middle :])))
        first = self.first(code).view(-1, self.middle + 1, self.inner) / math.sqrt(self.middle) * 2
        last = self.last(code).view(-1, self.inner + 1, self.outputs) / math.sqrt(self.inner) * 2
        hidden = torch.tanh(torch.bmm(x[:, None, : self.middle], first[:, :-1]) + first[:, -1:])
        return (torch.bmm(hidden, last[:, :-1]) + last[:, -1:])[:, 0]


class Siren(nn.Module):
    """Sine layers with the start of Sitzmann 2020 (arXiv 2006.09661), or with another activation and torch's start."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        width, sine = shape.width, shape.act == "sine"
        layers: list[nn.Module] = []
        for index in range(shape.depth):
            layer = nn.Linear(width if index else inputs, width)
            if sine and shape.init == "default":
                bound = math.sqrt(6 / width) / shape.omega if index else 1 / inputs
                nn.init.uniform_(layer.weight, -bound, bound)
            layers += [layer, Sine(shape.omega) if sine else active(shape)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From coordinates (batch, inputs) to values (batch, outputs)."""
        return self.head(self.body(x))


class Autoencoder(nn.Module):
    """An image through a narrow layer and back."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stem, self.act = nn.Linear(inputs, shape.width), active(shape)
        self.encoder, self.code = dense(shape), nn.Linear(shape.width, 8)
        self.wide, self.decoder = nn.Linear(8, shape.width), dense(shape)
        self.head = nn.Linear(shape.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 1, side, side) to the same."""
        code = self.code(self.encoder(self.act(self.stem(x.flatten(1)))))
        return self.head(self.decoder(self.act(self.wide(code)))).view_as(x)


class VAE(nn.Module):
    """A variational autoencoder."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stem, self.act, self.encoder = nn.Linear(inputs, shape.width), active(shape), dense(shape)
        self.mean, self.logvar = nn.Linear(shape.width, 6), nn.Linear(shape.width, 6)
        self.wide, self.decoder, self.head = nn.Linear(6, shape.width), dense(shape), nn.Linear(shape.width, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From (batch, 1, side, side) to the same, and the mean and log variance of the code, (batch, 6) each."""
        hidden = self.encoder(self.act(self.stem(x.flatten(1))))
        mean, logvar = self.mean(hidden), self.logvar(hidden)
        code = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean) if self.training else mean
        return self.head(self.decoder(self.act(self.wide(code)))).view_as(x), mean, logvar


class Coupling(nn.Module):
    """An affine coupling (Dinh 2017, arXiv 1605.08803); its halves change places with `swap`."""

    def __init__(self, shape: Architecture, size: int, *, swap: bool) -> None:
        super().__init__()
        self.middle, self.swap = size // 2, swap
        self.stem, self.act = nn.Linear(self.middle, shape.width), active(shape)
        self.body = dense(shape, 1)
        self.head = OwnStart(shape.width, size)
        nn.init.normal_(self.head.weight, std=0.02)  # a flow starts near the identity
        self.branch = shape.branch

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From (batch, size) to the same, and the log determinant (batch,)."""
        kept, moved = x.chunk(2, -1)
        if self.swap:
            kept, moved = moved, kept
        scale, shift = self.head(self.body(self.act(self.stem(kept)))).chunk(2, -1)
        scale = self.branch * torch.tanh(scale)
        moved = moved * torch.exp(scale) + shift
        return torch.cat((moved, kept) if self.swap else (kept, moved), -1), scale.sum(-1)


class Flow(nn.Module):
    """Couplings in turn."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        del outputs
        self.body = nn.ModuleList(Coupling(shape, inputs, swap=bool(index % 2)) for index in range(shape.depth))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From (batch, size) to the same, and the log determinant (batch,)."""
        total = x.new_zeros(x.shape[0])
        for coupling in self.body:
            x, change = coupling(x)
            total = total + change
        return x, total


class Towers(nn.Module):
    """Two towers, whose outputs have length one."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        del outputs
        self.left = self._tower(shape, inputs)
        self.right = self._tower(shape, inputs)

    def forward(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """From two views (batch, inputs) to two embeddings (batch, 16)."""
        return nn.functional.normalize(self.left(one), dim=-1), nn.functional.normalize(self.right(other), dim=-1)

    @staticmethod
    def _tower(shape: Architecture, inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, shape.width), active(shape), *dense(shape), nn.Linear(shape.width, 16))
