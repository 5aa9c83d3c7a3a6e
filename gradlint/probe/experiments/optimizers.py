"""The optimizers of a rehearsal: those that the user built, copied onto the weights, or those that a recipe names."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradlint.errors import ConfigError, ForwardError
from gradlint.frontends.user_code import described
from gradlint.recipe import Recipe, started

CLASSES = {
    kind.__name__.lower(): kind
    for kind in vars(torch.optim).values()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
"""The optimizers of torch, by their names in lower case."""

_SETTINGS = ("lr", "momentum", "weight_decay", "betas", "eps", "nesterov")
_STATES = {"sgd": 1, "rmsprop": 3, "adagrad": 1, "lbfgs": 200}  # tensors of state per weight; 2 for Adam and others
_MATRICES = frozenset({"muon"})  # take matrices alone; AdamW moves the rest, as their authors do
_SPARE = "adamw"


class Optimizers:
    """All optimizers of a recipe, on one set of weights.

    Optimizers that the user built are copied with their groups, settings and state; hooks and schedulers stay behind. Weights
    that none of them holds do not move.

    Raises ConfigError if an optimizer does not accept its settings, or cannot be copied.
    """

    def __init__(self, recipe: Recipe, weights: Sequence[Tensor]) -> None:
        self.recipe = recipe
        ids = {id(weight) for weight in weights}
        own = [one for one in recipe.own if any(id(weight) in ids for group in one.param_groups for weight in group["params"])]
        self.each = [_copied(one) for one in own] or _named(recipe, weights)
        rates = [[started(group, used=bool(one.state))[0]["lr"] for group in one.param_groups] for one in own]
        largest = max((float(rate) for group in rates for rate in group), default=0.0)
        share = recipe.lr / largest if largest else 1.0
        self._rates = [[float(rate) * share for rate in group] for group in rates] or [
            [recipe.lr] * len(one.param_groups) for one in self.each
        ]

    def step(self, index: int, closure: Callable[[], Any]) -> None:
        """Take the step with this number, at the rates that the warm-up gives.

        `closure` computes the loss and its gradients anew; only optimizers that need it get it. Raises ForwardError if a step
        raises.
        """
        share = self.recipe.share_at(index)
        for optimizer, rates in zip(self.each, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                if "lr" not in group:
                    continue  # a class of the user's own, which has no rate that could be changed
                group["lr"] = torch.full_like(group["lr"], share * rate) if isinstance(group["lr"], Tensor) else share * rate
            try:
                optimizer.step(closure) if _needs_closure(optimizer) else optimizer.step()
            except (RuntimeError, TypeError, ValueError, MemoryError) as error:
                raise ForwardError(f"the optimizer {type(optimizer).__name__} raised {described(error)}") from error


def copies_of(recipe: Recipe) -> int:
    """Return how many copies of the weights a step needs: initial values, gradients, changes, and the optimizer's state."""
    return 3 + _STATES.get(recipe.optimizer, 2)


def _needs_closure(optimizer: Any) -> bool:
    parameter = inspect.signature(optimizer.step).parameters.get("closure")
    return parameter is not None and parameter.default is parameter.empty


def _named(recipe: Recipe, weights: Sequence[Tensor]) -> list[Any]:
    if recipe.optimizer not in CLASSES:
        raise ConfigError(f"torch {torch.__version__} has no optimizer {recipe.optimizer!r}", hint="give the optimizer itself")
    if recipe.optimizer not in _MATRICES:
        return [_made(recipe, recipe.optimizer, weights)]
    shares = {
        recipe.optimizer: [weight for weight in weights if weight.ndim == 2],
        _SPARE: [weight for weight in weights if weight.ndim != 2],
    }
    return [_made(recipe, name, share) for name, share in shares.items() if share]


def _made(recipe: Recipe, name: str, weights: Sequence[Tensor]) -> Any:
    """Build an optimizer. Its own defaults stand where the recipe has those of every recipe and the optimizer is not modeled."""
    kind = CLASSES[name]
    taken = inspect.signature(kind).parameters
    plain = Recipe()
    settings = {key: getattr(recipe, key) for key in _SETTINGS if key in taken}
    if not recipe.is_modeled:
        settings = {key: value for key, value in settings.items() if key == "lr" or value != getattr(plain, key)}
    try:
        return kind(weights, **settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"torch.optim.{kind.__name__}: {error}") from error


def _copied(optimizer: Any) -> Any:
    """Return a copy of an optimizer that moves the same weights, with state of its own.

    Optimizers lose their own attributes when they are pickled or deep-copied, so the attributes are copied one by one. `step`
    is among them where a scheduler has wrapped it.
    """
    held = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept = {
        name: value
        for name, value in vars(optimizer).items()
        if name != "step" and not (name.startswith("_optimizer_") and isinstance(value, Mapping))
    }
    memo: dict[int, Any] = {id(weight): weight for weight in held}
    try:
        attributes = copy.deepcopy(kept, memo)
    except Exception as error:
        name = type(optimizer).__name__
        hint = "give its settings as a recipe, as in recipe='adamw lr=3e-4'"
        raise ConfigError(f"the optimizer {name} cannot be copied: {described(error)}", hint=hint) from error
    twin = object.__new__(type(optimizer))
    twin.__dict__.update({name: value for name, value in attributes.items() if name != "state"})
    twin.__dict__.update({name: type(value)() for name, value in vars(optimizer).items() if name not in kept and name != "step"})
    twin.state = defaultdict(dict, attributes.get("state", {}))
    return twin
