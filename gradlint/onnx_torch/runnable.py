"""`OnnxRunnable`: an ONNX file as a model that the probe can run, observe and edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlint.frontends.base import Edit, PartialRun, Tap, Tensors
from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.onnx.file import OnnxFile
from gradlint.frontends.onnx.names import input_id
from gradlint.frontends.torch.state import untouched_process
from gradlint.graph import Graph, Ref
from gradlint.onnx_torch.dtypes import from_numpy, is_float8
from gradlint.onnx_torch.module import OnnxModule, dependent_nodes, steps_of
from gradlint.onnx_torch.plan import Plan, Step
from gradlint.onnx_torch.quantize import INTEGERS

_FIRST_FLOATS = frozenset({"Cast", "CastLike", "Gather", "OneHot"})  # operators that convert integer inputs to floats


class OnnxRunnable:
    """An ONNX file as a `gradlint.frontends.base.Runnable`.

    `inputs` are the specifications of the inputs, by default the inferred ones. `notes` are remarks on the meaning of its
    gradients. Raises InputError if the inputs cannot be inferred.
    """

    frontend = "onnx"
    by_blocks = False

    def __init__(self, file: OnnxFile, inputs: tuple[InputSpec, ...] | None = None) -> None:
        self.mode = file.mode
        self.inputs = file.inputs if inputs is None else inputs
        self.module = OnnxModule(file)
        self.notes = tuple(_notes(self.module.engine.plan))
        self._graph = file.graph
        self._dependent = frozenset(dependent_nodes(self.module.engine.plan, set(self.module.input_names)))
        reader = {ref: node.id for node in self._graph for ref in node.inputs if ref is not None}
        self._last: dict[str, list[Ref]] = {}
        for ref, node_id in reader.items():
            if ref not in self._graph.outputs:
                self._last.setdefault(node_id, []).append(ref)

    @property
    def graph(self) -> Graph:
        """The static graph. A run calls the tap for its nodes."""
        return self._graph

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Restore the state of the process on exit; see `gradlint.frontends.torch.state`. A run changes nothing else."""
        with untouched_process():
            yield

    def parameters(self) -> Mapping[str, Tensor]:
        """Return the trainable initializers by name."""
        return dict(self.module.named_parameters())

    @property
    def frozen(self) -> int:
        """Always 0: an ONNX file does not say which weights are frozen."""
        return 0

    def call(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Run without callbacks on one array for each of `self.inputs`, and return the graph outputs."""
        with torch.enable_grad():
            pairs = zip(self.inputs, inputs, strict=True)
            return self.module.run({str(spec.name): _as_value(spec, array) for spec, array in pairs})

    def forward(self, inputs: Sequence[Any], tap: Tap | None = None, edit: Edit | None = None) -> Tensors:
        """Run on one array for each of `self.inputs`; see `gradlint.frontends.base.Runnable`."""
        seen: dict[Ref, Any] = {}

        def show(node_id: str, outputs: Tensors) -> Tensors:
            """Let `edit` replace the outputs of a node, call `tap`, and return the outputs."""
            if node_id not in self._graph:
                return outputs
            tensors = tuple(map(_observable, outputs))
            edited = edit(node_id, tensors) if edit is not None else None
            if edited is not None:
                tensors = tuple(edited)
                outputs = tuple(old if new is None else new for old, new in zip(outputs, tensors, strict=True))
            if tap is not None:
                refs = self._graph[node_id].inputs
                tap(node_id, tensors, tuple(None if ref is None else seen.get(ref) for ref in refs))
            seen.update((Ref(node_id, port), value) for port, value in enumerate(outputs))
            for ref in self._last.get(node_id, ()):
                seen.pop(ref, None)
            return outputs

        def observe(step: Step, outputs: Tensors, _: Tensors) -> Tensors:
            if step.op in INTEGERS:
                reason = (
                    "it computes with integers, in whose units no gradient can be measured; lint the model before quantization"
                )
                raise PartialRun(step.id, step.op, reason)
            asked = outputs[: len(step.outputs)]
            if step.op in _FIRST_FLOATS and step.id in self._dependent:
                asked = tuple(_differentiable(value) for value in asked)
            return show(step.id, asked)

        feeds = {}
        for spec, array in zip(self.inputs, inputs, strict=True):
            value = _differentiable(_as_value(spec, array))
            (feeds[str(spec.name)],) = show(input_id(str(spec.name)), (value,))
        self.module.run(feeds, observe)
        return tuple(seen[ref] for ref in self._graph.outputs)


def _notes(plan: Plan) -> Iterator[str]:
    rounding = sum(step.op == "QuantizeLinear" for step in steps_of(plan))
    if rounding:
        yield f"quantized graph: gradients pass the rounding of {rounding} nodes straight through and stop where these saturate"


def _observable(value: Any) -> Tensor | None:
    """Return the value if it is a tensor that torch can compute with; None for float8 tensors and other values."""
    return value if isinstance(value, Tensor) and not is_float8(value.dtype) else None


def _as_value(spec: InputSpec, array: Any) -> Any:
    """Convert an array to a value of the evaluator: a tensor, or an array of objects for text."""
    if spec.dtype == "string":
        return np.asarray(array, dtype=object)
    return from_numpy(np.asarray(array)).to(getattr(torch, spec.dtype))


def _differentiable(value: Any) -> Any:
    """Return a copy that requires grad if the value is a float tensor that does not, and the value itself otherwise."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.requires_grad:
        return value
    return value.detach().requires_grad_().clone()
