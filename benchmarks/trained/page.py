"""Write docs/benchmark.md: how well the score tells what training does, from kept cases and evidence.

python -m benchmarks.trained.page [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.trained.causes import NAMES, names_cause, names_place
from benchmarks.trained.evidence import Known, known
from benchmarks.trained.fit import Values, auc, calibration_error, chances_of, recall
from benchmarks.trained.kept import read
from gradlint.calibration.score import coefficients
from gradlint.measurements.evidence import Level

PAGE = Path(__file__).parents[2] / "docs" / "benchmark.md"
KNOWN_AT = {
    Level.STATIC: "the graph and the weights",
    Level.MODEL: "the model was run",
    Level.LOSS: "with loss and target",
    Level.RECIPE: "with recipe and rehearsal",
}
_HEAD = """# Benchmark: does the score tell what training does?

{cases} small networks of {families} families were drawn with their tasks and recipes, and each was trained three times in plain
torch: {trains} train, {diverged} diverge, {stuck} stay at what a constant reaches, and {grey} are neither; those are left out.
What gradlint says of a network was asked before training, on its first batch. Coefficients were fitted on {fit} families; every
figure below is of the {test} others, which were chosen before anything was fitted: {names}.

`python -m benchmarks.trained.page` writes this page from kept results; see [benchmarks/trained](../benchmarks/trained/README.md).
"""


def _fails(cases: Sequence[Known]) -> NDArray[np.bool_]:
    return np.array([case.fails for case in cases])


def _chances(cases: Sequence[Known], level: Level) -> Values:
    return chances_of(cases, level, coefficients()[level])


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(map(str, row)) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _levels(held: Mapping[Level, Sequence[Known]]) -> str:
    rows = []
    for level, cases in held.items():
        chances = _chances(cases, level)
        for name, some in (("all", cases), ("faults that can be seen then", [case for case in cases if case.visible_at(level)])):
            kept = np.array([case in some for case in cases]) if name != "all" else np.ones(len(cases), bool)
            fails = _fails(some)
            diverged = np.array([case.label == "diverged" for case in some])
            rest = diverged | ~fails
            own = chances[kept]
            rows.append(
                (
                    KNOWN_AT[level],
                    name,
                    len(some),
                    f"{auc(own[rest], diverged[rest]):.3f}",
                    f"{auc(own, fails):.3f}",
                    f"{recall(own, fails):.0%}",
                    f"{calibration_error(own, fails):.3f}" if name == "all" else "",
                )
            )
    head = ("known", "cases", "number", "AUC, diverges", "AUC, fails", "recall at 5 % false alarms", "calibration error")
    return "## By what is known\n\n" + _table(head, rows)


def _reliability(cases: Sequence[Known]) -> str:
    chances, fails = _chances(cases, Level.RECIPE), _fails(cases)
    which = np.minimum((chances * 10).astype(int), 9)
    rows = []
    for index in range(9, -1, -1):
        own = which == index
        if own.any():
            low = 100 - 10 * (index + 1)
            rows.append(
                (f"{low} to {low + 10}", int(own.sum()), f"{1 - chances[own].mean():.0%}", f"{1 - fails[own].mean():.0%}")
            )
    head = ("score", "networks", "expected to train", "trained")
    return "## A score means what it says\n\nWith recipe and rehearsal:\n\n" + _table(head, rows[::-1])


def _signs(case: Known) -> dict[str, float]:
    """Single quantities that others look at, the larger the worse."""
    e = case.evidence
    last = np.inf if e.last is None or not np.isfinite(e.last) else e.last
    return {
        "gradient norm (alarm over 100)": np.inf if e.gradient is None or not np.isfinite(e.gradient) else e.gradient,
        "first loss over that of a constant": (e.value or np.inf) / abs(e.constant) if e.constant else 1.0,
        "rehearsal ends over a constant": last / abs(e.floor) if e.floor else np.inf,
        "worst loss over the first": np.inf
        if e.peak is None or not e.first or not np.isfinite(e.peak)
        else e.peak / abs(e.first),
    }


def _rivals(held: Mapping[Level, Sequence[Known]]) -> str:
    cases = held[Level.RECIPE]
    fails = _fails(cases)
    columns: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        for name, value in _signs(case).items():
            columns[name].append(min(value, 1e30))
    rows = [
        (name, f"{auc(np.array(column), fails):.3f}", f"{recall(np.array(column), fails):.0%}")
        for name, column in columns.items()
    ]
    ours = [(f"gradlint, {KNOWN_AT[level]}", _chances(some, level), _fails(some)) for level, some in held.items()]
    rows += [(name, f"{auc(chances, own):.3f}", f"{recall(chances, own):.0%}") for name, chances, own in ours]
    head = ("sign", "AUC, fails", "recall at 5 % false alarms")
    return (
        "## Against single signs\n\nQuantities that training monitors alarm at, on the same networks and batches:\n\n"
        + _table(head, rows)
    )


def _by(name: str, cases: Sequence[Known], key: Callable[[Known], str]) -> str:
    chances = _chances(cases, Level.RECIPE)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        groups[key(case)].append(index)
    rows = []
    for group, own in sorted(groups.items()):
        some = [cases[index] for index in own]
        fails = _fails(some)
        found = sum(chances[index] >= 0.5 and cases[index].fails for index in own)
        false = sum(chances[index] >= 0.5 and not cases[index].fails for index in own)
        planted = [case for case in some if case.fails and case.case.spec.planted in NAMES]
        placed = [case for case in planted if case.case.spec.place]
        rows.append(
            (
                group or "none",
                len(own),
                f"{found} of {fails.sum()}",
                f"{false} of {len(own) - fails.sum()}",
                f"{sum(map(names_cause, planted))} of {len(planted)}" if planted else "",
                f"{sum(map(names_place, placed))} of {len(placed)}" if placed else "",
            )
        )
    head = (name, "networks", "failures with a score under 50", "others with one", "cause named first", "place")
    return f"## By {name}\n\n" + _table(head, rows)


def page() -> str:
    """The text of the page."""
    every = read()
    held = {level: [case for case in known(level) if case.split == "test"] for level in Level}
    split: dict[str, set[str]] = defaultdict(set)
    for case in every:
        split[case.spec.split].add(case.spec.family)
    counts = {label: sum(case.label == label for case in every) for label in ("trains", "diverged", "stuck", "grey")}
    families = len(split["fit"]) + len(split["test"])
    names = ", ".join(sorted(name.replace("_", " ") for name in split["test"]))
    head = _HEAD.format(
        cases=len(every), families=families, fit=len(split["fit"]), test=len(split["test"]), names=names, **counts
    )
    cases = held[Level.RECIPE]
    parts = [
        head,
        _levels(held),
        _reliability(cases),
        _rivals(held),
        _by("family", cases, lambda case: case.case.spec.family.replace("_", " ")),
        _by("planted fault", cases, lambda case: case.case.spec.planted),
    ]
    return "\n".join(parts)


def main() -> None:
    """Write the page, or say with exit code 1 that it is not the one that would be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else f"{PAGE} is stale: run python -m benchmarks.trained.page")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
