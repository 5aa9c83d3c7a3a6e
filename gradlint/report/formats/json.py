"""The JSON format, "gradlint-report/2". `schema()` returns its JSON Schema."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from typing import Any

from gradlint.measurements.evidence import Score
from gradlint.measurements.learning import Learning
from gradlint.measurements.trainability import Trainability
from gradlint.report import printable
from gradlint.report.wording import growths, short_path, shown
from gradlint.result import Finding, Place, SpinePoint, TargetReport, TimeGrowth, Track

SCHEMA = "gradlint-report/2"
_ESCAPES = {"\x7f": "\\u007f", "::": ":\\u003a", "##": "#\\u0023"}  # only strings contain these
_HALF = re.compile("[\ud800-\udfff]")  # of a pair: no text by itself


def render(reports: Sequence[TargetReport], *, version: str, show_refuted: bool = False, timings: bool = True, **_: Any) -> str:
    """Return all reports as one JSON document. Missing numbers are null, non-finite ones the strings "inf", "-inf", "nan".

    Names are what they are, but the text is printable ASCII, and nothing in it reads as a workflow command.
    """
    targets = [_target(report, refuted=show_refuted, timings=timings) for report in reports]
    document = _without_halves({"schema": SCHEMA, "version": version, "targets": targets})
    text = json.dumps(document, indent=2, allow_nan=False)
    for sign, escape in _ESCAPES.items():
        text = text.replace(sign, escape)
    return text + "\n"


def _without_halves(value: Any) -> Any:
    """Return a document in which every lone surrogate, which strict readers of JSON refuse, is written as its escape."""
    if isinstance(value, str):
        return _HALF.sub(lambda found: printable(found[0]), value)
    if isinstance(value, dict):
        return {_without_halves(key): _without_halves(item) for key, item in value.items()}
    return [_without_halves(item) for item in value] if isinstance(value, list) else value


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) that every report satisfies."""
    text = resources.files("gradlint.report").joinpath("schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _target(report: TargetReport, *, refuted: bool, timings: bool) -> dict[str, Any]:
    document = {
        "target": report.target,
        "frontend": report.frontend,
        "mode": report.mode,
        "capture": report.capture,
        "seeds": report.seeds,
        "verdict": report.verdict.value,
        "score": report.score,
        "score_made_of": _made(report.made),
        "growth": _growth(report),
        "phase": _phase(report),
        "weights": _weights(report.weights),
        "trainability": _trainability(report.trainability),
        "tracks": [_track(track) for track in report.tracks],
        "time": [_time(time) for time in report.time],
        "recipe": report.recipe.text if report.recipe else None,
        "observed": _plain(report.observed),
        "spine": [_point(point) for point in report.spine],
        "findings": [_finding(finding) for finding in shown(report, refuted=refuted)],
        "coverage": {
            "nodes": report.coverage.nodes,
            "understood": report.coverage.understood,
            "probed": report.coverage.probed,
            "unknown_ops": dict(sorted(report.coverage.unknown_ops.items())),
        },
        "rules_checked": report.rules_checked,
        "skipped": [{"rule": skipped.rule, "because": skipped.because} for skipped in report.skipped],
        "inputs": [{"name": item.name, "spec": item.spec, "given": item.given} for item in report.inputs],
        "notes": list(report.notes),
    }
    return document | ({"timings": {name: _decades(spent) for name, spent in report.timings.items()}} if timings else {})


def _made(made: Score | None) -> dict[str, Any] | None:
    """Return the best score that what is known allows, and the points that each feature took from it."""
    return None if made is None else {"best": made.best, "moved": dict(made.moved)}


def _growth(report: TargetReport) -> dict[str, Any] | None:
    """Return predicted and measured growth; the details are those of the measured one if any. None if there is neither."""
    measured, predicted = growths(report)
    known = measured or predicted
    if known is None:
        return None
    return {
        "predicted_decades": _decades(predicted.decades if predicted else None),
        "predicted_interval": _interval(predicted.interval if predicted else None),
        "measured_decades": _decades(measured.decades if measured else None),
        "rise_decades": _decades(known.rise),
        "fall_decades": _decades(known.fall),
        "total_decades": _decades(known.total),
        "spread_decades": _decades(known.spread),
        "relative_decades": _decades(known.relative),
        "decades_per_step": _decades(known.per_step),
        "start": _place(known.start),
        "end": _place(known.end),
        "jumps": [_place(jump.place) | {"decades": _decades(jump.decades)} for jump in known.jumps],
        "attribution": _plain(report.attribution.document()) if report.attribution else [],
    }


def _phase(report: TargetReport) -> dict[str, Any] | None:
    if report.stack is None:
        return None
    stack, phase = report.stack, report.stack.phase
    return {
        "name": phase.name,
        "op": phase.op,
        "norm": phase.norm,
        "gain": _plain(phase.gain),
        "critical_gain": _plain(phase.critical),
        "bias_variance": _plain(phase.bias),
        "decades_per_layer": _decades(phase.decades),
        "gradient_depth": _decades(stack.depth),
        "correlation_depth": _decades(phase.depth),
        "layers": stack.layers,
        "start": stack.start,
        "end": stack.end,
    }


def _weights(found: Learning) -> dict[str, Any]:
    return {
        "spread_decades": _decades(found.spread),
        "spread_over": list(found.run),
        "tangent_decades": _decades(found.tangent),
        "output_decades": _decades(found.output),
    }


def _trainability(found: Trainability | None) -> dict[str, Any] | None:
    """Return how many parameters learn, in elements, and the names of those that do not or not yet; None without a probe."""
    if found is None:
        return None
    return {
        "learning": found.learning,
        "frozen": found.frozen,
        "after_steps": dict(found.opened),
        "without_gradient": list(found.stuck),
        "unused": list(found.unused),
    }


def _track(track: Track) -> dict[str, Any]:
    nodes, growth = track.nodes, track.growth
    ends = {"first": nodes[0], "last": nodes[-1]} if nodes else {"first": None, "last": None}
    return {**ends, "decades": _decades(growth.decades), "start": _place(growth.start), "end": _place(growth.end)}


def _place(place: Place | None) -> Any:
    return None if place is None else {"node": place.node, "module": place.module}


def _time(time: TimeGrowth) -> dict[str, Any]:
    return {
        "node": time.node,
        "direction": time.direction,
        "reads": time.reads,
        "axis": time.axis,
        "steps": time.steps,
        "decades": _decades(time.growth.decades),
        "decades_per_step": _decades(time.growth.per_step),
        "decades_per_step_error": _decades(time.slope_error),
        "horizon_steps": _decades(time.horizon),
        "lyapunov_exponents": [_decades(value) for value in time.lyapunov],
        "backward_decades": [_decades(value) for value in time.backward],
    }


def _point(point: SpinePoint) -> dict[str, Any]:
    return {
        "node": point.place.node,
        "module": point.place.module,
        "op": point.op,
        "file": short_path(point.source.file) if point.source else None,
        "line": point.source.line if point.source else None,
        "backward_decades": {"predicted": _decades(point.predicted_backward), "measured": _decades(point.backward)},
        "forward_decades": {"predicted": _decades(point.predicted_forward), "measured": _decades(point.forward)},
    }


def _finding(finding: Finding) -> dict[str, Any]:
    remedy = finding.remedy
    verified = remedy.verified if remedy else None
    return {
        "rule": finding.rule,
        "name": finding.name,
        "severity": finding.severity.value,
        "confidence": finding.confidence.value,
        "message": finding.message,
        "node": finding.node,
        "nodes": list(finding.nodes),
        "module": finding.module,
        "file": short_path(finding.file) if finding.file else None,
        "line": finding.line,
        "effect": finding.effect.value if finding.effect else None,
        "span": {"start": finding.span[0], "end": finding.span[1]} if finding.span else None,
        "caused_by": finding.caused_by,
        "evidence": _plain(finding.evidence),
        "remedy": {
            "summary": remedy.summary,
            "edits": [_plain(edit) for edit in remedy.edits],
            "verified": {"before": _decades(verified[0]), "after": _decades(verified[1])} if verified else None,
        }
        if remedy
        else None,
        "fingerprint": finding.fingerprint,
    }


def _decades(value: float | None) -> float | str | None:
    """Round a number to 4 decimal places, without -0.0. A non-finite one becomes "inf", "-inf" or "nan"."""
    if value is None or not math.isfinite(value):
        return None if value is None else _name(value)
    return round(float(value), 4) + 0.0


def _interval(bounds: tuple[float, float] | None) -> list[float | str | None] | None:
    return None if bounds is None else [_decades(bound) for bound in bounds]


def _name(value: float) -> str:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _plain(value: Any) -> Any:
    """Convert a value of a finding to JSON types: floats have 6 significant digits, numpy arrays and dataclasses are unpacked."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") + 0.0 if math.isfinite(value) else _name(value)
    return str(value)
