"""What gradlint says of every case, at four levels of knowledge: kept, so that fitting needs no new checks.

    python -m benchmarks.trained.examine [--level recipe] [--split test] [--every N] [--out FILE]
    python -m benchmarks.trained.examine --pack FILE...

Rows come as they are known, and a file that is there already is gone on with; `--pack` keeps some in `evidence.jsonl.gz`. The
network has the initial weights of the first training run and its first batch; nothing else of the run is shown.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import gradlint
from benchmarks.trained.case import Case, task
from benchmarks.trained.evidence import FILE
from benchmarks.trained.kept import Trained, read
from benchmarks.trained.optimizers import schedule_text
from gradlint.errors import GradlintError
from gradlint.measurements.evidence import Level

ROWS = Path("evidence.jsonl")


def asked(case: Case, level: Level, *, several: bool = False) -> dict[str, Any]:
    """The arguments of `gradlint.check` beside the network, for a level of knowledge."""
    if level is Level.STATIC:
        return {"probe": False}
    if level is Level.MODEL:
        return {}
    known: dict[str, Any] = {"loss": case.loss, "target": case.target}
    if several:
        known["batches"] = case.batches
    return known


def recipe_of(case: Case, model: torch.nn.Module) -> gradlint.Recipe:
    """The recipe of the training run, with its own optimizer."""
    training = case.spec.training
    schedule = schedule_text(training)
    return gradlint.Recipe.from_optimizer(
        case.optimizer_factory(model),
        clip_norm=training.clip_norm,
        clip_value=training.clip_value,
        precision=training.precision,
        loss_scale=training.loss_scale,
        **({"schedule": schedule} if schedule else {}),
    )


def examined(kept: Trained, level: Level, *, several: bool = False) -> dict[str, Any]:
    """One row: what was found, and the seconds that it took."""
    case = task(kept.spec, batches=40 if several else 1)
    model = case.model_factory()
    more = asked(case, level, several=several)
    start = time.perf_counter()
    if level is Level.RECIPE:
        more["recipe"] = recipe_of(case, model)
    row: dict[str, Any] = {"number": kept.spec.number, "level": str(level)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = gradlint.check(model, case.inputs, **more).result
    except GradlintError as error:
        return row | {"error": str(error).splitlines()[0], "seconds": round(time.perf_counter() - start, 2)}
    held = [f for f in result.findings if f.confidence != "refuted" and f.severity in {"error", "warning"}]
    return row | {
        "verdict": str(result.verdict),
        "most": result.made.most if result.made else 100,
        "findings": [[f.rule, str(f.severity), f.module, f.caused_by or ""] for f in held],
        "evidence": {name: _plain(value) for name, value in asdict(result.evidence).items()} if result.evidence else None,
        "notes": [note for note in result.notes if "not measured" in note],
        "seconds": round(time.perf_counter() - start, 2),
    }


def _plain(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def pack(files: list[Path]) -> None:
    """Keep the rows of some files, compressed, the same bytes for the same rows. Seconds, which differ, stay behind."""
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    rows.sort(key=lambda row: (row["number"], [*Level].index(Level(row["level"]))))
    text = "".join(json.dumps({**row, "seconds": None}, separators=(",", ":")) + "\n" for row in rows)
    FILE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def main() -> None:
    """Examine the cases that the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level", choices=[*Level], default=Level.RECIPE, type=Level)
    parser.add_argument("--split", choices=["fit", "test"])
    parser.add_argument("--every", type=int, default=1, help="every n-th case")
    parser.add_argument("--offset", type=int, default=0, help="the first of them")
    parser.add_argument("--several", action="store_true", help="give forty batches instead of one")
    parser.add_argument("--cases", type=Path, help="the trained cases")
    parser.add_argument("--out", type=Path, default=ROWS)
    parser.add_argument("--pack", type=Path, nargs="+", help="files of rows to keep")
    options = parser.parse_args()
    if options.pack:
        pack(options.pack)
        return
    torch.set_num_threads(1)
    cases = read(options.cases, grey=False) if options.cases else read(grey=False)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {row["number"] for row in rows if row["level"] == options.level}
    with options.out.open("a") as stream:
        for case in cases[options.offset :: options.every]:
            if case.spec.number in done or options.split not in {None, case.spec.split}:
                continue
            row = examined(case, options.level, several=options.several)
            stream.write(json.dumps(row, separators=(",", ":")) + "\n")
            stream.flush()
            said = f"{row.get('verdict') or row['error']:12} {row['seconds']:6.1f} s"
            print(f"{case.spec.number:5} {case.spec.family:18} {case.label:9} {case.spec.planted:18} {said}", flush=True)


if __name__ == "__main__":
    main()
