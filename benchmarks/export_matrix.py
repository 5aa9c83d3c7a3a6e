"""What each way to export a model to ONNX hides from a linter, and whether the verdict survives it.

Exports the sample models by both exporters, in eval and train mode, with and without the optimizer, over opsets, and lints every
file. A row is one way to export, over all sample models: verdicts that are as their table says, nodes with a module path and with
a source line, parameters that kept their name, BatchNorm nodes that are left, and the mode of the graph.
"""

from __future__ import annotations

import argparse
import io
import itertools
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from rich.console import Console
from rich.table import Table

import gradlint
from gradlint.frontends.onnx.file import OnnxFile, read_onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "sample_models"))

import models

DYNAMO_OPSETS = range(18, 24)
SCRIPT_OPSETS = range(13, 21)
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


def ways(*, every: bool) -> Iterator[Way]:
    """All ways; the first and the last opset of each exporter unless `every` is set."""
    for dynamo, opsets in ((True, DYNAMO_OPSETS), (False, SCRIPT_OPSETS)):
        chosen = opsets if every else (opsets[0], opsets[-1])
        for train, optimize, opset in itertools.product((False, True), (True, False), chosen):
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="sample models; all when left out")
    parser.add_argument("--every", action="store_true", help="all opsets")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    heads = "verdict as expected", "module path", "source line", "parameters named", "BatchNorm left", "train mode"
    table = Table("exporter", "mode", "optimized", "opset", *heads)
    wrong = []
    for way in ways(every=options.every):
        found = tally(way, options.names or list(EXPECTED))
        label = ("dynamo" if way.dynamo else "TorchScript", "train" if way.train else "eval", "yes" if way.optimize else "no")
        table.add_row(
            *label,
            str(way.opset),
            f"{found.right}/{found.exported}",
            _share(found.paths, found.nodes),
            _share(found.lines, found.nodes),
            _share(found.named, found.parameters),
            _share(found.norms_left, found.norms),
            _share(found.training, found.exported),
        )
        wrong += [f"{' '.join(label)} opset {way.opset}: {text}" for text in found.wrong]
    console = Console(width=130)
    console.print(table)
    for text in wrong:
        console.print(text)


if __name__ == "__main__":
    main()
