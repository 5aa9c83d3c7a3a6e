"""Families of sequences and graphs: recurrences, encoder and decoder, transformers, graph convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.trained.families.parts import active, norm
from benchmarks.trained.spec import Architecture

VOCABULARY = 12


def recurrence(cell: str, shape: Architecture, inputs: int, layers: int) -> nn.RNN | nn.LSTM | nn.GRU:
    """A recurrence with the architecture's gate biases and size of recurrent weights."""
    made: nn.RNN | nn.LSTM | nn.GRU
    width = shape.width
    if cell == "rnn":
        made = nn.RNN(inputs, width, layers, batch_first=True, nonlinearity="relu" if shape.relu_cell else "tanh")
    else:
        made = (nn.LSTM if cell == "lstm" else nn.GRU)(inputs, width, layers, batch_first=True)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if shape.init == "orthogonal" and name.startswith("weight_hh"):
                for block in weight.chunk(weight.shape[0] // width):
                    nn.init.orthogonal_(block)
            if name.startswith("weight_hh"):
                weight.mul_(shape.recurrent)
            if name.startswith("weight_"):
                weight.mul_(shape.gain)
            elif shape.gate_bias is not None and cell != "rnn":
                # The forget gate of an LSTM is its second quarter; the update gate of a GRU its second third.
                weight[width : 2 * width] = shape.gate_bias / 2
    return made


class Recurrent(nn.Module):
    """A recurrence of `depth` layers, read at its last step."""

    def __init__(self, cell: str, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        self.rnn = recurrence(cell, shape, inputs, shape.depth)
        self.head = nn.Linear(shape.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, steps, inputs) to (batch, outputs)."""
        return self.head(self.rnn(x)[0][:, -1])


class Seq2Seq(nn.Module):
    """A GRU that reads, and one that writes and attends to what was read."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        del inputs
        self.source, self.target = (nn.Embedding(VOCABULARY, shape.width) for _ in range(2))
        for table in (self.source, self.target):
            nn.init.normal_(table.weight, std=shape.embedding)
        self.encoder = recurrence("gru", shape, shape.width, shape.depth)
        self.decoder = recurrence("gru", shape, shape.width, shape.depth)
        self.query = nn.Linear(shape.width, shape.width)
        self.join, self.act = nn.Linear(2 * shape.width, shape.width), active(shape)
        self.head = nn.Linear(shape.width, outputs)
        self.logits = shape.logits / math.sqrt(shape.width)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """From tokens (batch, read) and (batch, written) to logits (batch, written, outputs)."""
        read, state = self.encoder(self.source(source))
        written, _ = self.decoder(self.target(target), state)
        weights = torch.softmax(self.logits * self.query(written) @ read.transpose(1, 2), -1)
        return self.head(self.act(self.join(torch.cat([written, weights @ read], -1))))


class Attention(nn.Module):
    """Self-attention of four heads, causal or not."""

    def __init__(self, shape: Architecture, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = 4, causal
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.logits = shape.logits / math.sqrt(shape.width / self.heads)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, tokens, width) to the same."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = self.logits * q @ k.transpose(-1, -2)
        if self.causal:
            later = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        return self.out((torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(batch, tokens, width))


class Layer(nn.Module):
    """A transformer layer, its norms before or after the branches."""

    def __init__(self, shape: Architecture, *, first: bool, causal: bool) -> None:
        super().__init__()
        self.attention = Attention(shape, causal=causal)
        self.up, self.act, self.down = (
            nn.Linear(shape.width, 2 * shape.width),
            active(shape),
            nn.Linear(2 * shape.width, shape.width),
        )
        self.norm1, self.norm2 = norm(shape.norm, shape.width), norm(shape.norm, shape.width)
        self.first, self.branch, self.residual = first, shape.branch, shape.residual

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, tokens, width) to the same."""
        if self.first:
            x = self._add(x, self.attention(self.norm1(x)))
            return self._add(x, self.down(self.act(self.up(self.norm2(x)))))
        x = self.norm1(self._add(x, self.attention(x)))
        return self.norm2(self._add(x, self.down(self.act(self.up(x)))))

    def _add(self, x: Tensor, out: Tensor) -> Tensor:
        return x + self.branch * out if self.residual else self.branch * out


class Transformer(nn.Module):
    """A transformer over tokens: predicts the next one, or a class of the whole."""

    def __init__(self, shape: Architecture, outputs: int, *, first: bool, causal: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, shape.width)
        nn.init.normal_(self.embed.weight, std=shape.embedding)
        self.place = nn.Parameter(0.1 * torch.randn(16, shape.width))
        self.body = nn.Sequential(*(Layer(shape, first=first, causal=causal) for _ in range(shape.depth)))
        self.norm = norm(shape.norm, shape.width) if first else nn.Identity()
        self.head = nn.Linear(shape.width, outputs)
        self.causal = causal

    def forward(self, tokens: Tensor) -> Tensor:
        """From (batch, 16) to (batch, 16, outputs), or to (batch, outputs) where not causal."""
        hidden = self.norm(self.body(self.embed(tokens) + self.place))
        return self.head(hidden if self.causal else hidden.mean(1))


class Convolution(nn.Module):
    """act(norm(A linear(x))), added to x times `branch` where blocks are residual."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.linear = nn.Linear(shape.width, shape.width)
        self.norm, self.act = norm(shape.norm, shape.width), active(shape)
        self.residual, self.branch = shape.residual, shape.branch

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """From (batch, nodes, width) and (batch, nodes, nodes) to (batch, nodes, width)."""
        out = self.act(self.norm(adjacency @ self.linear(x)))
        return x + self.branch * out if self.residual else out


class GNN(nn.Module):
    """Graph convolutions (Kipf 2017, arXiv 1609.02907) with a given, normalized adjacency."""

    def __init__(self, shape: Architecture, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stem, self.act = nn.Linear(inputs, shape.width), active(shape)
        self.body = nn.ModuleList(Convolution(shape) for _ in range(shape.depth))
        self.head = nn.Linear(shape.width, outputs)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """From (batch, nodes, inputs) and (batch, nodes, nodes) to (batch, nodes, outputs)."""
        x = self.act(self.stem(x))
        for convolution in self.body:
            x = convolution(x, adjacency)
        return self.head(x)
