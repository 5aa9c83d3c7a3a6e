"""Rules of layers, norms, pools, moves and recurrent layers against autograd: signal and gradient at every operator."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.models.theory_cases import (
    CHANNELS,
    TOKENS,
    WIDTH,
    Case,
    Make,
    Through,
    conv,
    gate,
    he,
    images,
    linear,
    table,
    tokens,
    uneven,
    vectors,
    worst,
)
from tests.models.versions import skip_before

# layers ---------------------------------------------------------------------------------------------------------------

SIZES = {1: (8, CHANNELS, 40), 2: (8, CHANNELS, 10, 10), 3: (4, 32, 8, 8, 8)}
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
    width, as_gaussian = SIZES[rank][1], CONVS[rank - 1]
    options = {"kernel_size": 3, **options} | ({"groups": width} if options.get("groups") == 0 else {})

    def make() -> nn.Module:
        return nn.Sequential(
            he(as_gaussian(width, width, 3)),
            nn.ReLU(),
            kinds[rank - 1](width, width, **options),
            he(as_gaussian(width, width, 1)),
        )

    return make, SIZES[rank]


LAYERS: dict[str, Case] = {
    "linear with bias": vectors(lambda: linear(bias=0.5)),
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
    "with positions, normalized": lambda ids, e, n, p, a, b: b(n(e(ids) + p(torch.arange(TOKENS)))),
    "times the root of the width": lambda ids, e, n, p, a, b: b(a(e(ids) * 128**0.5)),
    "mean over tokens": lambda ids, e, n, p, a, b: b(a(e(ids)).mean(1)),
}


@pytest.mark.parametrize("function", EMBEDDED.values(), ids=list(EMBEDDED))
def test_embeddings_meet_autograd(function: Callable[..., Tensor]):
    def make() -> nn.Module:
        tables = nn.Embedding(2000, 128), nn.LayerNorm(128), nn.Embedding(TOKENS, 128)
        return Through(function, *tables, linear(128, 128), linear(128, 128))

    assert worst((make, (8, TOKENS)), below=2000) == ""


# weights that are shared or derived -----------------------------------------------------------------------------------


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
    "weight_norm": vectors(lambda: rescaled(parametrizations.weight_norm(linear()))),
    "weight_norm of a convolution": images(lambda: parametrizations.weight_norm(conv())),
    "spectral_norm": vectors(lambda: parametrizations.spectral_norm(linear())),
    "spectral_norm of a convolution": images(lambda: parametrizations.spectral_norm(conv())),
    "orthogonal": vectors(lambda: parametrizations.orthogonal(linear())),
    "scaled at run time": vectors(lambda: Derived(lambda weight: weight * (2.0 / WIDTH) ** 0.5)),
    "standardized": vectors(lambda: Derived(lambda w: (w - w.mean(1, keepdim=True)) / (8.0 * w.std(1, keepdim=True)))),
}


@table(WEIGHTS)
def test_shared_and_derived_weights_meet_autograd(case: Case):
    assert worst(case) == ""


def test_old_weight_norm_meets_autograd():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        assert worst(vectors(lambda: nn.utils.weight_norm(linear()))) == ""


# normalizations -------------------------------------------------------------------------------------------------------


def stack(norm: Make, batch: int = 16, act: Make = nn.ReLU) -> Case:
    """Linear, norm, activation, twice."""
    return lambda: nn.Sequential(linear(), norm(), act(), linear(), norm(), act(), linear()), (batch, WIDTH)


def spelled(x: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


NORMS: dict[str, Case] = {
    **{f"batch norm on {batch}": stack(lambda: nn.BatchNorm1d(WIDTH), batch) for batch in (6, 8, 16, 64)},
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
def test_normalizations_meet_autograd(case: Case):
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


# pools, resampling, reductions ----------------------------------------------------------------------------------------


def pooled(make: Make, batch: int = 8) -> Case:
    return images(lambda: nn.Sequential(nn.ReLU(), make()), batch=batch)


def reduced(function: Callable[[Tensor], Tensor]) -> Case:
    return tokens(lambda: Through(function))


POOLS: dict[str, Case] = {
    "maximum": pooled(lambda: nn.MaxPool2d(2)),
    "maximum before a rectifier": images(lambda: nn.Sequential(nn.MaxPool2d(2), nn.ReLU())),
    "maximum of both signs": images(lambda: nn.MaxPool2d(2)),
    "average": pooled(lambda: nn.AvgPool2d(2)),
    "adaptive average": pooled(lambda: nn.AdaptiveAvgPool2d(5)),
    "adaptive average, uneven windows": pooled(lambda: nn.AdaptiveAvgPool2d(4)),
    "adaptive maximum": pooled(lambda: nn.AdaptiveMaxPool2d(5)),
    "average over all": pooled(lambda: nn.AdaptiveAvgPool2d(1), batch=32),
    "maximum over all": pooled(lambda: nn.AdaptiveMaxPool2d(1), batch=32),
    "pixels to channels": images(lambda: nn.PixelUnshuffle(2), 4 * CHANNELS),
    "channels to pixels": images(lambda: nn.PixelShuffle(2), CHANNELS // 4),
    "nearest": images(lambda: nn.Upsample(scale_factor=2)),
    "nearest, down": images(lambda: nn.Upsample(scale_factor=0.5)),
    "bilinear": images(lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "bilinear to the corners": images(lambda: nn.Upsample(size=(20, 20), mode="bilinear", align_corners=True)),
    "mean": reduced(lambda x: x.mean(1)),
    "mean of a positive signal": reduced(lambda x: F.relu(x).mean(1)),
    "sum": reduced(lambda x: torch.tanh(x).sum(1)),
    "largest": reduced(lambda x: x.amax(1)),
    "largest of a positive signal": reduced(lambda x: F.relu(x).amax(1)),
    "largest and where": reduced(lambda x: x.max(1).values),
    "Euclidean norm": reduced(lambda x: x.norm(dim=1)),
    "largest of two features": vectors(lambda: Through(lambda x: x.unflatten(-1, (-1, 2)).amax(-1)), width=WIDTH // 2),
}


@table(POOLS)
def test_pools_and_reductions_meet_autograd(case: Case):
    assert worst(case) == ""


# moves ----------------------------------------------------------------------------------------------------------------

MOVES: dict[str, Case] = {
    "padding": images(lambda: nn.Sequential(nn.ZeroPad2d(2), he(nn.Conv2d(CHANNELS, CHANNELS, 3)))),
    "padding on two sides": images(
        lambda: nn.Sequential(nn.ReLU(), nn.ZeroPad2d((0, 3, 1, 0)), he(nn.Conv2d(CHANNELS, CHANNELS, 3)))
    ),
    "cropping": images(lambda: nn.ZeroPad2d((-1, -2, -1, -1))),
    "layer over tokens": tokens(
        lambda: Through(lambda x, a: a(F.relu(x).transpose(1, 2)).transpose(1, 2), linear(TOKENS, TOKENS))
    ),
    "flattened": (lambda: nn.Sequential(conv(32, 32), nn.ReLU(), nn.Flatten(), linear(32 * 64, 128)), (16, 32, 8, 8)),
    "patches by a convolution": (
        lambda: Through(lambda x, a, b: b(a(x).flatten(2).transpose(1, 2)), he(nn.Conv2d(3, 128, 4, 4)), linear(128, 128)),
        (8, 3, 24, 24),
    ),
    "patches by views": (
        lambda: Through(
            lambda x, a, b: b(a(x.view(8, 16, 6, 4, 6, 4).permute(0, 2, 4, 1, 3, 5).reshape(8, 36, 256))), linear(), linear()
        ),
        (8, 16, 24, 24),
    ),
    "unfolded": (
        lambda: Through(lambda x, a, b: b(F.unfold(a(x), 3, padding=1).transpose(1, 2)), conv(32, 32), linear(288, 64)),
        (8, 32, 10, 10),
    ),
    "rolled": tokens(lambda: Through(lambda x: torch.roll(x, 3, 1))),
    "beside its mirror image": tokens(lambda: Through(lambda x: torch.cat([x, x.flip(1)], -1)), 256),
    "repeated": tokens(lambda: Through(lambda x: x.repeat(1, 2, 1))),
    "every element repeated": tokens(lambda: Through(lambda x: x.repeat_interleave(2, 1))),
    "expanded": vectors(lambda: Through(lambda x: x[:, None].expand(-1, 6, -1))),
    "every second feature": vectors(lambda: Through(lambda x: x[:, ::2]), width=WIDTH // 2),
    "chunks in another order": vectors(lambda: Through(lambda x: torch.cat(x.chunk(4, -1)[::-1], -1))),
    "selected tokens": tokens(lambda: Through(lambda x: x[:, [0, 3, 5]])),
    "last token": tokens(lambda: Through(lambda x: x[:, -1])),
    "shuffled channels": images(lambda: nn.ChannelShuffle(4)),
    "heads and back": tokens(
        lambda: Through(lambda x: x.view(8, TOKENS, 4, 32).transpose(1, 2).relu().transpose(1, 2).flatten(2))
    ),
    "an axis of length 1": vectors(lambda: Through(lambda x: x.unsqueeze(1).relu().squeeze(1))),
}


@table(MOVES, shuffled_channels=skip_before("torch", "2.6", "a channel shuffle has no derivative"))
def test_moves_meet_autograd(case: Case):
    assert worst(case) == ""


# recurrent layers -----------------------------------------------------------------------------------------------------

READOUTS: dict[str, Callable[[Tensor], Tensor]] = {"all": lambda h: h, "last": lambda h: h[:, -1], "mean": lambda h: h.mean(1)}


def recurrent(cell: type[nn.RNNBase], readout: str, **options: object) -> Case:
    """A recurrent layer of one step after the other between two linear layers."""
    width = 256 if options.get("bidirectional") else 128

    def make() -> nn.Module:
        layer = cell(64, 128, batch_first=True, **options)
        return Through(lambda x, a, r, b: b(READOUTS[readout](r(a(x))[0])), linear(64, 64, 1.0), layer, linear(width, 64, 1.0))

    return make, (16, 20, 64)


RECURRENT: dict[str, Case] = {
    **{f"{cell.__name__}, {readout}": recurrent(cell, readout) for cell in (nn.RNN, nn.LSTM, nn.GRU) for readout in READOUTS},
    **{f"{cell.__name__}, both ways": recurrent(cell, "all", bidirectional=True) for cell in (nn.RNN, nn.LSTM, nn.GRU)},
    "RNN, two layers": recurrent(nn.RNN, "all", num_layers=2),
    "GRU, two layers": recurrent(nn.GRU, "all", num_layers=2),
    "RNN, rectified": recurrent(nn.RNN, "all", nonlinearity="relu"),
}


@table(RECURRENT)
def test_recurrent_layers_meet_autograd(case: Case):
    assert worst(case) == ""
