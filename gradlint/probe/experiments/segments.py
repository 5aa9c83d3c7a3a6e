"""Measure the Jacobian between the two ends of a growth: Frobenius norm, largest singular values, and condition number.

One backward pass of the probe gives the Jacobian from every node to the output, but not from one node to another. This experiment
computes products with the Jacobian between two nodes and its transpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradlint.errors import ForwardError
from gradlint.frontends.base import Runnable, Tensors
from gradlint.frontends.user_code import described
from gradlint.graph import Graph, Node
from gradlint.growth import HEALTHY, LIMIT
from gradlint.measurements.segments import Segment
from gradlint.probe.experiments.setting import Setting

STEPS, LEAST = 24, 3  # the most steps of the iteration, and the fewest, for a large model
FEWEST = 3  # the fewest random vectors for the part that the iteration did not reach
WORK = 4_000_000_000  # the most multiplications of all steps together
SURE = 0.003  # relative standard error of the Frobenius norm at which no more vectors are drawn
SHIFT = 1e-3  # step of central differences, relative to the norm of the start tensor
LARGEST = 20_000_000  # the most elements of both ends together: every step keeps a vector of each size

Product = Callable[[Tensor], Tensor]


def segments(setting: Setting) -> Mapping[str, Any]:
    """Return the field `segments` of `Measurement`, if growth is at least LIMIT decades, or HEALTHY for a small model."""
    growth = setting.found.growth
    if growth.start is None or growth.end is None or not HEALTHY <= abs(growth.decades) < math.inf or setting.found.dead:
        return {}
    steps = min(STEPS, WORK // _multiplications(setting.graph))
    if abs(growth.decades) < LIMIT and steps < STEPS:
        return {}
    steps = max(steps, LEAST)
    setting.progress("measuring the Jacobian of a segment")
    found = segment(setting.model, growth.start.node, growth.end.node, seed=setting.seed, steps=steps)
    return {"segments": (found,)} if found is not None else {}


def segment(model: Runnable, start: str, end: str, *, seed: int = 0, steps: int = STEPS) -> Segment | None:
    """Measure the Jacobian J = d end / d start.

    The singular values are computed by the bidiagonalization of Golub and Kahan (1965) with full orthogonalization, with up to
    `steps` products with J and as many with its transpose. The values found are lower bounds, and the largest converges first.
    The Frobenius norm is exact on the subspace that was reached; the rest is estimated by Hutchinson's method with up to three
    times as many random vectors (Hutch++, Meyer et al. 2021, arXiv 2010.09649).

    Args:
        model: The model; the caller must be inside `untouched`.
        start: The id of the node nearer to the input.
        end: The id of the node nearer to the output.
        seed: The seed of the inputs and of the random states.
        steps: The most steps of the iteration.

    Returns:
        The norms and sizes, or None if `end` does not depend on `start`, if their tensors are too large, or if J is zero or not
        finite.

    Raises:
        ForwardError: The model raised.
    """
    with sdpa_kernel(SDPBackend.MATH):  # fused attention kernels have no second derivative
        inside, outside = _end_tensors(model, start, end, seed)
        if inside is None or outside is None or not outside.requires_grad or inside.numel() + outside.numel() > LARGEST:
            return None
        back = _vjp(inside, outside)
        if back is None:
            return None
        forward = _jvp(inside, outside)
        exact = forward is not None
        found = _spectrum(back, forward or _differences(model, start, end, seed), outside, steps)
    if found is None:
        return None
    frobenius, values = found
    return Segment(
        start,
        end,
        inside.numel(),
        outside.numel(),
        frobenius,
        float(values[0]),
        float(values[0] / values[-1]) if values[-1] > 0.0 else math.inf,
        len(values),
        by_differences=not exact,
    )


def _end_tensors(
    model: Runnable, start: str, end: str, seed: int, shift: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Run the model; return the tensors at both ends. `shift` is added to the first. None for one that is overwritten later."""
    held: dict[str, Tensor] = {}
    versions: dict[str, int] = {}
    written = {node for node in (start, end) if "inplace" in model.graph[node].notes}

    def edit(node: str, outputs: Tensors) -> Tensors | None:
        if node not in {start, end} or not isinstance(outputs[0], Tensor):
            return None
        held[node] = outputs[0] if shift is None or node != start else outputs[0] + shift
        if node in written and held[node] is outputs[0]:
            return None  # autograd may have saved the result of an in-place write; it must not be replaced
        return (held[node].clone(), *outputs[1:])  # later in-place writes go to the clone

    def tap(node: str, outputs: Tensors, inputs: Tensors) -> None:
        del inputs
        if node == start and node in written and shift is None:
            held[node], versions[node] = outputs[0], _version(outputs[0])

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model.forward([spec.draw(rng) for spec in model.inputs], tap=tap, edit=edit)
    overwritten = start in versions and _version(held[start]) != versions[start]
    return None if overwritten else held.get(start), held.get(end)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to in place."""
    return tensor._version  # noqa: SLF001 - documented, but without a public name


def _vjp(inside: Tensor, outside: Tensor) -> Product | None:
    """Return the function from v to J^T v; None if `outside` does not depend on `inside`."""

    def product(v: Tensor) -> Tensor:
        try:
            (found,) = torch.autograd.grad(outside, inside, v.to(outside.dtype).view_as(outside), retain_graph=True)
        except Exception as error:
            raise ForwardError(f"the model's backward pass raised {described(error)}") from error
        return found.detach().reshape(-1).double()

    found: Any = torch.autograd.grad(outside, inside, torch.zeros_like(outside), retain_graph=True, allow_unused=True)
    return product if found[0] is not None else None


def _jvp(inside: Tensor, outside: Tensor) -> Product | None:
    """Return the function from u to J u; None if there is no second derivative.

    J^T v is linear in v, so that J u is its derivative with respect to v.
    """
    dummy = torch.zeros_like(outside, requires_grad=True)
    try:
        (linear,) = torch.autograd.grad(outside, inside, dummy, create_graph=True)
        torch.autograd.grad(linear, dummy, torch.zeros_like(linear), retain_graph=True)
    except RuntimeError:
        return None

    def product(u: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(linear, dummy, u.to(linear.dtype).view_as(linear), retain_graph=True)
        return found.detach().reshape(-1).double()

    return product


def _differences(model: Runnable, start: str, end: str, seed: int) -> Product:
    """Return the function from u to J u by central differences, each of which costs three runs of the model."""

    def product(u: Tensor) -> Tensor:
        inside, _ = _end_tensors(model, start, end, seed)
        assert inside is not None
        level, size = (float(torch.linalg.vector_norm(x.detach().double())) for x in (inside, u))
        step = SHIFT * (level or 1.0) / size
        shift = (step * u).to(inside.dtype).view_as(inside)
        above, below = (_end_tensors(model, start, end, seed, sign * shift)[1] for sign in (1.0, -1.0))
        assert above is not None
        assert below is not None
        return ((above - below).detach().reshape(-1).double()) / (2.0 * step)

    return product


def _spectrum(back: Product, forward: Product, outside: Tensor, steps: int) -> tuple[float, Tensor] | None:
    """Return the Frobenius norm, and the singular values that were reached, largest first. None if J is zero or not finite."""
    size, generator = outside.numel(), torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(outside.device)

    v = draw()
    v = v / torch.linalg.vector_norm(v)
    basis, rows, values = v.new_zeros(0, size), [], v.new_zeros(1)
    while True:
        basis = torch.cat([basis, v[None]])
        rows.append(back(v))
        values = torch.linalg.svdvals(torch.stack(rows))
        if not bool(torch.isfinite(values).all()) or not values[0]:
            return None
        if len(rows) == min(steps, size):
            break
        v = forward(rows[-1])
        length = torch.linalg.vector_norm(v)
        for _ in range(2):  # twice is enough (Kahan, in Parlett 1980)
            v = v - basis.T @ (basis @ v)
        left = torch.linalg.vector_norm(v)
        if not left > 1e-9 * length:  # the rest of J is zero
            return float(torch.linalg.vector_norm(values)), values
        v = v / left
    square, rest = float(values.square().sum()), [0.0]
    if len(rows) < size:
        rest = []
        while len(rest) < FEWEST or (
            len(rest) < 3 * steps and _standard_error(rest) > 2.0 * SURE * (square + float(np.mean(rest)))
        ):
            beyond = draw()
            rest.append(float(back(beyond - basis.T @ (basis @ beyond)).square().sum()))
    return math.sqrt(square + float(np.mean(rest))), values


def _multiplications(graph: Graph) -> int:
    """Estimate the multiplications of one forward pass: the output size of each node times the fan-in of its weight."""
    each = (math.prod(size or 1 for size in node.shape or ()) * _fan_in(node) for node in graph)
    return max(sum(each), 1)


def _fan_in(node: Node) -> int:
    return max((weight.fan_in for weight in node.weights.values() if len(weight.shape) > 1), default=1)


def _standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))
