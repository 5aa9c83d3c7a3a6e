"""Trained weights: the theory's prediction against the probe's measurement for every ONNX model in the installed packages.

Beside each stands the same model with its weights drawn anew, as normal noise of the same mean square: what its error would be
if it were initialized. Where the theory keeps one state per channel, its scalar state is shown for comparison. Prints a row per
model and kind of weights as soon as it is compared, then all models together.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from common import Rows, every, parser
from onnx import numpy_helper
from rich.console import Console
from shipped import given, shipped
from theory_common import (
    QUALITY,
    Compared,
    Predict,
    Quality,
    attempted,
    compare,
    decades,
    plain_predict,
    quality_table,
    save,
    step_table,
)

from gradlint.load import load
from gradlint.structure import Structure
from gradlint.theory.prediction import Predicted, predict

STEP = 5  # of a quick run


def redrawn(path: Path) -> onnx.ModelProto:
    """A model whose float weights of two axes or more are normal noise of the same mean square, in every graph that it holds."""
    model = onnx.load(path)
    rng = np.random.default_rng(0)
    for tensor in _tensors(model.graph):
        if len(tensor.dims) > 1 and tensor.data_type in {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}:
            values = numpy_helper.to_array(tensor)
            scale = float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
            drawn = (scale * rng.standard_normal(values.shape)).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(drawn, tensor.name))
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and constants of a graph and of those inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)


def _scalar(structure: Structure) -> Mapping[str, Predicted]:
    options: dict[str, Any] = {"per_channel": False}  # which not every version takes: see `variants`
    return predict(structure, **options).nodes


def variants() -> dict[str, tuple[bool, Predict]]:
    """What is compared: whether weights are drawn anew, and how they are predicted."""
    known: dict[str, tuple[bool, Predict]] = {"trained": (False, plain_predict), "redrawn": (True, plain_predict)}
    if "per_channel" in inspect.signature(predict).parameters:
        known |= {"trained, scalar": (False, _scalar), "redrawn, scalar": (True, _scalar)}
    return known


def examine(name: str, path: Path, seeds: int, *, anew: bool) -> dict[str, Compared]:
    """Probe one file and predict it in every way that has these weights."""
    loaded = load(redrawn(path) if anew else path, given(path))
    measurement = loaded.measure(seeds=seeds, seed=0, progress=lambda _: None)
    graph = loaded.graph_of()
    return {
        variant: compare(name, graph, measurement, labels={"variant": variant}, predicted_by=how)
        for variant, (drawn, how) in variants().items()
        if drawn is anew
    }


def cells(model: Compared) -> tuple[str, ...]:
    """The row of one model."""
    growth = decades(model.growth.measured[0]), decades(model.growth.predicted[0])
    backward, forward = Quality.of([model.backward]), Quality.of([model.forward])
    shown = model.name, model.labels["variant"]
    return (*shown, *growth, *backward.cells, *forward.cells[2:], f"{1000 * model.seconds:.0f}")


def main() -> None:
    """Print the tables."""
    options = parser(__doc__, f"every {STEP}th model, one seed")
    options.add_argument("--only", nargs="+", metavar="TEXT", help="models whose name has one of these in it")
    options.add_argument("--seeds", type=int, help="inputs and cotangents that each is probed with, 3 by default")
    options.add_argument("--save", type=Path, metavar="FILE.jsonl", help="write one JSON line a model and variant")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console, start = Console(width=150), time.perf_counter()
    found: dict[str, list[Compared]] = {variant: [] for variant in variants()}
    headings = ("growth", "predicted", *QUALITY, "fwd median", *QUALITY[3:], "ms")
    rows = Rows("model:<52", "weights:<15", *headings, title="Predicted against measured at every operator, decades")
    seeds = chosen.seeds or (1 if chosen.quick else 3)
    for name, path in every(list(shipped().items()), STEP if chosen.quick else 1):
        if chosen.only and not any(text in name for text in chosen.only):
            continue
        for anew in (False, True):
            for variant, model in (attempted(console, name, partial(examine, name, path, seeds, anew=anew)) or {}).items():
                found[variant].append(model)
                rows.add(*cells(model))
    save(chosen.save, [model for models in found.values() for model in models])
    console.print(quality_table("All models together", [("weights", variant, models) for variant, models in found.items()]))
    console.print(step_table(found["trained"]))
    console.print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
