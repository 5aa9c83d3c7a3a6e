"""What a static check of a large ONNX file costs, against reading its bytes and against onnx's own checks, in one run.

Writes a language model of the given size into a temporary folder, once with its weights in the file and once with external
data: a quarter of it is an embedding, the rest are layers of 2048 units. Every measurement is a process of its own. Prints a row
as soon as it is measured: seconds without imports, from the disk and from the page cache, their ratio to reading every byte of
the weights once, and the peak of the resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from common import Rows, parser
from onnx import TensorProto, checker, helper, numpy_helper, shape_inference

import gradlint

WIDTH = 2048
UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


def write(size: int, path: Path, *, external: bool) -> None:
    """Write a model whose weights take about `size` bytes."""
    rng = np.random.default_rng(0)
    layers = max(1, size * 3 // 4 // (4 * WIDTH * WIDTH))
    shapes = [(size // 4 // (4 * WIDTH), WIDTH), *[(WIDTH, WIDTH)] * layers]
    weights = []
    for index, shape in enumerate(shapes):
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32((2 / WIDTH) ** 0.5)
        weights.append(numpy_helper.from_array(values, f"w{index}"))
    nodes = [helper.make_node("Gather", ["w0", "ids"], ["h0"])]
    for index in range(1, layers + 1):
        nodes.append(helper.make_node("MatMul", [f"h{index - 1}", f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Relu", [f"m{index}"], [f"h{index}"]))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 16])
    out = helper.make_tensor_value_info(f"h{layers}", TensorProto.FLOAT, ["batch", 16, WIDTH])
    graph = helper.make_graph(nodes, "g", [ids], [out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=path.stem + ".data")
    else:
        onnx.save(model, path)


def read_bytes(path: Path) -> None:
    """Read every byte of the weights once."""
    weights = path.with_suffix(".data")
    buffer = bytearray(1 << 20)
    with (weights if weights.exists() else path).open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def lint(path: Path) -> None:
    """What `gradlint --no-probe` does."""
    gradlint.check(str(path), probe=False)


def load(path: Path) -> None:
    """onnx.load."""
    onnx.load(path)


def examine(path: Path) -> None:
    """onnx.load, the checker and shape inference, as CI jobs do it."""
    model = onnx.load(path)
    checker.check_model(str(path))
    shape_inference.infer_shapes(model)


def statistics(path: Path) -> None:
    """onnx.load, and a look at every weight."""
    for tensor in onnx.load(path).graph.initializer:
        np.isfinite(numpy_helper.to_array(tensor)).all()


TASKS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "read": ("read every byte", read_bytes),
    "lint": ("gradlint --no-probe", lint),
    "load": ("onnx.load", load),
    "finite": ("onnx.load, isfinite of every weight", statistics),
    "examine": ("onnx.load, checker, infer_shapes", examine),
}


def _evict(folder: Path) -> None:
    """Drop the files of a folder from the page cache, where the system can do that."""
    for file in folder.iterdir() if hasattr(os, "posix_fadvise") else ():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _child(task: str, path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    gradlint.check(helper.make_model(helper.make_graph([node], "g", [x], [y])), probe=False)  # imports
    start = time.perf_counter()
    TASKS[task][1](path)
    seconds = time.perf_counter() - start
    scale = 1 if sys.platform == "darwin" else 1024
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale]))


def _measured(task: str, path: Path, repeats: int, *, cached: bool) -> tuple[float, float] | str:
    """Median seconds and peak memory in bytes, or the last line of the error."""
    found = []
    for _ in range(repeats):
        if not cached:
            _evict(path.parent)
        command = [sys.executable, __file__, "--task", task, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this script
        if done.returncode:
            return done.stderr.strip().rpartition("\n")[2][:60]
        found.append(json.loads(done.stdout))
    return median(row[0] for row in found), max(row[1] for row in found)


def _rows(kind: str, path: Path, repeats: int) -> Iterator[tuple[str, ...]]:
    """The rows of one file."""
    base = {True: 0.0, False: 0.0}
    for task, (label, _) in TASKS.items():
        row, peak = [kind, label], 0.0
        for cached in (False, True):
            found = _measured(task, path, repeats, cached=cached)
            if isinstance(found, str):
                row += [found, ""]
                continue
            base[cached] = found[0] if task == "read" else base[cached]
            row += [f"{found[0]:.3f}", f"{found[0] / base[cached]:.2f}x"]
            peak = max(peak, found[1])
        yield *row, f"{peak / 1e6:.0f}"


def main() -> None:
    """Print the table."""
    options = parser(__doc__, "64 MB of weights, each measured once")
    options.add_argument("--size", help="bytes of weights, such as 2G; 256M by default")
    options.add_argument("--repeats", type=int)
    options.add_argument("--task", nargs=2, metavar=("TASK", "PATH"), help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.task:
        _child(chosen.task[0], Path(chosen.task[1]))
        return
    text, repeats = chosen.size or ("64M" if chosen.quick else "256M"), chosen.repeats or (1 if chosen.quick else 3)
    size = int(float(text[:-1]) * UNITS[text[-1].upper()])
    rows = Rows("file:<10", "what:<36", "disk, s", "ratio", "cache, s", "ratio", "peak, MB")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("embedded", "external"):
            path = Path(folder) / f"{kind}.onnx"
            external = kind == "external"
            code = f"import onnx_reading as r, pathlib; r.write({size}, pathlib.Path({str(path)!r}), external={external})"
            subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)  # noqa: S603 - this script
            for row in _rows(kind, path, repeats):
                rows.add(*row)
            path.unlink()
            path.with_suffix(".data").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
