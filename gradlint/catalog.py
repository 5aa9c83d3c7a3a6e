"""Find, load and select rules. Rule files are loaded by path, and no module imports them."""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from gradlint.errors import ConfigError, RuleFileError
from gradlint.rule import Rule

CODE = re.compile(r"[A-Z]{2,4}\d{3}")
"""Pattern of a rule's code."""

CODE_FORM = "two to four capitals and three digits"
_PACKAGE = Path(__file__).resolve().parent


def is_checkout() -> bool:
    """Return whether gradlint runs from a checkout, in which the built-in rules are next to the package."""
    return (_PACKAGE.parent / "pyproject.toml").is_file() and (_PACKAGE.parent / "rules").is_dir()


def builtin_dir() -> Path:
    """Return the folder of the built-in rules: next to the package in a checkout, and inside an installed package."""
    return _PACKAGE.parent / "rules" if is_checkout() else _PACKAGE / "rules"


def load_rules(dirs: Sequence[Path] = ()) -> tuple[type[Rule], ...]:
    """Return the built-in rules and the rules of further folders, sorted by code.

    Raises:
        RuleFileError: A folder does not exist, a file does not define exactly one valid rule, or two rules share a code.
    """
    rules = _load_folder(builtin_dir(), "gradlint.rules")
    for index, folder in enumerate(dirs):
        if not folder.is_dir():
            raise RuleFileError(f"--rules {folder}: no such folder", hint="give a folder of rule files, one rule a file")
        rules += _load_folder(folder, f"gradlint_user_rules_{index}")
    by_code: dict[str, type[Rule]] = {}
    for rule in rules:
        other = by_code.setdefault(rule.code, rule)
        if other is not rule:
            raise RuleFileError(
                f"two rules have the code {rule.code}: {other.name} and {rule.name}", hint="give one of them a free code"
            )
    return tuple(by_code[code] for code in sorted(by_code))


def _load_folder(folder: Path, package: str) -> list[type[Rule]]:
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    return [_load_file(path, f"{package}.{path.stem}") for path in files]


def _load_file(path: Path, name: str) -> type[Rule]:
    loaded = sys.modules.get(name)
    if loaded is None or Path(loaded.__file__ or "") != path:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[name] = loaded
        try:
            spec.loader.exec_module(loaded)
        except Exception as error:
            del sys.modules[name]
            raise RuleFileError(f"{path}: {type(error).__name__}: {error}", hint="fix the rule file") from error
    found = [
        value
        for value in vars(loaded).values()
        if isinstance(value, type) and issubclass(value, Rule) and value.__module__ == name
    ]
    if len(found) != 1:
        raise RuleFileError(f"{path} defines {len(found)} rules", hint="a rule file holds exactly one subclass of Rule")
    rule = found[0]
    if not CODE.fullmatch(getattr(rule, "code", "")) or not getattr(rule, "name", ""):
        raise RuleFileError(
            f"{path}: {rule.__name__} has no code, or no name", hint=f"set both on the class; a code is {CODE_FORM}"
        )
    return rule


def select(rules: Iterable[type[Rule]], chosen: Sequence[str] = (), ignored: Sequence[str] = ()) -> tuple[type[Rule], ...]:
    """Return the rules that a selection keeps, in order.

    An entry is a code, a prefix of codes, a name, or ALL. The most specific entry that matches a rule decides.

    Args:
        rules: The rules to select from.
        chosen: Entries to keep. All rules are kept if it is empty.
        ignored: Entries to leave out.

    Raises:
        ConfigError: An entry matches no rule.
    """
    known = tuple(rules)
    for entry in (*chosen, *ignored):
        if not any(_strength(entry, rule) for rule in known):
            words = [rule.code for rule in known] + [rule.name for rule in known]
            near = difflib.get_close_matches(entry, words, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else "gradlint rule --all lists them"
            raise ConfigError(f"unknown rule {entry!r}", hint=hint)
    return tuple(rule for rule in known if _best(chosen or ("ALL",), rule) > _best(ignored, rule))


def _best(entries: Sequence[str], rule: type[Rule]) -> int:
    return max((_strength(entry, rule) for entry in entries), default=0)


def _strength(entry: str, rule: type[Rule]) -> int:
    """Return how specific a selection entry is for a rule, or 0 if it does not match."""
    if entry == "ALL":
        return 1
    if entry in {rule.code, rule.name}:
        return 100
    return 1 + len(entry) if entry and rule.code.startswith(entry) else 0
