"""The engine: rules confronted with the probe, symptoms related to causes, verdicts where little or nothing was measured."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import gradlint
from gradlint.catalog import load_rules
from gradlint.errors import ForwardError, TargetError
from gradlint.growth import HEALTHY, LIMIT
from gradlint.result import Confidence, Effect, Finding, Gains, Growth, Measurement, Severity, Verdict
from gradlint.rule import Rule
from gradlint.score import judge
from gradlint.verify import relate, verify

INF = math.inf
RULES = {rule.code: rule() for rule in load_rules()}


class Calling(nn.Module):
    """Two layers, and a forward that is given."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.first, self.second, self.run = nn.Linear(16, 16), nn.Linear(16, 16), forward

    def forward(self, x):
        return self.run(self, x)


def lint(forward, x=None, **options):
    return gradlint.check(Calling(forward), torch.randn(8, 16) if x is None else x, **options)


def measurement(*levels, **fields):
    gains = {f"n{index}": Gains(level, 0.0, level) for index, level in enumerate(levels)}
    return Measurement(gains, tuple(gains), (f"n{len(levels) - 1}",), Growth(0.0), 1, **fields)


def confronted(levels, effect, severity=Severity.ERROR, span=None, **fields):
    found = measurement(*levels, **fields)
    finding = Finding("GL101", "weight-gain-above-critical", severity, "", effect=effect, span=span, evidence={"decades": 9.0})
    return verify(finding, found, {node: index for index, node in enumerate(found.spine)})


# confronting rules with the probe ---------------------------------------------------------------------------------------


def falling(decades, steps=10):
    """Gains along a spine that explode by `decades` of sustained growth: one step more than that, and it is left out."""
    return [decades * (1.0 - index / steps) + decades / steps for index in range(steps + 2)]


@pytest.mark.parametrize(
    ("decades", "effect", "confidence", "severity"),
    [
        (LIMIT + 0.1, Effect.EXPLODES, Confidence.MEASURED, Severity.ERROR),
        (LIMIT - 0.1, Effect.EXPLODES, Confidence.MEASURED, Severity.WARNING),
        (HEALTHY - 0.1, Effect.EXPLODES, Confidence.REFUTED, Severity.ERROR),
        (LIMIT + 0.1, Effect.VANISHES, Confidence.REFUTED, Severity.ERROR),
        (-LIMIT - 0.1, Effect.VANISHES, Confidence.MEASURED, Severity.ERROR),
        (-LIMIT - 0.1, Effect.EITHER, Confidence.MEASURED, Severity.ERROR),
    ],
)
def test_a_claim_stands_when_the_measured_growth_has_its_size_and_direction(decades, effect, confidence, severity):
    found = confronted(falling(decades), effect)
    assert (found.confidence, found.severity) == (confidence, severity)


def test_a_measured_claim_explains_the_measured_decades_and_a_note_stays_a_note():
    found = confronted(falling(5.0), Effect.EXPLODES, Severity.NOTE)
    assert found.evidence["decades"] == pytest.approx(5.0)
    assert found.severity is Severity.NOTE


def test_a_claim_is_checked_over_its_own_span():
    levels = [*falling(5.0), *[0.0] * 5]
    assert confronted(levels, Effect.EXPLODES, span=("n13", "n16")).confidence is Confidence.REFUTED
    assert confronted(levels, Effect.EXPLODES, span=("n1", "n11")).confidence is Confidence.MEASURED


@pytest.mark.parametrize("levels", [[], [0.0], [math.nan] * 5, [INF] * 5])
def test_a_claim_stays_predicted_where_nothing_was_measured(levels):
    assert confronted(levels, Effect.EXPLODES).confidence is Confidence.PREDICTED
    assert confronted(falling(5.0), Effect.EXPLODES, dead=True).confidence is Confidence.PREDICTED


# causes and symptoms ----------------------------------------------------------------------------------------------------


def finding(rule, effect=None, decades=0.0, **fields):
    fields = {"confidence": Confidence.MEASURED, **fields}
    return Finding(rule, rule, Severity.ERROR, "", effect=effect, evidence={"decades": decades}, **fields)


