"""Reports made by hand, one for each thing that a report has to show; numbers are plausible, not measured."""

from __future__ import annotations

import math

from gradlint.graph import Source
from gradlint.measurements.coverage import Coverage, InputInfo, Skipped
from gradlint.result import (
    Confidence,
    Effect,
    Finding,
    Growth,
    Jump,
    Place,
    Remedy,
    Severity,
    SpinePoint,
    TargetReport,
    TimeGrowth,
    Verdict,
)
from gradlint.theory.reading.attribution import Attribution, Share
from gradlint.theory.reading.phase import phase
from gradlint.theory.reading.stacks import Stack

_INPUT = (InputInfo("x", "float32[8,256]", given=False),)
_TIMINGS = {"load": 0.31, "theory": 0.02, "probe": 0.44, "rules": 0.13}
_SKIPPED = tuple(Skipped(f"GL50{n}", "no recurrence in the graph") for n in (1, 2))


def _wobble(index: int) -> float:
    return 0.03 * math.sin(1.7 * index)


def _stack(
    depth: int, step: float, *, activation: str = "tanh", source: bool = True, measured: bool = True
) -> tuple[SpinePoint, ...]:
    """An input, `depth` blocks of a linear layer and an activation, and a head."""
    total = step * depth
    line = (lambda number: Source("net.py", number)) if source else (lambda _: None)
    points = [SpinePoint(Place("x"), "input", total if measured else None, 0.0 if measured else None, total, 0.0)]
    for index in range(depth):
        after = total - step * (index + 1)
        here = after + _wobble(index) if measured else None
        signal = -0.05 + _wobble(index + 1) if measured else None
        module = f"blocks.{index}"
        points.append(SpinePoint(Place(f"{module}.fc/linear", f"{module}.fc"), "linear", here, signal, after, -0.02, line(14)))
        points.append(SpinePoint(Place(f"{module}/{activation}", module), activation, here, signal, after, -0.02, line(15)))
    head = (0.0, -0.3) if measured else (None, None)
    points.append(SpinePoint(Place("head/linear", "head"), "linear", *head, 0.0, -0.3, line(20)))
    return tuple(points)


def _places(depth: int, suffix: str = ".fc/linear") -> tuple[str, ...]:
    return tuple(f"blocks.{index}{suffix}" for index in range(depth))


def _explained(nodes: tuple[str, ...]) -> tuple[Finding, ...]:
    """A cause, its symptom, and a refuted claim."""
    remedy = Remedy(
        "scale blocks.*.fc.weight by 0.40, or nn.init.orthogonal_(w, gain=1.0)",
        ({"scale": "blocks.*.fc.weight", "by": 0.4},),
        (5.9, 0.03),
    )
    layers = {"nodes": nodes, "module": "blocks.0-29.fc", "source": Source("net.py", 14), "confidence": Confidence.MEASURED}
    return (
        Finding(
            "GL101",
            "weight-gain-above-critical",
            Severity.ERROR,
            "weights have gain 2.50; tanh is critical at 1.00.",
            **layers,
            evidence={"gain": 2.5, "critical": 1.0, "decades": 5.9, "layers": 30},
            remedy=remedy,
            effect=Effect.EXPLODES,
            span=(nodes[0], nodes[-1]),
            fingerprint="5f1c",
        ),
        Finding(
            "GL801",
            "jacobian-growth",
            Severity.ERROR,
            "the gradient grows by 5.9 decades.",
            **layers,
            evidence={"decades": 5.9},
            caused_by="GL101",
            fingerprint="9a77",
        ),
        Finding(
            "GL302",
            "norm-without-residual",
            Severity.WARNING,
            "a chain of norms without skips may explode.",
            ("blocks.3/tanh",),
            "blocks.3",
            confidence=Confidence.REFUTED,
            fingerprint="77aa",
        ),
    )


def exploding() -> TargetReport:
    nodes = _places(30)
    return TargetReport(
        target="net.py:build",
        frontend="torch",
        mode="train",
        verdict=Verdict.EXPLODES,
        score=7,
        growth=Growth(
            5.9, rise=5.9, total=6.0, spread=0.1, relative=0.2, start=Place("x"), end=Place("head/linear", "head"), jumps=()
        ),
        spine=_stack(30, 0.2),
        findings=_explained(nodes),
        coverage=Coverage(62, 62, 62),
        skipped=_SKIPPED,
        inputs=_INPUT,
        timings=_TIMINGS,
        seeds=3,
        rules_checked=17,
        predicted=Growth(5.8, rise=5.8, total=6.0, interval=(5.5, 6.1)),
        attribution=Attribution((Share("linear", 2.5, 30), Share("tanh", 0.63, 30)), 30),
        stack=Stack(phase("tanh", (), 2.5), 30, nodes[0], "blocks.29/tanh"),
    )


