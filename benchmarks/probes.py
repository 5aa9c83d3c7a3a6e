"""Which probe runs where: every measurement, on architectures of the transformers library and on ONNX models of wheels.

Each model is given a loss (the mean square of what it returns) and a recipe, and every experiment is asked for, also those
that a check leaves out where nothing calls for them. Prints one row per model as soon as it is probed, with the reason where a
probe did not run, and whether the model was handed back as it came: parameters, buffers, mode and the random state.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from architectures import build
from common import Rows, every, parser
from shipped import given, shipped
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers_architectures import TRANSFORMERS

from gradlint.errors import GradlintError, InputError
from gradlint.frontends.base import PartialRun, Runnable
from gradlint.frontends.onnx.file import read_onnx
from gradlint.frontends.targets import Target
from gradlint.load import load
from gradlint.onnx_torch import OnnxRunnable
from gradlint.probe.experiments.catalog import EXPERIMENTS
from gradlint.probe.experiments.objective import preserved
from gradlint.probe.experiments.reinitialization import can_redraw, redraw
from gradlint.probe.experiments.segments import segment
from gradlint.probe.experiments.setting import Setting
from gradlint.probe.jacobian import observe
from gradlint.recipe import Recipe, Task

ASKED = ("inputs", "loss", "curvature", "rehearsal")  # experiments that always have something to measure here
STEPS = 3
STEP = 16  # of a quick run

Candidate = tuple[str, Callable[[], tuple[Callable[[], Runnable], nn.Module]]]  # its name, and what makes a run and its module


def squares(output: Any, _: Any) -> Tensor:
    """A loss that takes whatever a model returns."""
    leaves = pytree.tree_leaves(dict(output) if isinstance(output, Mapping) else output)
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.requires_grad]
    return torch.stack([leaf.float().square().mean() for leaf in found]).sum()


def candidates() -> list[Candidate]:
    """Every architecture of the transformers library, and every ONNX model in an installed package."""
    wheels = [(name, partial(_shipped, path)) for name, path in shipped().items()]
    return [*((name, partial(_architecture, name)) for name in TRANSFORMERS), *wheels]


def _architecture(name: str) -> tuple[Callable[[], Runnable], nn.Module]:
    module, inputs = build(name)

    def run() -> Runnable:
        try:
            return _runnable(module)
        except InputError:
            args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else (inputs, {})
            return _runnable(Target(module, args, kwargs))

    return run, module


def _runnable(target: Any) -> Runnable:
    model: Runnable = load(target).measure.args[0]  # type: ignore[attr-defined]
    return model


def _shipped(path: Path) -> tuple[Callable[[], Runnable], nn.Module]:
    file = read_onnx(path)
    model = OnnxRunnable(file, file.inputs_with(given(path)))
    return lambda: model, model.module


def probes(model: Runnable) -> Iterator[tuple[str, str]]:
    """Name of each probe, with "" where it ran, else the reason why not."""
    task = Task(loss=squares, recipe=Recipe("adamw", lr=1e-4), rehearse=STEPS)
    with model.untouched(), torch.enable_grad():
        found = observe(model, seeds=1, seed=0, progress=lambda _: None)
        yield "gradient", found.stopped_at or ("" if found.growth.start or len(found.gains) > 1 else "nothing was measured")
        yield "ranges", "" if found.ranges else "nothing was seen"
        if found.stopped_at:
            return
        setting = Setting(model, task, found, 0, lambda _: None)
        for name, experiment in EXPERIMENTS:
            if name in ASKED:
                yield name, _reason(lambda experiment=experiment, setting=setting: experiment(setting), found=name != "inputs")  # type: ignore[misc]
        if found.growth.start is not None and found.growth.end is not None:
            ends = found.growth.start.node, found.growth.end.node
            yield "segment", _reason(lambda: segment(model, *ends, steps=4), found=True)
        module = getattr(model, "module", None)
        if isinstance(module, nn.Module) and can_redraw(module):
            with preserved(dict(module.named_parameters())), preserved(dict(module.named_buffers())):
                yield "redraw", _reason(lambda: redraw(module, 1), found=True)


def _reason(run: Callable[[], Any], *, found: bool) -> str:
    try:
        return "" if run() or not found else "nothing to measure"
    except (GradlintError, PartialRun) as error:
        return str(error).splitlines()[0]
    except Exception as error:  # noqa: BLE001 - a crash is what the sweep looks for
        return f"crashed: {type(error).__name__}: {error}"


def state(module: nn.Module) -> list[Any]:
    """What must be as before: parameters, buffers, gradients and modes, and the random state."""
    tensors = [t.detach().clone() for t in (*module.parameters(), *module.buffers())]
    return [tensors, [p.grad for p in module.parameters()], [child.training for child in module.modules()], torch.get_rng_state()]


def is_same(before: list[Any], after: list[Any]) -> bool:
    """Whether two states are equal, NaN included."""
    pairs = zip(before[0], after[0], strict=True)
    tensors = all(torch.equal(a.nan_to_num(), b.nan_to_num()) if a.is_floating_point() else torch.equal(a, b) for a, b in pairs)
    return tensors and before[1] == after[1] and before[2] == after[2] and torch.equal(before[3], after[3])


def main() -> None:
    """Print the table."""
    options = parser(__doc__, f"every {STEP}th model")
    options.add_argument("--only", nargs="*", help="names, or beginnings of them")
    chosen = options.parse_args()
    only = tuple(chosen.only or ("",))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table, ran, asked = Rows("model:<44", "handed back", "did not run:<"), Counter[str](), Counter[str]()
    models = changed = 0
    for name, make in every(candidates(), STEP if chosen.quick else 1):
        if not name.startswith(only):
            continue
        models += 1
        run, module = make()
        before = state(module)
        try:
            rows = list(probes(run()))
        except (GradlintError, PartialRun) as error:
            rows = [("gradient", str(error).splitlines()[0])]
        same = is_same(before, state(module))
        changed += not same
        asked.update(probe for probe, _ in rows)
        ran.update(probe for probe, reason in rows if not reason)
        table.add(name, "yes" if same else "CHANGED", "; ".join(f"{probe}: {why}" for probe, why in rows if why))
    print(f"{models} models, {changed} changed; " + ", ".join(f"{name} {ran[name]}/{asked[name]}" for name in asked))


if __name__ == "__main__":
    main()
