"""What the configuration file does to the command line: the options that it sets, the targets and rules that it names.

A file that nobody named runs nothing by itself: its Python targets are imported where they are asked for by name, and its rules
are loaded beside such a target, or with `--config`.
"""

# ruff: noqa: PLC0415 - imports are deferred until a file is read, so that --help and --version stay quick

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradlint.cli.console import print_error, said

if TYPE_CHECKING:
    from gradlint.config import Config

_NOT_CONFIGURED = frozenset({"config", "isolated", "debug", "in-process", "output-file", "train-mode"})
_HIDING = {"exit_zero": True, "fail_on": "never", "lenient": True, "probe": False}
_SELECTING = frozenset({"select", "ignore"})
_LIMITS = frozenset({"memory_limit", "time_limit"})


def configure(ctx: click.Context, _: click.Parameter, given: Path | None) -> Config | None:
    """Read the configuration file, and take the options that are not given from it."""
    from gradlint.config import find, read

    if ctx.params.get("isolated"):
        return None
    path = given or find(Path.cwd(), print_error)
    if path is None:
        return None
    options = {spelled(option): option for option in ctx.command.params if isinstance(option, click.Option)}
    config = read(path, options.keys() - _NOT_CONFIGURED)
    values = {str(options[key].name): _fitting(path, options[key], value) for key, value in config.options.items()}
    rules = tuple(map(Path, values.pop("rules", ())))
    ctx.default_map = values
    return replace(config, options=values, rules=rules, found=given is None)


def spelled(option: click.Option) -> str:
    """Return an option's name in the configuration file: its longest spelling without dashes, and "probe" for --no-probe."""
    return "probe" if option.name == "probe" else max(option.opts, key=len).lstrip("-")


def _fitting(path: Path, option: click.Option, value: Any) -> Any:
    """Return the value as the option takes it. Raises ConfigError if it is of another type."""
    from gradlint.errors import ConfigError

    key = spelled(option)
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
    if option.is_flag:
        fits, wanted = isinstance(value, bool), "true or false"
    elif option.multiple:
        fits, wanted = texts, "a list of texts"
    elif isinstance(option.type, click.IntRange):
        fits, wanted = number and isinstance(value, int), "a whole number"
    elif isinstance(option.type, click.FloatRange):
        fits, wanted = number, "a number"
    else:
        fits, wanted = isinstance(value, str), "a text"
    if not fits:
        raise ConfigError(f"{path}: {key} is {wanted}, and not {str(value)[:40]!r}", hint="see gradlint check --help")
    return not value if option.is_flag and key.startswith("no-") else value


def hidden_by(ctx: click.Context, config: Config | None) -> tuple[str, ...]:
    """Return the options by which a configuration file that nobody named can hide a failure, or raises a limit."""
    if config is None or not config.found:
        return ()
    set_here = [
        option
        for option in ctx.command.params
        if isinstance(option, click.Option)
        and ctx.get_parameter_source(str(option.name)) is click.core.ParameterSource.DEFAULT_MAP
    ]
    return tuple(
        spelled(option)
        for option in set_here
        if (option.name in _SELECTING and ctx.params[option.name])
        or (option.name in _HIDING and ctx.params[option.name] == _HIDING[option.name])
        or (option.name in _LIMITS and ctx.params[option.name] > option.default)
    )


def chosen_targets(typed: Sequence[str], config: Config | None) -> tuple[list[str], list[str], bool]:
    """Return the targets, an error message for each that is refused, and whether one is code that the configuration names.

    A name of the configuration stands for its target unless it can be read as anything else. Without typed targets these are
    all of the configuration, except code: that has to be asked for by name.
    """
    if config is None:
        return list(typed), [], False
    from gradlint.frontends.discover import is_name
    from gradlint.frontends.targets import lies_below

    found, troubles, code = list[str](), list[str](), list[str]()
    for name in typed or config.targets:
        target = config.targets.get(name, name)
        if typed and target != name and not is_name(name):
            print_error(f"{name} is what was typed, and not the target of this name in {config.path}")
            target = name
        if target == name and typed:
            found.append(name)
        elif not _is_code(target):
            found.append(target)
        elif not typed:
            code.append(name)
        elif not lies_below(target, config.project):
            outside = f"{target} is no code in {config.project}, the project of {config.path}"
            troubles.append(said(f"{name}: {outside}", f"type it as a target: gradlint {target}"))
        else:
            print_error(f"{name} is imported from {target}, as {config.path} says")
            found.append(target)
            code.append(name)
    if code and not typed:
        how = f"as in: gradlint {' '.join(code)}"
        troubles.append(said(f"{config.path} names code, which runs only where it is asked for by name", how))
    return found, troubles, bool(code and typed)


def chosen_rules(typed: Sequence[Path], config: Config | None, *, code: bool) -> tuple[Path, ...]:
    """Return the folders of rules to load, and say what becomes of those that the configuration names.

    `code` says whether a target is code of the configuration, so that its project is trusted already.
    """
    if typed or config is None or not config.rules:
        return tuple(typed)
    folders = ", ".join(map(str, config.rules))
    if config.found and not code:
        why = f"the rules in {folders} are code and are not loaded, because {config.path} was found and not named"
        print_error(said(why, f"--config {config.path} loads them"))
        return ()
    print_error(f"the rules in {folders} are loaded, as {config.path} says")
    return config.rules


def _is_code(target: str) -> bool:
    from gradlint.frontends.targets import is_python_target

    return not os.path.lexists(target) and is_python_target(target)
