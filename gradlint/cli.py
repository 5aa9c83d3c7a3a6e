"""The command line: the only place that prints, and that decides the exit code.

0: clean. 1: a finding at or above `--fail-on`, or a score under `--min-score`. 2: something could not be analysed. 130:
interrupted.
"""

# ruff: noqa: PLC0415 - what a command needs is imported by the command, so that --help and --version stay quick

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gradlint.errors import ForwardError, GradlintError
from gradlint.report import FORMATS, printable, render, tool_version

if TYPE_CHECKING:
    from gradlint.result import TargetReport

_CLEAN, _FAILED, _NOT_ANALYSED, _INTERRUPTED = 0, 1, 2, 130
_WIDTH, _WIDEST = 80, 100
_FOLDERS = click.Path(file_okay=False, path_type=Path)


class _DefaultGroup(click.Group):
    """A group whose command `check` may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names, "--version"}:
            args = ["check", *args]
        return super().parse_args(ctx, args)


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"gradlint {tool_version()}")
        ctx.exit()


def _entries(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """The entries of a repeatable option that takes comma lists."""
    return tuple(entry.strip() for value in values for entry in value.split(",") if entry.strip())


@click.group(
    cls=_DefaultGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`gradlint TARGET...` is short for `gradlint check TARGET...`; its options: gradlint check --help.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version.")
@click.pass_context
def cli(ctx: click.Context) -> int:
    """Say before training whether a model's gradients explode or vanish, where, why, and what to change."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return _NOT_ANALYSED
    return _CLEAN


@dataclass(frozen=True)
class _Request:
    """What `gradlint check` was asked to do; the fields are its options."""

    targets: tuple[str, ...]
    inputs: tuple[str, ...]
    probe: bool
    seed: int
    seeds: int
    mode: str | None
    select: tuple[str, ...]
    ignore: tuple[str, ...]
    rules: tuple[Path, ...]
    memory_limit: float
    time_limit: float
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


_input = click.option(
    "--input", "inputs", multiple=True, metavar="SPEC", help="x=float32[8,3,64,64], ids=int64[2,9]<1000, x=@file.npz."
)
_no_probe = click.option(
    "--no-probe", "probe", flag_value=False, default=True, help="Do not run the model: static analysis only."
)
_mode = click.option("--mode", type=click.Choice(["train", "eval"]), help="[default: train for torch, as exported for ONNX]")
_seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="First seed of inputs and cotangents.")
_AMOUNT = click.FloatRange(min=0.0, min_open=True)
_color = click.option(
    "--color", type=click.Choice(["auto", "always", "never"]), default="auto", help="Colours; NO_COLOR is heeded."
)
_rules = click.option("--rules", multiple=True, type=_FOLDERS, metavar="DIR", help="A folder of further rules.  [repeatable]")
_debug = click.option("--debug", is_flag=True, help="Show the traceback of an internal error.")


@cli.command()
@click.argument("targets", nargs=-1, metavar="TARGET...")
@_input
@_no_probe
@_mode
@click.option("--train-mode", "mode", flag_value="train", help="The same as --mode train: BatchNorm on batch statistics.")
@_seed
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="How many seeds to probe.")
@click.option("--select", multiple=True, callback=_entries, metavar="RULES", help="Codes, prefixes or names to apply.")
@click.option("--ignore", multiple=True, callback=_entries, metavar="RULES", help="Codes, prefixes or names to leave out.")
@_rules
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "note", "never"]),
    default="error",
    show_default=True,
    help="Least severity that makes the exit code 1.",
)
@click.option("--memory-limit", type=_AMOUNT, default=16, show_default=True, metavar="GB", help="For probing a model file.")
@click.option("--time-limit", type=_AMOUNT, default=600, show_default=True, metavar="SECONDS", help="For probing a model file.")
@click.option("--min-score", type=click.IntRange(0, 100), metavar="N", help="Exit with 1 for a score under N.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 also when there are findings.")
@click.option("--output-format", type=click.Choice(list(FORMATS)), default="full", show_default=True, help="How to report.")
@click.option("-o", "--output-file", type=click.Path(dir_okay=False, path_type=Path), help="Write the report to a file.")
@click.option("--show-refuted", is_flag=True, help="Show suspicions that the probe refuted.")
@click.option("--no-timings", "timings", flag_value=False, default=True, help="Leave times out of the report.")
@_color
@click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks on stderr, only errors.")
@_debug
def check(**given: Any) -> int:
    """Lint models.

    A TARGET is a model file (.onnx), a folder or a glob of them, - (an ONNX model on stdin), or a torch
    model named as pkg.mod:attr or path/file.py:attr: a module, a class, or a factory without arguments.
    """
    return _check(_Request(**given))


