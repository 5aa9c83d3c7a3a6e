"""False alarms: gradlint over standard architectures at their default initialization, where it should find nothing.

Prints one row per architecture as soon as it is checked, with the verdict of the probe and that of theory alone. Models of the
transformers library are built from the shrunken configurations in `transformers_architectures.py` with random weights, so nothing
is downloaded; the others are in `plain_architectures.py`.
"""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from common import Rows, every, parser
from deep_architectures import PLAIN_DEEP, transformers_at_depth
from plain_architectures import PLAIN
from torch import nn
from transformers_architectures import AS_SHIPPED, INPUTS, RESNET, TRANSFORMERS

import gradlint
from gradlint.errors import GradlintError, InputError
from gradlint.result import Confidence, Severity, TargetReport, Verdict

STEP = 25  # of a quick run

DEEP = transformers_at_depth()
FROZEN = {"clipseg": ("clip",), "encodec": ("encoder",)}
"""Parts that the library runs without a gradient: training freezes them, or does not go through this forward."""


@dataclass
class Row:
    """What became of one architecture."""

    name: str
    seconds: float = 0.0
    inferred: bool = True
    report: TargetReport | None = None
    alone: TargetReport | None = None  # without the probe
    error: str = ""

    @property
    def severities(self) -> set[Severity]:
        """Severities of findings that a report would show."""
        return {finding.severity for finding in _shown(self.report)} if self.report else set()

    def cells(self) -> tuple[str, ...]:
        """One row of the table."""
        if self.report is None:
            return self.name, "crashed", "", "", "", "", "", f"{self.seconds:.1f}", self.error
        report, coverage = self.report, self.report.coverage
        growth = f"{report.growth.decades:+.2f}" if report.growth else "-"
        counted = Counter(f"{f.rule}:{f.severity}:{f.confidence}" for f in _shown(report))
        findings = " ".join(f"{text} x{count}" if count > 1 else text for text, count in counted.items())
        unknown = " ".join(f"unknown:{name} x{count}" for name, count in coverage.unknown_ops.items())
        inputs = "inferred" if self.inferred else "given"
        understood = f"{coverage.understood}/{coverage.nodes}"
        alone = _alone(self.alone) if self.alone else ""
        facts = (inputs, report.capture, understood, f"{self.seconds:.1f}", f"{findings} {unknown}".strip())
        return (self.name, report.verdict, growth, alone, *facts)


def _alone(report: TargetReport) -> str:
    """What theory says by itself: its verdict, and growth with the interval."""
    growth = report.predicted
    if growth is None:
        return report.verdict
    low, high = growth.interval or (growth.decades, growth.decades)
    return f"{report.verdict} {growth.decades:+.2f} ({low:+.1f} to {high:+.1f})"


def _shown(report: TargetReport) -> list[Any]:
    return [finding for finding in report.findings if finding.confidence is not Confidence.REFUTED]


def build(name: str) -> tuple[nn.Module, Any]:
    """A model in train mode and, where they cannot be inferred, its inputs."""
    torch.manual_seed(0)
    if name in PLAIN:
        make, inputs = PLAIN[name]
        return make().train(), inputs
    if name in PLAIN_DEEP:
        make, inputs = PLAIN_DEEP[name]
        return make().train(), inputs and inputs()
    class_name, settings = (TRANSFORMERS | DEEP | AS_SHIPPED)[name]
    name = name.partition(",")[0]
    model_class = getattr(transformers, class_name)
    settings = dict(settings)
    if name == "detr":
        settings["backbone_config"] = transformers.ResNetConfig(**RESNET, out_features=["stage4"])
    model = model_class(model_class.config_class(**settings))
    if name in {"efficientnet", "mobilevit"}:
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.ones_(layer.weight)
    frozen = FROZEN.get(name, ())
    for part in frozen:
        model.get_submodule(part).requires_grad_(False)
    return model.train(), INPUTS.get(name)


def examine(name: str, *, probe: bool) -> Row:
    """Build and check one architecture; inputs are given only where they cannot be inferred."""
    row, start = Row(name), time.perf_counter()
    try:
        model, inputs = build(name)
        start = time.perf_counter()
        try:
            given = inputs if name in PLAIN_DEEP else None
            row.inferred = given is None
            row.report = gradlint.check(model, given, probe=probe).result
        except InputError:
            if inputs is None:
                raise
            row.inferred = False
            row.report = gradlint.check(model, inputs, probe=probe).result
    except GradlintError as error:
        row.error = f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - a crash is what the sweep looks for
        row.error = f"{type(error).__name__}: {error} (not a GradlintError)"
    row.seconds = time.perf_counter() - start
    return row


def without_probe(rows: list[Row]) -> str:
    """How often theory alone gives the verdict of the probe."""
    pairs = [(row.report.verdict, row.alone.verdict) for row in rows if row.report and row.alone]
    same = sum(measured == predicted for measured, predicted in pairs)
    unknown = sum(measured != predicted == Verdict.UNKNOWN for measured, predicted in pairs)
    shown = [finding for row in rows if row.alone for finding in _shown(row.alone) if finding.severity is not Severity.NOTE]
    return (
        f"without the probe: {same} of {len(pairs)} verdicts the same, {unknown} unknown, {len(pairs) - same - unknown} wrong; "
        f"{len(shown)} errors and warnings"
    )


def summary(rows: list[Row]) -> str:
    """The closing line."""
    faulty = [row for row in rows if row.name in AS_SHIPPED]
    rows = [row for row in rows if row.name not in AS_SHIPPED]
    reports = [row.report for row in rows if row.report]
    healthy = sum(report.verdict is Verdict.HEALTHY for report in reports)
    error, warning = (sum(level in row.severities for row in rows) for level in (Severity.ERROR, Severity.WARNING))
    given = sum(not row.inferred for row in rows)
    found = sum(Severity.ERROR in row.severities for row in faulty)
    shipped = f"; {found} of {len(faulty)} faulty as shipped found" if faulty else ""
    return (
        f"{len(rows)} architectures: {healthy} healthy, {error} with an error, {warning} with a warning, "
        f"{len(rows) - len(reports)} crashed, {given} with inputs given{shipped}"
    )


def main() -> None:
    """Print a row per architecture and the closing lines."""
    options = parser(__doc__, f"every {STEP}th architecture")
    options.add_argument("--only", nargs="+", metavar="NAME", help="these architectures alone")
    options.add_argument("--no-probe", action="store_true", help="theory alone")
    chosen = options.parse_args()
    names = [*TRANSFORMERS, *PLAIN, *DEEP, *PLAIN_DEEP, *AS_SHIPPED]
    if unknown := set(chosen.only or ()) - set(names):
        options.error(f"no architecture named {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    table = Rows(
        "architecture:<30", "verdict:<10", "growth", "theory alone:<30", "inputs:<8", "capture:<8", "understood", "seconds",
        "findings and unknown operators:<", title="Standard architectures at default initialization, train mode",
    )  # fmt: skip
    rows = []
    for name in chosen.only or every(names, STEP if chosen.quick else 1):
        rows.append(examine(name, probe=not chosen.no_probe))
        rows[-1].alone = rows[-1].report if chosen.no_probe else examine(name, probe=False).report
        table.add(*rows[-1].cells())
    print(summary(rows))
    print(without_probe([row for row in rows if row.name not in AS_SHIPPED]))


if __name__ == "__main__":
    main()
