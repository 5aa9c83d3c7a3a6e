"""Take optimizer steps on the weights of a model, like a plain training loop."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradlint.errors import ForwardError, GradlintError, InputError
from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.torch.lineage import to_numpy
from gradlint.frontends.user_code import described
from gradlint.probe.experiments.objective import Objective, raw_gradients
from gradlint.probe.experiments.optimizers import Optimizers, copies_of
from gradlint.probe.recorder import real
from gradlint.recipe import Recipe

_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
LOSS_SCALE = 65536.0  # the initial scale of torch.amp.GradScaler
HOPELESS = 1e4  # times the first loss: a run with five such losses in a row does not recover
MEMORY = 0.6  # of the memory of the machine
FEWEST = 8  # the fewest steps from which something can be concluded


@dataclass
class Run:
    """The record of a training loop.

    `losses`, `norms`, `layers` and `changes` are the fields of `gradlint.measurements.rehearsal.Rehearsal`.

    Attributes:
        paths: Values of the watched weights after each update.
        skipped: The number of updates that were skipped because scaled gradients overflowed.
        ended: What was not finite, if the run ended for that: "loss", "gradient", or "scale" (the gradient at any loss scale).
        raised: The error of the loss or of the model, if one raised after an update; the last loss is then NaN.
        stopped: Why not all steps were taken, if time was over.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    layers: dict[str, list[float]] = field(default_factory=dict)
    changes: list[float] = field(default_factory=list)
    paths: dict[str, list[Tensor]] = field(default_factory=dict)
    skipped: int = 0
    ended: str = ""
    raised: str = ""
    stopped: str = ""


class Trainer:
    """Takes steps of a recipe on the weights of an objective. The weights are not restored afterward.

    `watched` names weights whose values are recorded. `index` is the batch of the last step, and `state` the random state of
    torch before it.
    """

    def __init__(self, objective: Objective, recipe: Recipe, watched: Collection[str] = ()) -> None:
        self.objective = objective
        self.recipe = recipe
        self.watched = watched
        self.names = list(objective.parameters)
        self.weights = list(objective.parameters.values())
        self.sizes = _norms([weight.detach() for weight in self.weights])
        self.optimizers = Optimizers(recipe, self.weights)
        self.scale = (recipe.loss_scale or LOSS_SCALE) if recipe.precision == "fp16" else 1.0
        self.index = 0
        self.state = torch.get_rng_state()

    def run(self, steps: int, until: float = math.inf, enough: Callable[[Sequence[float]], bool] = lambda _: False) -> Run:
        """Take up to `steps` steps, or as many as `enough` asks for, and return their record.

        The run ends early if the loss or the gradient is not finite, if the loss is hopelessly large, or if `time.monotonic()`
        exceeds `until`. Raises the error of the loss or of the model only if it occurs before the first update.
        """
        run = Run(layers={name: [] for name in self.names})
        for self.index in range(steps + 1):
            self.state = torch.get_rng_state()
            try:
                loss = self.loss(self.index)
            except GradlintError as error:
                if self.index == 0:
                    raise
                run.losses.append(math.nan)
                run.ended, run.raised = "loss", str(error).splitlines()[0]
                break
            run.losses.append(float(loss.detach()))
            if not math.isfinite(run.losses[-1]):
                run.ended = "loss"
            elif self.index < steps:
                self._update(loss, run)
            if run.ended or _is_hopeless(run.losses) or enough(run.losses):
                break
            if time.monotonic() > until and FEWEST <= self.index < steps:
                run.stopped = f"stopped after {self.index} of {steps} steps, as its time was over"
                break
        if run.skipped == steps:
            run.ended = run.ended or "scale"
        for weight in self.weights:
            weight.grad = None
        return run

    def loss(self, index: int) -> Tensor:
        """Return the loss of the batch `index`, in the precision of the recipe."""
        arrays, target = batch_of(self.objective, index)
        with self.precision():
            return self.objective(arrays, target)

    def precision(self) -> AbstractContextManager[Any]:
        """Return the autocast context for the precision of the recipe; a context that does nothing for full precision."""
        half = _HALVES.get(self.recipe.precision)
        return torch.autocast(self.weights[0].device.type, dtype=half) if half else nullcontext()

    def _update(self, loss: Tensor, run: Run) -> None:
        norms = self._assign(loss)
        run.norms.append(math.hypot(*norms))
        for name, norm in zip(self.names, norms, strict=True):
            run.layers[name].append(norm)
        if not math.isfinite(run.norms[-1]):
            self._handle_overflow(run)
            return
        moved = [weight.detach().clone() for weight in self.weights]
        self._clip()
        self.optimizers.step(self.index, self._evaluated)
        for old, weight in zip(moved, self.weights, strict=True):
            old.sub_(weight.detach())
        pairs = zip(_norms(moved), self.sizes, self.weights, strict=True)
        for name in self.watched:
            run.paths.setdefault(name, []).append(self.objective.parameters[name].detach().clone())
        run.changes.append(max((change / size for change, size, weight in pairs if size and weight.dim() > 1), default=0.0))

    def _assign(self, loss: Tensor) -> list[float]:
        """Put the gradients into the weights, and return their norms before any clipping."""
        gradients = _writable(raw_gradients(loss * self.scale, self.weights))
        if self.scale != 1.0:
            gradients = [None if g is None else g.mul_(1.0 / self.scale) for g in gradients]
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        return _norms(gradients)

    def _evaluated(self) -> Tensor:
        """Compute the loss of the batch and its gradients again, for optimizers that ask for that within a step."""
        with torch.enable_grad():
            loss = self.loss(self.index)
        self._assign(loss)
        self._clip()
        return loss.detach()

    def _handle_overflow(self, run: Run) -> None:
        """Handle a gradient that is not finite: end the run, or in fp16 skip the update and halve the loss scale."""
        if self.recipe.precision != "fp16":
            run.ended = "gradient"
            return
        run.skipped += 1
        run.changes.append(0.0)
        self.scale /= 2.0
        if self.scale < 1.0:
            run.ended = "scale"

    def _clip(self) -> None:
        try:
            if self.recipe.clip_value is not None:
                nn.utils.clip_grad_value_(self.weights, self.recipe.clip_value)
            if self.recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.weights, self.recipe.clip_norm)
        except RuntimeError as error:
            raise ForwardError(f"clipping raised {described(error)}") from error


