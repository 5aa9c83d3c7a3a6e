"""Measure how much growth depends on the random draw of the weights, by drawing them again."""

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

DRAWS = 3  # how often the weights are drawn again
SAME = 0.2  # the largest relative difference of mean squares between two draws of one distribution, beyond its standard error
NEAR = 0.5  # decades: growth that is no further from LIMIT is measured again


def redraws(setting: Setting) -> Mapping[str, Any]:
    """Return the field `redraws` of `Measurement`, and a note, if growth is near LIMIT and the weights can be drawn again.

    The cost is that of DRAWS passes of the probe. The weights and buffers are restored.
    """
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
    """Return whether all weights can be drawn again.

    Every submodule that owns parameters must have `reset_parameters`, and no parameter may be tied or parametrized.
    """
    owners = [child for child in module.modules() if next(child.parameters(recurse=False), None) is not None]
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    plain = len(names) == len(list(module.parameters())) and not any("parametrizations." in name for name in names)
    return bool(owners) and plain and all(callable(getattr(child, "reset_parameters", None)) for child in owners)


def redraw(module: nn.Module, seed: int) -> bool:
    """Draw every weight again by `reset_parameters`. Return whether the new weights have the same sizes as the old ones.

    If they do not, the old ones were drawn from another distribution. Raises ForwardError if a `reset_parameters` raises.
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
    """Return whether the mean square of a tensor agrees with `before`, up to the noise of a random draw.

    The mean square of n normal numbers has a relative standard error of sqrt(2 / n).
    """
    now = _mean_square(tensor)
    margin = SAME + 3.0 * (2.0 / max(tensor.numel(), 1)) ** 0.5
    return abs(now - before) <= margin * max(now, before) or (margin >= 1.0 and now > 0.0)


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    with preserved(dict(module.named_parameters())), preserved(dict(module.named_buffers())):
        yield
