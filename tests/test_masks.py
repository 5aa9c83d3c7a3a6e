"""Masks that are added to logits, or put in their place, are no signal, no huge constant and no broken weight."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlint

TOKENS, WIDTH = 10, 16
INF = math.inf
NUMBERS = [-100.0, -1e4, -1e9, -INF]


def pairs(number: float) -> Tensor:
    """A mask of `number` for the pairs of two halves that do not see one another."""
    far = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    far[:5, 5:] = far[5:, :5] = True
    return torch.zeros(TOKENS, TOKENS).masked_fill(far, number)


def causal(number: float) -> Tensor:
    return torch.triu(torch.full((TOKENS, TOKENS), number), 1)


class Attention(nn.Module):
    """One head of attention behind a norm; `rule_out` changes its logits, and may read the buffer `mask` or further inputs."""

    def __init__(self, rule_out: Callable[..., Tensor], mask: Tensor | None = None, *, gain: float = WIDTH**-0.5) -> None:
        super().__init__()
        self.norm, self.qkv, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3)
        self.rule_out, self.gain = rule_out, gain
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        logits = (q @ k.transpose(1, 2)) * self.gain
        masks = (self.mask,) if self.mask is not None else others
        return self.head(x + self.rule_out(logits, *masks).softmax(-1) @ v)


class Fused(Attention):
    """The same by scaled_dot_product_attention."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        mask = self.mask if self.mask is not None else others[0]
        return self.head(x + functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))


class Encoder(nn.Module):
    """Layers of torch, with a mask that is made in forward, or given."""

    def __init__(self, number: float | None) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.body, self.number = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), number

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.body(x, mask=causal(self.number) if self.number is not None else others[0])


def add(logits: Tensor, mask: Tensor) -> Tensor:
    return logits + mask


KEPT = torch.ones(8, TOKENS).index_fill(1, torch.tensor([8, 9]), 0.0)
SPELLINGS: dict[str, Callable[[float], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "buffer": lambda number: (Attention(add, pairs(number)), ()),
    "causal buffer": lambda number: (Attention(add, causal(number)), ()),
    "mask first": lambda number: (Attention(lambda logits, mask: mask + logits, pairs(number)), ()),
    "constant": lambda number: (Attention(lambda logits: logits + causal(number)), ()),
    "full_like": lambda number: (Attention(lambda logits: logits + torch.triu(torch.full_like(logits, number), 1)), ()),
    "input": lambda number: (Attention(add), (pairs(number).expand(8, -1, -1).contiguous(),)),
    "masked_fill": lambda number: (Attention(lambda logits: logits.masked_fill(causal(1.0) > 0.0, number)), ()),
    "padding": lambda number: (Attention(lambda logits, kept: logits.masked_fill(kept[:, None] == 0.0, number)), (KEPT,)),
    "where": lambda number: (Attention(lambda logits: torch.where(causal(1.0) > 0.0, number, logits)), ()),
    "fused buffer": lambda number: (Fused(add, pairs(number)), ()),
    "fused input": lambda number: (Fused(add), (pairs(number).expand(8, -1, -1).contiguous(),)),
    "encoder": lambda number: (Encoder(number), ()),
    "encoder input": lambda number: (Encoder(None), (causal(number),)),
}
FINITE: dict[str, Callable[[float], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "one minus": lambda number: (Attention(lambda logits, kept: logits + (1.0 - kept[:, None]) * number), (KEPT,)),
    "scaled after": lambda number: (Attention(lambda logits, mask: (4.0 * logits + mask) / 4.0, pairs(number)), ()),
    "position bias": lambda number: (Attention(lambda logits, mask: logits + 0.1 * torch.ones(TOKENS) + mask, pairs(number)), ()),
    "product": lambda number: (Attention(lambda logits, kept: logits * kept + (1.0 - kept) * number, pairs(-1.0) + 1.0), ()),
}
CASES = [(name, build, number) for name, build in SPELLINGS.items() for number in NUMBERS]
CASES += [(name, build, number) for name, build in FINITE.items() for number in NUMBERS[:-1]]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("name", "build", "number"), CASES, ids=[f"{name} {number:g}" for name, _, number in CASES])
def test_masked_attention_is_healthy_and_has_no_finding(name, build, number):
    module, masks = build(number)
    for probe in (True, False):
        report = gradlint.check(module, (torch.randn(8, TOKENS, WIDTH), *masks), seeds=1, probe=probe)
        assert report.verdict == "healthy"
        assert {finding.rule for finding in report.findings} <= {"GL903"}


@pytest.mark.parametrize(
    ("rule_out", "mask"),
    [(add, pairs(-100.0)), (lambda z, m: z.masked_fill(m != 0.0, -1e9), pairs(1.0)), (lambda z, m: z + m, pairs(-INF))],
    ids=["added", "filled", "infinite"],
)
def test_logits_that_are_too_large_are_found_under_a_mask(rule_out, mask):
    module = Attention(rule_out, mask, gain=20.0)
    for probe in (True, False):
        report = gradlint.check(module, torch.randn(8, TOKENS, WIDTH), seeds=1, probe=probe)
        (found,) = [finding for finding in report.findings if finding.rule == "GL404"]
        assert 10.0 < found.evidence["deviation"] < 100.0


@pytest.mark.parametrize("name", ["buffer", "masked_fill", "input"])
@pytest.mark.parametrize("number", [-100.0, -1e4, -1e9])
def test_a_mask_is_no_activation_that_half_precision_cannot_hold(name, number):
    module, masks = SPELLINGS[name](number)
    report = gradlint.check(
        module,
        (torch.randn(8, TOKENS, WIDTH), *masks),
        loss=lambda y, t: (y - t).square().mean(),
        target=torch.zeros(8, TOKENS, 3),
        recipe="adam lr=1e-3 precision=fp16",
        rehearse=1,
        seeds=1,
    )
    assert not [finding for finding in report.findings if finding.rule == "GL605"]


class Policy(nn.Module):
    """Logits of actions, some of which an input rules out."""

    def __init__(self, rule_out: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.rule_out = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)), rule_out

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        return self.rule_out(self.net(x), allowed)


