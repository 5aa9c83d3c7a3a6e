"""Metadata that exporters write to ONNX files: module paths, module classes, source lines, and folded norms."""

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

_LONGEST = 1 << 16
"""The most characters of a list that is parsed: the parser takes 250 bytes for each."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of a node: module path, module class and source line, if the file has them. `notes` as in `Node`."""

    module: str = ""
    module_class: str = ""
    source: Source | None = None
    notes: frozenset[str] = frozenset()


def provenance(node: onnx.NodeProto) -> Provenance:
    """Read the metadata of a node that torch.onnx exported, or else the scopes in its name, as in "/net/net.0/MatMul"."""
    metadata = _dictionary(node.metadata_props)
    scopes = _names(metadata.get(_PREFIX + "name_scopes"))
    if len(scopes) < 2:
        return Provenance(_module_of_name(node.name))
    if "FuseBatchNormInto" in metadata.get(_RULE, ""):  # the metadata is the norm's, but the weight has the layer's name
        named = [name for name in node.input[1:] if "." in name]
        module = named[0].rpartition(".")[0] if named else scopes[-2]
        return Provenance(module, "", source_line(metadata.get(_PREFIX + "stack_trace", "")), frozenset({FOLDED}))
    classes = _names(metadata.get(_PREFIX + "class_hierarchy"))
    module_class = classes[-2].rpartition(".")[2] if len(classes) == len(scopes) else ""
    return Provenance(scopes[-2], module_class, source_line(metadata.get(_PREFIX + "stack_trace", "")))


def source_line(trace: str) -> Source | None:
    """Return the innermost line outside torch of a Python stack trace, whose outermost frame comes first; None if none."""
    frames = [Source(file, int(line)) for file, line in _FRAME.findall(trace[-100_000:]) if not _TORCH.search(file)]
    return frames[-1] if frames else None


def state_kinds(graph: onnx.GraphProto) -> Mapping[str, str]:
    """Return the kind of every tensor in the exported module's state, by name: PARAMETER, BUFFER or CONSTANT_TENSOR.

    It is read from the graph signature; the mapping is empty if the file has none.
    """
    signature = _dictionary(graph.metadata_props).get(_SIGNATURE, "")
    return {name: kind for kind, name in _STATE.findall(signature)}


def mark_buffers(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Let `state_kinds` name some tensors of a graph as buffers, which are not trained."""
    text = "".join(f": BUFFER target='{name}'" for name in names)
    known = _dictionary(graph.metadata_props).get(_SIGNATURE, "")
    if text:
        graph.metadata_props.add(key=_SIGNATURE, value=known + text)


def _dictionary(properties: Iterable[Any]) -> dict[str, str]:
    return {entry.key: entry.value for entry in properties if isinstance(entry.value, str)}  # a value that is not UTF-8 is bytes


def _names(text: str | None) -> list[str]:
    """Parse a Python list of strings. An empty list for any other text, and for one longer than any list of scopes."""
    if not text or len(text) > _LONGEST:
        return []
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return []
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []


def _module_of_name(name: str) -> str:
    """Return the module path in a node name: "layers.0.fc" for "/layers.0/fc/MatMul".

    The scope of a container's child repeats the container: the path of "/net/net.0/Gemm" is "net.0".
    """
    if not name.startswith("/"):
        return ""
    path: list[str] = []
    for scope in name.split("/")[1:-1]:
        if path and scope.startswith(path[-1] + "."):
            path.pop()
        path.append(scope)
    return ".".join(filter(None, path))
