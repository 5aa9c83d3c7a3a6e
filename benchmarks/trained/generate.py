"""Draws the cases, trains each on three seeds in plain torch, labels them, and keeps them in `models.jsonl.gz`.

    python -m benchmarks.trained.generate [--count 1218] [--out FILE]
    python -m benchmarks.trained.generate --quick

Each case is printed as soon as it is trained and is added to FILE.part, from which an interrupted run goes on; at the end FILE is
written. With --quick, every n-th kept case is trained again and its label compared with the kept one; "near" says that one of
both is grey, which another processor may make of it. Tables of labels follow.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path

import torch

from benchmarks.common import Rows, every, parser
from benchmarks.trained.draw import draw
from benchmarks.trained.kept import FILE, Trained, line, read, write
from benchmarks.trained.labels import label
from benchmarks.trained.spec import Spec
from benchmarks.trained.tables import tables
from benchmarks.trained.train import trained

COUNT, EVERY = 1218, 20
COLUMNS = (
    "number",
    "family:<16",
    "fault:<25",
    "strength:>9",
    "seen in:<7",
    "optimizer:<9",
    "label:<9",
    "last / floor:<26",
    "seconds",
)


def train_case(spec: Spec) -> Trained:
    """Train a case on its seeds and label it."""
    result = trained(spec)
    return Trained(spec, result["runs"], label(result["runs"]), result["seconds"])


def show(rows: Rows, case: Trained, remark: str = "") -> None:
    """Print a case."""
    spec = case.spec
    ends = " ".join("x" if run["broken"] is not None else f"{run['last'] / (run['floor'] or 1):.3g}" for run in case.runs)
    strength = f"{spec.strength:.3g}" if spec.planted else ""
    optimizer = spec.training.optimizer
    rows.add(spec.number, spec.family, spec.planted, strength, spec.visible, optimizer, case.label, ends, case.seconds, remark)


def generate(count: int, out: Path) -> list[Trained]:
    """Train what is not in `out`.part yet, and write `out`."""
    part = out.with_name(out.name + ".part")
    done = read(part) if part.exists() else []
    known = {case.spec.number for case in done}
    if part.exists():
        part.write_text("".join(f"{line(case)}\n" for case in done), encoding="utf-8")  # without a line that was cut off
    rows = Rows(*COLUMNS)
    with part.open("a", encoding="utf-8") as stream:
        for number in range(count):
            if number not in known:
                case = train_case(draw(number))
                stream.write(f"{line(case)}\n")
                stream.flush()
                done.append(case)
                show(rows, case)
    cases = [case for case in done if case.spec.number < count]
    write(cases, out)
    part.unlink()
    return cases


def compare(kept: list[Trained]) -> int:
    """Train every n-th kept case again; return how many have another spec, or another label where neither is grey."""
    rows, wrong = Rows(*COLUMNS, "kept"), 0
    for case in every(kept, EVERY):
        again = train_case(draw(case.spec.number))
        same = again.spec == case.spec and again.label == case.label
        near = again.spec == case.spec and "grey" in {again.label, case.label}
        wrong += not (same or near)
        show(rows, again, "same" if same else f"{'near' if near else 'NOT'}: {case.label}")
    return wrong


def main() -> int:
    """Run; return 1 if a label is not reproduced."""
    options = parser(__doc__, f"every {EVERY}-th kept case is trained again and compared")
    options.add_argument("--count", type=int, default=COUNT, help="number of cases")
    options.add_argument("--out", type=Path, default=FILE, help="where to keep them")
    given = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    if given.quick:
        kept = read(given.out)
        wrong = compare(kept)
    else:
        kept, wrong = generate(given.count, given.out), 0
    print()
    print(tables(kept))
    print(f"{wrong} of the trained cases differ from the kept ones; {time.perf_counter() - start:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