def test_a_symptom_points_at_the_cause_that_explains_most():
    weak, strong = finding("GL101", Effect.EXPLODES, 3.0), finding("GL302", Effect.EXPLODES, 5.0)
    vanishing = finding("GL102", Effect.VANISHES, 9.0)
    symptom = relate([weak, strong, vanishing, finding("GL801")], RULES)[-1]
    assert symptom.caused_by == "GL302"


def test_a_refuted_finding_explains_nothing():
    refuted = finding("GL101", Effect.EXPLODES, 9.0, confidence=Confidence.REFUTED)
    assert relate([refuted, finding("GL801")], RULES)[-1].caused_by is None


def test_depth_is_not_reported_beside_a_cause_that_explains_as_much():
    depth, cause = finding("GL201", Effect.EITHER, 5.0), finding("GL101", Effect.EXPLODES, 5.0)
    assert relate([depth, cause], RULES) == [cause]
    unprobed = [replace(finding, confidence=Confidence.PREDICTED) for finding in (depth, cause)]
    assert relate(unprobed, RULES) == unprobed[1:]
    assert relate([depth, replace(cause, evidence={"decades": 1.0})], RULES)[0] == depth


def explained(cause, symptom):
    return relate([cause, symptom], RULES)[-1].caused_by


@pytest.mark.parametrize("code", ["GL602", "GL603"])
@pytest.mark.parametrize("symptom", ["GL804", "GL805"])
def test_an_operator_explains_only_what_breaks_at_its_own_place_or_with_it_in_the_loss(code, symptom):
    for nodes, others, holds in ((("a", "b"), ("b",), True), (("a",), ("b",), False), ((), (), True), ((), ("b",), False)):
        cause = finding(code, nodes=nodes)
        assert explained(cause, finding(symptom, nodes=others)) == (code if holds else None)


@pytest.mark.parametrize(("cause", "holds"), [("operator", True), ("precision", True), ("rate", False), (None, False)])
@pytest.mark.parametrize("code", ["GL602", "GL603", "GL605"])
def test_a_rehearsal_is_explained_by_operators_and_formats_only_where_these_made_it_fail(code, cause, holds):
    failed = replace(finding("GL807", nodes=("a",)), evidence={"cause": cause})
    assert explained(finding(code, nodes=("a",)), failed) == (code if holds else None)


def test_a_recurrent_matrix_is_explained_by_its_own_activation_and_by_none_that_is_milder():
    matrix = finding("GL502", Effect.EXPLODES, 5.0, nodes=("rnn0",))
    assert explained(finding("GL501", Effect.EXPLODES, 5.0, nodes=("rnn0",)), matrix) == "GL501"
    assert explained(finding("GL501", Effect.EXPLODES, 5.0, nodes=("rnn1",)), matrix) is None
    milder = replace(finding("GL501", Effect.EXPLODES, 5.0, nodes=("rnn0",)), severity=Severity.WARNING)
    assert explained(milder, matrix) is None
    assert explained(matrix, finding("GL505", decades=5.0, nodes=("control0",))) == "GL502"


class Young(Rule):
    """A rule of a pack, which says how it belongs to built-in ones."""

    code, name, severity, examples = "XX001", "young", Severity.ERROR, ()
    explains, explained_by = ("GL403",), ("GL104", Effect.VANISHES)

    def check(self, subject):
        return []


def test_the_younger_of_two_rules_says_that_they_belong_together():
    rules = RULES | {"XX001": Young()}
    for cause in (finding("GL104"), finding("GL102", Effect.VANISHES)):
        assert relate([cause, finding("XX001")], rules)[-1].caused_by == cause.rule
    assert relate([finding("GL101", Effect.EXPLODES), finding("XX001")], rules)[-1].caused_by is None
    assert relate([finding("XX001"), finding("GL403")], rules)[-1].caused_by == "XX001"
    assert relate([finding("XX001"), finding("GL804")], rules)[-1].caused_by is None


