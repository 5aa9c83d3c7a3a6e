"""The best constant: the lowest loss that a prediction reaches which is the same for every sample of the batch.

It is the mean of the target for squared errors, the median for absolute ones and the base rates for cross-entropies. For other
losses it is found by descent on the constant alone. A model that ends no lower has learned nothing of its input.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gradlint.errors import GradlintError
from gradlint.probe.experiments.objective import copy_target, raw_gradients

LEAST = 3  # values of the target for each number of a constant: with fewer, the constant learns the batch by heart
ROUNDS = 3  # descents in a row
STEPS = 20  # of L-BFGS in each of them, with at most 25 evaluations
SETTLED = 0.01  # relative decrease in the last descent: a loss that falls by more has no lowest constant
FARTHER = 10.0  # times the constant: a loss that is lower there falls without end
ENDLESS = 1e-3  # relative decrease on the way there, over the accuracy with which constants are found
ALIKE = 1e-6  # of the first gradient: with less at each sample, the constant is right for all of them, and says nothing
QUANTILES = 0.5, 0.1, 0.25, 0.75, 0.9  # of the target: the best constants of absolute and of quantile losses
SECONDS = 10.0  # no further descent begins after this time
LINKS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": torch.softmax,
    "log_softmax": torch.log_softmax,
    "sigmoid": lambda logits, _: logits.sigmoid(),
}
"""Last operators of models, with which a free constant becomes an output that they can give."""

Loss = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class _Problem:
    """The loss as a function of an output that is shared by all samples. `leaves` are the float tensors of `output`."""

    loss: Loss
    target: Any
    output: Any
    leaves: tuple[Tensor, ...]
    link: Callable[[Tensor, int], Tensor] | None

    def outputs(self, constants: Sequence[Tensor]) -> list[Tensor]:
        """Return the leaves with every sample replaced by the constant."""
        pairs = zip(constants, self.leaves, strict=True)
        return [self._linked(constant, leaf).to(leaf.dtype).expand(leaf.shape) for constant, leaf in pairs]

    def _linked(self, constant: Tensor, leaf: Tensor) -> Tensor:
        if self.link is None:
            return constant
        axis = max(range(leaf.ndim), key=lambda one: (constant.shape[one], one == min(1, leaf.ndim - 1)))
        classes = [leaf.shape[one] if one == axis else constant.shape[one] for one in range(leaf.ndim)]
        return self.link(constant.expand(classes), axis)

    def of(self, leaves: Sequence[Tensor]) -> Tensor:
        """Return the loss of an output with these leaves."""
        given = iter(leaves)
        output = pytree.tree_map(lambda leaf: next(given) if _is_free(leaf) else leaf, self.output)
        value = self.loss(output, copy_target(self.target))
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            raise GradlintError("the loss of a constant is not one number")
        return value.reshape(())


def best_constant(loss: Loss, output: Any, target: Any, *, last: str = "") -> float | None:
    """Return the lowest loss of an output that is the same for every sample, one number for each output unit.

    The units of an output of three or more axes are its channels: the second or the last axis. Where a batch holds too few
    values for that, all units share one number. The search is deterministic.

    Args:
        loss: Called as loss(output, target).
        output: The detached output of the model on the batch.
        target: The target of the batch.
        last: The last operator of the model, if its range is limited and it is one of `LINKS`.

    Returns:
        The loss; None if the loss does not accept a constant, falls without end, or is lowest for one and the same output at
        every sample, so that the constant is no baseline.
    """
    leaves = tuple(leaf for leaf in pytree.tree_leaves(output) if _is_free(leaf))
    if not leaves:
        return None
    problem = _Problem(loss, target, output, leaves, LINKS.get(last))
    until = time.monotonic() + SECONDS
    found: list[float] = []
    with torch.enable_grad(), suppress(Exception):  # user code raises anything
        for shapes in _sharings(leaves, _values(target, leaves[0])):
            if not found or time.monotonic() < until:
                found.append(_lowest(problem, shapes, until))
    known = [value for value in found if math.isfinite(value)]
    return min(known) if known and len(known) == len(found) else None


def _values(target: Any, output: Tensor) -> int:
    """Return how many values a batch gives: those of the largest target, or of the output if there is none."""
    goals = [leaf for leaf in pytree.tree_leaves(target) if isinstance(leaf, Tensor) or hasattr(leaf, "__array__")]
    sizes = [int(torch.as_tensor(goal).numel()) for goal in goals]
    return max(sizes, default=output.numel()) if max(sizes, default=0) > 1 else output.numel()


def _sharings(leaves: Sequence[Tensor], values: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield the shapes of constants: by channel where that is few enough numbers, else one number for all units."""
    main = leaves[0]
    axes = sorted({1, main.ndim - 1} - {0}) if main.ndim > 1 else [0]
    several = False
    for axis in axes:
        shapes = [_kept(leaf, axis if leaf is main or leaf.ndim == main.ndim else leaf.ndim - 1) for leaf in leaves]
        if main.ndim == 1:
            shapes[0] = (1,)
        if values >= LEAST * math.prod(shapes[0]):
            several = True
            yield shapes
    if not several and values >= LEAST:
        yield [(1,) * leaf.ndim for leaf in leaves]


