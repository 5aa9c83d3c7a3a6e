"""Read the configuration file: the nearest gradlint.toml, .gradlint.toml or [tool.gradlint] table of a pyproject.toml."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradlint.errors import ConfigError
from gradlint.recipe import Recipe

_FILES = ("gradlint.toml", ".gradlint.toml", "pyproject.toml")


@dataclass(frozen=True)
class Config:
    """The contents of one configuration file.

    `options` maps command-line option names, without leading dashes, to values. `targets` maps names to target strings.
    """

    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)


def find(start: Path) -> Path | None:
    """Return the nearest configuration file in a folder or its parents, or None if there is none.

    A pyproject.toml counts only if it has a [tool.gradlint] table.

    Raises:
        ConfigError: A pyproject.toml on the way cannot be read or parsed.
    """
    for folder in (start, *start.parents):
        for name in _FILES:
            path = folder / name
            if path.is_file() and (name != "pyproject.toml" or "gradlint" in _toml(path).get("tool", {})):
                return path
    return None


def read(path: Path, known: Collection[str]) -> Config:
    """Read a configuration file.

    Args:
        path: The file. Relative paths inside it are resolved against its folder.
        known: Names of the options that the file may set, spelled as on the command line, without leading dashes.

    Raises:
        ConfigError: The file cannot be read or parsed, a key is unknown, `targets` is not a table of strings, or the
            recipe is invalid.
    """
    table = _toml(path)
    table = table.get("tool", {}).get("gradlint", {}) if path.name == "pyproject.toml" else table
    targets = table.pop("targets", {})
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, [*known, "targets"], n=1)
            hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(sorted([*known, 'targets']))}"
            raise ConfigError(f"{path}: unknown key {key!r}", hint=hint)
    if not isinstance(targets, dict) or not all(isinstance(value, str) for value in targets.values()):
        raise ConfigError(f"{path}: targets are names with what they stand for", hint='as in targets = { net = "pkg.mod:build" }')
    options = {key: _value(path, key, value) for key, value in table.items()}
    return Config(path, options, {name: _from(path.parent, value) for name, value in targets.items()})


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}", hint="it has to be a TOML file") from error


def _from(folder: Path, target: str) -> str:
    """Rewrite a target that names a file in `folder` relative to the working directory; leave module targets unchanged."""
    where, separator, attribute = target.rpartition(":") if ".py:" in target else (target, "", "")
    path = Path(os.path.relpath(folder / where))
    return f"{path}{separator}{attribute}" if path.exists() else target


def _value(path: Path, key: str, value: Any) -> Any:
    """Convert a value to the form that its option takes; rule folders are resolved against the folder of the file."""
    if key == "rules":
        return [str(path.parent / folder) for folder in ([value] if isinstance(value, str) else value)]
    if key != "recipe":
        return [value] if key in {"select", "ignore", "input"} and isinstance(value, str) else value
    try:
        return (Recipe.of(value) if isinstance(value, dict) else Recipe.parse(str(value))).text
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.args[0]}", hint=error.hint) from error