def healthy() -> TargetReport:
    return TargetReport(
        target="sample_models/tanh_stack_healthy.onnx",
        frontend="onnx",
        mode="eval",
        verdict=Verdict.HEALTHY,
        score=97,
        growth=Growth(
            0.2, rise=0.2, total=0.3, spread=0.04, relative=0.2, start=Place("x"), end=Place("head/linear", "head"), jumps=()
        ),
        spine=_stack(12, 0.02, source=False),
        findings=(),
        coverage=Coverage(26, 26, 26),
        skipped=_SKIPPED,
        inputs=_INPUT,
        timings=_TIMINGS,
        seeds=3,
        rules_checked=17,
    )


def vanishing() -> TargetReport:
    return TargetReport(
        target="zoo.nets:SigmoidChain",
        frontend="torch",
        mode="train",
        verdict=Verdict.VANISHES,
        score=3,
        growth=Growth(-11.4, fall=11.4, total=-12.0, spread=0.2, start=Place("x"), end=Place("head/linear", "head"), jumps=()),
        spine=_stack(20, -0.6, activation="sigmoid"),
        findings=(
            Finding(
                "GL402",
                "saturating-chain",
                Severity.ERROR,
                "20 sigmoids in a row, each of slope at most 0.25, with weights of gain 1.00.",
                _places(20, "/sigmoid"),
                "blocks.0-19",
                Source("net.py", 15),
                Confidence.MEASURED,
                {"activations": 20, "mean_slope": 0.2447, "decades": 11.4},
                Remedy("replace the sigmoids by tanh or ReLU, or add a skip connection around each block"),
                Effect.VANISHES,
                fingerprint="0c11",
            ),
        ),
        coverage=Coverage(42, 42, 42),
        skipped=_SKIPPED,
        inputs=_INPUT,
        timings=_TIMINGS,
        seeds=3,
        rules_checked=17,
    )


def non_finite() -> TargetReport:
    spine = _stack(4, 0.05)
    broken = tuple(
        SpinePoint(p.place, p.op, math.nan, math.nan if index > 3 else p.forward, None, None, p.source)
        for index, p in enumerate(spine)
    )
    return TargetReport(
        target="broken.onnx",
        frontend="onnx",
        mode="eval",
        verdict=Verdict.NON_FINITE,
        score=0,
        growth=None,
        spine=broken,
        findings=(
            Finding(
                "GL604",
                "non-finite-weight",
                Severity.ERROR,
                "weight `blocks.1.fc.weight` holds 1 NaN in 65536 values.",
                ("blocks.1.fc/linear",),
                "blocks.1.fc",
                None,
                Confidence.MEASURED,
                {"count": 1},
                Remedy("load the weights again from a checkpoint from before the NaN"),
                fingerprint="e0e0",
            ),
            Finding(
                "GL804",
                "non-finite-forward",
                Severity.ERROR,
                "linear makes NaN out of finite operands.",
                ("blocks.1.fc/linear",),
                "blocks.1.fc",
                confidence=Confidence.MEASURED,
                evidence={"operands": ((-3.1, math.inf),)},
                caused_by="GL604",
                fingerprint="e1e1",
            ),
        ),
        coverage=Coverage(10, 10, 10),
        skipped=_SKIPPED,
        inputs=(InputInfo("x", "float32[1,256]", given=True),),
        timings=_TIMINGS,
        seeds=3,
        rules_checked=17,
    )


def unprobed() -> TargetReport:
    return TargetReport(
        target="detector.onnx",
        frontend="onnx",
        mode="eval",
        verdict=Verdict.UNKNOWN,
        score=50,
        growth=None,
        spine=_stack(6, 0.35, source=False, measured=False),
        findings=(
            Finding(
                "GL901",
                "operator-not-understood",
                Severity.NOTE,
                "com.acme::RoiWarp and com.acme::Voxelize are not in the vocabulary; the theory stops there.",
                ("/neck/warp_0/RoiWarp", "/neck/warp_1/RoiWarp"),
                fingerprint="aa01",
            ),
        ),
        coverage=Coverage(30, 27, 0, {"com.acme::RoiWarp": 2, "com.acme::Voxelize": 1}),
        skipped=(*_SKIPPED, Skipped("GL801", "not probed")),
        inputs=(),
        timings=_TIMINGS,
        rules_checked=11,
        notes=("the weights are stored as external data",),
        predicted=Growth(2.1, rise=2.1, total=2.1, start=Place("x"), end=Place("head/linear", "head"), interval=(1.8, 2.4)),
    )


