"""The kept evidence of every case, beside what became of it in training."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.trained.kept import FILE as TRAINED
from benchmarks.trained.kept import Trained, read
from gradlint.measurements.evidence import Evidence, Level

FILE = Path(__file__).with_name("evidence.jsonl.gz")
_ORDER = [Level.STATIC, Level.MODEL, Level.LOSS, Level.RECIPE]


@dataclass(frozen=True)
class Known:
    """A case that was trained, and what gradlint knows of it at one level."""

    case: Trained
    row: dict[str, Any]
    evidence: Evidence

    @property
    def label(self) -> str:
        """What became of it."""
        return self.case.label

    @property
    def fails(self) -> bool:
        """Whether it diverged or got stuck."""
        return self.case.label != "trains"

    @property
    def least(self) -> float:
        """The least probability of failing that the verdict allows."""
        return 1.0 - self.row["most"] / 100.0

    @property
    def is_certain(self) -> bool:
        """Whether the verdict alone says that it fails."""
        return bool(self.row["most"] == 0)

    @property
    def split(self) -> str:
        """The side of its family."""
        return self.case.spec.split

    def visible_at(self, level: Level) -> bool:
        """Whether it trains, or its fault can be seen with what is known at a level."""
        least = self.case.spec.visible
        return not self.fails or (bool(least) and _ORDER.index(Level(least)) <= max(_ORDER.index(level), 1))


def known(level: Level, file: Path = FILE, cases: Path = TRAINED) -> list[Known]:
    """The cases that are not grey, with their evidence at a level."""
    rows: dict[int, dict[str, Any]] = {}
    for row in _rows(file):
        if row.get("evidence") and row["level"] == level:
            rows[row["number"]] = row
    there = (case for case in read(cases, grey=False) if case.spec.number in rows)
    return [Known(case, rows[case.spec.number], _evidence(rows[case.spec.number]["evidence"])) for case in there]


def _rows(file: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
    return [json.loads(line) for line in text.splitlines()]


def _evidence(table: dict[str, Any]) -> Evidence:
    lists = {name: tuple(value) for name, value in table.items() if isinstance(value, list)}
    return Evidence(**{**table, **lists, "level": Level(table["level"])})
