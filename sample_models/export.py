"""Write every sample model as an ONNX file beside this script: `python sample_models/export.py [NAME...]`.

Eval mode and unoptimized, so that no BatchNorm is folded away. Of the exporter's metadata only module paths, classes and the
user's line are kept, relative to the project, so that the files are the same wherever they are made.
"""

from __future__ import annotations

import io
import re
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import models  # noqa: E402

_KEPT = {"pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.stack_trace"}
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>\S+)')


def _user_frame(trace: str) -> str:
    """The innermost frame of models.py, its file named relative to the project."""
    frames = [match for match in _FRAME.finditer(trace) if Path(match["file"]).name == "models.py"]
    if not frames:
        return ""
    last = frames[-1]
    return f'File "sample_models/models.py", line {last["line"]}, in {last["name"]}'


def _clean(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        kept = {entry.key: entry.value for entry in node.metadata_props if entry.key in _KEPT}
        trace = _user_frame(kept.pop("pkg.torch.onnx.stack_trace", ""))
        if trace:
            kept["pkg.torch.onnx.stack_trace"] = trace
        del node.metadata_props[:]
        for key, value in kept.items():
            node.metadata_props.add(key=key, value=value)
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def export(name: str, path: Path) -> None:
    """Write the model that the factory `name` builds to `path`."""
    module, args = getattr(models, name)()
    quiet = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(quiet), redirect_stderr(quiet):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module.eval(), args, dynamo=True, optimize=False, input_names=["x"], output_names=["y"])
    assert program is not None
    model = program.model_proto
    _clean(model)
    onnx.save(model, path)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or [name for sample in models.SAMPLES for name in (sample.broken, sample.healthy)]:
        target = HERE / f"{wanted}.onnx"
        export(wanted, target)
        sys.stderr.write(f"{target.name}  {target.stat().st_size / 1000:.0f} kB\n")
