"""Operators that break at a point: what is unguarded is found, at its operator and line, and no guard is reported."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradlint import Recipe, Severity, check
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.probe.measure import measure
from gradlint.ranges.intervals import Interval, rounded
from gradlint.ranges.propagation import ranges_of
from gradlint.ranges.singularities import Singularity
from gradlint.result import Confidence
from tests.models.exports import SCRIPT
from tests.models.singularity_cases import PAIRS, Model
from tests.models.versions import CLAMP_PASSES_AT_ITS_BOUNDS

RULES = ("GL602", "GL603")
SYMPTOMS = ("GL804", "GL805")
IDS = [pair.name for pair in PAIRS]
AT_BOUNDS = {"root of a bounded signal", "variance by subtraction, bounded", "angle, clamped at its edge"}
SPELLED_OUT = {  # the exporter writes these operators with others, without the guard that they have in torch
    *("log of sigmoid", "division by a deviation", "distance matrix by hand", "angle of a cosine", "unbiased deviation of one"),
    "inverse of a squashing",  # has no ONNX operator that the exporter knows
}
FUNCTIONS = (
    *(torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.abs, torch.neg, torch.square, torch.sin, torch.atan, torch.expm1),
    *(
        F.softplus,
        F.gelu,
        F.silu,
        F.elu,
        F.hardswish,
        F.leaky_relu,
        F.hardsigmoid,
        F.softsign,
        torch.round,
        torch.floor,
        torch.sign,
    ),
    *(lambda h: h.softmax(-1), lambda h: h.log_softmax(-1), lambda h: h - h.amax(-1, keepdim=True), lambda h: h.sort(-1).values),
    *(lambda h: h.clamp(-0.5, 2.0), lambda h: h.clamp(min=0.1), lambda h: 1 - h, lambda h: 0.3 * h + 0.2, lambda h: h / 7),
    *(lambda h: h * h, lambda h: h.pow(3), lambda h: 2**h, lambda h: (h.abs() + 0.1).log(), lambda h: h.abs().sqrt()),
    *(lambda h: 1 / (h.square() + 0.5), lambda h: h + h.flip(0), lambda h: h * h.roll(1, 0), lambda h: F.normalize(h, dim=-1)),
    *(lambda h: h - h.mean(-1, keepdim=True), lambda h: h.sum(-1, keepdim=True) + 0 * h, lambda h: h.cumsum(-1)),
    *(lambda h: h.norm(dim=-1, keepdim=True) + 0 * h, lambda h: h.var(-1, keepdim=True) + 0 * h, lambda h: F.layer_norm(h, (8,))),
    *(lambda h: torch.where(h > 0, h, 0.1 * h), lambda h: h.masked_fill(h < 0, 1.0), lambda h: torch.maximum(h, h.flip(1))),
    *(lambda h: h @ h.T @ h, lambda h: torch.cat([h[:, 4:], h[:, :4]], 1), lambda h: h / (h.norm(dim=-1, keepdim=True) + 1e-3)),
    *(
        lambda h: F.dropout(h, 0.3),
        lambda h: h.logsumexp(-1, keepdim=True) + 0 * h,
        lambda h: torch.minimum(h, torch.tensor(0.4)),
    ),
    *(
        lambda h: h / (h.norm(dim=-1, keepdim=True) / 8**0.5 + 1e-3),
        lambda h: h / (h.square().sum(-1, keepdim=True).sqrt() + 0.1),
    ),
    *(lambda h: h.softmax(0).amax(0) + h, lambda h: h * h.T[:6, :1], lambda h: (h[:, :, None] * h[:, None]).sum(-1)),
)


def found(function, *, probe, select=RULES):
    torch.manual_seed(0)
    return check(Model(function), torch.randn(6, 8), select=select, probe=probe, seeds=1).findings


def escapes(module, *inputs):
    """The nodes whose values lie outside of their interval, with both."""
    runnable = TorchRunnable(module, args=inputs)
    seen = measure(runnable, seeds=1).ranges
    intervals = ranges_of(runnable.graph)
    return {node: (one, intervals[node]) for node, one in seen.items() if not holds(intervals[node], one.low, one.high)}


def holds(interval, low, high):
    """Whether values lie in an interval, but for the rounding of library functions and sums; NaN lies everywhere."""
    ends = [abs(end) for end in (interval.low, interval.high) if np.isfinite(end)]
    slack = 1e-5 * max(1.0, *ends, 0.0)
    return not (low < interval.low - slack or high > interval.high + slack)


@pytest.mark.parametrize("probe", [False, True], ids=["by interval", "probed"])
@pytest.mark.parametrize("pair", PAIRS, ids=IDS)
def test_an_unguarded_operator_is_named_with_its_line(pair, probe):
    findings = found(pair.broken, probe=probe)
    named = [(f.rule, f.evidence.get("function", f.message.partition(" ")[0]), f.line) for f in findings]
    assert (pair.rule, pair.operator, pair.broken.__code__.co_firstlineno) in named
    assert {rule for rule, _, _ in named} == {pair.rule}


@pytest.mark.parametrize("probe", [False, True], ids=["by interval", "probed"])
@pytest.mark.parametrize("pair", PAIRS, ids=IDS)
def test_a_guarded_operator_is_not_reported(pair, probe):
    assert not found(pair.guarded, probe=probe)


def signals():
    """What a weight layer may give: zeros, equal rows, saturating and mixed numbers."""
    zeros, drawn = torch.zeros(6, 8), torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    for value in (0.0, 1.0, -1.0, 30.0, -30.0, 120.0, -120.0):
        yield zeros + value
    yield from (drawn, 120 * drawn, 120 * drawn.abs(), 150 * torch.eye(6, 8), 300 * torch.eye(6, 8) - 150)
    yield torch.eye(1, 8).expand(6, 8)
    yield torch.cat([zeros[:3], drawn[3:]])
    yield torch.cat([drawn[:3], drawn[:3].flip(0)])


def breaks(function):
    for signal in signals():
        h = signal.clone().requires_grad_()
        out = function(h)
        if not out.isfinite().all() or not torch.autograd.grad(out.sum(), h)[0].isfinite().all():
            return True
    return False


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize(
    "pair", [pytest.param(p, id=p.name, marks=CLAMP_PASSES_AT_ITS_BOUNDS if p.name in AT_BOUNDS else ()) for p in PAIRS]
)
def test_the_table_is_true(pair):
    """torch itself gives NaN or infinity for some signal without the guard, and for none of them with it."""
    assert breaks(pair.broken)
    assert not breaks(pair.guarded)


def exported(function):
    file = io.BytesIO()
    torch.manual_seed(0)
    torch.onnx.export(Model(function).eval(), (torch.randn(6, 8),), file, **SCRIPT, opset_version=18)
    return onnx.load_from_string(file.getvalue())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.name not in SPELLED_OUT], ids=lambda pair: pair.name)
def test_an_onnx_file_gives_the_same_findings(pair):
    assert {finding.rule for finding in check(exported(pair.broken), select=RULES, probe=False).findings} == {pair.rule}
    assert not check(exported(pair.guarded), select=RULES, probe=False).findings


@pytest.mark.parametrize("function", [function for pair in PAIRS for function in (pair.broken, pair.guarded)])
def test_measured_values_lie_in_their_intervals(function):
    torch.manual_seed(0)
    assert not escapes(Model(function), torch.randn(6, 8))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FUNCTIONS), min_size=1, max_size=5), st.floats(0.01, 30.0), st.integers(0, 99))
def test_no_chain_of_operators_leaves_its_intervals(chain, scale, seed):
    def function(h):
        for step in chain:
            h = step(h)
        return h

    torch.manual_seed(seed)
    model = Model(function)
    with torch.no_grad():
        model.layer.weight.mul_(scale)
    assert not escapes(model, torch.randn(6, 8))


@given(st.floats(-7e4, 7e4), st.sampled_from(["float16", "bfloat16", "float32"]))
def test_ends_are_rounded_as_torch_rounds(value, dtype):
    assert rounded(value, dtype) == float(torch.tensor(value, dtype=torch.float64).to(getattr(torch, dtype)))


def test_an_eps_that_half_precision_drops_is_none():
    class Half(nn.Module):
        def __init__(self, eps):
            super().__init__()
            self.layer, self.eps = nn.Linear(8, 8).half(), eps

        def forward(self, x):
            return (self.layer(x.half()).sigmoid() + self.eps).log()

    findings = [check(Half(eps), torch.randn(6, 8), select=RULES, probe=False).findings for eps in (1e-8, 1e-4)]
    assert [len(each) for each in findings] == [1, 0]


def test_what_the_probe_saw_at_the_point_is_an_error_and_explains_the_symptom():
    def distance(h):
        return (h[:3] - h[:3].clone()).square().sum(-1).sqrt()

    findings = {finding.rule: finding for finding in found(distance, probe=True, select=(*RULES, *SYMPTOMS))}
    assert findings["GL602"].severity is Severity.ERROR
    assert findings["GL602"].confidence is Confidence.MEASURED
    assert findings["GL602"].evidence["seen"] == (0.0, 0.0)
    assert findings["GL805"].caused_by == "GL602"


def test_a_reach_that_the_probe_saw_far_off_is_a_note():
    (finding,) = found(lambda h: h.sigmoid().log(), probe=True)
    assert finding.severity is Severity.NOTE
    assert finding.confidence is Confidence.PREDICTED
    assert finding.evidence["interval"] == (0.0, 1.0)
    low, high = finding.evidence["seen"]
    assert 0.0 < low < high < 1.0


@pytest.mark.parametrize(
    ("shift", "severity"), [(0, Severity.NOTE), (30, Severity.WARNING), (60, Severity.WARNING), (75, Severity.ERROR)]
)
def test_a_probability_is_an_error_where_float32_is_about_to_end(shift, severity):
    """1e-26 has eleven decades left, and the derivative of its logarithm is finite; 1e-33 is some updates from zero."""
    (finding,) = found(lambda h: (h - shift).sigmoid().log(), probe=True)
    assert finding.severity is severity


def test_a_pole_that_may_be_on_both_sides_stays_a_warning():
    (finding,) = found(lambda h: h / h.roll(1, -1), probe=True)
    assert finding.severity is Severity.WARNING


def test_large_numbers_beside_small_ones_are_not_at_a_pole():
    item = Singularity("div", "sum", "division", Interval(0.0, at_low=True), pole=True)
    assert not item.hit(2.62e4, 4.05e21)
    assert replace(item, cancels=True).hit(2.62e4, 4.05e21)
    assert item.hit(0.0, 1.0)
    assert not replace(item, slope=True).hit(1e-37, 1.0)


@pytest.mark.parametrize(("shift", "severity"), [(0, Severity.NOTE), (40, Severity.WARNING), (80, Severity.ERROR)])
def test_an_exponent_is_judged_by_what_was_seen(shift, severity):
    (finding,) = found(lambda h: (h + shift).exp(), probe=True)
    assert finding.severity is severity


def test_an_exponent_in_half_precision_is_a_warning():
    torch.manual_seed(0)
    model, recipe = Model(lambda h: (0.5 * h).exp()), Recipe(precision="fp16")
    (finding,) = check(model, torch.randn(6, 8), select=RULES, seeds=1, rehearse=0, recipe=recipe).findings
    assert finding.severity is Severity.WARNING


@pytest.mark.parametrize(("lr", "severity"), [(1e-3, Severity.NOTE), (1e3, Severity.ERROR)])
def test_an_operator_of_the_loss_is_judged_by_the_rehearsal(lr, severity):
    """Both logarithms of a cross-entropy by hand are one finding."""

    def by_hand(logits, target):
        p = logits.sigmoid()
        return -(target * p.log() + (1 - target) * (1 - p).log()).mean()

    torch.manual_seed(0)
    settings = {"loss": by_hand, "target": torch.eye(4)[torch.arange(6) % 4], "recipe": Recipe("sgd", lr=lr)}
    (finding,) = check(nn.Linear(8, 4), torch.randn(6, 8), select=RULES, seeds=1, **settings).findings
    assert finding.rule == "GL602"
    assert finding.severity is severity


class Attention(nn.Module):
    """Softmax over the edges that end in one node, written by hand; without `shift` it overflows, on `relu` scores it is 0/0."""

    def __init__(self, variant="shift"):
        super().__init__()
        self.layer, self.variant = nn.Linear(8, 1), variant

    def forward(self, x, edges):
        index = edges[1]
        scores = self.layer(x)[edges[0]]
        spread = index[:, None].expand_as(scores)
        top = torch.full((6, 1), -1e9).scatter_reduce(0, spread, scores.detach(), "amax")
        weights = {"shift": (scores - top[index]).exp, "none": scores.exp, "relu": scores.relu}[self.variant]()
        sums = torch.zeros(6, 1).index_add(0, index, weights)
        return weights / sums[index]


@pytest.mark.parametrize(("variant", "rules"), [("shift", []), ("none", ["GL603"]), ("relu", ["GL602"])])
def test_a_softmax_over_segments_needs_the_shift(variant, rules):
    edges = torch.stack([torch.arange(12) % 6, torch.arange(12) // 2])
    torch.manual_seed(0)
    model, x = Attention(variant), torch.randn(6, 8)
    assert not escapes(model, x, edges)
    assert [finding.rule for finding in check(model, (x, edges), select=RULES, seeds=1).findings] == rules


def test_a_sum_over_segments_is_zero_where_a_segment_is_empty():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 1)

        def forward(self, x, index):
            weights = self.layer(x).sigmoid()
            return 1 / torch.zeros(9, 1).scatter_add(0, index[:, None], weights)

    (finding,) = check(Mean(), (torch.randn(6, 8), torch.arange(6)), select=RULES, seeds=1).findings
    assert finding.rule == "GL602"
    assert finding.severity is Severity.ERROR
    assert "scatter_add" in finding.message


def test_a_symptom_names_the_operator_as_torch_does():
    findings = found(lambda h: (0.0 * h + 1.0).acos(), probe=True, select=("GL805",))
    assert [finding.message.partition(" makes")[0] for finding in findings] == ["acos"]


def test_an_exponent_close_to_the_limit_is_an_error():
    (finding,) = found(lambda h: (80 + h).exp(), probe=True)
    assert finding.severity is Severity.ERROR
    assert finding.evidence["limit"] == pytest.approx(np.log(np.finfo(np.float32).max))


def test_a_derivative_that_no_weight_gets_is_not_reported():
    class OfInput(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(x.square().sqrt())

    assert not check(OfInput(), torch.zeros(4, 8), select=RULES, seeds=1).findings


def test_the_loss_that_is_given_is_looked_at_too():
    def by_hand(logits, target):
        return -(target * logits.softmax(-1).log()).sum(-1).mean()

    torch.manual_seed(0)
    model, target = nn.Linear(8, 4), torch.eye(4)[torch.arange(6) % 4]
    (finding,) = check(model, torch.randn(6, 8), loss=by_hand, target=target, select=RULES, seeds=1).findings
    assert finding.rule == "GL602"
    assert finding.message.startswith("in the loss: log")
    assert finding.line == by_hand.__code__.co_firstlineno + 1
    assert not check(model, torch.randn(6, 8), loss=F.cross_entropy, target=torch.arange(6) % 4, select=RULES, seeds=1).findings


def test_an_interval_knows_whether_zero_is_within_reach():
    assert Interval(-1.0, 1.0, at_low=True, at_high=True).crosses_zero
    assert Interval(0.0, 1.0, at_low=True).crosses_zero
    assert not Interval(0.0, 1.0, at_high=True).crosses_zero
    assert not Interval(1e-9, 1.0, at_low=True, at_high=True).crosses_zero
