"""The Python interface: `check` and the `Report` that it returns."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from gradlint import report, score
from gradlint.errors import ConfigError, GivenUpError, GradlintError
from gradlint.frontends.inputs import InputSpec, from_array
from gradlint.frontends.targets import Target, as_recipe
from gradlint.measurements.coverage import Coverage, Skipped
from gradlint.measurements.trainability import Trainability
from gradlint.options import Options
from gradlint.process.parent import check as check_target
from gradlint.recipe import Task
from gradlint.result import Confidence, Finding, Growth, Severity, SpinePoint, TargetReport, Track, Verdict

_BATCHES = 40  # the default number of rehearsal steps: no more batches are read than that


class CheckFailedError(GradlintError):
    """Raised by `Report.raise_if_failed`. `report` is the report that failed."""

    report: Report


class Inputs:
    """Positional and keyword inputs of a model: `Inputs(*args, **kwargs)`. The values are arrays or tensors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs


@dataclass(frozen=True)
class Report:
    """The result of checking one model.

    `result` holds the plain data; the properties give its most used parts. `str(report)` is the full text report, and a notebook
    shows the same text.
    """

    result: TargetReport

    @property
    def verdict(self) -> Verdict:
        """What training will do with the model, as a string enum.

        One of "healthy", "explodes", "vanishes", "non-finite", "untrainable", "unstable", "nothing-to-train" and "unknown".
        """
        return self.result.verdict

    @property
    def score(self) -> int | None:
        """An integer from 0 to 100; 100 is healthy. None where there is nothing to train."""
        return self.result.score

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings of all rules, the most severe first. Those that the probe refuted are in `refuted`."""
        return tuple(finding for finding in self.result.findings if finding.confidence is not Confidence.REFUTED)

    @property
    def refuted(self) -> tuple[Finding, ...]:
        """The findings that the probe refuted."""
        return tuple(finding for finding in self.result.findings if finding.confidence is Confidence.REFUTED)

    @property
    def trainability(self) -> Trainability | None:
        """Which parameters learn, and which wait for the first updates or get no gradient. None without a probe."""
        return self.result.trainability

    @property
    def tracks(self) -> tuple[Track, ...]:
        """The chains of weight layers beside the one of `spine`, with the growth along each."""
        return self.result.tracks

    @property
    def growth(self) -> Growth | None:
        """Sustained growth of the gradient from output to input, in decades (powers of ten).

        The growth is measured where the model was probed, and predicted otherwise. It is positive where gradients explode and
        negative where they vanish. None if nothing was measured or predicted.
        """
        return self.result.growth

    @property
    def spine(self) -> tuple[SpinePoint, ...]:
        """Forward and backward gains, in decades, of the spine: the operators that every path from input to output passes.

        If the graph has no such chain, the rows are one operator for each cut of the graph by depth.
        """
        return self.result.spine

    @property
    def coverage(self) -> Coverage:
        """How many operators the graph has, how many gradlint understands, and how many the probe ran."""
        return self.result.coverage

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The rules that did not apply, each with the reason."""
        return self.result.skipped

    def to(self, output_format: str = "full", **options: Any) -> str:
        """Return the report as text in `output_format`: "full", "concise", "json" or "github".

        `options` are those of `gradlint.report.render`, such as `width` and `show_refuted`. Raises ConfigError if the format is
        unknown.
        """
        if output_format not in report.format_names():
            raise ConfigError(f"unknown format {output_format!r}", hint=f"one of {', '.join(report.format_names())}")
        return report.render(output_format, [self.result], **options)

    def raise_if_failed(self, fail_on: str | None = "error", min_score: int | None = None) -> None:
        """Raise CheckFailedError if the model fails the check. The message of the error is the full report.

        The model fails if a finding that the probe did not refute has a severity of at least `fail_on` ("error", "warning" or
        "note"; None: no finding fails), or if the score is less than `min_score`. Raises GivenUpError if nothing fails, but the
        probe of a file was given up.
        """
        if score.failed(self.result, Severity(fail_on) if fail_on else None, min_score):
            error = CheckFailedError(self.to("full"))
            error.report = self
            raise error
        if self.result.given_up:
            raise GivenUpError(f"{self.result.target}: {self.result.given_up}")

    def __str__(self) -> str:
        return self.to("full")

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.to('full'))}</pre>"


