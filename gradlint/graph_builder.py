"""A builder of small graphs for the examples of rules and for tests. It sets shapes, weights and gains without a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlint.graph import Graph, Node, Ref, Source, Statistics, Weight
from gradlint.growth import summarize
from gradlint.recipe import Recipe, Task
from gradlint.result import Gains, Growth, Measurement, TimeGrowth
from gradlint.structure import Structure

if TYPE_CHECKING:
    from numpy.typing import NDArray


class GraphBuilder:
    """Builds a graph node by node. Methods that add a node return its id, which is `name` or the operator with a number.

    Args:
        mode: "train" or "eval".
        batch: Batch size of stacks.
        width: Width of stacks. Their weights have statistics but no values, so it can be large.
    """

    def __init__(self, mode: str = "train", *, batch: int = 8, width: int = 64) -> None:
        self.mode = mode
        self.batch, self.width = batch, width
        self._nodes: list[Node] = []
        self._counts: Counter[str] = Counter()
        self._outputs: list[Ref] = []
        self._measured: dict[str, Any] | None = None
        self._gains: dict[str, Gains] = {}
        self.task = Task()

    # nodes ----------------------------------------------------------------------------------------------------------

    def _like(self, inputs: Sequence[str | None]) -> tuple[int | None, ...] | None:
        """Return the shape of the first input."""
        shapes = {node.id: node.shape for node in self._nodes}
        return next((shapes[item] for item in inputs if item is not None), None)

    def op(
        self,
        op: str,
        *inputs: str | None,
        name: str | None = None,
        weights: Mapping[str, Weight] | None = None,
        shape: tuple[int | None, ...] | None = None,
        dtype: str = "float32",
        module: str = "",
        notes: Sequence[str] = (),
        source: Source | None = None,
        **attrs: Any,
    ) -> str:
        """Add a node of any operator. By default, it has the shape of its first input."""
        shape = shape if shape is not None else self._like(inputs)
        node_id = name or f"{op}{self._counts[op]}"
        self._counts[op] += 1
        refs = tuple(None if item is None else Ref(item) for item in inputs)
        self._nodes.append(
            Node(node_id, op, refs, weights or {}, attrs, shape, dtype, module, source=source, notes=frozenset(notes))
        )
        return node_id

    def input(self, *shape: int, name: str = "x", dtype: str = "float32") -> str:
        """Add a graph input."""
        return self.op("input", name=name, shape=shape, dtype=dtype)

    def weight(self, *shape: int, gain: float = 1.0, mean: float = 0.0, max_abs: float | None = None, name: str = "") -> Weight:
        """Return a weight with given statistics and no drawn values.

        Its variance is gain^2 / fan_in. `max_abs` defaults to |mean| plus three standard deviations.
        """
        fan_in = math.prod(shape[1:])
        variance = gain**2 / max(fan_in, 1)
        largest = max_abs if max_abs is not None else abs(mean) + 3.0 * math.sqrt(variance)
        label = name or f"weight{len(self._nodes)}"
        statistics = Statistics(mean, variance + mean**2, largest, finite=True)
        return Weight(label, shape, "float32", lambda: np.full(shape, mean), statistics=statistics)

    def array(self, values: NDArray[Any], name: str = "") -> Weight:
        """Return a weight with the given values."""
        return Weight(name or f"weight{len(self._nodes)}", values.shape, str(values.dtype), lambda: values)

    def linear(
        self,
        x: str,
        width: int | None = None,
        *,
        gain: float = 1.0,
        uniform: bool = False,
        module: str = "",
        name: str | None = None,
        weight: Weight | None = None,
    ) -> str:
        """Add a linear layer with a weight of shape (width, width) and gain sqrt(fan_in Var W).

        If `uniform` is true, the largest |W| is that of a uniform distribution, otherwise three standard deviations.
        """
        width = width or self.width
        bound = gain * math.sqrt(3.0 / width) if uniform else None
        made = weight or self.weight(width, width, gain=gain, max_abs=bound)
        return self.op(
            "linear",
            x,
            weights={"weight": made},
            shape=(*(self._like([x]) or (self.batch, 0))[:-1], width),
            module=module,
            name=name,
        )

    def norm(self, x: str, op: str = "layer_norm", *, module: str = "") -> str:
        """Add a normalization layer without weights."""
        return self.op(op, x, module=module, eps=1e-5)

    def stack(self, depth: int, act: str = "tanh", *, gain: float = 1.0, norm: str | None = None, uniform: bool = False) -> str:
        """Add an input and `depth` times a weight layer, a normalization if given, and an activation. Return the last node."""
        x = self.input(self.batch, self.width)
        for index in range(depth):
            x = self.linear(x, gain=gain, uniform=uniform, module=f"layers.{index}")
            x = self.norm(x, norm) if norm else x
            x = self.op(act, x, shape=(self.batch, self.width))
        return x

    def blocks(
        self, depth: int, act: str = "relu", *, gain: float = math.sqrt(2.0), norm: str | None = None, scale: float = 1.0
    ) -> str:
        """Add an input and a stack of residual blocks x + scale * W2 act(W1 norm(x)). Return the last sum."""
        x = self.input(self.batch, self.width)
        for index in range(depth):
            h = self.norm(x, norm) if norm else x
            h = self.linear(h, gain=gain, module=f"blocks.{index}.fc1")
            h = self.op(act, h, shape=(self.batch, self.width))
            h = self.linear(h, gain=1.0, module=f"blocks.{index}.fc2")
            h = self.op("mul", h, None, constant=scale) if scale != 1.0 else h
            x = self.op("add", x, h, shape=(self.batch, self.width), module=f"blocks.{index}")
        return x

    def output(self, *nodes: str) -> GraphBuilder:
        """Add outputs. Without a call, the last node is the output."""
        self._outputs.extend(Ref(node) for node in nodes)
        return self

    # measurement ----------------------------------------------------------------------------------------------------

    def gains(self, node: str, backward: float, forward: float = 0.0, relative: float | None = None) -> GraphBuilder:
        """Set the gains that the probe measured at a node, in decades. `relative` defaults to `backward`."""
        self._gains[node] = Gains(backward, forward, backward if relative is None else relative)
        return self.measured()

    def ramp(self, decades: float) -> GraphBuilder:
        """Set measured backward gains that fall evenly by `decades` from the first node of the spine to the last."""
        spine = Structure(self.graph).spine
        for index, node in enumerate(spine):
            self.gains(node, decades * (1.0 - index / max(len(spine) - 1, 1)))
        return self.measured()

    def measured(self, **fields: Any) -> GraphBuilder:
        """Set fields of the `Measurement` that the probe made."""
        self._measured = {**(self._measured or {}), **fields}
        return self

    def over_time(
        self,
        node: str,
        decades: float,
        steps: int = 40,
        *,
        axis: int | None = 0,
        lyapunov: tuple[float, ...] = (),
        reads: str = "every",
    ) -> GraphBuilder:
        """Set the measured growth of the gradient over the steps of a recurrence, in decades, which is equal in every step."""
        growth = Growth(decades, rise=max(decades, 0.0), fall=max(-decades, 0.0))
        horizon = 3.0 * steps / abs(decades) if decades else math.inf
        slope = decades / steps
        found = TimeGrowth(node, (), growth, slope, None, horizon, lyapunov, axis, steps, reads=reads)
        return self.measured(time=(found,))

    def trained(self, recipe: Recipe) -> GraphBuilder:
        """Set the recipe."""
        self.task = Task(recipe=recipe)
        return self

    # results --------------------------------------------------------------------------------------------------------

    @property
    def graph(self) -> Graph:
        """The graph so far."""
        return Graph(self._nodes, self._outputs or [Ref(self._nodes[-1].id)], mode=self.mode)

    @property
    def measurement(self) -> Measurement | None:
        """The measurement that was set, or None if nothing was set."""
        if self._measured is None:
            return None
        graph = self.graph
        structure = Structure(graph)
        gains = {node.id: self._gains.get(node.id, Gains(0.0, 0.0, 0.0)) for node in graph}
        fields: dict[str, Any] = {
            "gains": gains,
            "spine": structure.spine,
            "trunk": tuple(ref.node for ref in structure.trunk),
            "growth": summarize(graph, structure.spine, gains) if structure.spine else Growth(0.0),
            "seeds": 1,
        }
        return Measurement(**{**fields, **self._measured})
