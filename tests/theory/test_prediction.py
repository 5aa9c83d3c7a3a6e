"""Predictions for functions, gates, joins and attention against autograd: signal and gradient at every operator."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.theory_cases import (
    CHANNELS,
    SQRT2,
    TOKENS,
    WIDTH,
    Case,
    Through,
    conv,
    gate,
    he,
    images,
    linear,
    table,
    tokens,
    vectors,
    worst,
)

# pointwise functions --------------------------------------------------------------------------------------------------

ACTIVATIONS = [
    "ReLU",
    "LeakyReLU",
    "PReLU",
    "ELU",
    "CELU",
    "SELU",
    "GELU",
    "SiLU",
    "Mish",
    "Softplus",
    "Softsign",
    "Tanh",
    "Sigmoid",
    "Hardtanh",
    "Hardsigmoid",
    "Hardswish",
    "LogSigmoid",
    "ReLU6",
    "Softshrink",
    "Hardshrink",
    "Tanhshrink",
]
SPELLED: dict[str, Callable[[Tensor], Tensor]] = {
    "GELU by erf": lambda x: x * 0.5 * (1.0 + torch.erf(x / SQRT2)),
    "GELU by tanh": lambda x: 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    "GELU, quick": lambda x: x * torch.sigmoid(1.702 * x),
    "SiLU": lambda x: x * torch.sigmoid(x),
    "hardswish": lambda x: x * F.relu6(x + 3.0) / 6.0,
    "Mish": lambda x: x * torch.tanh(F.softplus(x)),
    "squared ReLU": lambda x: F.relu(x) ** 2,
    "absolute value": torch.abs,
    "sine": lambda x: torch.sin(3.0 * x),
    "exponential": lambda x: torch.exp(0.3 * x),
    "clamp": lambda x: x.clamp(-0.5, 1.0),
    "root": lambda x: (x * x + 1.0).sqrt(),
    "snake": lambda x: x + torch.sin(x) ** 2,
    "sum of two functions": lambda x: F.relu(x) - torch.tanh(x),
    "twice": lambda x: x + x,
    "square": lambda x: x * x,
}


@pytest.mark.parametrize("gain", [0.3, SQRT2, 6.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_meet_autograd(name: str, gain: float):
    assert worst(vectors(getattr(nn, name), gain)) == ""


@pytest.mark.parametrize("gain", [0.5, 2.0])
@pytest.mark.parametrize("function", SPELLED.values(), ids=list(SPELLED))
def test_functions_that_are_spelled_out_meet_autograd(function: Callable[[Tensor], Tensor], gain: float):
    assert worst(vectors(lambda: Through(function), gain)) == ""


class PerChannel(nn.Module):
    """x times one parameter, plus another."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(CHANNELS, 1, 1)), nn.Parameter(torch.randn(CHANNELS, 10, 10))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def excited(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    """A squeeze-and-excitation block."""
    return x * torch.sigmoid(second(F.relu(first(x.mean((2, 3), keepdim=True)))))


GATES: dict[str, Case] = {
    "sigmoid of one layer times another": gate(lambda x, a, b: torch.sigmoid(a(x)) * b(x)),
    "SwiGLU": gate(lambda x, a, b: F.silu(a(x)) * b(x)),
    "two rectifiers": gate(lambda x, a, b: F.relu(a(x)) * F.relu(b(x))),
    "highway": gate(lambda x, a, b: (t := torch.sigmoid(a(x) - 1.0)) * F.relu(b(x)) + (1.0 - t) * x),
    "signal times a layer of it": gate(lambda x, a: x * a(x), 1),
    "GLU": vectors(nn.GLU, width=WIDTH // 2),
    "GLU of a large signal": vectors(nn.GLU, 4.0, WIDTH // 2),
    "GLU over channels": images(lambda: nn.GLU(1), CHANNELS // 2),
    "outer product": vectors(lambda: Through(lambda x: (x[:, :16, None] * x[:, None, 16:32]).flatten(1))),
    "parameter per channel": images(PerChannel),
    "squeeze and excitation": images(
        lambda: Through(excited, he(nn.Conv2d(CHANNELS, CHANNELS, 1)), he(nn.Conv2d(CHANNELS, CHANNELS, 1)))
    ),
    "one gate for all channels": images(lambda: Through(lambda x, a: x * torch.sigmoid(a(x)), conv(out=1))),
    "scale and shift by the mean": images(
        lambda: Through(lambda x, a, b: x * (1.0 + a(m := x.mean((2, 3)))[..., None, None]) + b(m)[..., None, None], *squeezed())
    ),
}


def squeezed() -> list[nn.Module]:
    return [linear(CHANNELS, CHANNELS) for _ in range(2)]


@table(GATES)
def test_gates_and_broadcast_products_meet_autograd(case: Case):
    assert worst(case) == ""


# joins ----------------------------------------------------------------------------------------------------------------


class ClassToken(nn.Module):
    """A learned token before the others, positions, a layer norm over all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.places = (
            nn.Parameter(0.02 * torch.randn(1, 1, 128)),
            nn.Parameter(0.02 * torch.randn(1, TOKENS + 1, 128)),
        )
        self.norm = nn.LayerNorm(128)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places)


