"""What the probe asks of a model that can be run, whichever front end it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from gradlint.frontends.inputs import InputSpec
from gradlint.graph import Graph

Tensors = tuple[Any, ...]


class Tap(Protocol):
    """Called after every node that ran, in execution order."""

    def __call__(self, node: str, outputs: Tensors, inputs: Tensors) -> None:
        """`outputs` are the node's output tensors by port, `inputs` the tensors of `Node.inputs`, None where that is None."""


@runtime_checkable
class Restartable(Protocol):
    """A tap that can be told that the run starts again from the inputs, and what it saw so far is void."""

    def restart(self) -> None:
        """Forget the run so far."""


class Edit(Protocol):
    """May replace the outputs of a node before anybody reads them."""

    def __call__(self, node: str, outputs: Tensors) -> Tensors | None:
        """Return new outputs, or None to leave them."""


class Runnable(Protocol):
    """A model that can be run and differentiated.

    `graph` is complete after the first `forward`. A run feeds every float input as a tensor that requires grad, taps each
    graph input as the node of that input, and makes the output of a frozen embedding, or of a cast from integers to
    floats, require grad, so that every signal can be differentiated from its first float tensor on.
    """

    frontend: str
    mode: str
    inputs: tuple[InputSpec, ...]

    @property
    def graph(self) -> Graph:
        """The graph; raises RuntimeError before the first forward of a model that is captured by running it."""

    def untouched(self) -> AbstractContextManager[None]:
        """A context that hands the model and the global random state back as they came, also when its body raises."""

    def forward(self, inputs: Sequence[Any], tap: Tap | None = None, edit: Edit | None = None) -> Tensors:
        """Run on arrays drawn from `inputs` (in that order) and return one tensor for each of `graph.outputs`.

        Raises ForwardError when the model itself raises, PartialRun when an operator cannot be run.
        """

    def parameters(self) -> Mapping[str, Any]:
        """The trainable weights by name: leaf tensors that require grad. Who writes to them puts them back."""

    def call(self, inputs: Sequence[Any]) -> Any:
        """Run like `forward` with nobody watching, and return what the model itself returns. Raises as `forward` does."""


class PartialRun(Exception):  # noqa: N818 - it is a result, not a fault
    """The run stopped at `node`, whose operator `op` cannot be run; `outputs` is what had been computed on the way."""

    def __init__(self, node: str, op: str, reason: str) -> None:
        super().__init__(f"{op} at {node}: {reason}")
        self.node = node
        self.op = op
        self.reason = reason
