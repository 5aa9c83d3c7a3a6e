"""`measure`: the whole measurement of a model, first the passes of the Jacobian probe, then the experiments."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch

from gradlint.frontends.base import Runnable
from gradlint.frontends.torch.state import untouched, usable
from gradlint.measurements.trainability import Trainability
from gradlint.probe.budget import ENDLESS, Budget
from gradlint.probe.captured_warnings import captured_warnings
from gradlint.probe.experiments.catalog import run_experiments
from gradlint.probe.jacobian import Progress, observe
from gradlint.probe.second_look import look_again
from gradlint.probe.starved import explain_starved, opens_layers
from gradlint.probe.trainability import examine_trainability, virtual_steps
from gradlint.recipe import Task
from gradlint.result import Measurement

WARNINGS = 3
"""The most warnings of the user's code that the notes repeat."""


def measure(
    model: Runnable,
    *,
    seeds: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
    task: Task | None = None,
    budget: Budget = ENDLESS,
) -> Measurement:
    """Probe a model and restore its state.

    Gains are in decades (powers of ten of an amplitude), times in seconds, learning rates and losses in the user's units; see
    `gradlint.result.Measurement` for each field. An experiment that fails adds a note and leaves its field empty.

    Args:
        model: The model to probe.
        seeds: How many seeds to draw, each with its own random inputs and cotangents. More are drawn if growth is near the limit.
        seed: The first seed.
        progress: Called with one line of text at the start of each stage.
        budget: The time that is left. One pass is always made; what the time does not allow is left out, and noted.
        task: Loss, target and recipe. If given, the experiments also measure what the loss and the recipe do.

    Returns:
        The medians over seeds, and the results of the experiments.

    Raises:
        ForwardError: The forward or the backward pass of the model raised.
        InputError: The loss of the task raised, or returned something else than one real number.
    """
    say, task = progress or (lambda _: None), task or Task()
    task = replace(task, target=usable(task.target), batches=tuple(map(usable, task.batches)))
    nothing: list[str] = []
    own = untouched(task.loss) if task.loss is not None else nullcontext(nothing)  # a loss may have state too
    with model.untouched(), own as left, torch.enable_grad(), captured_warnings() as warned:
        if model.by_blocks:
            found = _by_blocks(model, observe(model, seeds=seeds, seed=seed, progress=say, most=seeds, budget=budget))
        else:
            found = observe(model, seeds=seeds, seed=seed, progress=say, budget=budget)
            found = _examine(model, found, seeds=seeds, seed=seed, progress=say, budget=budget)
            found = run_experiments(model, task, found, seed=seed, progress=say, budget=budget)
    lost = (f"the loss was not handed back as it came: {what}" for what in left)
    return replace(found, notes=(*found.notes, *(f"warned: {text}" for text in warned[:WARNINGS]), *lost))


def _by_blocks(model: Runnable, found: Measurement) -> Measurement:
    """Add what can be said of a model whose weights are never there all at once: the passes alone, no experiments."""
    parameters = model.parameters()
    if found.nonfinite_forward is None and found.stopped_at is None and all(map(found.learning.learns, parameters)):
        sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        found = replace(found, trainability=Trainability(sizes, model.frozen))
    return replace(found, notes=(*found.notes, "what moves all weights, as a rehearsal and other draws do, was left out"))


def _examine(model: Runnable, found: Measurement, *, seeds: int, seed: int, progress: Progress, budget: Budget) -> Measurement:
    """Add which parameters learn. If zeros block all gradients at first, growth is that after the steps that open them."""
    if found.nonfinite_forward is not None or found.stopped_at is not None:
        return found
    found, seed = look_again(model, found, seeds=seeds, seed=seed, progress=progress, budget=budget)
    graph, doubtful = model.graph, {name for cut in found.cuts if cut.depends_on_values for name in cut.starved}
    learn = examine_trainability(model, graph, found.learning, seed, doubtful, budget=budget)
    if learn is None:
        learn, found = Trainability(), replace(found, notes=(*found.notes, budget.lacks("which parameters learn")))
    if found.dead and opens_layers(graph, learn):
        steps = max(learn.opened.values())
        with virtual_steps(model, seed, steps):
            opened = observe(model, seeds=seeds, seed=seed, progress=progress, budget=budget)
        note = f"zeros block all gradients at first: growth was measured after {steps} virtual steps"
        found = replace(opened, cuts=found.cuts, idle=found.idle, notes=(*opened.notes, note))
    return explain_starved(found, graph, learn, training=model.frontend == "torch" and model.mode == "train")
