"""Small, wide random networks around one operator, and how far the theory is from autograd at every operator of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.targets import Target
from gradlint.load import load
from gradlint.structure import Structure
from gradlint.theory.prediction import predict

TOLERANCE = 0.05  # decades, beyond three deviations of a mean of so few squares and one, up to 0.05, of what the theory allows
SEEDS = 3
WIDTH, TOKENS, CHANNELS = 256, 24, 96
SQRT2 = math.sqrt(2.0)

Make = Callable[[], nn.Module]
Case = tuple[Make, tuple[int, ...]]


class Through(nn.Module):
    """`function(x, *modules)`."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleList(modules), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def he(layer: nn.Module, gain: float = SQRT2, bias: float = 0.1) -> nn.Module:
    """A layer with Gaussian weights of this gain, and biases of this deviation."""
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.normal_(layer.bias, 0.0, bias) if bias else nn.init.zeros_(layer.bias)
    return layer


def linear(inside: int = WIDTH, out: int = WIDTH, gain: float = SQRT2, bias: float = 0.1) -> nn.Module:
    return he(nn.Linear(inside, out), gain, bias)


def conv(inside: int = CHANNELS, out: int = CHANNELS, gain: float = SQRT2, bias: float = 0.1) -> nn.Module:
    return he(nn.Conv2d(inside, out, 3, padding=1), gain, bias)


def uneven(norm: nn.Module) -> nn.Module:
    """A norm with a scale and a shift that differ from unit to unit."""
    nn.init.normal_(norm.weight, 1.0, 0.5)
    if getattr(norm, "bias", None) is not None:
        nn.init.normal_(norm.bias, 0.0, 0.5)
    return norm


def vectors(make: Make, gain: float = SQRT2, width: int = WIDTH, batch: int = 32) -> Case:
    """An operator between two linear layers; `width` is that of its output."""
    return lambda: nn.Sequential(linear(gain=gain), make(), linear(width, gain=gain)), (batch, WIDTH)


def tokens(make: Make, width: int = 128) -> Case:
    """An operator on (batch, tokens, features) between two linear layers."""
    return lambda: nn.Sequential(linear(128, 128, 1.0), make(), linear(width, 128, 1.0)), (8, TOKENS, 128)


def images(make: Make, channels: int = CHANNELS, size: int = 10, batch: int = 8) -> Case:
    """An operator on images between two convolutions; `channels` is the number behind it."""
    return lambda: nn.Sequential(conv(), make(), conv(channels)), (batch, CHANNELS, size, size)


def gate(function: Callable[..., Tensor], count: int = 2) -> Case:
    """A function of x and of `count` linear layers."""
    return vectors(lambda: Through(function, *(linear() for _ in range(count))))


def errors(make: Make, shape: Sequence[int], *, below: int | None = None, mode: str = "train") -> list[tuple[str, float]]:
    """Decades by which prediction and autograd differ at every operator, beyond what chance makes of one draw."""
    torch.manual_seed(0)
    model = make().double()
    spec = InputSpec(None, "float64" if below is None else "int64", tuple(shape), below, given=True)
    loaded = load(model, (spec,), mode=mode)
    measured = loaded.measure(seeds=SEEDS, seed=0, progress=lambda _: None)
    structure = Structure(loaded.graph_of(), live=measured.live)
    found = predict(structure).nodes
    apart = []
    for node in structure.signal:
        chance = 3.0 * 0.5 / math.log(10.0) * math.sqrt(2.0 / (SEEDS * math.prod(structure.graph[node].shape or ())))
        for quantity in ("backward", "forward"):
            value, said = getattr(measured.gains[node], quantity), getattr(found[node], quantity)
            assert value is not None, f"{node}: {quantity} was not measured"
            assert said is not None, f"{node}: {quantity} was not predicted"
            drawn = min(getattr(found[node], f"{quantity}_sd"), 0.05)
            apart.append((f"{node}: {quantity}, {said:.3f} for {value:.3f}", abs(said - value) - chance - drawn))
    assert len(apart) >= 4
    return apart


def worst(case: Case, *, below: int | None = None, mode: str = "train") -> str:
    """The operator that is furthest off, where one is off by more than the tolerance."""
    where, error = max(errors(*case, below=below, mode=mode), key=lambda item: item[1])
    return where if error > TOLERANCE else ""


def table(cases: dict[str, Case], **marks: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """One test for each case; `marks` are by the name of the case, with underscores for spaces."""
    named = {name.replace("_", " "): mark for name, mark in marks.items()}
    assert named.keys() <= cases.keys()
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=name, marks=named.get(name, ())) for name, case in cases.items()]
    )


def graph_of(module, *args):
    """The graph of a module that is called with `args`."""
    return load(Target(module, args, {}), probe=False).graph_of()


def measured(module, steps, x=None, batch=64, seed=1):
    """What autograd says, in double precision."""
    torch.manual_seed(seed)
    module = module.double()
    x = (torch.randn(steps, batch, module.input_size, dtype=torch.double) if x is None else x).requires_grad_()
    y = module(x)[0]
    independent, shared = torch.randn_like(y), torch.randn_like(y[:1]).expand(y.shape)
    last = torch.cat([torch.zeros_like(y[:-1]), torch.randn_like(y[-1:])])
    factors = []
    for cotangent in (independent, shared, last):
        (gradient,) = torch.autograd.grad(y, x, cotangent, retain_graph=True)
        factors.append(math.log10(gradient.square().sum() / cotangent.square().sum()))
    squares = np.log10(gradient.square().sum((1, 2)).numpy()[::-1])
    y, q = y.detach(), y.detach().square().mean()

    def share(axis):
        n = y.shape[axis]
        return float((y.sum(axis).square().mean() / n - q) / ((n - 1) * q))

    module.float()
    return {
        "level": 0.5 * math.log10(q),
        "mean": float(y.mean() / q.sqrt()),
        "over_time": share(0),
        "over_batch": share(1),
        "independent": factors[0],
        "equal": factors[1],
        "last": factors[2],
        "step": 0.5 * np.polyfit(np.arange(steps), squares, 1)[0],
    }
