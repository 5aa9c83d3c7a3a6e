"""An ONNX file as a torch module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from gradlint.errors import InputError
from gradlint.frontends.onnx.file import OnnxFile, read_onnx
from gradlint.graph import Graph
from gradlint.onnx_torch.dtypes import from_numpy
from gradlint.onnx_torch.engine import Engine, Observer, Values
from gradlint.onnx_torch.plan import Plan, Step


class OnnxModule(nn.Module):
    """A differentiable torch module that computes what an ONNX file describes.

    Call it with the graph inputs, in order or by name; it returns a tuple of the graph outputs. `model` is a path, the
    bytes of a file, or an `onnx.ModelProto`. Parameters are the weights by role, under their ONNX names: kernels, matrices,
    embeddings, norm scales, biases. Every other constant is a buffer: to differentiate, say, the exponent of a Pow would
    give NaN. Values share memory with the file where alignment allows; writing to them does not change the file.

    The file decides between training and inference (`training_mode` of BatchNormalization and Dropout); `train()` and
    `eval()` change nothing.

    Raises TargetError when the file cannot be read, InputError for inputs that do not fit, ForwardError when an operator
    fails, and `gradlint.frontends.base.PartialRun` at an operator that is not supported.
    """

    def __init__(self, model: str | Path | bytes | onnx.ModelProto | OnnxFile) -> None:
        super().__init__()
        file = model if isinstance(model, OnnxFile) else read_onnx(model)
        self.engine = Engine(file.proto, file.array)
        constants = self.engine.constants
        trained = _trained(file.graph, constants)
        self._slots = {node.id: frozenset(k for k, ref in enumerate(node.inputs) if ref is None) for node in file.graph}
        for name in [name for name, value in constants.items() if isinstance(value, Tensor)]:
            value = constants.pop(name)
            if name in trained and value.is_floating_point():
                self._parameters[name] = nn.Parameter(value)  # register_parameter refuses the dots and slashes of ONNX names
            else:
                self._buffers[name] = value

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the graph inputs, in order."""
        return self.engine.plan.inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph outputs, in order."""
        return self.engine.plan.outputs

    def forward(self, *inputs: Any, **named: Any) -> tuple[Any, ...]:
        """One tensor for each graph output; inputs are tensors or arrays of the graph's shapes."""
        return self.run(self._feeds(inputs, named))

    def uses(self, *inputs: Any, **named: Any) -> tuple[Values, dict[tuple[str, int], Tensor]]:
        """The outputs, and for each node and input slot that reads a parameter what it reads, to differentiate by.

        Exporters merge initializers of equal values, such as all fresh biases, so that the gradient of one parameter may mix
        layers. The gradients of its uses do not, and sum up to it. Uses inside loops are left out.
        """
        uses: dict[tuple[str, int], Tensor] = {}

        def read(step: Step, values: Values) -> Values:
            own = {k: values[k] for k in self._slots.get(step.id, ()) if k < len(values)}
            found = {k: x.view_as(x) for k, x in own.items() if isinstance(x, Tensor) and x.requires_grad}
            uses.update(((step.id, k), x) for k, x in found.items())
            return tuple(found.get(k, x) for k, x in enumerate(values))

        outputs = self.engine.run(self._feeds(inputs, named), {**self._buffers, **self._parameters}, reader=read)
        return outputs, uses

    def _feeds(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs by name; raises InputError for those that do not fit."""
        names = self.input_names
        hint = f"its inputs are {', '.join(names) or 'none'}"
        if len(inputs) > len(names):
            raise InputError(f"{len(inputs)} inputs given to a model that has {len(names)}", hint=hint)
        feeds = {**dict(zip(names, inputs, strict=False)), **named}
        unknown = [name for name in feeds if name not in names and name not in self.engine.plan.constants]
        missing = [name for name in names if name not in feeds]
        if unknown or missing:
            raise InputError(
                f"the model has no input {unknown[0]!r}" if unknown else f"input {missing[0]!r} is missing", hint=hint
            )
        return {name: _tensor(value) for name, value in feeds.items()}

    def run(self, feeds: Mapping[str, Any], observer: Observer | None = None) -> Values:
        """`forward` on inputs by name, with an observer of every node; see `Engine.run`."""
        return self.engine.run(feeds, {**self._buffers, **self._parameters}, observer)


def _tensor(value: Any) -> Any:
    if isinstance(value, (Tensor, list, tuple)) or value is None:
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "USO":  # text
        return value.astype(object)
    return from_numpy(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)


def _trained(graph: Graph, constants: Mapping[str, Any]) -> set[str]:
    """Names of the constants that a node uses as a weight, those a weight was computed from included."""
    names = (weight.name for node in graph for weight in node.weights.values() if weight.trainable)
    return {part for name in names for part in ((name,) if name in constants else name.split("+"))}


def steps_of(plan: Plan) -> Iterator[Step]:
    """The steps of a plan and of the plans in it."""
    for step in plan.steps:
        yield step
        for graph in step.graphs:
            yield from steps_of(graph)


def derived(plan: Plan, tainted: set[str]) -> Iterator[str]:
    """Ids of the nodes whose outputs depend on the values, not only the shapes, of the names in `tainted`."""
    for step in plan.steps:
        if step.op in ("Shape", "Size") or tainted.isdisjoint(step.reads):
            continue
        tainted.update(step.outputs)
        yield step.id
        for graph in step.graphs:
            yield from derived(graph, tainted | set(graph.inputs))
