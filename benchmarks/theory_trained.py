"""Trained weights: the theory's prediction against the probe's measurement for every ONNX model in the installed packages.

Beside each stands the same model with its weights drawn anew, as normal noise of the same mean square: what its error would be
if it were initialised. Where the theory keeps one state per channel, its scalar state is shown for comparison.
"""

from __future__ import annotations

import argparse
import inspect
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table
from theory_common import Compared, Predict, Quality, attempted, compare, decades, plain_predict, quality_table, save, step_table

from gradlint.frontends.inputs import InputSpec, parse_inputs
from gradlint.load import load
from gradlint.structure import Structure
from gradlint.theory.prediction import Predicted, predict

SMALLEST = 10_000  # bytes: what is smaller is a test file
NOT_MODELS = {"onnx", "onnxruntime", "onnxscript", "gradlint-nn"}  # packages whose files are test data
DNSMOS = ("input_1=float32[1,901,161]",)

# what a file does not say enough about: package folder, or file, and what to feed as --input would
INPUTS: dict[str, tuple[str, ...]] = {
    "swift_f0": ("audio=float32[1,4096]", "fmin=46.875", "fmax=2093.75"),
    "aecmos_models": ("input=float32[1,3,16,160]",),
    "sig.onnx": DNSMOS,
    "bak_ovr.onnx": DNSMOS,
    "sig_bak_ovr.onnx": ("input_1=float32[1,144160]",),
}


def shipped() -> dict[str, Path]:
    """Every .onnx file of an installed package, named by package and file."""
    found: dict[str, Path] = {}
    for distribution in metadata.distributions():
        package = distribution.metadata["Name"]
        if package.lower().replace("_", "-") in NOT_MODELS:
            continue
        for file in distribution.files or ():
            path = Path(str(file.locate()))
            # a wheel may lay a second copy outside the package folder
            inside = file.suffix == ".onnx" and ".." not in file.parts and ".data" not in str(file)
            if inside and path.is_file() and path.stat().st_size > SMALLEST:
                found[f"{package}/{path.stem}"] = path
    return dict(sorted(found.items()))


def given(path: Path) -> tuple[InputSpec, ...]:
    """The inputs of a file that cannot be inferred."""
    return parse_inputs(INPUTS.get(path.name) or INPUTS.get(path.parent.name) or ())


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


def report(found: Mapping[str, Sequence[Compared]], console: Console) -> None:
    """Print one table a variant, models in the same order, then all variants side by side."""
    for variant, models in found.items():
        table = Table(title=f"{variant}: predicted against measured at every operator, decades")
        headings = ("model", "growth", "predicted", "operators", "none", "median", "95 %", "inside", "width")
        for heading in (*headings, "fwd median", "95 %", "inside", "width", "ms"):
            table.add_column(heading, justify="left" if heading == "model" else "right")
        for model in models:
            growth = decades(model.growth.measured[0]), decades(model.growth.predicted[0])
            backward, forward = Quality.of([model.backward]), Quality.of([model.forward])
            table.add_row(model.name, *growth, *backward.cells, *forward.cells[2:], f"{1000 * model.seconds:.0f}")
        console.print(table)
    rows = [("weights", variant, models) for variant, models in found.items()]
    console.print(quality_table("All models together", rows))
    console.print(step_table(found["trained"]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="models whose name has one of these in it")
    parser.add_argument("--seeds", type=int, default=3, help="inputs and cotangents that each is probed with")
    parser.add_argument("--save", type=Path, metavar="FILE.jsonl", help="write one JSON line a model and variant")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console, start = Console(width=150), time.perf_counter()
    found: dict[str, list[Compared]] = {variant: [] for variant in variants()}
    with Console(stderr=True).status("") as status:
        for name, path in shipped().items():
            if options.only and not any(text in name for text in options.only):
                continue
            for anew in (False, True):
                status.update(name)
                run = partial(examine, name, path, options.seeds, anew=anew)
                for variant, model in (attempted(console, name, run) or {}).items():
                    found[variant].append(model)
    save(options.save, [model for models in found.values() for model in models])
    report(found, console)
    console.print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
