"""Every transfer rule against autograd: signal and gradient at every operator of small, wide random networks, in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gradlint.frontends.inputs import InputSpec
from gradlint.load import load
from gradlint.structure import Structure
from gradlint.theory.prediction import predict

TOLERANCE = 0.05  # decades, beyond what so few values tell of their own mean square
SEEDS = 3
WIDTH, TOKENS, CHANNELS = 256, 24, 64
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


def he(layer: nn.Module, gain: float = SQRT2, bias: float = 0.3) -> nn.Module:
    """A layer with Gaussian weights of this gain, and biases of this deviation."""
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.normal_(layer.bias, 0.0, bias) if bias else nn.init.zeros_(layer.bias)
    return layer


def linear(inside: int = WIDTH, out: int = WIDTH, gain: float = SQRT2, bias: float = 0.3) -> nn.Module:
    return he(nn.Linear(inside, out), gain, bias)


def conv(inside: int = CHANNELS, out: int = CHANNELS, gain: float = SQRT2, bias: float = 0.3) -> nn.Module:
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


def images(make: Make, channels: int = CHANNELS, size: int = 12, batch: int = 8) -> Case:
    """An operator on images between two convolutions; `channels` is the number behind it."""
    return lambda: nn.Sequential(conv(), make(), conv(channels)), (batch, CHANNELS, size, size)


def gate(function: Callable[..., Tensor], count: int = 2) -> Case:
    """A function of x and of `count` linear layers."""
    return vectors(lambda: Through(function, *(linear() for _ in range(count))))


def errors(make: Make, shape: Sequence[int], *, below: int | None = None, mode: str = "train") -> list[tuple[str, float]]:
    """Decades by which prediction and autograd differ, less three deviations of sampling, at every operator."""
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
            apart.append((f"{node}: {quantity}, {said:.3f} for {value:.3f}", abs(said - value) - chance))
    assert len(apart) >= 4
    return apart


def worst(case: Case, *, below: int | None = None, mode: str = "train") -> str:
    """The operator that is furthest off, where one is off by more than the tolerance."""
    where, error = max(errors(*case, below=below, mode=mode), key=lambda item: item[1])
    return where if error > TOLERANCE else ""


def table(cases: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases.values(), ids=list(cases))


# layers -----------------------------------------------------------------------------------------------------------------

SIZES = {1: (8, CHANNELS, 40), 2: (8, CHANNELS, 14, 14), 3: (4, 32, 8, 8, 8)}
CONVS, TRANSPOSED = (nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KERNELS = {
    "no padding": {},
    "padding": {"padding": 1},
    "stride": {"stride": 2, "padding": 1},
    "stride beyond kernel": {"kernel_size": 2, "stride": 3},
    "even kernel": {"kernel_size": 4, "stride": 2, "padding": 1},
    "dilation": {"dilation": 2, "padding": 2},
    "same": {"dilation": 2, "padding": "same"},
    "groups": {"groups": 4, "padding": 1},
    "depthwise": {"groups": 0, "padding": 1},
}
WRITING_KERNELS = {
    "tiles": {"kernel_size": 2, "stride": 2},
    "output padding": {"stride": 2, "padding": 1, "output_padding": 1},
    "overlap": {"kernel_size": 4, "stride": 2, "padding": 1},
    "no stride": {},
    "dilation": {"dilation": 2},
    "groups": {"kernel_size": 2, "stride": 2, "groups": 2},
}


def convolved(rank: int, options: dict[str, object], kinds: Sequence[type[nn.Module]]) -> Case:
    width, plain = SIZES[rank][1], CONVS[rank - 1]
    options = {"kernel_size": 3, **options} | ({"groups": width} if options.get("groups") == 0 else {})

    def make() -> nn.Module:
        return nn.Sequential(he(plain(width, width, 3)), nn.ReLU(), kinds[rank - 1](width, width, **options), he(plain(width, width, 1)))

    return make, SIZES[rank]


LAYERS: dict[str, Case] = {
    "linear with bias": vectors(linear),
    "as torch draws it": (lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)), (32, WIDTH)),
    "wide to narrow": (lambda: nn.Sequential(linear(WIDTH, 1024), nn.ReLU(), linear(1024, 64)), (32, WIDTH)),
    "low rank": gate(lambda x, a, b: a(x) + F.linear(F.linear(x, b.weight[:16]), b.weight[:, :16])),
    **{f"conv{rank}d, {name}": convolved(rank, options, CONVS) for rank in SIZES for name, options in KERNELS.items()},
    **{f"transposed{r}d, {name}": convolved(r, options, TRANSPOSED) for r in SIZES for name, options in WRITING_KERNELS.items()},
}


@table(LAYERS)
def test_layers_meet_autograd(case: Case):
    assert worst(case) == ""


EMBEDDED: dict[str, Callable[..., Tensor]] = {
    "rows of a table": lambda ids, e, n, p, a, b: b(F.relu(a(e(ids)))),
    "with positions, normalised": lambda ids, e, n, p, a, b: b(n(e(ids) + p(torch.arange(TOKENS)))),
    "times the root of the width": lambda ids, e, n, p, a, b: b(a(e(ids) * 128**0.5)),
    "mean over tokens": lambda ids, e, n, p, a, b: b(a(e(ids)).mean(1)),
}


@pytest.mark.parametrize("function", EMBEDDED.values(), ids=list(EMBEDDED))
def test_embeddings_meet_autograd(function: Callable[..., Tensor]):
    def make() -> nn.Module:
        tables = nn.Embedding(2000, 128), nn.LayerNorm(128), nn.Embedding(TOKENS, 128)
        return Through(function, *tables, linear(128, 128), linear(128, 128))

    assert worst((make, (8, TOKENS)), below=2000) == ""


# weights that are shared or derived ---------------------------------------------------------------------------------------


def rescaled(layer: nn.Module) -> nn.Module:
    layer.parametrizations.weight.original0.data.mul_(3.0)
    return layer


class Derived(nn.Module):
    """A linear layer whose weight is computed from a parameter."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.randn(WIDTH, WIDTH)), function

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(x, self.function(self.weight)))