def _kept(leaf: Tensor, axis: int) -> tuple[int, ...]:
    return tuple(size if index == axis and index else 1 for index, size in enumerate(leaf.shape))


def _lowest(problem: _Problem, shapes: Sequence[tuple[int, ...]], until: float) -> float:
    """Return the lowest loss of constants of these shapes, NaN if there is none, infinity removed."""
    starts = [start for start in _starts(problem, shapes) if math.isfinite(_value(problem, start))]
    if not starts:
        return math.nan
    best = min(starts, key=lambda start: _value(problem, start))
    value, fell = _value(problem, best), 0.0
    for _ in range(ROUNDS):
        refined = _descended(problem, best)
        lower = _value(problem, refined)
        if not math.isfinite(lower):
            return math.nan
        fell = max(value - lower, 0.0)
        best, value = (refined, lower) if fell else (best, value)
        if not fell or time.monotonic() > until:
            break
    if fell > SETTLED * max(abs(value), 1e-12):
        return math.nan
    return value if not _is_endless(problem, best, value) and _tells_samples_apart(problem, best) else math.nan


def _is_endless(problem: _Problem, constants: Sequence[Tensor], value: float) -> bool:
    """Return whether the loss is still lower far behind a constant, where it is defined there."""
    with suppress(Exception):  # a probability over one, for example
        farther = _value(problem, [FARTHER * one for one in constants])
        return farther < value - ENDLESS * abs(value)
    return False


def _value(problem: _Problem, constants: Sequence[Tensor]) -> float:
    with torch.no_grad():
        return float(problem.of(problem.outputs(constants)))


def _descended(problem: _Problem, start: Sequence[Tensor]) -> list[Tensor]:
    constants = [constant.detach().clone().requires_grad_() for constant in start]
    optimizer = torch.optim.LBFGS(constants, max_iter=STEPS, max_eval=STEPS + 5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = problem.of(problem.outputs(constants))
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return [constant.detach() for constant in constants]


def _tells_samples_apart(problem: _Problem, constants: Sequence[Tensor]) -> bool:
    """Return whether the loss wants different outputs at different samples: its gradient at the best constant says so."""

    def pulls(leaves: Sequence[Tensor], *, apart: bool) -> float:
        free = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        known = [one.double() for one in raw_gradients(problem.of(free), free) if one is not None]
        return math.hypot(*(float((one - one.mean(0) if apart and one.ndim else one).norm()) for one in known))

    return pulls(problem.outputs(constants), apart=True) > ALIKE * pulls(problem.leaves, apart=False)


def _starts(problem: _Problem, shapes: Sequence[tuple[int, ...]]) -> Iterator[list[Tensor]]:
    """Yield constants to begin with: zeros, the mean output, and what is best for known losses on targets of known shapes."""
    zeros = [torch.zeros(shape, device=leaf.device) for shape, leaf in zip(shapes, problem.leaves, strict=True)]
    yield zeros
    if problem.link is None:
        yield [_averaged(leaf.float(), shape) for leaf, shape in zip(problem.leaves, shapes, strict=True)]
    main, shape = problem.leaves[0], shapes[0]
    for goal in pytree.tree_leaves(problem.target):
        tensor = torch.as_tensor(goal).to(main.device) if isinstance(goal, Tensor) or hasattr(goal, "__array__") else None
        if tensor is None or not tensor.numel():
            continue
        if tensor.numel() == main.numel() and not tensor.is_complex():
            values = tensor.reshape(main.shape).float()
            yield from ([one, *zeros[1:]] for one in _of_floats(values, shape))
        elif not tensor.is_floating_point() and math.prod(shape) > 1:
            classes = max(shape)
            counts = torch.bincount(tensor.reshape(-1).clamp(0, classes - 1).long(), minlength=classes).float()
            yield [((counts + 1e-3) / (counts + 1e-3).sum()).log().reshape(shape), *zeros[1:]]


def _averaged(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    axes = [axis for axis, size in enumerate(shape) if size == 1]
    return values.mean(axes, keepdim=True) if axes else values


def _of_floats(values: Tensor, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Yield mean, quantiles and log-odds of the target at each unit."""
    mean = _averaged(values, shape)
    yield mean
    units = max(range(len(shape)), key=shape.__getitem__)
    rows = values.movedim(units, 0).reshape(math.prod(shape), -1)
    for share in QUANTILES:
        ranked = rows.sort(-1).values
        yield ranked[:, round(share * (ranked.shape[1] - 1))].reshape(shape)
    yield mean.clamp(1e-4, 1.0 - 1e-4).logit()


def _is_free(leaf: Any) -> bool:
    """Return whether a leaf becomes a constant: a scalar, such as an auxiliary loss, has no samples and stays as it is."""
    return is_float(leaf) and leaf.ndim > 0


def is_float(leaf: Any) -> bool:
    """Return whether a leaf of an output is a tensor of real floats."""
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 0
