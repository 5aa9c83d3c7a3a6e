"""The command line. Only this package prints and sets the exit code.

0: clean. 1: a finding is at or above `--fail-on`, or a score is under `--min-score`. 2: something could not be analyzed. 130:
interrupted.
"""

# ruff: noqa: PLC0415 - each command imports what it needs, so that --help and --version stay quick

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from gradlint.cli import process
from gradlint.cli.configured import configure, hidden_by
from gradlint.cli.console import (
    columns,
    explained,
    give_up_stdout,
    is_colored,
    print_error,
    print_traceback,
    put,
    said,
    supports_unicode,
)
from gradlint.cli.process import CLEAN, INTERRUPTED, NOT_ANALYZED
from gradlint.errors import GradlintError
from gradlint.report import DEFAULT, format_names, tool_version

FOLDERS = click.Path(file_okay=False, path_type=Path)
_RECIPE = """How it will be trained: an optimizer, then NAME=VALUE for lr, momentum, weight_decay, clip_norm, clip_value,
precision, schedule, betas, eps, nesterov, loss_scale; two parts of a value go with + or /, as in
"adamw lr=3e-4 betas=0.9/0.95 clip_norm=1 schedule=warmup:100+cosine"."""


class _DefaultGroup(click.Group):
    """A command group whose default command is `check`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names, "--version"}:
            args = ["check", *args]
        for argument in args[: args.index("--")] if "--" in args else args:
            if argument.startswith("-") and argument != "-" and os.path.lexists(argument):
                raise click.UsageError(f"{argument} is a file here, and would be read as an option; write ./{argument}", ctx)
        return super().parse_args(ctx, args)


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"gradlint {tool_version()}")
        ctx.exit()


def _amount(_: click.Context, parameter: click.Parameter, value: float) -> float:
    """Refuse what is no number: it is neither above nor below a limit."""
    if math.isnan(value):
        raise click.BadParameter("nan is no number", param=parameter)
    return value


def _entries(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    """Return the entries of a repeatable option whose values are comma-separated lists."""
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
        return NOT_ANALYZED
    return CLEAN


inputs_option = click.option(
    "--input", "inputs", multiple=True, metavar="SPEC", help="x=float32[8,3,64,64], ids=int64[2,9]<1000, x=@file.npz."
)
no_probe_option = click.option(
    "--no-probe", "probe", flag_value=False, default=True, help="Do not run the model: static analysis only."
)
mode_option = click.option(
    "--mode", type=click.Choice(["train", "eval"]), help="[default: train for torch, as exported for ONNX]"
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="First seed of inputs and cotangents."
)
_limit = partial(click.option, type=click.FloatRange(min=0.0, min_open=True, max=1e9), callback=_amount, show_default=True)
color_option = click.option(
    "--color", type=click.Choice(["auto", "always", "never"]), default="auto", help="Colors; NO_COLOR is heeded."
)
rules_option = click.option(
    "--rules", multiple=True, type=FOLDERS, metavar="DIR", help="A folder of further rules.  [repeatable]"
)
debug_option = click.option("--debug", is_flag=True, help="Show the traceback of an internal error.")


@cli.command()
@click.argument("targets", nargs=-1, metavar="TARGET...")
@click.option("--isolated", is_flag=True, is_eager=True, help="Read no configuration file.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    callback=configure,
    help="Configuration file.  [default: the nearest gradlint.toml, .gradlint.toml, or pyproject.toml with [tool.gradlint]]",
)
@inputs_option
@no_probe_option
@mode_option
@click.option("--train-mode", "mode", flag_value="train", help="The same as --mode train: BatchNorm on batch statistics.")
@click.option("--lenient", is_flag=True, help="Read ONNX files with nodes that the standard rejects; the report says so.")
@click.option(
    "--weights", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="A .safetensors file for the torch model."
)
@click.option("--materialize", is_flag=True, help="Initialize a model on the meta device; block by block if it is large.")
@seed_option
@click.option("--seeds", type=click.IntRange(1, 10_000), default=3, show_default=True, help="How many seeds to probe.")
@click.option("--select", multiple=True, callback=_entries, metavar="RULES", help="Codes, prefixes or names to apply.")
@click.option("--ignore", multiple=True, callback=_entries, metavar="RULES", help="Codes, prefixes or names to leave out.")
@rules_option
@click.option("--recipe", metavar="RECIPE", help=_RECIPE)
@click.option("--rehearse", type=click.IntRange(0), metavar="STEPS", help="Updates to rehearse with the recipe; 0 for none.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "note", "never"]),
    default="error",
    show_default=True,
    help="Least severity that makes the exit code 1.",
)
@_limit("--memory-limit", default=16, metavar="GB", help="For a model file.")
@_limit("--time-limit", default=600, metavar="SECONDS", help="For one target: then what was measured is reported.")
@click.option("--in-process", is_flag=True, help="Read model files in this process, without limits.")
@click.option("--min-score", type=click.IntRange(0, 100), metavar="N", help="Exit with 1 for a score under N.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 also when there are findings.")
@click.option("--output-format", type=click.Choice(format_names()), default=DEFAULT, show_default=True, help="How to report.")
@click.option("-o", "--output-file", type=click.Path(dir_okay=False, path_type=Path), help="Write the report to a file.")
@click.option("--show-refuted", is_flag=True, help="Show suspicions that the probe refuted.")
@click.option("--no-timings", "timings", flag_value=False, default=True, help="Leave times out of the report.")
@color_option
@click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks on stderr, only errors.")
@debug_option
def check(**given: Any) -> int:
    """Lint models; without a TARGET, those of the configuration.

    A TARGET is a model file (.onnx, .pt2), a folder or a glob of them, a folder of config.json and .safetensors,
    - (an ONNX model on stdin), or a torch model named as pkg.mod:attr or path/file.py:attr: a module, a class, a
    factory, or a method of a class. Arguments are given as literals: "train.py:GPT(n_layer=4)".
    """
    from gradlint.cli.check import Request, run

    return run(Request(**given, hiding=hidden_by(click.get_current_context(), given["config"])))


@cli.command()
@click.argument("codes", nargs=-1, metavar="[CODE...]")
@click.option("--all", "every", is_flag=True, help="Explain every rule.")
@click.option("--output-format", type=click.Choice(["full", "json"]), default="full", show_default=True, help="How to report.")
@rules_option
@color_option
@debug_option
def rule(*, codes: tuple[str, ...], every: bool, output_format: str, rules: tuple[Path, ...], color: str, debug: bool) -> int:
    """Explain rules, named by code, prefix or name; without any, list them."""
    del debug  # `main` reads it from the command line
    from gradlint.catalog import describe_rules, select
    from gradlint.report.rule_page import as_json, listed, page

    known = describe_rules(rules)
    wanted = tuple(code.upper() if code[-1:].isdigit() else code for code in codes)
    chosen = select(known, wanted) if wanted and not every else known
    if output_format == "json":
        put(as_json(chosen), color=False)
    elif codes or every:
        colored, width = is_colored(color), columns() if sys.stdout.isatty() else None
        bold = (lambda text: click.style(text, bold=True)) if colored else str
        put("\n\n".join(page(entry.documentation, width, bold=bold) for entry in chosen), color=colored)
    else:
        put(listed(chosen), color=False)
    return CLEAN


@cli.command("new-rule")
@click.argument("code")
@click.argument("name")
@click.option(
    "--rules", "folder", type=FOLDERS, metavar="DIR", help="The folder of the new file.  [default: rules/ of a checkout]"
)
@debug_option
def new_rule(*, code: str, name: str, folder: Path | None, debug: bool) -> int:
    """Write a rule file that works, to start from.

    CODE is two to four capitals and three digits that no rule has yet. NAME says the pattern: lower-case words and hyphens.
    """
    del debug  # `main` reads it from the command line
    from gradlint.cli.skeleton import write_rule

    path = write_rule(code, name, folder)
    select = f"--rules {folder} " if folder is not None else ""
    put(f"wrote {path}; gradlint rule {select}{code} shows its page\n", color=False)
    return CLEAN


@cli.command("explain")
@click.argument("target")
@click.argument("node")
@inputs_option
@no_probe_option
@mode_option
@seed_option
@debug_option
def explain_node(*, target: str, node: str, inputs: tuple[str, ...], debug: bool, **given: Any) -> int:
    """Show the arithmetic of one operator.

    TARGET is a model as for check. NODE is the id of an operator or the path of a module as reports name them, or the
    unique beginning or end of one.
    """
    del debug  # `main` reads it from the command line
    from gradlint.frontends.inputs import parse_inputs
    from gradlint.options import Options
    from gradlint.process.parent import explained as explanation

    options = Options(inputs=parse_inputs(inputs), **given)
    with redirect_stdout(sys.stderr):
        text = explanation(target, node, options, width=columns(), unicode=supports_unicode())
    put(text, color=False)
    return CLEAN


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    A mistake of the user ends in one message without a traceback; an internal error in one sentence that names `--debug`.
    """
    given = list(sys.argv[1:] if args is None else args)
    if args is None:
        process.begin(given)
    status = _status(given)
    if args is None:
        process.end()
    sys.exit(status)


