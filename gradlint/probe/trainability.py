"""Which parameters learn: plain passes on the inputs as they were given, at the initial weights and after virtual steps.

Exact zeros block gradients: a gain that starts at zero, or a head of zeros behind gates of zeros. Such a start is a design if
it opens after a few updates, and a fault if it stays shut. That is tried out: the parameters that have a gradient move a little,
and the gradients are looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from gradlint.frontends.base import PartialRun, Runnable
from gradlint.frontends.torch.record import returned_tensors
from gradlint.graph import Graph
from gradlint.measurements.learning import Learning
from gradlint.measurements.trainability import Trainability
from gradlint.probe.budget import ENDLESS, Budget
from gradlint.probe.cotangents import drawn, seeded
from gradlint.probe.recorder import square_sum
from gradlint.signal_path import passes_gradient

STEPS = 12
"""The most virtual steps, one for each zero behind another. They end with the first one after which nothing more opens, unless
values are at fault, which change from step to step."""

_STEP = 0.02
"""Root mean square of a virtual step, relative to that of the parameter."""

_LEAST = 0.01
"""Root mean square that a parameter of zeros counts as: the start of a small normal initialization."""


def examine_trainability(
    model: Runnable,
    graph: Graph,
    probed: Learning,
    seed: int,
    doubtful: Collection[str] = (),
    *,
    budget: Budget = ENDLESS,
) -> Trainability | None:
    """Find out which parameters learn; None if the time of `budget` is over before that is known.

    Plain passes are made only if they can show something: a parameter lacks a gradient, a re-entrant checkpoint may behave
    otherwise on inputs that require no grad, or a module returns something that carries no gradient. An exported file may end in
    an argmax: it is for inference.

    Args:
        model: The model, inside `untouched`.
        graph: Its graph.
        probed: The gradients in the pass of the probe, on inputs that require grad.
        seed: The first seed of inputs and cotangents; each step has its own.
        doubtful: Names of parameters that values may have silenced for once. All steps are taken as long as one is silent.
        budget: The time that is left.
    """
    parameters = model.parameters()
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    used = {weight.name for node in graph for weight in node.weights.values()}
    is_silent = (
        model.frontend == "torch" and model.mode == "train" and not all(passes_gradient(graph[ref.node]) for ref in graph.outputs)
    )
    if all(map(probed.learns, parameters)) and not is_silent and not any("checkpoint" in node.notes for node in graph):
        return Trainability(sizes, model.frozen)
    plain = _plain(model, seed)
    if plain is None:
        return Trainability()
    gradients = plain.gradients
    learning = {name for name, gradient in gradients.items() if bool(gradient.any())}
    opened: dict[str, int] = {}
    if gradients.keys() > learning:
        with _moved(parameters) as move:
            for step in range(1, STEPS + 1):
                if budget.is_spent:
                    return None
                move(gradients)
                gradients = _gradients(model, seed + step)
                fresh = {name for name, gradient in gradients.items() if bool(gradient.any())} - learning
                opened |= dict.fromkeys(sorted(fresh), step)
                learning |= fresh
                if not fresh and step > 1 and learning.issuperset(doubtful):
                    break
    if model.frontend != "torch" or model.mode != "train":  # what is exported may end in an argmax
        learning |= set(filter(probed.learns, parameters))
    silent = [name for name in parameters if name not in learning]
    return Trainability(
        sizes=sizes,
        frozen=model.frozen,
        opened=opened,
        numbers=plain.numbers,
        stuck=tuple(name for name in silent if name in used),
        unused=tuple(name for name in silent if name not in used),
    )


@contextmanager
def virtual_steps(model: Runnable, seed: int, steps: int) -> Iterator[None]:
    """Run the body of the context on the model after virtual steps; on exit, its parameters have their values back."""
    with _moved(model.parameters()) as move:
        for step in range(steps):
            move(_gradients(model, seed + step))
        yield


@dataclass(frozen=True, slots=True)
class _Plain:
    """The gradients of parameters that a plain run reaches, and whether it returns numbers or arrays beside tensors."""

    gradients: Mapping[str, torch.Tensor] = field(default_factory=dict)
    numbers: bool = False


def _gradients(model: Runnable, seed: int) -> Mapping[str, torch.Tensor]:
    return (_plain(model, seed) or _Plain()).gradients


def _plain(model: Runnable, seed: int) -> _Plain | None:
    """Run the model as it is, and pull a random cotangent back from its outputs.

    Returns None for a run without outputs, of which nothing can be said.

    `autograd.grad` cannot pass a re-entrant checkpoint, so that the gradients are accumulated, and the old ones put back.
    """
    parameters = model.parameters()
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    try:
        returned = model.call([spec.draw(rng) for spec in model.inputs])
    except PartialRun:
        return None
    made = list(returned_tensors(returned))
    if not any(tensor.numel() for tensor in made):
        return None
    numbers = _holds_numbers(returned)
    outputs = [tensor for tensor in made if tensor.requires_grad]
    if not outputs:
        return _Plain(numbers=numbers)
    cotangents = drawn(outputs, seed)
    kept = {name: parameter.grad for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.grad = None
        torch.autograd.backward(seeded(outputs, cotangents))
        found = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    finally:
        for name, parameter in parameters.items():
            parameter.grad = kept[name]
    dense = {name: gradient.to_dense() if gradient.layout is not torch.strided else gradient for name, gradient in found.items()}
    return _Plain(dense, numbers)


def _holds_numbers(returned: object) -> bool:
    """Return whether a float or an array of floats is among what a module returned."""
    if isinstance(returned, Mapping):
        return any(map(_holds_numbers, returned.values()))
    if isinstance(returned, (list, tuple)):
        return any(map(_holds_numbers, returned))
    return isinstance(returned, float) or (isinstance(returned, (np.ndarray, np.generic)) and returned.dtype.kind in "fc")


@contextmanager
def _moved(parameters: Mapping[str, torch.Tensor]) -> Iterator[Callable[[Mapping[str, torch.Tensor]], None]]:
    """Yield a function that moves parameters along their gradients; on exit they have their values back, to the bit."""
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    step = _STEP

    def move(gradients: Mapping[str, torch.Tensor]) -> None:
        nonlocal step
        with torch.no_grad():
            for name, gradient in gradients.items():
                norm = _rms(gradient)
                if norm > 0.0 and np.isfinite(norm):
                    length = step * max(_rms(kept[name]), _LEAST)
                    unit = gradient / gradient.abs().max()  # squares and inverses of tiny numbers do not exist
                    parameters[name].add_(unit, alpha=length / _rms(unit))
        step *= 0.7  # whatever their signs, steps of such lengths do not lead back to a start of zero

    try:
        yield move
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])


def _rms(tensor: torch.Tensor) -> float:
    return float((square_sum(tensor.detach())[0] / max(tensor.numel(), 1)) ** 0.5)
