"""The static ONNX front end: a file becomes a graph, without torch and without reading the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import inliner

from gradlint.errors import TargetError
from gradlint.frontends.inputs import InputSpec, merge_given
from gradlint.frontends.onnx_graph import build_graph
from gradlint.frontends.onnx_inputs import infer_inputs
from gradlint.frontends.onnx_limits import DEFAULT, Limits
from gradlint.frontends.onnx_metadata import FOLDED, state_kinds
from gradlint.frontends.onnx_shapes import free_inputs
from gradlint.frontends.onnx_skeleton import Skeleton, load_skeleton
from gradlint.graph import Graph
from gradlint.ops import Kind, operator

FROZEN_NOTE = "eval-mode graph: BatchNorm is an affine map with frozen statistics"
FOLDED_NOTE = "BatchNorm was folded by the exporter"
UNKNOWN_NOTE = "normalization unknown: the file does not say whether a BatchNorm was folded into its convolutions"


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A model as its file describes it.

    `proto` is the model without its large weights and with its local functions inlined; `graph` has the same nodes, under
    the ids of `onnx_names.assign_ids`. `notes` are sentences for the report.
    """

    skeleton: Skeleton
    graph: Graph
    notes: tuple[str, ...]
    frontend: str = "onnx"

    @property
    def path(self) -> Path | None:
        """The file, None for a model in memory."""
        return self.skeleton.path

    @property
    def proto(self) -> onnx.ModelProto:
        """The model, whose large tensors are references."""
        return self.skeleton.proto

    @property
    def mode(self) -> str:
        """Either "train", when a BatchNorm or dropout of the file is in training mode, or "eval"."""
        return self.graph.mode

    def array(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """The values of a tensor of `proto`, memory-mapped where they are large; raises TargetError when they are damaged."""
        return self.skeleton.array(tensor)

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What to feed; raises InputError for an input that cannot be inferred."""
        return self.inputs_with(())

    def inputs_with(self, given: tuple[InputSpec, ...]) -> tuple[InputSpec, ...]:
        """What to feed when `given` is set by the user, by name or by position; only the other inputs are inferred.

        Raises InputError when a given one does not exist, or another one cannot be inferred.
        """
        values = free_inputs(self.proto.graph)
        named = {spec.name for spec in given if spec.name is not None}
        placed = {value.name for value, spec in zip(values, given, strict=False) if spec.name is None}
        return merge_given(infer_inputs(values, self.graph, frozenset(named | placed)), given)


def read_onnx(source: str | Path | bytes | onnx.ModelProto, limits: Limits = DEFAULT) -> OnnxFile:
    """Read a model from a file, the bytes of one, or memory.

    Raises TargetError when it cannot be read, is no valid graph or asks for more than `limits` allow, UnsafeFileError when it
    reaches outside its folder.
    """
    skeleton = load_skeleton(source, limits)
    skeleton = replace(skeleton, proto=_inlined(skeleton))
    graph, reason = build_graph(skeleton)
    notes = list(_notes(skeleton.proto, graph))
    if reason is not None:
        notes.append(f"shapes are unknown: {reason}")
    return OnnxFile(skeleton, graph, tuple(notes))


def _notes(proto: onnx.ModelProto, graph: Graph) -> Iterator[str]:
    norms = sum(node.op == "batch_norm" for node in graph)
    if norms and graph.mode == "eval":
        yield FROZEN_NOTE
    kinds = state_kinds(proto.graph)
    exported = sum(name.endswith("running_mean") for name in kinds)
    if exported > norms or any(FOLDED in node.notes for node in graph):
        yield FOLDED_NOTE
    elif not kinds and any(operator(node.op).kind is Kind.CONV for node in graph) and not norms:
        yield UNKNOWN_NOTE


def _inlined(skeleton: Skeleton) -> onnx.ModelProto:
    """The model with the calls of its local functions replaced by their bodies."""
    proto = skeleton.proto
    if not proto.functions:
        return proto
    try:
        return inliner.inline_local_functions(proto)
    except Exception as error:  # onnx raises bare RuntimeError
        raise TargetError(f"{skeleton.label}: its local functions cannot be inlined: {error}") from error
