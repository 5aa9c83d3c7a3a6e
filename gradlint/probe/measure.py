"""The whole measurement: the passes of the Jacobian probe, then every experiment that the graph or the task asks for."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from gradlint.frontends.base import Runnable
from gradlint.frontends.torch.state import untouched
from gradlint.probe.captured_warnings import captured_warnings
from gradlint.probe.experiments.catalog import run_experiments
from gradlint.probe.jacobian import Progress, observe
from gradlint.recipe import Task
from gradlint.result import Measurement

WARNINGS = 3
"""Warnings of the user's code that are repeated at most."""


def measure(
    model: Runnable, *, seeds: int = 3, seed: int = 0, progress: Progress | None = None, task: Task | None = None
) -> Measurement:
    """Probe a model with `seeds` random inputs and cotangents, and hand it back untouched.

    With a `task`, what its loss and its recipe do is measured too. Raises ForwardError when the model's forward or backward
    pass raises.
    """
    say, task = progress or (lambda _: None), task or Task()
    own = untouched(task.loss) if isinstance(task.loss, nn.Module) else nullcontext()  # a loss may have a state of its own
    with model.untouched(), own, torch.enable_grad(), captured_warnings() as warned:
        found = run_experiments(model, task, observe(model, seeds=seeds, seed=seed, progress=say), seed=seed, progress=say)
    return replace(found, notes=(*found.notes, *(f"warned: {text}" for text in warned[:WARNINGS])))
