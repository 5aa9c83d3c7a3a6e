"""Faults planted into one branch, tower, input or cell of a healthy model: how many are found, and in the right place?

Every model is checked as it is, where nothing may be found, and with one fault in one of its parts: weights that are too large
by a factor with which plain training does not get below the best constant, PyTorch's default init in a deep chain, a detach, a
no-grad region, or a parameter that nobody filled. A fault is found if the verdict is not healthy and there is an error, and in
its place if an error names a module of the part, or the part itself.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from common import Rows, every, parser
from planted_models import FAMILIES, SIZES, Family
from torch import Tensor, nn

import gradlint
from gradlint import Confidence, Report, Severity

FACTORS = (1.5, 2.0, 3.0)
STEPS = 100
CONSTANT = 0.97  # a model is hurt if its loss ends above this (the best constant for targets of unit variance has 1) and above
WORSE = 1.5  # times the loss without the fault: a small U-Net cannot fit noise
DEEP = 12  # layers in which PyTorch's default init is a fault
STEP = 9  # of a quick run


def main() -> None:
    """Print one row for each model and fault, and the totals."""
    asked = parser(__doc__, f"every {STEP}th fault").parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = Rows("model", "layers", "part:<18", "fault:<22", "verdict:<12", "found", "placed", "errors:<40")
    counts: Counter[str] = Counter()
    cases = [(name, size) for name in FAMILIES for size in SIZES]
    for name, size in every(cases, STEP) if asked.quick else cases:
        healthy = _check(FAMILIES[name], size, None)
        counts["healthy"] += 1
        counts["false alarms"] += healthy.verdict != "healthy" or bool(_errors(healthy))
        rows.add(name, size, "-", "none", healthy.verdict, "", "", _text(healthy))
    planted = [(name, size, part, fault) for name, size in cases for part, fault in _faults(FAMILIES[name], size)]
    for name, size, part, fault in every(planted, STEP) if asked.quick else planted:
        plant = _hurtful(FAMILIES[name], size, part) if fault == "too large" else FAULTS[fault]
        if plant is None:
            continue  # no factor hurts here: it is no fault
        report = _check(FAMILIES[name], size, lambda module, part=part, plant=plant: plant(module.get_submodule(part)))
        found = report.verdict != "healthy" and bool(_errors(report))
        placed = any(_names(part, module) for module in _errors(report).values())
        counts.update(faults=1, found=found, placed=found and placed)
        rows.add(name, size, part, fault, report.verdict, "yes" if found else "NO", "yes" if placed else "NO", _text(report))
    total = max(counts["faults"], 1)
    print(
        f"\n{counts['healthy']} healthy models, {counts['false alarms']} false alarms; {total} faults, "
        f"{counts['found'] / total:.1%} found, {counts['placed'] / total:.1%} in the right place"
    )


def _faults(family: Family, size: int) -> Iterator[tuple[str, str]]:
    for part in family.chains:
        faults = ("too large", "default init", "detach", "no_grad", "unfilled")
        yield from ((part, fault) for fault in faults if fault != "default init" or part != "right" or size >= 2 * DEEP)
    for part in family.layers:
        yield from ((part, fault) for fault in ("detach", "no_grad", "unfilled"))


def _check(family: Family, size: int, plant: Callable[[nn.Module], None] | None) -> Report:
    module, args = _built(family, size)
    if plant is not None:
        plant(module)
    return gradlint.check(module, args)


def _built(family: Family, size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(size)
    return family.build(size)


# faults ----------------------------------------------------------------------------------------------------------------------


def _default(part: nn.Module) -> None:
    for layer in part.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.reset_parameters()


def _detach(part: nn.Module) -> None:
    part.register_forward_hook(lambda _module, _args, out: _cut(out))


def _cut(out: object) -> object:
    return out.detach() if isinstance(out, Tensor) else tuple(_cut(item) for item in out) if isinstance(out, tuple) else out


def _no_grad(part: nn.Module) -> None:
    run = part.forward

    def forward(*args: object, **kwargs: object) -> object:
        with torch.no_grad():
            return run(*args, **kwargs)

    part.forward = forward


def _unfilled(part: nn.Module) -> None:
    parameter = max(part.parameters(), key=lambda item: item.numel())
    with torch.no_grad():
        parameter.mul_(1e15)


FAULTS = {"default init": _default, "detach": _detach, "no_grad": _no_grad, "unfilled": _unfilled}


def _larger(factor: float) -> Callable[[nn.Module], None]:
    def plant(part: nn.Module) -> None:
        with torch.no_grad():
            for layer in part.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)):
                    layer.weight.mul_(factor)

    return plant


def _hurtful(family: Family, size: int, part: str) -> Callable[[nn.Module], None] | None:
    """The smallest factor that hurts plain training; None if none does."""
    whole = _trained(family, size, None)
    for factor in FACTORS:
        plant = _larger(factor)
        loss = _trained(family, size, lambda module, plant=plant: plant(module.get_submodule(part)))
        if not (loss < CONSTANT or loss < WORSE * whole):
            return plant
    return None


def _trained(family: Family, size: int, plant: Callable[[nn.Module], None] | None) -> float:
    """The loss after STEPS steps of Adam towards random targets, inf if it is not finite."""
    module, args = _built(family, size)
    if plant is not None:
        plant(module)
    optimizer, target, loss = torch.optim.Adam(module.parameters(), 1e-3), None, torch.tensor(math.inf)
    for _ in range(STEPS):
        out = module(*args)
        made = torch.cat([tensor.flatten() for tensor in (out if isinstance(out, tuple) else (out,))])
        target = torch.randn(made.shape, generator=torch.Generator().manual_seed(0)) if target is None else target
        loss = (made - target).square().mean()
        if not torch.isfinite(loss):
            return math.inf
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


# reports ---------------------------------------------------------------------------------------------------------------------


def _errors(report: Report) -> dict[str, str]:
    """The module of each error, by code."""
    shown = (finding for finding in report.findings if finding.confidence is not Confidence.REFUTED)
    return {finding.rule: finding.module or finding.node or "" for finding in shown if finding.severity is Severity.ERROR}


def _names(part: str, module: str) -> bool:
    """Whether a place that a finding names lies in a part, or is the module that the part belongs to."""
    return part.split(".", maxsplit=1)[0] in module


def _text(report: Report) -> str:
    return " ".join(f"{rule}:{module}" for rule, module in _errors(report).items())


if __name__ == "__main__":
    main()