WEIGHTS: dict[str, Case] = {
    "one layer used again and again": gate(lambda x, a: F.relu(a(F.relu(a(F.relu(a(x)))))), 1),
    "one layer in two branches": gate(lambda x, a: a(F.relu(x)) + a(F.relu(-x)), 1),
    "decoder tied to the encoder": gate(lambda x, a: F.linear(F.relu(a(x)), a.weight.t()), 1),
    "weight_norm": vectors(lambda: rescaled(parametrizations.weight_norm(linear()))),
    "weight_norm of a convolution": images(lambda: parametrizations.weight_norm(conv())),
    "spectral_norm": vectors(lambda: parametrizations.spectral_norm(linear())),
    "spectral_norm of a convolution": images(lambda: parametrizations.spectral_norm(conv())),
    "orthogonal": vectors(lambda: parametrizations.orthogonal(linear())),
    "scaled at run time": vectors(lambda: Derived(lambda weight: weight * (2.0 / WIDTH) ** 0.5)),
    "standardised": vectors(lambda: Derived(lambda w: (w - w.mean(1, keepdim=True)) / (8.0 * w.std(1, keepdim=True)))),
}


@table(WEIGHTS)
def test_shared_and_derived_weights_meet_autograd(case: Case):
    assert worst(case) == ""


def test_old_weight_norm_meets_autograd():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert worst(vectors(lambda: nn.utils.weight_norm(linear()))) == ""


# normalisations -----------------------------------------------------------------------------------------------------------


def stack(norm: Make, batch: int = 16, act: Make = nn.ReLU) -> Case:
    """Linear, norm, activation, twice."""
    return lambda: nn.Sequential(linear(), norm(), act(), linear(), norm(), act(), linear()), (batch, WIDTH)