def _check(request: _Request) -> int:
    if not request.targets:
        if not request.quiet:
            click.echo("gradlint: nothing to lint", err=True)
        return _CLEAN
    targets, troubles = _expanded(request)
    reports: list[TargetReport] = []
    if targets:
        lint = _linter(request)
        with _progress(request) as say:
            for target in targets:
                outcome = lint(target, say)
                (troubles if isinstance(outcome, str) else reports).append(outcome)  # type: ignore[arg-type]
    if reports:
        _write(request, reports)
    for trouble in [*troubles, *_unprobed(request, reports)]:
        _complain(trouble)
    return _exit_code(request, reports, troubles)


def _expanded(request: _Request) -> tuple[list[str], list[str]]:
    """The single targets, and what is wrong with those that were not found."""
    from gradlint.frontends.discover import expand

    found: dict[str, None] = {}
    troubles = []
    for target in request.targets:
        try:
            found |= dict.fromkeys(expand([target], Path.cwd()))
        except GradlintError as error:
            troubles.append(_explained(error, target))
    return list(found), troubles


def _linter(request: _Request) -> Callable[[str, Callable[[str], None]], TargetReport | str]:
    """A function from a target to its report, or to what is wrong with it. Raises GradlintError for options that do not fit."""
    from gradlint.catalog import load_rules, select
    from gradlint.engine import Options
    from gradlint.engine import check as check_target
    from gradlint.frontends.inputs import parse_inputs
    from gradlint.probe.isolated import Limits

    select(load_rules(request.rules), request.select, request.ignore)  # an unknown code is said once, before any work
    options = Options(
        select=request.select,
        ignore=request.ignore,
        inputs=parse_inputs(request.inputs),
        probe=request.probe,
        seed=request.seed,
        seeds=request.seeds,
        mode=request.mode,
        rules_dirs=request.rules,
        limits=Limits(request.time_limit, request.memory_limit),
    )

    def lint(target: str, say: Callable[[str], None]) -> TargetReport | str:
        try:
            with redirect_stdout(sys.stderr):  # what the user's code prints must not land in the report
                return check_target(target, options, progress=lambda stage: say(f"{target}: {stage}"))
        except GradlintError as error:
            if request.debug:
                traceback.print_exc()
            return _explained(error, target)
        except SystemExit as error:
            return f"{target}: its code ended the program, with exit code {error.code}"
        except Exception as error:  # noqa: BLE001 - one broken target must not hide the others
            return _internal(error, target, debug=request.debug)

    return lint


def _explained(error: GradlintError, target: str) -> str:
    """What, where and what next, for one target."""
    message, *rest = str(error).split("\n")
    where = [f"  at {error.where}"] if isinstance(error, ForwardError) and error.where and error.where not in message else []
    about = "" if message.startswith(target) else f"{target}: "
    return "\n".join([about + message, *where, *rest])


def _internal(error: Exception, target: str, *, debug: bool) -> str:
    if debug:
        traceback.print_exc()
    what = f"{target}: internal error: {type(error).__name__}: {error}".split("\n")[0]
    return what if debug else f"{what}; --debug shows where, please report it"


def _unprobed(request: _Request, reports: Sequence[TargetReport]) -> list[str]:
    """A complaint for every target that was to be probed and was not, or not far enough for a verdict."""
    from gradlint.result import Verdict

    return [
        f"{report.target}: {_shortfall(report)}\n  --no-probe asks for the static analysis alone"
        for report in reports
        if request.probe and report.verdict is Verdict.UNKNOWN
    ]


def _shortfall(report: TargetReport) -> str:
    probed, nodes = report.coverage.probed, report.coverage.nodes
    if 0 < probed == nodes:
        return "it ran, but no output passes a gradient back, so nothing could be measured"
    return f"{f'only {probed} of {nodes} operators' if probed else 'nothing'} could be probed"