def check(
    model: object,
    inputs: Any = None,
    *,
    target: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    recipe: Any = None,
    rehearse: int | None = None,
    batches: Iterable[tuple[Any, Any]] = (),
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    probe: bool = True,
    seed: int = 0,
    seeds: int = 3,
    mode: str | None = None,
    lenient: bool = False,
    weights: str | PathLike[str] | None = None,
    materialize: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Check a model and return the report.

    The model and the process are handed back as they were, or the notes of the report say what could not be. Threads take turns.

    Args:
        model: A torch module, a path to a file (.onnx, .pt2) or to a folder of Hugging Face, an ONNX model in memory
            (`ModelProto` or bytes), a factory of a module, or any single target of the command line, such as "pkg.mod:attr".
        inputs: A tensor, a tuple (positional inputs), a dict (keyword inputs) or `Inputs(*args, **kwargs)`. If None, inputs are
            inferred, and the report says so.
        target: The second argument of `loss`.
        loss: A function called as `loss(output, target)`. If given, the probe also takes the true gradient of the loss.
        recipe: A `Recipe`, its text as `--recipe` takes it, a dict of its settings, or a `torch.optim.Optimizer`. If given, the
            probe measures the limit of the learning rate and rehearses optimizer steps, which it undoes.
        rehearse: Number of optimizer steps to rehearse; 0 for none, None for the default.
        batches: Pairs (inputs, target) to rehearse on, at most as many as there are steps. The first one also serves as `inputs`
            and `target` if neither is given.
        select: Codes, prefixes or names of the rules to apply; all rules if empty.
        ignore: Codes, prefixes or names of the rules to leave out.
        probe: Whether to run the model. If False, only the graph of a torch module is captured by one forward pass.
        seed: The first seed of drawn inputs and cotangents.
        seeds: How many seeds to probe, at least 1.
        mode: "train" or "eval". If None, a torch module runs in train mode and an ONNX file in the mode of its export.
        lenient: Whether a node of an ONNX file that the standard rejects is a note instead of an error.
        weights: A `.safetensors` file with the weights of the torch module. They are loaded into a copy of it.
        materialize: Whether a module on the meta device is initialized on the CPU, in a copy; block by block if it is large.
        progress: A function called with one line of text at the start of each stage.

    Raises ConfigError if an argument does not fit, and GradlintError if the model cannot be read or run.
    """
    if loss is not None and not callable(loss):
        raise ConfigError(f"loss is a {type(loss).__name__}", hint="give a function, which is called as loss(output, target)")
    pairs = tuple(islice(batches, _BATCHES if rehearse is None else max(rehearse, 0)))
    if pairs and inputs is None and target is None:
        inputs, target = pairs[0]
    model, specs = _with_inputs(model, inputs)
    task = Task(loss, target, as_recipe(recipe), rehearse, pairs, copied=weights is not None or materialize)
    chosen: dict[str, Any] = {"select": tuple(select), "ignore": tuple(ignore), "inputs": specs, "lenient": lenient}
    chosen |= {"weights": None if weights is None else Path(weights), "materialize": materialize}
    options = Options(**chosen, probe=probe, seed=seed, seeds=seeds, mode=mode, task=task)
    return Report(check_target(model, options, progress=progress))


def _with_inputs(model: object, inputs: Any) -> tuple[object, tuple[InputSpec, ...]]:
    """Return the model with the inputs that it is called with, or else their specifications; neither for inputs of None."""
    if inputs is None:
        return model, ()
    args, kwargs = _arguments(inputs)
    if isinstance(model, Callable) and not isinstance(model, type):  # type: ignore[arg-type]
        return Target(model, args, kwargs), ()
    return model, _specs(args, kwargs)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Inputs):
        return inputs.args, inputs.kwargs
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    several = isinstance(inputs, (tuple, list)) and not hasattr(inputs, "_fields")  # a PackedSequence is one input
    return (tuple(inputs) if several else (inputs,)), {}


def _specs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    named: list[tuple[str | None, Any]] = [*((None, value) for value in args), *kwargs.items()]
    return tuple(_spec(name, value) for name, value in named)


def _spec(name: str | None, value: Any) -> InputSpec:
    try:
        if hasattr(value, "detach"):  # a tensor; numpy has neither gradients nor bfloat16
            half = str(value.dtype) == "torch.bfloat16"
            array = (value.float() if half else value).detach().cpu().numpy()
            return InputSpec(name, "bfloat16" if half else str(array.dtype), array.shape, value=array, given=True)
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"input {name!r} is not an array: {error}", hint="give numpy arrays or tensors") from error
    if array.dtype.kind not in "biufcUS":
        raise ConfigError(f"input {name!r} is not an array of numbers or text", hint="give numpy arrays or tensors")
    return from_array(name, array)