def check_memory(recipe: Recipe, weights: Sequence[Tensor]) -> None:
    """Raise GradlintError if the copies of the weights that training needs do not fit in memory."""
    needed = copies_of(recipe) * sum(weight.numel() * weight.element_size() for weight in weights)
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return
    if needed > MEMORY * there:
        raise GradlintError(f"training takes {needed / 2**30:.0f} GB beside the model, which this machine has not")


def batch_of(objective: Objective, index: int) -> tuple[list[Any], Any]:
    """Return the arrays and the target of a step: the next one of `Task.batches`, or else the given or a newly drawn batch.

    A target of None means the target of the task. Raises InputError if a batch lacks an input.
    """
    batches = objective.task.batches
    if not batches:
        return objective.batch(index), None
    inputs, target = batches[index % len(batches)]
    return arrays_of(inputs, objective.model.inputs, f"batch {index % len(batches)}"), target


def arrays_of(inputs: Any, specs: Sequence[InputSpec], name: str) -> list[Any]:
    """Return the arrays in `inputs` in the order of `specs`. `name` names the batch in error messages.

    `inputs` is a tensor, a tuple, a dict, or an object with `args` and `kwargs`. Raises InputError if an array is missing.
    """
    args, kwargs = _arguments(inputs)
    found: dict[str, Any] = {}
    names = iter(str(spec.name) for spec in specs)
    for path, leaf in pytree.tree_flatten_with_path((args, kwargs))[0]:
        if isinstance(leaf, Tensor) or hasattr(leaf, "__array__"):
            key = next(names, None) if _key(path[0]) == 0 else ".".join(str(_key(entry)) for entry in path[1:])
            found[str(key)] = to_numpy(leaf) if isinstance(leaf, Tensor) else leaf
    missing = [str(spec.name) for spec in specs if str(spec.name) not in found]
    if missing:
        raise InputError(f"{name}: input {missing[0]!r} is missing", hint="give pairs of the model's inputs and a target")
    return [found[str(spec.name)] for spec in specs]


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if hasattr(inputs, "args") and hasattr(inputs, "kwargs"):
        return tuple(inputs.args), dict(inputs.kwargs)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _key(entry: Any) -> Any:
    return next(value for kind in ("idx", "key", "name") if (value := getattr(entry, kind, None)) is not None)


def _writable(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Clone gradients that cannot be written in place: autograd may return one tensor for several weights, or an expanded one."""
    seen: set[int] = set()
    writable = []
    for gradient in gradients:
        if gradient is not None and not gradient.is_sparse:
            shared = gradient.data_ptr() in seen or not gradient.is_contiguous()
            seen.add(gradient.data_ptr())
            gradient = gradient.clone() if shared else gradient  # noqa: PLW2901
        writable.append(gradient)
    return writable


def _is_hopeless(losses: Sequence[float]) -> bool:
    return len(losses) > 5 and min(losses[-5:]) > HOPELESS * max(abs(losses[0]), 1e-12)


def _norms(tensors: Sequence[Tensor | None]) -> list[float]:
    return [norm_of(tensor) for tensor in tensors]


def norm_of(tensor: Tensor | None) -> float:
    """Return the Euclidean norm; 0 for None."""
    if tensor is None:
        return 0.0
    values = real(tensor.coalesce().values() if tensor.is_sparse else tensor).detach()
    norm = float(torch.linalg.vector_norm(values, dtype=max(values.dtype, torch.float32, key=lambda kind: kind.itemsize)))
    if norm == 0.0 or not math.isfinite(norm):  # squares may exceed the range of float32
        norm = float(torch.linalg.vector_norm(values, dtype=torch.float64))
    return norm
