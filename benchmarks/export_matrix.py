"""What each way to export a model to ONNX hides from a linter, and whether the verdict survives it.

Exports the sample models by both exporters, in eval and train mode, with and without the optimizer, over opsets, and lints every
file. A row, printed as soon as it is known, is one way to export, over all sample models: verdicts that are as their table says,
nodes with a module path and with a source line, parameters that kept their name, BatchNorm nodes that are left, and the mode of
the graph.
"""

from __future__ import annotations

import io
import itertools
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from common import Rows, every, parser

import gradlint
from gradlint.frontends.onnx.file import OnnxFile, read_onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "sample_models"))

import models

DYNAMO_OPSETS = range(18, 24)
SCRIPT_OPSETS = range(13, 21)
STEP = 7  # of a quick run
EXPECTED = {s.broken: s.verdict for s in models.SAMPLES} | {s.healthy: "healthy" for s in models.SAMPLES}


@dataclass(frozen=True)
class Way:
    """One way to export."""

    dynamo: bool
    train: bool
    optimize: bool
    opset: int

    def export(self, name: str) -> onnx.ModelProto:
        """The sample model `name` as this way exports it; raises what the exporter raises."""
        module, args = getattr(models, name)()
        module.train(self.train)
        quiet = io.StringIO()
        with warnings.catch_warnings(), redirect_stdout(quiet), redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            if self.dynamo:
                options: dict[str, Any] = {"optimize": self.optimize, "opset_version": self.opset, "verbose": False}
                program = torch.onnx.export(module, args, dynamo=True, **options)
                assert program is not None
                return program.model_proto
            data = io.BytesIO()
            mode = torch.onnx.TrainingMode.TRAINING if self.train else torch.onnx.TrainingMode.EVAL
            folding = {"do_constant_folding": self.optimize, "training": mode}
            torch.onnx.export(module, args, data, dynamo=False, opset_version=self.opset, **folding)
            return onnx.load_from_string(data.getvalue())


@dataclass
class Tally:
    """Sums over the models that a way exported."""

    exported: int = 0
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    nodes: int = 0
    paths: int = 0
    lines: int = 0
    parameters: int = 0
    named: int = 0
    norms: int = 0
    norms_left: int = 0
    training: int = 0

    def add(self, name: str, file: OnnxFile, verdict: str) -> None:
        """Count one file."""
        module = getattr(models, name)()[0]
        nodes = [node for node in file.graph if node.op != "input"]
        parameters = {key for key, _ in module.named_parameters()}
        self.exported += 1
        self.right += verdict == EXPECTED[name]
        self.wrong += [f"{name}: {verdict}"] * (verdict != EXPECTED[name])
        self.nodes += len(nodes)
        self.paths += sum(bool(node.module) for node in nodes)
        self.lines += sum(node.source is not None for node in nodes)
        self.parameters += len(parameters)
        self.named += len(parameters & file.graph.weights.keys())
        self.norms += sum(isinstance(part, torch.nn.BatchNorm1d) for part in module.modules())
        self.norms_left += sum(node.op == "batch_norm" for node in file.graph)
        self.training += file.mode == "train"


def ways(opsets_of: Callable[[range], Iterable[int]]) -> Iterator[Way]:
    """All ways, for those opsets of an exporter that are chosen of its range."""
    for dynamo, opsets in ((True, DYNAMO_OPSETS), (False, SCRIPT_OPSETS)):
        for train, optimize, opset in itertools.product((False, True), (True, False), opsets_of(opsets)):
            yield Way(dynamo, train, optimize, opset)


def tally(way: Way, names: list[str]) -> Tally:
    """Export and lint the sample models; one that the exporter refuses is left out."""
    found = Tally()
    for name in names:
        try:
            proto = way.export(name)
        except Exception as error:  # noqa: BLE001 - exporters raise anything
            found.wrong.append(f"{name}: {type(error).__name__}")
            continue
        found.add(name, read_onnx(proto), gradlint.check(proto, seeds=1).verdict)
    return found


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def main() -> None:
    """Print the table, and below it every verdict that is not as it should be."""
    options = parser(__doc__, f"every {STEP}th sample model, the last opset of each exporter")
    options.add_argument("names", nargs="*", help="sample models; all when left out")
    options.add_argument("--every", action="store_true", help="all opsets")
    chosen = options.parse_args()
    logging.disable(logging.CRITICAL)
    heads = "verdict as expected", "module path", "source line", "parameters named", "BatchNorm left", "train mode"
    rows = Rows("exporter:<12", "mode", "optimized", "opset", *heads)
    wrong = []
    names = chosen.names or every(list(EXPECTED), STEP if chosen.quick else 1)
    for way in ways(list if chosen.every else (lambda opsets: opsets[-1:] if chosen.quick else (opsets[0], opsets[-1]))):
        found = tally(way, names)
        label = ("dynamo" if way.dynamo else "TorchScript", "train" if way.train else "eval", "yes" if way.optimize else "no")
        rows.add(
            *label,
            way.opset,
            f"{found.right}/{found.exported}",
            _share(found.paths, found.nodes),
            _share(found.lines, found.nodes),
            _share(found.named, found.parameters),
            _share(found.norms_left, found.norms),
            _share(found.training, found.exported),
        )
        wrong += [f"{' '.join(label)} opset {way.opset}: {text}" for text in found.wrong]
    for text in wrong:
        print(text)


if __name__ == "__main__":
    main()