# verdicts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [Verdict.NON_FINITE, Verdict.VANISHES])
def test_an_error_makes_the_verdict_that_its_rule_declares(verdict):
    def judged(error):
        return judge(measurement(0.0, 0.0), Growth(0.0), [error], conclusive=True, broken_weight=False)

    error = finding("XX001", verdict=verdict)
    assert judged(error) == (verdict, 0)
    for spared in (replace(error, severity=Severity.WARNING), replace(error, confidence=Confidence.REFUTED)):
        assert judged(spared)[0] == "healthy"
        assert judged(spared)[1] > 90


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: torch.ones(3),
        lambda net, x: None,
        lambda net, x: net.first.weight,
    ],
    ids=["constant", "nothing", "parameter"],
)
def test_no_growth_and_no_verdict_are_given_where_no_gradient_was_measured(forward):
    report = lint(forward)
    assert (report.verdict, report.growth) == ("unknown", None)


def test_an_empty_batch_is_not_taken_for_a_vanishing_gradient():
    report = gradlint.check(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(0, 4))
    assert (report.verdict, report.growth) == ("unknown", None)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.second(net.first(x) * 1e300),
        lambda net, x: net.second(net.first(x) + -1.7e308),
        lambda net, x: net.second(net.first(x) * INF),
        lambda net, x: net.second(net.first(x) + math.nan),
    ],
    ids=["1e300", "largest", "infinity", "NaN"],
)
@pytest.mark.parametrize("probe", [True, False])
def test_constants_beyond_the_range_of_squares_are_no_internal_error(forward, probe):
    module = Calling(forward).double()
    nn.init.ones_(module.second.weight)  # nothing cancels
    report = gradlint.check(module, torch.randn(8, 16, dtype=torch.float64), probe=probe)
    assert report.verdict in ({"non-finite"} if probe else {"unknown", "healthy"})


@pytest.mark.parametrize("factor", [1e2, 1e60])
def test_a_signal_that_leaves_the_range_of_floats_is_predicted_to_explode(factor):
    """Theory stays in logarithms, however large the signal; float64 alone would end in NaN, which is no growth at all.

    Growth is proportional to all weights, so that autograd tells it from small ones; the mean over draws has an error of 0.6. The
    product of the expected gains would be 6 decades more.
    """
    torch.manual_seed(0)
    x, measured = torch.randn(8, 16, dtype=torch.float64), []
    for _ in range(8):
        layers = [layer for _ in range(200) for layer in (nn.Linear(16, 16, bias=False).double(), nn.ReLU())]
        model = nn.Sequential(*layers)
        (gradient,) = torch.autograd.grad(model(leaf := x.clone().requires_grad_()), leaf, ends := torch.randn_like(x))
        measured.append(math.log10(float(gradient.norm() / ends.norm())) + 200 * math.log10(factor))
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.mul_(factor)
    report = gradlint.check(model, x, probe=False)
    assert report.verdict == "explodes"
    assert report.growth.total == pytest.approx(statistics.fmean(measured), abs=3.0)


def test_a_factor_of_exactly_zero_is_not_predicted_to_be_healthy():
    assert lint(lambda net, x: net.second(net.first(x) * 0.0), probe=False).verdict == "unknown"


def test_a_fault_is_judged_where_the_probe_stopped_half_way():
    growing = Growth(LIMIT + 1.0)
    assert judge(measurement(5.0, 0.0), growing, [], conclusive=False, broken_weight=False)[0] == "explodes"
    assert judge(measurement(5.0, 0.0), Growth(0.0), [], conclusive=False, broken_weight=False)[0] == "unknown"


@pytest.mark.parametrize(("conclusive", "verdict"), [(True, "explodes"), (False, "unknown")])
def test_a_predicted_fault_is_judged_where_theory_is_sure_of_it(conclusive, verdict):
    found, score = judge(None, Growth(LIMIT + 1.0), [], conclusive=conclusive, broken_weight=False)
    assert found == verdict
    assert score < 50


