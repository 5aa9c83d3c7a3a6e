"""Read the configuration file: the nearest gradlint.toml, .gradlint.toml or [tool.gradlint] table of a pyproject.toml.

A file that nobody named has to be the user's own, and part of the project. It runs nothing: `Config.rules` and `Config.targets`
are code that has to be asked for.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradlint.errors import ConfigError
from gradlint.recipe import Recipe

_FILES = ("gradlint.toml", ".gradlint.toml", "pyproject.toml")
_LARGEST = 1 << 20  # bytes of a configuration file
_DEEPEST = 200  # dots of a key
_LONG_NUMBER = re.compile(r"\b0[xob]\w{256}")  # Python limits the digits of decimal ones
_NO_KEY = re.compile(r"[=,#\[\]{}\n]")
_SHOWN = 60  # characters of an unknown key


@dataclass(frozen=True)
class Config:
    """The contents of one configuration file.

    `options` maps command-line option names, without leading dashes, to values. `targets` maps names to target strings. `found`
    says that nobody named the file: `find` found it. `rules` are folders of rules, for a caller that keeps them apart.
    """

    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[Path, ...] = ()
    found: bool = False

    @property
    def project(self) -> Path:
        """The folder in which the code that the file names has to lie."""
        return self.path.parent.resolve()


def find(start: Path, remark: Callable[[str], None] = lambda _: None) -> Path | None:
    """Return the nearest configuration file in a folder or its parents, or None if there is none.

    The search ends at the root of a repository, or at the home folder. A pyproject.toml counts only if it has a [tool.gradlint]
    table. A file that is not the user's own is left out, and `remark` is called with a sentence that says so.

    Raises:
        ConfigError: A pyproject.toml on the way cannot be read or parsed.
    """
    for folder in _up(start):
        for path in (folder / name for name in _FILES):
            try:
                doubt = _doubt(path) if path.is_file() else "it is no file"
            except OSError:
                continue
            if path.is_file() and (path.name != "pyproject.toml" or _is_ours(path, doubted=bool(doubt))):
                if not doubt:
                    return path
                remark(f"{path} is left out: {doubt}; --config {path} takes it")
    return None


def _up(start: Path) -> Iterator[Path]:
    """Yield a folder and its parents, up to the root of the repository or the home folder."""
    home = os.path.realpath(os.path.expanduser("~"))  # noqa: PTH111 - Path.home raises where there is none
    for folder in (start, *start.parents):
        yield folder
        if os.path.lexists(folder / ".git") or str(folder) == home:
            return


def _doubt(path: Path) -> str:
    """Say why a file may not be meant by the user: somebody else owns it, or can write it. Return "" if it is the user's own."""
    if not hasattr(os, "getuid"):  # Windows has other rights
        return ""
    trusted = {os.getuid(), 0}
    if os.getuid() == 0 and os.environ.get("SUDO_UID", "").isdecimal():
        trusted.add(int(os.environ["SUDO_UID"]))
    for place in dict.fromkeys((path.parent, path, path.resolve().parent, path.resolve())):
        found = place.lstat()
        if found.st_uid not in trusted:
            return f"{place} belongs to another user"
        if found.st_mode & stat.S_IWOTH and not stat.S_ISLNK(found.st_mode):
            return f"everybody can write {place}"
    return ""


def _is_ours(path: Path, *, doubted: bool) -> bool:
    """Return whether a pyproject.toml has a table for gradlint. One in doubt that cannot be read has none."""
    try:
        return "gradlint" in _table(_toml(path), path, "tool")
    except ConfigError:
        if doubted:
            return False
        raise


def _table(within: Mapping[str, Any], path: Path, name: str) -> dict[str, Any]:
    found = within.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: {name} is no table", hint="settings of gradlint stand under [tool.gradlint]")
    return found


def read(path: Path, known: Collection[str]) -> Config:
    """Read a configuration file.

    Args:
        path: The file. Relative paths inside it are resolved against its folder.
        known: Names of the options that the file may set, spelled as on the command line, without leading dashes.

    Raises:
        ConfigError: The file cannot be read or parsed, a key is unknown, `targets` is not a table of strings, a folder of rules
            lies outside of the file's folder, or the recipe is invalid.
    """
    table = _toml(path)
    table = _table(_table(table, path, "tool"), path, "gradlint") if path.name == "pyproject.toml" else table
    targets = table.pop("targets", {})
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key[:_SHOWN], [*known, "targets"], n=1)
            hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(sorted([*known, 'targets']))}"
            raise ConfigError(f"{path}: unknown key {key[:_SHOWN]!r}", hint=hint)
    if not isinstance(targets, dict) or not all(isinstance(value, str) for value in targets.values()):
        raise ConfigError(f"{path}: targets are names with what they stand for", hint='as in targets = { net = "pkg.mod:build" }')
    options = {key: _value(path, key, value) for key, value in table.items()}
    return Config(path, options, {name: _from(path.parent, value) for name, value in targets.items()})


def _toml(path: Path) -> dict[str, Any]:
    small = "it has to be a TOML file of a few lines"
    deep = ConfigError(f"{path}: values are nested too deeply", hint=small)
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        text = data.decode("utf-8")
        shallow = max(part.count(".") for part in _NO_KEY.split(text)) <= _DEEPEST
        if len(data) <= _LARGEST and shallow and not _LONG_NUMBER.search(text):
            return tomllib.loads(text)
    except RecursionError:
        raise deep from None
    except (OSError, ValueError) as error:  # not UTF-8, no TOML, or a number of too many digits
        raise ConfigError(f"{path}: {error}", hint="it has to be a TOML file") from error
    if len(data) > _LARGEST:
        raise ConfigError(f"{path}: has more than {_LARGEST} bytes", hint=small)
    raise ConfigError(f"{path}: a number has too many digits", hint=small) if shallow else deep


def _from(folder: Path, target: str) -> str:
    """Rewrite a target that names a file in `folder` relative to the working directory; leave module targets unchanged."""
    where, separator, attribute = target.rpartition(":") if ".py:" in target else (target, "", "")
    path = os.path.relpath(folder / target)
    if os.path.lexists(path):
        return path
    path = os.path.relpath(folder / where)
    return f"{path}{separator}{attribute}" if os.path.lexists(path) else target


def _value(path: Path, key: str, value: Any) -> Any:
    """Convert a value to the form that its option takes; rule folders are resolved against the folder of the file."""
    if key == "rules":
        return [str(_inside(path, folder)) for folder in (value if isinstance(value, list) else [value])]
    if key != "recipe":
        return [value] if key in {"select", "ignore", "input"} and isinstance(value, str) else value
    try:
        return (Recipe.of(value) if isinstance(value, dict) else Recipe.parse(str(value))).text
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.args[0]}", hint=error.hint) from error


def _inside(path: Path, folder: str) -> Path:
    """Return a folder of rules. Raises ConfigError if it is not in or below the folder of the file: rules are code."""
    home = path.parent
    try:
        found = home / folder
        if found.resolve().is_relative_to(home.resolve()):
            return found
    except (TypeError, ValueError, OSError, RuntimeError) as error:  # the last one for a link to itself
        raise ConfigError(f"{path}: rules are folders", hint='as in rules = ["my_rules"]') from error
    raise ConfigError(f"{path}: the rules {folder!r} lie outside of {home}", hint=f"give them as --rules {folder}")