@pytest.mark.parametrize(
    "rule_out",
    [
        lambda y, allowed: y + (1.0 - allowed) * -1e8,
        lambda y, allowed: y + allowed.log(),
        lambda y, allowed: y + torch.clamp(allowed.log(), min=-1e9),
        lambda y, allowed: torch.where(allowed > 0.0, y, -1e8),
    ],
    ids=["factor", "log", "clamped log", "where"],
)
def test_outputs_that_are_masked_are_healthy(rule_out):
    allowed = torch.tensor([1.0, 1.0, 0.0, 1.0]).repeat(8, 1)
    report = gradlint.check(Policy(rule_out), (torch.randn(8, 6), allowed), seeds=1)
    assert report.verdict == "healthy"
    assert not report.findings


def test_data_that_is_scaled_up_before_a_layer_is_no_mask():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return (self.first(x) + self.second(other * -1e6)).softmax(-1)

    report = gradlint.check(Scaled(), (torch.randn(8, 6), torch.randn(8, 4)), seeds=1)
    assert "GL606" in {finding.rule for finding in report.findings}


@pytest.mark.parametrize("value", [math.nan, INF])
def test_a_buffer_that_holds_nan_or_infinity_is_still_broken(value):
    mask = pairs(-100.0)
    mask[0, 0] = value
    report = gradlint.check(Attention(add, mask), torch.randn(8, TOKENS, WIDTH), seeds=1)
    assert report.verdict == "non-finite"
    assert "GL604" in {finding.rule for finding in report.findings}


def test_a_weight_that_is_infinite_in_one_place_is_no_mask():
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    module[2].bias.data[1] = -INF
    report = gradlint.check(module, torch.randn(8, 6), seeds=1)
    assert "GL604" in {finding.rule for finding in report.findings}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", ["buffer", "constant", "input", "masked_fill", "fused buffer"])
def test_the_mask_of_an_onnx_file_is_left_out_too(tmp_path, name, number):
    module, masks = SPELLINGS[name](number)
    given, stream = (torch.randn(8, TOKENS, WIDTH), *masks), io.BytesIO()
    names = ["x", "mask"][: len(given)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), given, stream, dynamo=False, input_names=names)
    (tmp_path / "model.onnx").write_bytes(stream.getvalue())
    arrays = {key: value.numpy() for key, value in zip(names, given, strict=True)}
    report = gradlint.check(tmp_path / "model.onnx", arrays, seeds=1)
    assert report.verdict == "healthy"
    assert {finding.rule for finding in report.findings} <= {"GL903"}