def _with_unknown(place):
    """Linear, Relu, Linear as ONNX with an operator that nobody knows at one of the places between."""
    names = ["MatMul", "Relu", "MatMul"]
    names.insert(place, "Strange")
    nodes = []
    for index, name in enumerate(names):
        weights = ["w"] if name == "MatMul" else []
        domain = {"domain": "own"} if name == "Strange" else {}
        nodes.append(helper.make_node(name, [f"t{index}", *weights], [f"t{index + 1}"], **domain))
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32) + 0.1, "w")
    x = helper.make_tensor_value_info("t0", TensorProto.FLOAT, [8, 4])
    y = helper.make_tensor_value_info(f"t{len(names)}", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight]), opset_imports=opsets)


@pytest.mark.parametrize(("place", "verdict"), [(0, "unknown"), (1, "unknown"), (2, "unknown"), (3, "healthy")])
def test_a_probe_that_stops_before_a_weight_layer_knows_no_verdict(place, verdict):
    report = gradlint.check(_with_unknown(place))
    assert report.verdict == verdict
    assert {"GL901", "GL902"} <= {found.rule for found in report.findings}


def test_a_layer_that_reads_weights_alone_is_not_taken_for_dead():
    """LoRA in ONNX: the product of two weights has no input, so that none of it is zero."""
    left, right = (numpy_helper.from_array(np.eye(4, dtype=np.float32), name) for name in ("left", "right"))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])
    graph = helper.make_graph([helper.make_node("MatMul", ["left", "right"], ["y"])], "g", [], [y], [left, right])
    report = gradlint.check(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    assert report.verdict != "vanishes"
    assert not report.findings


# what models do ---------------------------------------------------------------------------------------------------------


def _overwritten(net, x):
    y = net.first(x).relu_()
    return y.mul_(2.0)


class _Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2.0

    @staticmethod
    def backward(ctx, grad):
        raise ValueError("no way back")


@pytest.mark.parametrize("forward", [_overwritten, lambda net, x: _Raising.apply(net.first(x))], ids=["in place", "custom"])
def test_a_backward_pass_that_raises_is_the_users_error(forward):
    with pytest.raises(ForwardError, match=r"backward pass raised (RuntimeError|ValueError): (one of|no way back)"):
        lint(forward)


class _Silent(_Raising):
    @staticmethod
    def backward(ctx, grad):
        return None


def test_a_custom_backward_pass_that_returns_none_is_a_cut():
    report = lint(lambda net, x: net.second(_Silent.apply(net.first(x))))
    (cut,) = [found for found in report.findings if found.rule == "GL806"]
    assert cut.evidence["starved"] == ["first.weight", "first.bias"]


def test_a_sparse_output_is_measured_like_a_dense_one():
    torch.manual_seed(0)
    net, x = Calling(lambda net, x: net.second(net.first(x))), torch.randn(8, 16)
    dense = gradlint.check(net, x)
    net.run = lambda net, x: net.second(net.first(x)).to_sparse()
    assert gradlint.check(net, x).spine[0].backward == pytest.approx(dense.spine[0].backward, abs=0.05)


def test_weights_that_learn_through_another_call_are_not_starved():
    """A straight-through estimator and a stop-gradient branch detach one use of a weight, not the weight."""
    report = lint(lambda net, x: net.second(net.first(x)) + net.first(x).detach())
    assert not [found for found in report.findings if found.rule == "GL806"]


def test_a_model_on_the_meta_device_is_refused():
    with pytest.raises(TargetError, match="meta device"):
        gradlint.check(nn.Linear(4, 4, device="meta"), torch.randn(8, 4))


def test_complex_weights_count_with_their_imaginary_part():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(64, 64, bias=False, dtype=torch.complex64) for _ in range(8)])
    x = torch.randn(8, 64, dtype=torch.complex64)
    measured, predicted = gradlint.check(net, x), gradlint.check(net, x, probe=False)
    assert predicted.growth.decades == pytest.approx(measured.growth.decades, abs=0.2)
