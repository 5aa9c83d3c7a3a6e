"""The optimizers of the recipes: torch's, and two that torch lacks in this form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.trained.spec import Training


class Lion(Optimizer):
    """Lion (Chen 2023, arXiv 2302.06675): steps of the sign of an averaged gradient."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step along the gradients that are there."""
        value = _evaluated(closure)
        for group in self.param_groups:
            first, second = group["betas"]
            for weight in group["params"]:
                if weight.grad is not None:
                    mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(group["lr"] * torch.sign(first * mean + (1 - first) * weight.grad))
                    mean.lerp_(weight.grad, 1 - second)
        return value


def orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix whose singular values are about one, by the iteration of Jordan 2024 (Muon)."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.T


class MuonAndAdam(Optimizer):
    """Muon (Jordan 2024) for matrices, and Adam at a tenth of the rate for all else, as Muon is used.

    torch.optim.Muon takes matrices alone and needs a second optimizer beside it.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step along the gradients that are there."""
        value = _evaluated(closure)
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(self._change(weight, group))
        return value

    def _change(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        state, lr, beta, gradient = self.state[weight], group["lr"], group["momentum"], weight.grad
        assert gradient is not None
        mean = state.setdefault("mean", torch.zeros_like(weight))
        if weight.ndim == 2:
            mean.lerp_(gradient, 1 - beta)
            size = math.sqrt(max(1.0, weight.shape[0] / weight.shape[1]))
            return lr * size * orthogonalized(torch.lerp(gradient, mean, beta))
        square = state.setdefault("square", torch.zeros_like(weight))
        state["count"] = count = state.get("count", 0) + 1
        mean.lerp_(gradient, 0.1)
        square.lerp_(gradient.square(), 0.01)
        return 0.1 * lr * (mean / (1 - 0.9**count)) / ((square / (1 - 0.99**count)).sqrt() + 1e-8)


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def optimizer(training: Training, model: nn.Module) -> Optimizer:
    """The optimizer of the recipe on the parameters of the model that it is to have."""
    params = [weight for name, weight in model.named_parameters() if not name.startswith(training.omits or ("\0",))]
    lr, decay, eps, momentum = training.lr, training.weight_decay, training.eps, training.momentum
    name = training.optimizer
    if name == "sgd":
        return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=decay)
    if name == "nesterov":
        return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=decay, nesterov=True)
    if name == "adam":
        return torch.optim.Adam(params, lr=lr, weight_decay=decay, eps=eps)
    if name == "adamw":
        return torch.optim.AdamW(params, lr=lr, weight_decay=decay, eps=eps)
    if name == "rmsprop":
        return torch.optim.RMSprop(params, lr=lr, weight_decay=decay, eps=eps, momentum=momentum)
    if name == "adagrad":
        return torch.optim.Adagrad(params, lr=lr, weight_decay=decay)
    if name == "adadelta":
        return torch.optim.Adadelta(params, lr=lr, weight_decay=decay)
    if name == "lion":
        return Lion(params, lr=lr, weight_decay=decay)
    if name == "muon":
        return MuonAndAdam(params, lr=lr, weight_decay=decay)
    return torch.optim.LBFGS(params, lr=lr, max_iter=4, history_size=8)


def rate(training: Training, step: int, steps: int) -> float:
    """The learning rate at a step, counted from 0."""
    factor = min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0
    return training.lr * factor * (0.5 * (1 + math.cos(math.pi * step / steps)) if training.cosine else 1.0)


def schedule_text(training: Training) -> str:
    """The schedule in gradlint's words; "" for a constant learning rate."""
    return "+".join([f"warmup:{training.warmup}"] * bool(training.warmup) + ["cosine"] * training.cosine)


def recipe_text(training: Training) -> str | None:
    """The recipe in gradlint's words, or None for an optimizer that has no name there."""
    if training.optimizer in {"adadelta", "lion", "muon", "lbfgs"}:
        return None
    nesterov = training.optimizer == "nesterov"
    settings = {
        "lr": f"{training.lr:g}",
        "momentum": training.momentum and f"{training.momentum:g}",
        "nesterov": nesterov and "true",
        "weight_decay": training.weight_decay and f"{training.weight_decay:g}",
        "eps": training.eps != 1e-8 and f"{training.eps:g}",
        "clip_norm": training.clip_norm and f"{training.clip_norm:g}",
        "clip_value": training.clip_value and f"{training.clip_value:g}",
        "precision": training.precision != "fp32" and training.precision,
        "loss_scale": training.loss_scale and f"{training.loss_scale:g}",
        "schedule": schedule_text(training),
    }
    told = [f"{name}={value}" for name, value in settings.items() if value]
    return " ".join(["sgd" if nesterov else training.optimizer, *told])
