"""Run the layers of a fused bidirectional stack one by one.

The gradient of a whole stack runs along the sequence once per layer, in both directions. The gradient at a step of the input
therefore does not tell how fast it grows in any single layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gradlint.graph import Node
from gradlint.probe.vjp_points import VjpPoint

_ROLES = ("weight", "recurrent", "bias", "recurrent_bias", "projection")  # in torch's order


def single_layers(node: Node, held: Sequence[Tensor | None]) -> Iterator[tuple[VjpPoint, VjpPoint]]:
    """Run every layer on the inputs `held` of the node, without dropout; yield the points of its input and its final states.

    The final states have the shape (directions, samples, units). Yields nothing for an operator with one layer or one
    direction, because then every path runs in one direction only.
    """
    x = held[0] if held else None
    if x is None or not {"recurrent_l0_reverse", "recurrent_l1_reverse"} <= node.weights.keys():
        return
    x = x if x.dtype is torch.float64 else x.float()
    starts = [state.to(x.dtype) for state in held[1:] if state is not None and state.ndim == 3]
    for index in range(sum(role.startswith("recurrent_l") for role in node.weights) // 2):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            output, final = _layer(node, index, x, [state[2 * index : 2 * index + 2] for state in starts])
        yield VjpPoint.of(x), VjpPoint.of(final)
        x = output


def _layer(node: Node, index: int, x: Tensor, starts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Run one layer; return the outputs and the final states of both directions."""
    ends = (f"_l{index}", f"_l{index}_reverse")
    roles = [role + end for end in ends for role in _ROLES if role + end in node.weights]
    weights = [torch.as_tensor(np.array(node.weights[role].array(), dtype=np.float64)).to(x) for role in roles]
    recurrent, projection = (node.weights.get(role + ends[0]) for role in ("recurrent", "projection"))
    sizes, first = node.attrs.get("batch_sizes"), bool(node.attrs.get("batch_first"))
    samples = sizes[0] if sizes else x.shape[0 if first else 1]
    units = recurrent.shape[1] if recurrent is not None else 0
    if not starts:
        cells = projection.shape[1] if projection is not None else units
        starts = [x.new_zeros(2, samples, width) for width in ((units, cells) if node.op == "lstm" else (units,))]
    state = list(starts) if node.op == "lstm" else starts[0]
    run = getattr(torch, f"rnn_{node.attrs.get('nonlinearity', 'tanh')}" if node.op == "rnn" else node.op)
    options = (weights, f"bias{ends[0]}" in node.weights, 1, 0.0, False, True)
    found = run(x, torch.tensor(sizes), state, *options) if sizes else run(x, state, *options, first)
    return found[0], found[1]
