"""`read_onnx`: read an ONNX file into a graph, without torch and without reading the weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import inliner

from gradlint.errors import TargetError
from gradlint.frontends.inputs import InputSpec, merge_given, without_blank
from gradlint.frontends.onnx.folded import folding_notes
from gradlint.frontends.onnx.graph import build_graph
from gradlint.frontends.onnx.inputs import infer_inputs, other_batches
from gradlint.frontends.onnx.limits import DEFAULT, Limits
from gradlint.frontends.onnx.metadata import state_kinds
from gradlint.frontends.onnx.rewrites.mended import mended
from gradlint.frontends.onnx.rewrites.training import with_drawn_weights
from gradlint.frontends.onnx.schema import first_violation, opsets_of
from gradlint.frontends.onnx.shapes import free_inputs
from gradlint.frontends.onnx.skeleton import Skeleton, load_skeleton
from gradlint.frontends.onnx.walk import graphs_of
from gradlint.graph import Graph


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """An ONNX model as its file describes it.

    `proto` is the model with references in place of its large weights and with its local functions inlined. The nodes of `graph`
    have the ids of `names.assign_ids`. `notes` are remarks for the report.
    """

    skeleton: Skeleton
    graph: Graph
    notes: tuple[str, ...]
    frontend: str = "onnx"

    @property
    def path(self) -> Path | None:
        """The path of the file; None for a model in memory."""
        return self.skeleton.path

    @property
    def proto(self) -> onnx.ModelProto:
        """The model, with references in place of its large tensors."""
        return self.skeleton.proto

    @property
    def mode(self) -> str:
        """The mode of the export: "train" if a BatchNorm or a dropout of the file is in training mode, otherwise "eval"."""
        return self.graph.mode

    def array(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        """Return the values of a tensor of `proto`. Large ones are memory-mapped. Raises TargetError if they are damaged."""
        return self.skeleton.array(tensor)

    @cached_property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The inferred specification of each input. Raises InputError if an input cannot be inferred."""
        return self.inputs_with(())

    def inputs_with(self, given: tuple[InputSpec, ...], batch: int | None = None) -> tuple[InputSpec, ...]:
        """Return the specification of each input: the given ones, by name or by position, and the others as inferred.

        `batch` sets the batch size of the inferred inputs. Raises InputError if a given input does not exist, or if another one
        cannot be inferred.
        """
        values = free_inputs(self.proto.graph)
        placed = {value.name: spec for value, spec in zip(values, given, strict=False) if spec.name is None}
        named = {spec.name: spec for spec in given if spec.name is not None}
        return without_blank(merge_given(infer_inputs(values, self.graph, placed | named, batch), given))

    def other_inputs(self, given: tuple[InputSpec, ...]) -> Iterator[tuple[int, tuple[InputSpec, ...]]]:
        """Yield other batch sizes than the inferred one, the most likely first, each with its `inputs_with`."""
        seen = {_texts(self.inputs_with(given))}
        for batch in other_batches(free_inputs(self.proto.graph)):
            specs = self.inputs_with(given, batch)
            if _texts(specs) not in seen:
                seen.add(_texts(specs))
                yield batch, specs


def _texts(specs: tuple[InputSpec, ...]) -> tuple[str, ...]:
    return tuple(spec.text for spec in specs)


def read_onnx(
    source: str | Path | bytes | onnx.ModelProto,
    limits: Limits = DEFAULT,
    *,
    train: bool = False,
    lenient: bool = False,
    inputs: Collection[str] | None = None,
) -> OnnxFile:
    """Read an ONNX model from a path, from the bytes of a file, or from memory.

    With `train`, every BatchNorm uses the statistics of the batch. With `lenient`, a node that its schema rejects is a note. If
    `inputs` is given, other graph inputs that are weights are drawn. Raises TargetError if the model cannot be read, is not a
    valid graph or exceeds `limits`, and UnsafeFileError if it refers to a file outside its folder.
    """
    skeleton = load_skeleton(source, limits)
    skeleton = mended(replace(skeleton, proto=_inlined(skeleton)))
    skeleton, drawn = (skeleton, None) if inputs is None else with_drawn_weights(skeleton, inputs)
    if train:
        skeleton = _on_batch_statistics(skeleton)
    violation = first_violation(graphs_of(skeleton.proto.graph), opsets_of(skeleton.proto))
    if violation is not None and not lenient:
        hint = "export it again; where onnxruntime loads it all the same, --lenient makes this a note"
        raise TargetError(f"{skeleton.label}: not valid ONNX: {violation}", hint=hint)
    graph, reason = build_graph(skeleton, violation)
    notes = list(folding_notes(list(graph), state_kinds(skeleton.proto.graph), training=graph.mode == "train"))
    if train and graph.mode != "train":
        notes.append("train mode changes nothing: the file has no BatchNorm (lint the torch module where it was folded)")
    if drawn is not None:
        notes.append(drawn)
    trees = sorted({str(node.attrs["name"]).rpartition("::")[2] for node in graph if node.op == "trees"})
    if trees:
        notes.append(f"{' and '.join(trees)}: trees have no gradient, so that gradlint has nothing to say of them")
    if reason is not None:
        notes.append(f"shapes are unknown: {reason}")
    return OnnxFile(skeleton, graph, tuple(notes))


def _on_batch_statistics(skeleton: Skeleton) -> Skeleton:
    """Return a copy of the model with every BatchNorm in training mode."""
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton.proto)
    for graph in graphs_of(proto.graph):
        for node in graph.node:
            if node.op_type == "BatchNormalization":
                kept = [attribute for attribute in node.attribute if attribute.name != "training_mode"]
                del node.attribute[:]
                node.attribute.extend([*kept, onnx.helper.make_attribute("training_mode", 1)])
    return replace(skeleton, proto=proto)


def _inlined(skeleton: Skeleton) -> onnx.ModelProto:
    """Return the model with the calls of its local functions replaced by the bodies of these functions."""
    proto = skeleton.proto
    if not proto.functions:
        return proto
    try:
        return inliner.inline_local_functions(proto)
    except Exception as error:  # onnx raises a plain RuntimeError
        raise TargetError(f"{skeleton.label}: its local functions cannot be inlined: {error}") from error
