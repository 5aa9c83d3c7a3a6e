"""The butterfly: what growth would be with another draw of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradlint.errors import ForwardError
from gradlint.frontends.user_code import described
from gradlint.growth import LIMIT
from gradlint.measurements.reinitialization import Redraws
from gradlint.probe.experiments.objective import preserved
from gradlint.probe.experiments.setting import Setting
from gradlint.probe.jacobian import observe

DRAWS = 3
SAME = 0.2  # relative difference of mean squares between two draws of one distribution, plus its standard error
NEAR = 0.5  # decades from LIMIT


def redraws(setting: Setting) -> Mapping[str, Any]:
    """The field `redraws`, where growth lies near LIMIT and every submodule can draw its weights again as they are drawn now."""
    growth, module = setting.found.growth, getattr(setting.model, "module", None)
    near = abs(abs(growth.decades) - LIMIT) <= NEAR
    if not near or not isinstance(module, nn.Module) or setting.found.dead or not can_redraw(module):
        return {}
    growths: list[float] = []
    with _restored(module):
        for index in range(DRAWS):
            setting.progress(f"drawing the weights anew, {index + 1} of {DRAWS}")
            if not redraw(module, setting.seed + 1 + index):
                return {}
            growths.append(observe(setting.model, seeds=1, seed=setting.seed, progress=lambda _: None, most=1).growth.decades)
    found = Redraws(tuple(growths))
    text = f"with the weights drawn anew {DRAWS} times, growth is {min(growths):.1f} to {max(growths):.1f} decades"
    return {"redraws": found, "notes": (*setting.found.notes, text)}


def can_redraw(module: nn.Module) -> bool:
    """Whether every submodule that owns parameters has `reset_parameters`, and none is tied or computed from others."""
    owners = [child for child in module.modules() if next(child.parameters(recurse=False), None) is not None]
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    plain = len(names) == len(list(module.parameters())) and not any("parametrizations." in name for name in names)
    return bool(owners) and plain and all(callable(getattr(child, "reset_parameters", None)) for child in owners)


def redraw(module: nn.Module, seed: int) -> bool:
    """Draw every weight anew; False where what comes out is not of the size that was there: it was drawn in another way.

    Raises ForwardError when a `reset_parameters` raises.
    """
    before = {name: _mean_square(tensor) for name, tensor in module.named_parameters()}
    torch.manual_seed(seed)
    try:
        for child in module.modules():
            if next(child.parameters(recurse=False), None) is not None:
                child.reset_parameters()  # type: ignore[operator]
    except Exception as error:
        raise ForwardError(f"reset_parameters raised {described(error)}") from error
    return all(_alike(tensor, before[name]) for name, tensor in module.named_parameters())


def _mean_square(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean()) if tensor.numel() else 0.0


def _alike(tensor: Tensor, before: float) -> bool:
    """Whether a mean square is that of another draw: of n normal numbers it has a relative standard error of sqrt(2 / n)."""
    now = _mean_square(tensor)
    margin = SAME + 3.0 * (2.0 / max(tensor.numel(), 1)) ** 0.5
    return abs(now - before) <= margin * max(now, before) or (margin >= 1.0 and now > 0.0)


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    with preserved(dict(module.named_parameters())), preserved(dict(module.named_buffers())):
        yield
