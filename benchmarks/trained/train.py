"""One training run in plain torch, and what came of it."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from torch import nn

from benchmarks.trained.data import Data, batch, held_out
from benchmarks.trained.families import build
from benchmarks.trained.labels import run_label
from benchmarks.trained.losses import LossFunction, floors, loss_function
from benchmarks.trained.optimizers import optimizer, rate
from benchmarks.trained.spec import Spec, Training

QUANTILES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def network(spec: Spec, seed: int) -> nn.Module:
    """The network with the initial weights of this seed; torch's generator is left where a run of this seed begins."""
    torch.manual_seed(1000 * spec.number + seed)
    return build(spec).train()


def train(spec: Spec, seed: int) -> dict[str, Any]:
    """Train for the stated number of steps, or until the loss is not finite.

    Returns:
        losses: Medians of the loss around each of `QUANTILES` of the steps that were made.
        first, last, least: The first loss, the median of the last tenth, the smallest such median of a tenth.
        highest: The largest loss over the first.
        broken: The step at which the loss was not finite, the number of steps if weights are not finite after it, or None.
        held_out: The mean loss on held-out batches afterwards, in train mode, or None where it is not finite.
        floor, held_out_floor: The loss of the best constant on the rows of training and on the held-out batches.
    """
    model = network(spec, seed)
    loss = loss_function(spec.loss)
    opt = optimizer(spec.training, model)
    losses: list[float] = []
    for index in range(spec.steps):
        for group in opt.param_groups:
            group["lr"] = rate(spec.training, index, spec.steps)
        losses.append(_step(model, loss, opt, batch(spec, seed, index), spec.training))
        if not math.isfinite(losses[-1]):
            break
    broken = None if math.isfinite(losses[-1]) else len(losses) - 1
    kept = None
    if broken is None:
        with torch.no_grad(), _precision(spec.training):
            kept = statistics.fmean(float(loss(model(*inputs), target)) for inputs, target in held_out(spec))
        if not math.isfinite(kept):
            broken, kept = spec.steps, None
    seen, unseen = floors(spec)
    return {
        **_summary([value for value in losses if math.isfinite(value)]),
        "broken": broken,
        "held_out": kept,
        "floor": seen,
        "held_out_floor": unseen,
    }


def _precision(training: Training) -> torch.autocast:
    return torch.autocast("cpu", dtype=_DTYPES.get(training.precision, torch.bfloat16), enabled=training.precision in _DTYPES)


def _step(model: nn.Module, loss: LossFunction, opt: torch.optim.Optimizer, data: Data, training: Training) -> float:
    inputs, target = data
    scale = training.loss_scale or 1.0

    def value() -> torch.Tensor:
        opt.zero_grad()
        with _precision(training):
            made = loss(model(*inputs), target)
        if made.requires_grad:
            (made * scale).backward()
        return made

    if isinstance(opt, torch.optim.LBFGS):
        return float(opt.step(value).detach())
    made = float(value().detach())
    params = [weight for weight in model.parameters() if weight.grad is not None]
    if scale != 1.0:
        for weight in params:
            assert weight.grad is not None
            weight.grad.div_(scale)
    if training.clip_norm is not None:
        nn.utils.clip_grad_norm_(params, training.clip_norm)
    if training.clip_value is not None:
        nn.utils.clip_grad_value_(params, training.clip_value)
    opt.step()
    return made


def _summary(losses: list[float]) -> dict[str, Any]:
    if not losses:
        return {"losses": [], "first": None, "last": None, "least": None, "highest": None}
    count = len(losses)
    tenth = max(1, count // 10)
    pieces = [statistics.median(losses[i : i + tenth]) for i in range(0, count - tenth + 1, tenth)]
    radius = max(1, count // 40)
    middles = [round(at * (count - 1)) for at in QUANTILES]
    curve = [statistics.median(losses[max(0, i - radius) if i else 0 : i + radius + 1 if i else 1]) for i in middles]
    first = losses[0]
    return {
        "losses": curve,
        "first": first,
        "last": statistics.median(losses[-tenth:]),
        "least": min(pieces),
        "highest": max(losses) / max(abs(first), 1e-30),
    }


def trained(spec: Spec, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Train on each seed, or until one run trained and another failed, which is grey whatever follows.

    Returns "runs", as `train` returns them, at four digits, and "seconds", the processor time that they took.
    """
    start = time.process_time()
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        runs.append(_rounded(train(spec, seed)))
        seen = {run_label(run) for run in runs}
        if "trains" in seen and seen & {"diverged", "stuck"}:
            break
    return {"runs": runs, "seconds": round(time.process_time() - start, 2)}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return {name: _rounded(each) for name, each in value.items()} if isinstance(value, dict) else value