def _status(given: Sequence[str]) -> int:
    """Run a command and return its exit code, whatever happens."""
    try:
        if not {"--version", "--help", "-h"}.intersection(given):
            Path.cwd()
    except OSError:
        print_error(said("the working directory does not exist any more", "change to another one"))
        return NOT_ANALYZED
    try:
        if "_GRADLINT_COMPLETE" in os.environ:
            cli.main(prog_name="gradlint")
        with cli.make_context("gradlint", list(given)) as context:
            return int(cli.invoke(context))
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        _print_misuse(error)
    except GradlintError as error:
        print_error(explained(error))
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        if "--debug" in given:
            print_traceback()
        if not isinstance(error, BrokenPipeError):
            print_error(said(f"cannot read or write {error.filename or 'stdout'}: {error.strerror or error}"))
        give_up_stdout()
    except Exception as error:  # noqa: BLE001 - the last resort
        if "--debug" in given:
            print_traceback()
        print_error(said(f"internal error: {type(error).__name__}: {error}; --debug shows where, please report it"))
    return NOT_ANALYZED


def _print_misuse(error: click.ClickException) -> None:
    """Print what is wrong with the command line, behind the usage of the command."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        click.echo(f"{context.get_usage()}\nTry '{context.command_path} {context.help_option_names[-1]}' for help.\n", err=True)
    click.echo(f"Error: {said(error.format_message())}", err=True)