def deep() -> TargetReport:
    """300 residual blocks: flat, then a stretch that grows, a one-off jump at the stem, branches named by long paths."""
    points = [
        SpinePoint(Place("pixels"), "input", 4.6, 0.0),
        SpinePoint(Place("stem/conv", "stem.projection"), "conv", 2.9, -0.4),
    ]
    for index in range(300):
        backward = 2.9 if index < 120 else 2.9 - 0.03 * (index - 120) if index < 200 else 0.5
        module = f"model.encoder.stages.{index // 100}.layers.{index}"
        source = Source("/opt/project/src/models/very_long_module_name.py", 200 + index % 3)
        points.append(SpinePoint(Place(f"{module}/add", module), "add", backward + _wobble(index), 0.01 * index, source=source))
    points.append(SpinePoint(Place("head/linear", "head"), "linear", 0.0, -0.4))
    grown = tuple(f"model.encoder.stages.1.layers.{index}/add" for index in range(120, 200))
    return TargetReport(
        target="vision.zoo:deep_residual_network",
        frontend="torch",
        mode="train",
        verdict=Verdict.EXPLODES,
        score=34,
        growth=Growth(
            2.4,
            rise=2.4,
            total=4.6,
            spread=0.1,
            start=Place(grown[0], grown[0].partition("/")[0]),
            end=Place(grown[-1], grown[-1].partition("/")[0]),
            jumps=(Jump(Place("stem/conv", "stem.projection"), 1.7),),
        ),
        spine=tuple(points),
        findings=(
            Finding(
                "GL202",
                "residual-sum-unscaled",
                Severity.WARNING,
                "80 residual sums in a row add branches of the same size as the skip path, without a norm or a scale "
                "between them; the signal, and with it the gradient, grows with every one of them.",
                grown,
                "model.encoder.stages.1.layers.120-199",
                Source("/opt/project/src/models/very_long_module_name.py", 201),
                Confidence.PREDICTED,
                {"sums": 80, "branch_ratio": 0.3719, "decades": 2.4},
                Remedy("scale each branch by 1/sqrt(2 x 80) = 0.079, or start the last weight of each branch at zero"),
                Effect.EXPLODES,
                fingerprint="4242",
            ),
        ),
        coverage=Coverage(2104, 2104, 2101),
        skipped=_SKIPPED,
        inputs=(InputInfo("pixels", "float32[8,3,224,224]", given=False), InputInfo("mask", "bool[8,196]", given=True)),
        timings=_TIMINGS,
        seeds=3,
        rules_checked=17,
        notes=("captured with its compiled parts run eagerly",),
        capture="eager",
    )


def recurrent() -> TargetReport:
    steps = tuple(0.114 * (63 - step) + _wobble(step) for step in range(64))
    growth = Growth(7.0, rise=7.0, total=7.2, spread=0.3, per_step=0.114, start=Place("rnn", "rnn"), end=Place("rnn", "rnn"))
    return TargetReport(
        target="net.py:ReluRNN",
        frontend="torch",
        mode="train",
        verdict=Verdict.EXPLODES,
        score=5,
        growth=growth,
        spine=(
            SpinePoint(Place("x"), "input", 6.4, 0.0),
            SpinePoint(Place("rnn", "rnn"), "rnn", 0.2, 3.1, source=Source("net.py", 8)),
            SpinePoint(Place("head", "head"), "linear", 0.0, 2.9, source=Source("net.py", 9)),
        ),
        findings=(
            Finding(
                "GL502",
                "recurrent-spectral-radius",
                Severity.ERROR,
                "the recurrent weight has spectral radius 1.30; above 1 a ReLU RNN multiplies the gradient by it at every step.",
                ("rnn",),
                "rnn",
                Source("net.py", 8),
                Confidence.MEASURED,
                {"radius": 1.3, "steps": 64, "decades": 7.0},
                Remedy("nn.init.orthogonal_(rnn.weight_hh_l0), or scale it by 0.77", verified=(7.0, 0.1)),
                Effect.EXPLODES,
                fingerprint="beef",
            ),
        ),
        coverage=Coverage(4, 4, 4),
        skipped=(),
        inputs=(InputInfo("x", "float32[8,64,16]", given=True),),
        timings=_TIMINGS,
        seeds=3,
        rules_checked=19,
        time=(TimeGrowth("rnn", steps, growth),),
    )


def cut() -> TargetReport:
    """The gradient is exactly zero before a detach; a batch of odd names shows that they are made harmless."""
    points = (
        SpinePoint(Place("x\x1b[31m"), "input", -math.inf, 0.0),
        SpinePoint(Place("0", "0"), "linear", -math.inf, 0.1),
        SpinePoint(Place("2", "2"), "linear", 0.4, 0.1),
        SpinePoint(Place("4", "4"), "linear", 0.0, 0.1),
    )
    return TargetReport(
        target="net.py:Detached",
        frontend="torch",
        mode="train",
        verdict=Verdict.UNTRAINABLE,
        score=0,
        growth=Growth(-math.inf, fall=math.inf, total=-math.inf, start=Place("0", "0"), end=Place("2", "2")),
        spine=points,
        findings=(
            Finding(
                "GL806",
                "gradient-path-cut",
                Severity.ERROR,
                "detach stops the gradient:\n2 weights before it never learn, 50% of all.",
                ("0",),
                "0",
                Source("net.py", 5),
                Confidence.MEASURED,
                fingerprint="c0de",
            ),
        ),
        coverage=Coverage(6, 6, 6),
        skipped=(),
        inputs=_INPUT,
        timings=_TIMINGS,
        seeds=1,
        rules_checked=19,
    )


SAMPLES = {sample.__name__: sample for sample in (exploding, healthy, vanishing, non_finite, unprobed, deep, recurrent, cut)}
