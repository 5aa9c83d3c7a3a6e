"""The file of trained cases: one JSON object a line, of a spec, its runs and its label."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.trained.labels import label
from benchmarks.trained.spec import Spec, as_json, from_json

FILE = Path(__file__).with_name("models.jsonl.gz")


@dataclass(frozen=True)
class Trained:
    """A case, its runs (one a seed, as `train.train` returns them), its label, and the seconds that training took."""

    spec: Spec
    runs: list[dict[str, Any]]
    label: str
    seconds: float


def line(case: Trained) -> str:
    """The case as one line of the file."""
    row = {"spec": as_json(case.spec), "split": case.spec.split, "label": case.label, "runs": case.runs, "seconds": case.seconds}
    return json.dumps(row, separators=(",", ":"))


def parse(text: str) -> Trained:
    """The case of one line; its label is by the rule of today."""
    row = json.loads(text)
    return Trained(from_json(row["spec"]), row["runs"], label(row["runs"]), row["seconds"])


def read(file: Path = FILE, *, grey: bool = True) -> list[Trained]:
    """The cases of the kept file, or of another, compressed or not, in order of their numbers; without the grey ones if told."""
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
        cases = [parse(text) for text in stream if text.endswith("\n")]
    return [case for case in sorted(cases, key=lambda case: case.spec.number) if grey or case.label != "grey"]


def write(cases: list[Trained], file: Path = FILE) -> None:
    """Write the cases, compressed, the same bytes for the same cases."""
    text = "".join(f"{line(case)}\n" for case in sorted(cases, key=lambda case: case.spec.number))
    file.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
