"""Optimizer steps on the weights of a running model, as a plain training loop takes them."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradlint.errors import ConfigError, ForwardError, GradlintError, InputError
from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.torch.lineage import to_numpy
from gradlint.frontends.user_code import described
from gradlint.probe.experiments.objective import Objective, raw_gradients
from gradlint.probe.recorder import real
from gradlint.recipe import Recipe

_CLASSES = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "adagrad": "Adagrad",
    "adamax": "Adamax",
    "nadam": "NAdam",
    "radam": "RAdam",
}
_SETTINGS = ("lr", "momentum", "weight_decay", "betas", "eps", "nesterov")
_STATES = {"sgd": 1, "rmsprop": 3, "adagrad": 1}  # tensors that an optimizer keeps for each weight; 2 for Adam and its kin
_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
LOSS_SCALE = 65536.0  # torch.amp.GradScaler's first
HOPELESS = 1e4  # times the first loss, five times in a row: nothing comes back from there
FEWEST = 8  # steps that say something


@dataclass
class Run:
    """What a training loop saw; see `gradlint.measurements.rehearsal.Rehearsal`. `ended` is what was not finite."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    layers: dict[str, list[float]] = field(default_factory=dict)
    changes: list[float] = field(default_factory=list)
    skipped: int = 0
    ended: str = ""  # "loss", "gradient" or "scale": the gradient, whatever the loss was scaled by
    raised: str = ""  # what loss or model raised after an update; a loss of NaN stands for it
    stopped: str = ""


class Trainer:
    """Takes steps of a recipe on the weights of an objective, and leaves them where they end.

    `index` is the batch of the last step, `state` the random state before it.
    """

    def __init__(self, objective: Objective, recipe: Recipe) -> None:
        self.objective = objective
        self.recipe = recipe
        self.names = list(objective.parameters)
        self.weights = list(objective.parameters.values())
        self.sizes = _norms([weight.detach() for weight in self.weights])
        self.optimizer = optimizer_of(recipe, self.weights)
        self.scale = (recipe.loss_scale or LOSS_SCALE) if recipe.precision == "fp16" else 1.0
        self.index = 0
        self.state = torch.get_rng_state()

    def run(self, steps: int, until: float = math.inf) -> Run:
        """Take so many steps; fewer where loss or gradient are not finite, the clock is past `until`, or no loss comes back.

        What the loss or the model raises before any update is raised.
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
            if run.ended or _is_hopeless(run.losses):
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
        """The loss of the batch of that index, in the precision of the recipe."""
        arrays, target = batch_of(self.objective, index)
        with self.precision():
            return self.objective(arrays, target)

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast to the half precision of the recipe, if it has one."""
        half = _HALVES.get(self.recipe.precision)
        return torch.autocast(self.weights[0].device.type, dtype=half) if half else nullcontext()

    def _update(self, loss: Tensor, run: Run) -> None:
        gradients = _owned(raw_gradients(loss * self.scale, self.weights))
        if self.scale != 1.0:
            gradients = [None if g is None else g.mul_(1.0 / self.scale) for g in gradients]
        norms = _norms(gradients)
        run.norms.append(math.hypot(*norms))
        for name, norm in zip(self.names, norms, strict=True):
            run.layers[name].append(norm)
        if not math.isfinite(run.norms[-1]):
            self._overflown(run)
            return
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        moved = [weight.detach().clone() for weight in self.weights]
        self._step()
        for old, weight in zip(moved, self.weights, strict=True):
            old.sub_(weight.detach())
        pairs = zip(_norms(moved), self.sizes, self.weights, strict=True)
        run.changes.append(max((change / size for change, size, weight in pairs if size and weight.dim() > 1), default=0.0))

    def _overflown(self, run: Run) -> None:
        """A gradient is not finite: the end, unless the loss is scaled; then the update is skipped and the scale halved."""
        if self.recipe.precision != "fp16":
            run.ended = "gradient"
            return
        run.skipped += 1
        run.changes.append(0.0)
        self.scale /= 2.0
        if self.scale < 1.0:
            run.ended = "scale"

    def _step(self) -> None:
        warmup = self.recipe.warmup
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * min(1.0, (self.index + 1) / max(warmup, 1))
        try:
            if self.recipe.clip_value is not None:
                nn.utils.clip_grad_value_(self.weights, self.recipe.clip_value)
            if self.recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.weights, self.recipe.clip_norm)
            self.optimizer.step()
        except (RuntimeError, MemoryError) as error:
            raise ForwardError(f"the optimizer raised {described(error)}") from error


def optimizer_of(recipe: Recipe, weights: Sequence[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of torch.optim that a recipe names. Raises ConfigError for settings that it does not take."""
    kind = getattr(torch.optim, _CLASSES[recipe.optimizer])
    taken = inspect.signature(kind).parameters
    try:
        optimizer: torch.optim.Optimizer = kind(weights, **{key: getattr(recipe, key) for key in _SETTINGS if key in taken})
    except ValueError as error:
        raise ConfigError(f"torch.optim.{kind.__name__}: {error}") from error
    return optimizer


def copies_of(recipe: Recipe) -> int:
    """How many tensors of the size of the weights a step holds: start, gradient, what was moved and states."""
    return 3 + _STATES.get(recipe.optimizer, 2)


def batch_of(objective: Objective, index: int) -> tuple[list[Any], Any]:
    """The arrays and the target of a step: of `Task.batches` in turn, else the given batch, else one drawn anew.

    Raises InputError for a batch that has not all inputs.
    """
    batches = objective.task.batches
    if not batches:
        return objective.batch(index), None
    inputs, target = batches[index % len(batches)]
    return arrays_of(inputs, objective.model.inputs, f"batch {index % len(batches)}"), target


def arrays_of(inputs: Any, specs: Sequence[InputSpec], name: str) -> list[Any]:
    """The tensors of a tensor, a tuple, a dict or anything with `args` and `kwargs`, in the order of `specs`.

    Raises InputError where one is missing.
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


def _owned(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients that may be written in place: autograd hands out one tensor for several weights, or an expanded one."""
    seen: set[int] = set()
    owned = []
    for gradient in gradients:
        if gradient is not None and not gradient.is_sparse:
            shared = gradient.data_ptr() in seen or not gradient.is_contiguous()
            seen.add(gradient.data_ptr())
            gradient = gradient.clone() if shared else gradient  # noqa: PLW2901
        owned.append(gradient)
    return owned


def _is_hopeless(losses: Sequence[float]) -> bool:
    return len(losses) > 5 and min(losses[-5:]) > HOPELESS * max(abs(losses[0]), 1e-12)


def _norms(tensors: Sequence[Tensor | None]) -> list[float]:
    return [norm_of(tensor) for tensor in tensors]


def norm_of(tensor: Tensor | None) -> float:
    """The Euclidean norm, 0 for None."""
    if tensor is None:
        return 0.0
    values = real(tensor.coalesce().values() if tensor.is_sparse else tensor).detach()
    norm = float(torch.linalg.vector_norm(values, dtype=max(values.dtype, torch.float32, key=lambda kind: kind.itemsize)))
    if norm == 0.0 or not math.isfinite(norm):  # squares may have left the range of float32
        norm = float(torch.linalg.vector_norm(values, dtype=torch.float64))
    return norm
