"""The command `gradlint check`: expand the targets, check each, write the report, and return the exit code."""

# ruff: noqa: PLC0415 - imports are deferred until the command runs, so that --help and --version stay quick

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gradlint.cli.configured import chosen_rules, chosen_targets
from gradlint.cli.console import (
    WIDTH,
    columns,
    explained,
    is_colored,
    print_error,
    print_traceback,
    put,
    said,
    supports_unicode,
)
from gradlint.cli.overwriting import refuse_to_overwrite
from gradlint.cli.process import CLEAN, FAILED, NOT_ANALYZED
from gradlint.errors import GradlintError
from gradlint.report import printable, render

if TYPE_CHECKING:
    from gradlint.config import Config
    from gradlint.result import TargetReport


@dataclass(frozen=True)
class Request:
    """The arguments of one `gradlint check`. Each field is one option of the command line.

    `hiding` lists the options by which a configuration file that was found, not named, can hide a failure.
    """

    targets: tuple[str, ...]
    config: Config | None
    isolated: bool
    inputs: tuple[str, ...]
    probe: bool
    seed: int
    seeds: int
    mode: str | None
    lenient: bool
    select: tuple[str, ...]
    ignore: tuple[str, ...]
    rules: tuple[Path, ...]
    recipe: str | None
    rehearse: int | None
    weights: Path | None
    materialize: bool
    memory_limit: float
    time_limit: float
    in_process: bool
    fail_on: str
    min_score: int | None
    exit_zero: bool
    output_format: str
    output_file: Path | None
    show_refuted: bool
    timings: bool
    color: str
    quiet: bool
    debug: bool
    hiding: tuple[str, ...] = ()


def run(request: Request) -> int:
    """Check all targets, write the report, and return the exit code."""
    named, refused, code = chosen_targets(request.targets, request.config)
    if not named and not refused:
        if not request.quiet:
            print_error("nothing to lint")
        return CLEAN
    if request.config is not None and request.hiding:
        print_error(f"{request.config.path} sets {', '.join(request.hiding)}; --isolated checks without it")
    targets, missing = _expanded(named)
    troubles = [*refused, *missing]
    request = replace(request, rules=chosen_rules(request.rules, request.config, code=code))
    refuse_to_overwrite(request.output_file, targets, request.inputs, request.rules, request.config)
    reports: list[TargetReport] = []
    if targets:
        from gradlint.process.parent import prepare

        if not request.in_process:
            prepare(targets, probe=request.probe)
        lint = _linter(request)
        with _progress(request) as say:
            for target in targets:
                outcome = lint(target, say)
                (troubles if isinstance(outcome, str) else reports).append(outcome)  # type: ignore[arg-type]
    if reports:
        _write(request, reports)
    for trouble in [*troubles, *_unprobed(request, reports)]:
        print_error(trouble)
    return _exit_code(request, reports, troubles)


def _expanded(named: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the single targets, and an error message for each target that was not found."""
    from gradlint.frontends.discover import expand

    found: dict[str, None] = {}
    troubles = []
    for target in named:
        try:
            found |= dict.fromkeys(expand([target], Path.cwd()))
        except GradlintError as error:
            troubles.append(explained(error, target))
    return list(found), troubles


def _linter(request: Request) -> Callable[[str, Callable[[str], None]], TargetReport | str]:
    """Return a function that checks a target and returns its report or an error message.

    Raises GradlintError if the options are not valid.
    """
    from gradlint.catalog import load_rules, select
    from gradlint.frontends.inputs import parse_inputs
    from gradlint.options import Limits, Options
    from gradlint.process.parent import check as check_target
    from gradlint.recipe import Recipe, Task

    select(load_rules(request.rules), request.select, request.ignore)  # report an unknown code once, before any work
    options = Options(
        select=request.select,
        ignore=request.ignore,
        inputs=parse_inputs(request.inputs),
        probe=request.probe,
        seed=request.seed,
        seeds=request.seeds,
        mode=request.mode,
        lenient=request.lenient,
        rules_dirs=request.rules,
        task=Task(recipe=None if request.recipe is None else Recipe.parse(request.recipe), rehearse=request.rehearse),
        weights=request.weights,
        materialize=request.materialize,
        limits=None if request.in_process else Limits(request.time_limit, request.memory_limit),
    )

    def lint(target: str, say: Callable[[str], None]) -> TargetReport | str:
        try:
            with redirect_stdout(sys.stderr):  # the report must not contain what the user's code prints
                return check_target(target, options, progress=lambda stage: say(f"{target}: {stage}"))
        except GradlintError as error:
            if request.debug:
                print_traceback()
            return explained(error, target)
        except SystemExit as error:
            return said(f"{printable(target)}: its code ended the program, with exit code {error.code}")
        except Exception as error:  # noqa: BLE001 - one broken target must not hide the others
            return _internal(error, target, debug=request.debug)

    return lint


def _internal(error: Exception, target: str, *, debug: bool) -> str:
    if debug:
        print_traceback()
    what = printable(target) + printable(f": internal error: {type(error).__name__}: {error}".split("\n")[0])
    return what if debug else f"{what}; --debug shows where, please report it"


def _unprobed(request: Request, reports: Sequence[TargetReport]) -> list[str]:
    """Return an error message for every target that the probe did not run, or did not run far enough for a verdict."""
    from gradlint.result import Verdict

    return [
        f"{printable(report.target)}: {_shortfall(report)}\n  --no-probe asks for the static analysis alone"
        for report in reports
        if report.given_up or (request.probe and report.verdict is Verdict.UNKNOWN)
    ]


def _shortfall(report: TargetReport) -> str:
    if report.given_up:
        return f"only the static analysis was made; {printable(report.given_up)}"
    probed, nodes = report.coverage.probed, report.coverage.nodes
    if 0 < probed == nodes:
        return "it ran, but no output passes a gradient back, so nothing could be measured"
    return f"{f'only {probed} of {nodes} operators' if probed else 'nothing'} could be probed"


def _exit_code(request: Request, reports: Sequence[TargetReport], troubles: Sequence[str]) -> int:
    from gradlint.result import Severity
    from gradlint.score import failed

    if troubles or _unprobed(request, reports):
        return NOT_ANALYZED
    fail_on = None if request.fail_on == "never" else Severity(request.fail_on)
    found = any(failed(report, fail_on, request.min_score) for report in reports)
    status = FAILED if found and not request.exit_zero else CLEAN
    failing = sum(failed(report, Severity.ERROR, None) for report in reports)
    if status == CLEAN and failing and request.config is not None and {"exit-zero", "fail-on"}.intersection(request.hiding):
        print_error(f"{failing} of {len(reports)} models fail, and {request.config.path} says that this is no failure")
    return status


@contextmanager
def _progress(request: Request) -> Iterator[Callable[[str], None]]:
    """Give a function that shows the current stage on stderr. It does nothing if stderr is no terminal or with `--quiet`."""
    if request.quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True, force_jupyter=False).status("") as status:
        yield lambda text: status.update(Text(printable(text)))


def _write(request: Request, reports: Sequence[TargetReport]) -> None:
    to_file = request.output_file is not None
    color = not to_file and is_colored(request.color)
    text = render(
        request.output_format,
        reports,
        width=columns() if not to_file else WIDTH,
        color=color,
        unicode=to_file or supports_unicode(),
        show_refuted=request.show_refuted,
        timings=request.timings,
    )
    if request.output_file is None:
        put(text, color=color)
        return
    try:
        request.output_file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GradlintError(f"{request.output_file}: cannot write the report: {error.strerror}") from error
