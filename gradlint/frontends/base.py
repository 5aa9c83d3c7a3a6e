"""The interface between the front ends and the probe: `Runnable`, a model that can be run, and its callbacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from gradlint.frontends.inputs import InputSpec
from gradlint.graph import Graph

Tensors = tuple[Any, ...]
"""A tuple of `torch.Tensor`; typed loosely so that this file need not import torch."""


class Tap(Protocol):
    """A callback that receives the tensors of every node, in execution order, right after the node ran."""

    def __call__(self, node: str, outputs: Tensors, inputs: Tensors) -> None:
        """Receive the tensors of one node.

        Args:
            node: The id of the node.
            outputs: The output tensors, by port.
            inputs: The tensors of `Node.inputs`, in the same order; None where the entry of `Node.inputs` is None.
        """


@runtime_checkable
class Restartable(Protocol):
    """A tap that can start over. A front end calls `restart` if it has to run the model again from the inputs."""

    def restart(self) -> None:
        """Discard everything received so far."""


class Edit(Protocol):
    """A callback that can replace the outputs of a node before any other node reads them."""

    def __call__(self, node: str, outputs: Tensors) -> Tensors | None:
        """Return the new outputs of the node with id `node`, as many as `outputs`, or None to keep them."""


class Runnable(Protocol):
    """A model that can be run and differentiated.

    `graph` is complete after the first `forward`. A run calls the tap for each graph input too, with the id of its input node.
    Every float input is a tensor that requires grad. So is the first float tensor that is computed from integer inputs, such
    as the output of a frozen embedding or of a cast, so that every float signal can be differentiated.

    Attributes:
        frontend: "torch" or "onnx".
        mode: "train" or "eval".
        inputs: The specification of each input, in the order in which `forward` takes the arrays.
    """

    frontend: str
    mode: str
    inputs: tuple[InputSpec, ...]

    @property
    def by_blocks(self) -> bool:
        """Whether weights have values only while they are read, so that nothing may hold or change all of them."""

    @property
    def frozen(self) -> int:
        """Number of elements of the parameters that do not require grad."""

    @property
    def graph(self) -> Graph:
        """The graph of the model. Raises RuntimeError before the first `forward` if the graph is captured by running it."""

    def untouched(self) -> AbstractContextManager[None]:
        """Return a context manager that restores the model and the global random states on exit, also after an exception."""

    def forward(self, inputs: Sequence[Any], tap: Tap | None = None, edit: Edit | None = None) -> Tensors:
        """Run the model and return one tensor for each of `graph.outputs`.

        Args:
            inputs: One array for each of `self.inputs`, as `InputSpec.draw` returns it.
            tap: Called with the tensors of every node.
            edit: Called with the outputs of every node, which it can replace.

        Raises:
            ForwardError: The model itself raised.
            PartialRun: The run reached an operator that cannot be run.
        """

    def parameters(self) -> Mapping[str, Any]:
        """Return the trainable weights by name: leaf tensors that require grad. A caller that changes them must restore them."""

    def call(self, inputs: Sequence[Any]) -> Any:
        """Run the model without callbacks and return what it returns. Takes arrays and raises errors like `forward`."""


class PartialRun(Exception):  # noqa: N818 - it is a result, not a fault
    """The run stopped at the node with id `node`, because its operator `op` cannot be run. `reason` says why."""

    def __init__(self, node: str, op: str, reason: str) -> None:
        super().__init__(f"{op} at {node}: {reason}")
        self.node = node
        self.op = op
        self.reason = reason