def spelled(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


NORMS: dict[str, Case] = {
    **{f"batch norm on {batch}": stack(lambda: nn.BatchNorm1d(WIDTH), batch) for batch in (5, 8, 16, 64)},
    "batch norm, uneven": stack(lambda: uneven(nn.BatchNorm1d(WIDTH)), 64),
    "batch norm, tanh": stack(lambda: nn.BatchNorm1d(WIDTH), act=nn.Tanh),
    "batch norm without statistics": stack(lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False)),
    "batch norm of a small signal": (lambda: nn.Sequential(linear(gain=1e-3), nn.BatchNorm1d(WIDTH), linear()), (32, WIDTH)),
    "batch norm, large eps": vectors(lambda: nn.BatchNorm1d(WIDTH, eps=0.1), gain=0.3),
    "batch norm of images": images(lambda: nn.Sequential(uneven(nn.BatchNorm2d(CHANNELS)), nn.ReLU())),
    "layer norm": stack(lambda: nn.LayerNorm(WIDTH)),
    "layer norm, uneven": stack(lambda: uneven(nn.LayerNorm(WIDTH))),
    "layer norm without scale": stack(lambda: nn.LayerNorm(WIDTH, elementwise_affine=False)),
    "layer norm behind a rectifier": vectors(lambda: nn.Sequential(nn.ReLU(), nn.LayerNorm(WIDTH))),
    "layer norm of 8 features": (lambda: nn.Sequential(linear(out=8), nn.LayerNorm(8), linear(8)), (512, WIDTH)),
    "layer norm over two axes": tokens(lambda: nn.LayerNorm((TOKENS, 128))),
    "layer norm of a layer norm": vectors(lambda: nn.Sequential(*(uneven(nn.LayerNorm(WIDTH)) for _ in range(2)))),
    "layer norm spelled out": vectors(lambda: Through(spelled)),
    "RMS norm": stack(lambda: nn.RMSNorm(WIDTH)),
    "RMS norm, uneven": stack(lambda: uneven(nn.RMSNorm(WIDTH))),
    "RMS norm behind a rectifier": vectors(lambda: nn.Sequential(nn.ReLU(), nn.RMSNorm(WIDTH))),
    "RMS norm spelled out": vectors(lambda: Through(lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))),
    "group norm": images(lambda: nn.Sequential(uneven(nn.GroupNorm(8, CHANNELS)), nn.ReLU())),
    "group norm, one group": images(lambda: nn.Sequential(nn.GroupNorm(1, CHANNELS), nn.ReLU())),
    "group norm of vectors": vectors(lambda: nn.Sequential(nn.GroupNorm(16, WIDTH), nn.ReLU())),
    "instance norm": images(lambda: nn.Sequential(nn.InstanceNorm2d(CHANNELS), nn.ReLU())),
    "instance norm, uneven": images(lambda: nn.Sequential(uneven(nn.InstanceNorm2d(CHANNELS, affine=True)), nn.ReLU())),
    "unit length": vectors(lambda: Through(lambda x: F.normalize(x, dim=-1))),
}


@table(NORMS)
def test_normalisations_meet_autograd(case: Case):
    assert worst(case) == ""


def test_batch_norm_on_running_statistics_meets_autograd():
    def make() -> nn.Module:
        norm = uneven(nn.BatchNorm1d(WIDTH))
        nn.init.uniform_(norm.running_var, 0.2, 3.0)
        nn.init.normal_(norm.running_mean)
        return nn.Sequential(linear(), norm, nn.ReLU(), linear())

    assert worst((make, (32, WIDTH)), mode="eval") == ""


def test_parts_of_unlike_size_meet_in_a_batch_norm_as_in_autograd():
    def make() -> nn.Module:
        parts = conv(32, 64, 0.1, bias=0.0), conv(32, 32, 5.0, bias=0.0), nn.BatchNorm2d(96), conv(96)
        return Through(lambda x, a, b, norm, out: out(F.relu(norm(torch.cat([a(x), b(x)], 1)))), *parts)

    assert worst((make, (8, 32, 12, 12))) == ""
