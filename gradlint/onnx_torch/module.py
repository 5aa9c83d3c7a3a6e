"""`OnnxModule`: an ONNX file as a torch module."""

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
    """A differentiable torch module that computes the graph of an ONNX file.

    Call it with the graph inputs, in order or by name. It returns a tuple of the graph outputs.

    The parameters are the trainable weights under their ONNX names: kernels, matrices, embeddings, norm scales, biases. Every
    other constant is a buffer, because the gradient of, for example, the exponent of a Pow can be NaN. The values share memory
    with the file if their alignment allows it, but writing to them does not change the file.

    The file determines the mode, by `training_mode` of BatchNormalization and Dropout. `train()` and `eval()` have no effect.

    Args:
        model: A path, the bytes of a file, an `onnx.ModelProto`, or an `OnnxFile`.

    Raises:
        TargetError: The file cannot be read.
        InputError: The inputs of a call do not fit.
        ForwardError: An operator failed during a call.
        gradlint.frontends.base.PartialRun: A call reached an operator that is not supported.
    """

    def __init__(self, model: str | Path | bytes | onnx.ModelProto | OnnxFile) -> None:
        super().__init__()
        file = model if isinstance(model, OnnxFile) else read_onnx(model, lenient=True)
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
        """The names of the graph inputs, in order."""
        return self.engine.plan.inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the graph outputs, in order."""
        return self.engine.plan.outputs

    def forward(self, *inputs: Any, **named: Any) -> tuple[Any, ...]:
        """Return one tensor for each graph output.

        The inputs are tensors or arrays with the shapes that the graph declares. Raises InputError, ForwardError or PartialRun
        as the class says.
        """
        return self.run(self._feeds(inputs, named))

    def uses(self, *inputs: Any, **named: Any) -> tuple[Values, dict[tuple[str, int], Tensor]]:
        """Run the model and return its outputs, and one tensor for each use of a parameter, by node id and input slot.

        Exporters merge initializers with equal values, such as biases that are all zero. The gradient of such a parameter is the
        sum over several layers. The gradient with respect to one use is that of a single layer. Uses inside loops are omitted.
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
        """Return the inputs by name. Raises InputError if they do not fit."""
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
        """Run the model on inputs by name, with an observer of every node; see `Engine.run`."""
        return self.engine.run(feeds, {**self._buffers, **self._parameters}, observer)


def _tensor(value: Any) -> Any:
    if isinstance(value, (Tensor, list, tuple)) or value is None:
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "USO":  # text
        return value.astype(object)
    return from_numpy(value) if isinstance(value, np.ndarray) else torch.as_tensor(value)


def _trained(graph: Graph, constants: Mapping[str, Any]) -> set[str]:
    """Return the names of the constants that are trainable weights, or that a trainable weight is computed from."""
    names = (weight.name for node in graph for weight in node.weights.values() if weight.trainable)
    return {part for name in names for part in ((name,) if name in constants else name.split("+"))}


def steps_of(plan: Plan) -> Iterator[Step]:
    """Yield the steps of a plan and of its subgraphs."""
    for step in plan.steps:
        yield step
        for graph in step.graphs:
            yield from steps_of(graph)


def dependent_nodes(plan: Plan, names: set[str]) -> Iterator[str]:
    """Yield the ids of the nodes whose outputs depend on the values, not only on the shapes, of the tensors in `names`.

    `names` is extended by the outputs of these nodes.
    """
    for step in plan.steps:
        if step.op in ("Shape", "Size") or names.isdisjoint(step.reads):
            continue
        names.update(step.outputs)
        yield step.id
        for graph in step.graphs:
            yield from dependent_nodes(graph, names | set(graph.inputs))