JOINS: dict[str, Case] = {
    "residual branch": gate(lambda x, a, b: x + b(F.relu(a(x)))),
    "residual branch of a rectified signal": gate(lambda x, a, b: (h := F.relu(x)) + b(F.relu(a(h)))),
    "difference of two branches": gate(lambda x, a, b: F.relu(a(x)) - F.relu(b(x))),
    "sum of two branches": gate(lambda x, a, b: F.relu(a(x)) + F.relu(b(x))),
    "sum with a factor": gate(lambda x, a: torch.add(x, a(x), alpha=0.1), 1),
    "token added to all": tokens(lambda: Through(lambda x, a: x + a(x[:, :1]), linear(128, 128))),
    "mean added to all": tokens(lambda: Through(lambda x: x + F.relu(x).mean(1, keepdim=True))),
    "parts of unlike size": (
        lambda: Through(
            lambda x, a, b, c: c(F.relu(torch.cat([a(x), b(x)], -1))), linear(out=128, gain=0.1), linear(gain=5.0), linear(384)
        ),
        (32, WIDTH),
    ),
    "parts of unlike size, layer norm": (
        lambda: Through(
            lambda x, a, b, n, c: c(F.relu(n(torch.cat([a(x), b(x)], -1)))),
            *(linear(out=128, gain=0.1), linear(gain=5.0), nn.LayerNorm(384), linear(384)),
        ),
        (32, WIDTH),
    ),
    "dense block": images(
        lambda: Through(lambda x, a: torch.cat([h := F.relu(x), F.relu(a(h))], 1), conv(out=32)), CHANNELS + 32
    ),
    "both signs of a rectifier": vectors(lambda: Through(lambda x: torch.cat([F.relu(x), F.relu(-x)], -1)), width=2 * WIDTH),
    "class token": tokens(ClassToken),
    "class token alone": tokens(lambda: nn.Sequential(ClassToken(), Through(lambda x: x[:, 0]))),
    "mean of a stack": gate(lambda x, a, b: torch.stack([a(x), b(x)], 0).mean(0)),
    "dropout": vectors(lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.4))),
    "dropout of channels": images(lambda: nn.Sequential(nn.ReLU(), nn.Dropout2d(0.3))),
}


@table(JOINS)
def test_joins_and_dropout_meet_autograd(case: Case):
    assert worst(case) == ""


# attention ------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention between two linear layers; `gain` is that of queries and keys."""

    def __init__(self, gain: float, *, fused: bool = True, heads: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(linear(gain=gain if index in (1, 2) else 1.0, bias=0.0) for index in range(5))
        self.fused, self.heads = fused, heads

    def forward(self, x: Tensor) -> Tensor:
        first, *inner, last = self.layers
        x = first(x)
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in inner)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return last(mixed.transpose(1, 2).flatten(2))


class MultiHead(nn.Module):
    """torch's multi-head attention between two linear layers."""

    def __init__(self, *, first: bool = True) -> None:
        super().__init__()
        self.before, self.after = linear(gain=1.0), linear(gain=1.0)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=first)

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        return self.after(self.attention(h, h, h, need_weights=False)[0])


def encoder(**options: object) -> nn.Module:
    return nn.Sequential(*(nn.TransformerEncoderLayer(WIDTH, 4, 512, batch_first=True, **options) for _ in range(2)))


SEQUENCE = (16, 12, WIDTH)
ATTENTION: dict[str, Case] = {
    "uniform": (lambda: Attention(0.3), SEQUENCE),
    "uniform, spelled out": (lambda: Attention(0.3, fused=False), SEQUENCE),
    "uniform, one head": (lambda: Attention(0.3, heads=1), SEQUENCE),
    "logits of unit size": (lambda: Attention(0.9), SEQUENCE),
    "logits of unit size, spelled out": (lambda: Attention(0.9, fused=False), SEQUENCE),
    "multi-head module": (MultiHead, SEQUENCE),
    "multi-head module, tokens first": (lambda: MultiHead(first=False), (12, 16, WIDTH)),
    "encoder": (encoder, SEQUENCE),
    "encoder, norm first": (lambda: encoder(norm_first=True, dropout=0.0, activation="gelu"), SEQUENCE),
    "two projections": tokens(lambda: Through(lambda x, a, b: a(x) @ b(x).transpose(1, 2), *pair()), TOKENS),
    "two projections by einsum": tokens(
        lambda: Through(lambda x, a, b: torch.einsum("btd,bsd->bts", a(x), b(x)), *pair()), TOKENS
    ),
    "softmax of small logits": vectors(lambda: nn.Softmax(-1), 0.5),
    "log-softmax": vectors(lambda: nn.LogSoftmax(-1), 0.5),
}


def pair() -> list[nn.Module]:
    return [linear(128, 128, 1.0) for _ in range(2)]


@table(ATTENTION)
def test_attention_meets_autograd(case: Case):
    assert worst(case) == ""