def _exit_code(request: _Request, reports: Sequence[TargetReport], troubles: Sequence[str]) -> int:
    from gradlint.result import Severity
    from gradlint.score import failed

    if troubles or _unprobed(request, reports):
        return _NOT_ANALYSED
    fail_on = None if request.fail_on == "never" else Severity(request.fail_on)
    found = any(failed(report, fail_on, request.min_score) for report in reports)
    return _FAILED if found and not request.exit_zero else _CLEAN


@contextmanager
def _progress(request: _Request) -> Iterator[Callable[[str], None]]:
    """Say on stderr what is being done, where somebody is watching."""
    if request.quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(Text(text))


def _write(request: _Request, reports: Sequence[TargetReport]) -> None:
    to_file = request.output_file is not None
    color = not to_file and _colored(request.color)
    text = render(
        request.output_format,
        reports,
        width=_width() if not to_file else _WIDTH,
        color=color,
        unicode=to_file or _speaks_unicode(),
        show_refuted=request.show_refuted,
        timings=request.timings,
    )
    if request.output_file is None:
        _print(text, color=color)
        return
    try:
        request.output_file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GradlintError(f"{request.output_file}: cannot write the report: {error.strerror}") from error


def _print(text: str, *, color: bool) -> None:
    """Write to stdout, whatever its encoding; a reader that has gone away, as `head` does, is no error."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False, color=color)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _colored(choice: str) -> bool:
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return choice == "always" or (choice == "auto" and wanted)


def _width() -> int:
    return min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDEST) if sys.stdout.isatty() else _WIDTH


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().startswith("utf")


def _complain(text: str) -> None:
    click.echo(printable(f"gradlint: {text}", keep="\n"), err=True)


@cli.command()
@click.argument("codes", nargs=-1, metavar="[CODE...]")
@click.option("--all", "every", is_flag=True, help="Explain every rule.")
@click.option("--output-format", type=click.Choice(["full", "json"]), default="full", show_default=True, help="How to report.")
@_rules
@_color
@_debug
def rule(*, codes: tuple[str, ...], every: bool, output_format: str, rules: tuple[Path, ...], color: str, debug: bool) -> int:
    """Explain rules, named by code, prefix or name; without any, list them."""
    del debug  # read where the command line ends
    from gradlint.catalog import load_rules, select
    from gradlint.report.rule_page import as_json, listed, page

    known = load_rules(rules)
    wanted = tuple(code.upper() if code[-1:].isdigit() else code for code in codes)
    chosen = select(known, wanted) if wanted and not every else known
    if (codes or every) and not all(entry.documentation() for entry in chosen):
        raise GradlintError("python -OO strips the documentation of rules", hint="run gradlint without -OO")
    if output_format == "json":
        _print(as_json(chosen), color=False)
    elif codes or every:
        colored, width = _colored(color), _width() if sys.stdout.isatty() else None
        bold = (lambda text: click.style(text, bold=True)) if colored else str
        _print("\n\n".join(page(entry.documentation(), width, bold=bold) for entry in chosen), color=colored)
    else:
        _print(listed(chosen), color=False)
    return _CLEAN


@cli.command("explain")
@click.argument("target")
@click.argument("node")
@_input
@_no_probe
@_mode
@_seed
@_debug
def explain_node(*, target: str, node: str, inputs: tuple[str, ...], debug: bool, **given: Any) -> int:
    """Show the arithmetic of one operator.

    TARGET is a model as for check. NODE is the id of an operator or the path of a module as reports name them, or the
    unique beginning or end of one.
    """
    del debug  # read where the command line ends
    from gradlint.engine import Options
    from gradlint.explain import explain
    from gradlint.frontends.inputs import parse_inputs
    from gradlint.report.explanation import render as as_text

    with redirect_stdout(sys.stderr):
        found = explain(target, node, Options(inputs=parse_inputs(inputs), **given))
    _print(as_text(found, width=_width(), unicode=_speaks_unicode()), color=False)
    return _CLEAN


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: the user's mistakes are one message, ours one sentence that names --debug."""
    given = list(sys.argv[1:] if args is None else args)
    try:
        status = cli.main(given, prog_name="gradlint", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = _NOT_ANALYSED
    except GradlintError as error:
        _complain(str(error))
        status = _NOT_ANALYSED
    except (click.Abort, KeyboardInterrupt):
        status = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort
        if "--debug" in given:
            traceback.print_exc()
        _complain(f"internal error: {type(error).__name__}: {error}; --debug shows where, please report it")
        status = _NOT_ANALYSED
    sys.exit(status)
