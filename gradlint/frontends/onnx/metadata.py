"""What exporters write beside the operators: module paths, classes, source lines, and what was folded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from gradlint.graph import Source

_PREFIX = "pkg.torch.onnx."
_RULE = "pkg.onnxscript.rewriter.rule_name"
_SIGNATURE = "pkg.torch.export.ExportedProgram.graph_signature"
_FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in ')
_TORCH = re.compile(r"[/\\](?:(?:site|dist)-packages[/\\]torch|torch[/\\](?:nn|_\w+|utils|export|fx|onnx|jit|autograd))[/\\]")
_STATE = re.compile(r": (PARAMETER|BUFFER|CONSTANT_TENSOR) target='([^'\n]+)'")
FOLDED = "batch-norm-folded"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a node comes from, as far as the file says; `notes` as in `gradlint.graph.Node`."""

    module: str = ""
    module_class: str = ""
    source: Source | None = None
    notes: frozenset[str] = frozenset()


def provenance(node: onnx.NodeProto) -> Provenance:
    """Read the metadata of a node that torch.onnx exported; without it, the scopes in a name such as "/net/net.0/MatMul"."""
    metadata = _dictionary(node.metadata_props)
    scopes = _names(metadata.get(_PREFIX + "name_scopes"))
    if len(scopes) < 2:
        return Provenance(_module_of_name(node.name))
    if "FuseBatchNormInto" in metadata.get(_RULE, ""):  # the metadata is that of the norm, the weight names the layer
        named = [name for name in node.input[1:] if "." in name]
        module = named[0].rpartition(".")[0] if named else scopes[-2]
        return Provenance(module, "", source_line(metadata.get(_PREFIX + "stack_trace", "")), frozenset({FOLDED}))
    classes = _names(metadata.get(_PREFIX + "class_hierarchy"))
    module_class = classes[-2].rpartition(".")[2] if len(classes) == len(scopes) else ""
    return Provenance(scopes[-2], module_class, source_line(metadata.get(_PREFIX + "stack_trace", "")))


def source_line(trace: str) -> Source | None:
    """The innermost frame of a Python stack trace, outermost first, whose file does not belong to torch."""
    frames = [Source(file, int(line)) for file, line in _FRAME.findall(trace[-100_000:]) if not _TORCH.search(file)]
    return frames[-1] if frames else None


def state_kinds(graph: onnx.GraphProto) -> Mapping[str, str]:
    """The kind of every tensor of the exported module by its name there: "PARAMETER", "BUFFER" or "CONSTANT_TENSOR"."""
    signature = _dictionary(graph.metadata_props).get(_SIGNATURE, "")
    return {name: kind for kind, name in _STATE.findall(signature)}


def _dictionary(properties: Iterable[Any]) -> dict[str, str]:
    return {entry.key: entry.value for entry in properties if isinstance(entry.value, str)}  # bytes where it is not UTF-8


def _names(text: str | None) -> list[str]:
    """The list of strings that `text` spells; empty for anything else."""
    if not text:
        return []
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return []
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []


def _module_of_name(name: str) -> str:
    """The path "layers.0.fc" of "/layers.0/fc/MatMul"; a container repeats itself: "/net/net.0/Gemm" is in "net.0"."""
    if not name.startswith("/"):
        return ""
    path: list[str] = []
    for scope in name.split("/")[1:-1]:
        if path and scope.startswith(path[-1] + "."):
            path.pop()
        path.append(scope)
    return ".".join(filter(None, path))
