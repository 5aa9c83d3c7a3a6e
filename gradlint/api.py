"""gradlint from Python: `check` and the report that it returns."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from gradlint import engine, report, score
from gradlint.errors import ConfigError, GradlintError
from gradlint.frontends.inputs import InputSpec, from_array
from gradlint.frontends.targets import Target, as_recipe
from gradlint.options import Options
from gradlint.recipe import Task
from gradlint.result import Coverage, Finding, Growth, Severity, Skipped, SpinePoint, TargetReport, Verdict

_BATCHES = 40  # as many as a rehearsal takes steps by default


class CheckFailedError(GradlintError):
    """Raised by `Report.raise_if_failed`; `report` is the report that failed."""

    report: Report


class Inputs:
    """Positional and keyword inputs of a model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args
        self.kwargs = kwargs


@dataclass(frozen=True)
class Report:
    """What gradlint has to say of one model. `result` is the plain data; the properties name its parts."""

    result: TargetReport

    @property
    def verdict(self) -> Verdict:
        """What the gradients do."""
        return self.result.verdict

    @property
    def score(self) -> int:
        """0 to 100; 100 is healthy."""
        return self.result.score

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Findings, the gravest first; refuted ones are last."""
        return self.result.findings

    @property
    def growth(self) -> Growth | None:
        """Sustained growth in decades, None where nothing was measured or predicted."""
        return self.result.growth

    @property
    def spine(self) -> tuple[SpinePoint, ...]:
        """Gains along the chain that every path passes."""
        return self.result.spine

    @property
    def coverage(self) -> Coverage:
        """How much was understood and probed."""
        return self.result.coverage

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Rules that had nothing to look at, with the reason."""
        return self.result.skipped

    def to(self, output_format: str = "full", **options: Any) -> str:
        """The report as text: "full", "concise", "json" or "github". Raises ConfigError for an unknown format."""
        if output_format not in report.FORMATS:
            raise ConfigError(f"unknown format {output_format!r}", hint=f"one of {', '.join(report.FORMATS)}")
        return report.render(output_format, [self.result], **options)

    def raise_if_failed(self, fail_on: str | None = "error", min_score: int | None = None) -> None:
        """Raise CheckFailedError, whose message is the report: a finding is at or above `fail_on`, or the score too low."""
        if score.failed(self.result, Severity(fail_on) if fail_on else None, min_score):
            error = CheckFailedError(self.to("full"))
            error.report = self
            raise error

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
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Check a torch module, a path to an ONNX file, an ONNX model in memory, or anything that the command line takes.

    `inputs` is a tensor, a tuple (positional), a dict (keyword) or `Inputs(*args, **kwargs)`; left out, inputs are inferred.
    With `loss`, called as `loss(output, target)`, the true gradient is looked at too. With a `recipe`, which is a `Recipe`, its
    text or a `torch.optim.Optimizer`, the learning-rate limit is measured and `rehearse` optimizer steps are rehearsed on the
    batch, or on `batches`, pairs of inputs and target, and undone; no more of them are read than there are steps. The model is
    handed back as it came. Raises GradlintError when it cannot be read or run.
    """
    if loss is not None and not callable(loss):
        raise ConfigError(f"loss is a {type(loss).__name__}", hint="give a function, which is called as loss(output, target)")
    pairs = tuple(islice(batches, _BATCHES if rehearse is None else max(rehearse, 0)))
    if pairs and inputs is None and target is None:
        inputs, target = pairs[0]
    specs: tuple[InputSpec, ...] = ()
    if inputs is not None:
        args, kwargs = _arguments(inputs)
        if isinstance(model, Callable) and not isinstance(model, type):  # type: ignore[arg-type]
            model = Target(model, args, kwargs)
        else:
            specs = _specs(args, kwargs)
    task = Task(loss, target, as_recipe(recipe), rehearse, pairs)
    options = Options(
        select=tuple(select), ignore=tuple(ignore), inputs=specs, probe=probe, seed=seed, seeds=seeds, mode=mode, task=task
    )
    return Report(engine.check(model, options, progress=progress))


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Inputs):
        return inputs.args, inputs.kwargs
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def _specs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    named: list[tuple[str | None, Any]] = [*((None, value) for value in args), *kwargs.items()]
    return tuple(_spec(name, value) for name, value in named)


def _spec(name: str | None, value: Any) -> InputSpec:
    try:
        if hasattr(value, "detach"):  # a tensor; numpy knows no gradients and no bfloat16
            half = str(value.dtype) == "torch.bfloat16"
            array = (value.float() if half else value).detach().cpu().numpy()
            return InputSpec(name, "bfloat16" if half else str(array.dtype), array.shape, value=array, given=True)
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"input {name!r} is not an array: {error}", hint="give numpy arrays or tensors") from error
    if array.dtype.kind not in "biufcUS":
        raise ConfigError(f"input {name!r} is not an array of numbers or text", hint="give numpy arrays or tensors")
    return from_array(name, array)
