"""Inputs are taken from the user, from the model's own hints, or guessed from its first layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradlint.errors import InputError
from gradlint.frontends.inputs import parse_inputs
from gradlint.frontends.torch.module import TorchRunnable


def inferred(module, *given: str):
    return {spec.name: spec.text for spec in TorchRunnable(module, parse_inputs(given)).inputs}


class Images(nn.Module):
    """Takes 28 x 28 images, which only its head says."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2 * 26 * 26, 3)

    def forward(self, image):
        return self.head(self.conv(image).flatten(1))


class Deep(nn.Sequential):
    """Seven halvings: 64 pixels are too few."""

    def __init__(self):
        super().__init__(*[nn.Sequential(nn.Conv2d(3 if i == 0 else 2, 2, 3, stride=2), nn.ReLU()) for i in range(6)])


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(50, 4), nn.Embedding(7, 4)

    def forward(self, user, item, scale=1.0):
        return (self.user(user) * self.item(item)).sum(-1) * scale


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, x):
        batch, steps, width = x.shape
        return self.mix(x).view(batch, steps * width)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 3))

    def forward(self, x):
        return x @ self.w


class Lightning(nn.Module):
    def __init__(self, example):
        super().__init__()
        self.example_input_array = example

    def forward(self, a, b=None):
        return a * 2 if b is None else a + b


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(5, 2), {"input": "float32[8,5]"}),
        (nn.Sequential(nn.Embedding(30, 4), nn.Linear(4, 2)), {"input": "int64[8,16]<30"}),
        (nn.Linear(5, 2).double(), {"input": "float64[8,5]"}),
        (nn.Linear(5, 2).bfloat16(), {"input": "bfloat16[8,5]"}),
        (nn.Conv1d(2, 3, 5), {"input": "float32[8,2,64]"}),
        (nn.Conv2d(3, 4, 3), {"input": "float32[8,3,64,64]"}),
        (nn.Conv3d(1, 2, 3), {"input": "float32[8,1,16,16,16]"}),
        (nn.GRU(3, 4), {"input": "float32[32,8,3]"}),
        (nn.GRU(3, 4, batch_first=True), {"input": "float32[8,32,3]"}),
        (nn.LSTMCell(3, 4), {"input": "float32[8,3]"}),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1, enable_nested_tensor=False),
            {"src": "float32[8,16,8]"},
        ),
        (nn.BatchNorm2d(3), {"input": "float32[8,3,64,64]"}),
        (nn.Sequential(nn.LayerNorm(6), nn.ReLU()), {"input": "float32[8,6]"}),
        (nn.Bilinear(3, 3, 2), {"input1": "float32[8,3]", "input2": "float32[8,3]"}),
        (Images(), {"image": "float32[8,1,28,28]"}),
        (Deep(), {"input": "float32[8,3,224,224]"}),
        (Pair(), {"user": "int64[8,16]<50", "item": "int64[8,16]<7"}),
        (Sequence(), {"x": "float32[8,16,6]"}),
        (Bare(), {"x": "float32[8,5]"}),
        (Lightning(torch.randn(3, 2)), {"input": "float32[3,2]"}),
        (Lightning((torch.randn(3), torch.randn(3))), {"input.0": "float32[3]", "input.1": "float32[3]"}),
        (Lightning({"a": torch.randn(3), "b": torch.randn(3)}), {"a": "float32[3]", "b": "float32[3]"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.filterwarnings("ignore")
def test_inputs_are_inferred(module, expected):
    assert inferred(module) == expected
    assert not any(spec.given for spec in TorchRunnable(module).inputs) or hasattr(module, "example_input_array")


@pytest.mark.filterwarnings("ignore")  # torch would rather have the batch first
def test_a_transformer_reads_two_sequences_in_its_own_layout():
    assert inferred(nn.Transformer(8, 2, 1, 1, 8)) == {"src": "float32[16,8,8]", "tgt": "float32[16,8,8]"}


def test_given_inputs_are_taken_by_name_and_by_position():
    assert inferred(Pair(), "item=int64[3,2]<7", "user=int64[3,2]<50") == {"user": "int64[3,2]<50", "item": "int64[3,2]<7"}
    assert inferred(nn.Linear(5, 2), "float32[2,5]") == {"input": "float32[2,5]"}


def test_what_is_not_given_is_inferred_around_what_is():
    assert inferred(Pair(), "item=int64[8,16]<3") == {"user": "int64[8,16]<50", "item": "int64[8,16]<3"}


def test_given_specs_replace_handed_over_tensors_by_name():
    runnable = TorchRunnable(Pair(), parse_inputs(("item=int64[2,4]<7",)), args=(torch.zeros(2, 4, dtype=torch.long),) * 2)
    assert [(spec.name, spec.text, spec.value is None) for spec in runnable.inputs] == [
        ("user", "int64[2,4]", False),
        ("item", "int64[2,4]<7", True),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("itme=int64[1]",), "no input 'itme'.*\n.*user, item, scale"),
        (("int64[1]",) * 4, "takes only 3 inputs"),
    ],
)
def test_an_input_that_the_forward_does_not_take_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        TorchRunnable(Pair(), parse_inputs(given))


def test_when_nothing_fits_the_complaint_of_the_forward_is_shown_and_no_input_that_failed():
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x, lengths):
            raise ValueError(f"lengths must be odd, not {lengths.dtype}")

    with pytest.raises(InputError, match="ValueError: lengths must be odd") as caught:
        TorchRunnable(Picky())
    assert "--input 'x=DTYPE[SIZES]' --input 'lengths=DTYPE[SIZES]'" in str(caught.value)


def test_a_forward_without_inputs_needs_none():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3))

        def forward(self):
            return self.w.exp()

    assert inferred(Constant()) == {}
