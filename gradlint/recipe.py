"""The training recipe as the user describes it: optimizer, learning rate, clipping, precision and schedule."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from gradlint.errors import ConfigError

MODELED = ("sgd", "adam", "adamw", "rmsprop", "adagrad", "adamax", "nadam", "radam")
OPTIMIZERS = (*MODELED, "adadelta", "adafactor", "asgd", "lbfgs", "muon", "rprop", "sparseadam")
_PLAIN = frozenset({"sgd", "asgd", "lbfgs"})
PRECISIONS = ("fp32", "fp16", "bf16", "fp8")
_WARMUP = re.compile(r"warmup:(\d+)")
# A warm-up starts at this fraction of the full learning rate or above. The schedule of Vaswani 2017 (arXiv 1706.03762) starts
# lower, because its `initial_lr` is a factor and not the full learning rate.
_LEAST = 1e-5
# What others call the settings.
_ALSO = {
    **dict.fromkeys(("learning_rate", "learningrate", "step_size", "alpha", "eta"), "lr"),
    **dict.fromkeys(("wd", "l2", "decay", "weightdecay"), "weight_decay"),
    **dict.fromkeys(("clip", "grad_clip", "max_norm", "max_grad_norm", "clip_grad_norm", "gradient_clip_val"), "clip_norm"),
    **dict.fromkeys(("clip_grad_value", "grad_clip_value"), "clip_value"),
    **dict.fromkeys(("epsilon",), "eps"),
    **dict.fromkeys(("warmup", "warmup_steps", "scheduler", "lr_scheduler"), "schedule"),
    **dict.fromkeys(("optim", "opt", "name"), "optimizer"),
    **dict.fromkeys(("dtype", "amp"), "precision"),
    **dict.fromkeys(("beta", "beta1", "beta2"), "betas"),
}
_WARMLESS = frozenset({"constant", "cosine", "linear", "step"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """An optimizer with its settings, as torch.optim names them, and the clipping, precision and schedule of the training run.

    Attributes:
        optimizer: One of `OPTIMIZERS`.
        lr: The learning rate after any warm-up.
        momentum: Momentum of SGD and RMSprop.
        weight_decay: Weight decay, decoupled for AdamW and added to the gradient otherwise.
        clip_norm: The global gradient norm that clipping allows, or None for no clipping by norm.
        clip_value: The absolute gradient entry that clipping allows, or None for no clipping by value.
        precision: One of `PRECISIONS`.
        schedule: "constant", "cosine", "linear", "step", "warmup:STEPS", or two of them as in "warmup:500+cosine".
        betas: Decay rates of the first and second moment of Adam and its variants.
        eps: The number that Adam and its variants add to the denominator.
        nesterov: Whether SGD uses Nesterov momentum.
        loss_scale: The factor that multiplies the loss in fp16; None if the user gives none.
        own: The optimizers of the user, which may be of any class. The rehearsal steps with copies of them, parameter groups
            and all; the settings above are those of their largest learning rate.

    Raises:
        ConfigError: A setting is unknown or out of range.
    """

    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    precision: str = "fp32"
    schedule: str | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    nesterov: bool = False
    loss_scale: float | None = None
    own: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.own:
            _among("optimizer", self.optimizer, OPTIMIZERS)
        _among("precision", self.precision, PRECISIONS)
        if self.schedule is not None:
            object.__setattr__(self, "schedule", str(self.schedule).replace("+", " "))
        for part in str(self.schedule or "").split():
            if part not in _WARMLESS and not _WARMUP.fullmatch(part):
                raise ConfigError(f"unknown schedule {part!r}", hint=f"one of {', '.join(sorted(_WARMLESS))}, warmup:STEPS")
        for name in ("lr", "momentum", "weight_decay", "eps", "clip_norm", "clip_value"):
            value = getattr(self, name)
            if value is not None and not (value >= 0.0 and (math.isfinite(value) or "clip" in name)):
                raise ConfigError(f"recipe: {name} is {value}", hint="give a number of 0 or more")
        if self.loss_scale is not None and not 0.0 < self.loss_scale < math.inf:
            raise ConfigError(f"recipe: loss_scale is {self.loss_scale}", hint="give a number over 0")
        betas = tuple(self.betas)
        if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
            raise ConfigError(f"recipe: betas are {betas}", hint="give two numbers from 0 to under 1, as in betas=0.9/0.999")

    @property
    def warmup(self) -> int:
        """Number of steps over which the learning rate rises from zero; 0 without a warm-up."""
        found = _WARMUP.search(self.schedule or "")
        return int(found[1]) if found else 0

    @property
    def first_rate(self) -> float:
        """The learning rate of the first step."""
        return self.lr / max(self.warmup, 1)

    def share_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0, as a share of that after the warm-up."""
        return min(1.0, (step + 1) / max(self.warmup, 1))

    @property
    def averages(self) -> bool:
        """Whether steps follow the running mean of gradients, as those of Adam and its variants do."""
        return self.optimizer.startswith(("adam", "nadam", "radam"))

    @property
    def beta(self) -> float:
        """The share of its momentum, or of the mean of gradients, that a step keeps of the one before."""
        return self.betas[0] if self.averages else self.momentum

    @property
    def adaptive(self) -> bool:
        """Whether the optimizer divides the gradient of each weight by a running estimate of its size."""
        return self.optimizer not in _PLAIN

    @property
    def is_modeled(self) -> bool:
        """Whether the learning rate up to which the optimizer is stable follows from the curvature; see `limit`."""
        return self.optimizer in MODELED

    @property
    def clips(self) -> bool:
        """Whether gradients are clipped, by their norm or by their entries."""
        return self.clip_norm is not None or self.clip_value is not None

    @property
    def decoupled(self) -> bool:
        """Whether weight decay shrinks the weights directly (AdamW) instead of entering the gradient."""
        return self.optimizer == "adamw"

    def limit(self, eigenvalue: float) -> float:
        """Return the learning rate above which steps along one eigenvector of the Hessian grow, or infinity if none does.

        `eigenvalue` is an eigenvalue h of the Hessian H, including weight decay where the optimizer adds that to the gradient,
        or of P^-1/2 H P^-1/2 for an optimizer that divides by P. The limit is infinite for h <= 0, and for optimizers that are
        not modeled.

        Each limit is the learning rate at which the characteristic polynomial of the linear recurrence of weights and
        momentum has the root -1. It is 2 / h for gradient descent. Heavy-ball momentum follows Polyak 1964, averaged gradients
        (Adam) follow Cohen 2022, arXiv 2207.14484, and Nesterov momentum follows Cohen 2021, arXiv 2103.00065.
        """
        if not self.is_modeled:
            return math.inf
        beta = self.beta if self.optimizer != "adagrad" else 0.0
        ahead = 1.0 + 2.0 * beta if self.nesterov or self.optimizer == "nadam" else 1.0
        inverse = eigenvalue * ahead * (1.0 - beta if self.averages else 1.0) / (2.0 * (1.0 + beta))
        inverse += 0.5 * self.weight_decay if self.decoupled and eigenvalue > 0.0 else 0.0
        return 1.0 / inverse if inverse > 0.0 else math.inf

    @property
    def text(self) -> str:
        """The recipe in the form that `--recipe` takes: the optimizer, the learning rate, and settings that are not defaults."""
        settings = [one for one in fields(self) if one.compare and one.name != "optimizer"]
        told = [one.name for one in settings if one.name == "lr" or getattr(self, one.name) != one.default]
        return " ".join([self.optimizer, *(_written(name, getattr(self, name)) for name in told)])

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Parse a recipe such as "adamw lr=3e-4 clip_norm=1 schedule=warmup:500+cosine".

        Raises:
            ConfigError: A setting is unknown or has an invalid value.
        """
        given: dict[str, Any] = {}
        for part in re.split(r"[\s,]+", text.strip()):
            name, separator, value = part.partition("=")
            if not separator:
                name, value = "optimizer", part.lower()
            given[name] = _read(name, value)
        return cls(**given)

    @classmethod
    def made(cls, settings: Mapping[str, Any]) -> Recipe:
        """Build a recipe from a mapping of settings with values of their own types. Raises ConfigError for an unknown setting."""
        for name in settings:
            _check_setting(str(name))
        try:
            return cls(**settings)
        except (TypeError, AttributeError) as error:  # a value of another type, which a comparison does not take
            shown = ", ".join(f"{name}={value!r}" for name, value in settings.items())
            raise ConfigError(f"recipe: {shown}: {error}", hint="give numbers as numbers, as in {'lr': 0.1}") from error

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Recipe:
        """Build a recipe from a mapping of settings, such as a table of a configuration file; raises like `parse`."""
        return cls.parse(" ".join(_written(name, value) for name, value in settings.items()))

    @classmethod
    def from_optimizer(cls, optimizer: Any, *others: Any, **more: Any) -> Recipe:
        """Build a recipe from a `torch.optim.Optimizer`, or from several that train one model.

        Settings come from the parameter group with the largest learning rate. If a scheduler holds the learning rate of an
        unused optimizer below its full value, the recipe gets the full value and a warm-up schedule whose length follows from
        the ratio of both, or 100 steps for a learning rate of zero.

        Args:
            optimizer: The optimizer, of any class; its class name, `param_groups` and `state` are read.
            *others: Further optimizers, each with weights of its own.
            **more: Settings that an optimizer does not hold: clip_norm, clip_value, precision, schedule.

        Raises:
            ConfigError: A setting is invalid.
        """
        own = (optimizer, *others)
        groups = [(one, started(group, used=bool(one.state))) for one in own for group in one.param_groups]
        if not groups:
            raise ConfigError("the optimizer has no parameters", hint="give one that holds the weights of the model")
        leading, (group, warmup) = max(groups, key=lambda pair: float(pair[1][0]["lr"]))
        keys = ("momentum", "weight_decay", "eps", "nesterov")
        known: dict[str, Any] = {key: group[key] for key in keys if isinstance(group.get(key), (bool, int, float))}
        if len(betas := group.get("betas", ())) == 2:  # others have three, or two eps, which are no settings of a recipe
            known["betas"] = tuple(map(float, betas))
        name = type(leading).__name__.lower()
        return cls(**{"optimizer": name, "lr": float(group["lr"]), "own": own, **warmup, **known, **more})


@dataclass(frozen=True, slots=True)
class Task:
    """What the user says about training: a loss, a target and a recipe, each optional.

    Attributes:
        loss: Called as `loss(output, target)` on the batch that is probed.
        target: The target of that batch.
        recipe: The training recipe.
        rehearse: The largest number of optimizer steps of the rehearsal. None means the default if there is a recipe; 0
            means no rehearsal.
        batches: Further (inputs, target) pairs for the rehearsal.
        copied: Whether a copy of the model is examined, so that optimizers of the user hold the weights of the original.

    Raises:
        ConfigError: `rehearse` is negative.
    """

    loss: Callable[[Any, Any], Any] | None = None
    target: Any = None
    recipe: Recipe | None = None
    rehearse: int | None = None
    batches: tuple[tuple[Any, Any], ...] = ()
    copied: bool = False

    def __post_init__(self) -> None:
        if self.rehearse is not None and self.rehearse < 0:
            raise ConfigError(f"rehearse is {self.rehearse}", hint="give a number of steps, or 0 for none")


def started(group: dict[str, Any], *, used: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a parameter group with its full learning rate, and the warm-up schedule if a scheduler starts lower.

    The learning rate of an optimizer that has none is 1. `used` says whether the optimizer has taken steps.
    """
    now = float(group.get("lr", 1.0))
    full = float(group.get("max_lr") or group.get("initial_lr") or now)
    if used or full <= now or 0.0 < now < _LEAST * full:
        return {**group, "lr": now}, {}
    return {**group, "lr": full}, {"schedule": f"warmup:{round(full / now) if now else 100}"}


def _among(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        close = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"
        raise ConfigError(f"unknown {what} {value!r}", hint=hint)


def _check_setting(name: str) -> None:
    known = [one.name for one in fields(Recipe) if one.compare]
    if name not in known:
        close = [_ALSO[name]] if name in _ALSO else difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"
        raise ConfigError(f"recipe: no setting is called {name!r}", hint=hint)


def _read(name: str, value: str) -> Any:
    _check_setting(name)
    known = {one.name: one.default for one in fields(Recipe)}
    if name == "schedule" or isinstance(known[name], str):
        return value
    if isinstance(known[name], bool):
        return value.lower() in {"1", "true", "yes"}
    try:
        return tuple(float(part) for part in value.split("/")) if name == "betas" else float(value)
    except ValueError as error:
        example = "0.9/0.999" if name == "betas" else "0.1"
        raise ConfigError(f"recipe: {name}={value} is not a number", hint=f"as in {name}={example}") from error


def _written(name: str, value: Any) -> str:
    if isinstance(value, (tuple, list)):  # a list from a configuration file
        return f"{name}={'/'.join(map(str, value))}"
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={str(value).replace(' ', '+')}"
