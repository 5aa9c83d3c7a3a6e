"""Counts of labels in the kept file; `python -m benchmarks.trained.tables` writes them into README.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from benchmarks.trained.kept import Trained, read
from benchmarks.trained.labels import ending

PAGE = Path(__file__).with_name("README.md")
START, END = "<!-- tables -->\n", "<!-- end of tables -->\n"
LABELS = ("trains", "diverged", "stuck", "grey")
EDGES = (0, 0.5, 0.8, 0.84, 0.88, 0.92, 0.96, 1.0, 1.04, 1.1, 1.5, 2, 5, 10, 100)
_KEYS: dict[str, Callable[[Trained], str]] = {
    "split": lambda case: case.spec.split,
    "family": lambda case: case.spec.family,
    "seen in": lambda case: case.spec.visible or "intact",
    "fault": lambda case: case.spec.planted or "intact",
}


def tables(cases: list[Trained]) -> str:
    """Labels in all, by split, family, knowledge and fault; and how many runs end at which multiple of their floor."""
    return "\n".join([_summary(cases), "", *(_counts(title, key, cases) for title, key in _KEYS.items()), _ends(cases)])


def _summary(cases: list[Trained]) -> str:
    total = Counter(case.label for case in cases)
    clear = max(len(cases) - total["grey"], 1)
    shares = ", ".join(f"{total[each] / clear:.0%} {each}" for each in LABELS[:3])
    minutes = sum(case.seconds for case in cases) / 60
    return f"{len(cases)} cases, {clear} without grey: {shares}; {minutes:.0f} minutes of processor time"


def _counts(title: str, key: Callable[[Trained], str], cases: list[Trained]) -> str:
    counts: dict[str, Counter[str]] = {}
    for case in cases:
        counts.setdefault(key(case), Counter())[case.label] += 1
    rows = [f"{title:<28}" + "".join(f"{each:>10}" for each in LABELS)]
    rows += [f"{name:<28}" + "".join(f"{counts[name][each]:>10}" for each in LABELS) for name in sorted(counts)]
    return "\n".join([*rows, ""])


def _ends(cases: list[Trained]) -> str:
    runs = [run for case in cases for run in case.runs]
    ends = [ending(run)[0] for run in runs if run["broken"] is None]
    rows = [f"{'runs that end at':<28}{'runs':>10}"]
    rows += [f"{f'{low:g} to {high:g} floors':<28}{sum(low < end <= high for end in ends):>10}" for low, high in pairwise(EDGES)]
    over, broken = sum(end > EDGES[-1] for end in ends), len(runs) - len(ends)
    return "\n".join([*rows, f"{f'over {EDGES[-1]} floors':<28}{over:>10}", f"{'a loss that is not finite':<28}{broken:>10}"])


def page(text: str, cases: list[Trained]) -> str:
    """The text of README.md with the tables of these cases."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n```text\n{tables(cases)}\n```\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")
