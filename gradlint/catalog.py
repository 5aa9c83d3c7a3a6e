"""Find, load, describe and select rules. Rule files are loaded by path, and no module imports them."""

# ruff: noqa: PLC0415 - `gradlint.rule` imports numpy, which descriptions do without

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from gradlint.errors import ConfigError, RuleFileError

if TYPE_CHECKING:
    from gradlint.rule import Rule

CODE = re.compile(r"[A-Z]{2,4}\d{3}")
"""Pattern of a rule's code."""

CODE_FORM = "two to four capitals and three digits"
_PACKAGE = Path(__file__).resolve().parent
_SEVERITIES = {"ERROR": "error", "WARNING": "warning", "NOTE": "note"}
_PLAIN = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef, ast.Expr)


class Description(NamedTuple):
    """What a rule file says about its rule. `severity` is the value of a `Severity`, `documentation` the file's docstring."""

    code: str
    name: str
    severity: str
    documentation: str


class _Coded(Protocol):
    """What rules and descriptions have in common."""

    @property
    def code(self) -> str: ...
    @property
    def name(self) -> str: ...


_C = TypeVar("_C", bound=_Coded)


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
    return _by_code(_load_file(path, module) for path, module in _files(dirs))


def describe_rules(dirs: Sequence[Path] = ()) -> tuple[Description, ...]:
    """Return what the files of these rules say. A file that states code, name and severity as literals is parsed and not run.

    Raises RuleFileError for a file that cannot be parsed, and for one that has to be run and is not one rule.
    """
    return _by_code(_describe_file(path, module) for path, module in _files(dirs))


def _files(dirs: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield every rule file with the name of its module."""
    folders = [(builtin_dir(), "gradlint.rules")]
    for index, folder in enumerate(dirs):
        if not folder.is_dir():
            raise RuleFileError(f"--rules {folder}: no such folder", hint="give a folder of rule files, one rule a file")
        folders.append((folder, f"gradlint_user_rules_{index}"))
    for folder, package in folders:
        for path in sorted(folder.glob("[!_]*.py")):
            yield path, f"{package}.{path.stem}"


def _by_code(rules: Iterable[_C]) -> tuple[_C, ...]:
    by_code: dict[str, _C] = {}
    for rule in rules:
        other = by_code.setdefault(rule.code, rule)
        if other is not rule:
            raise RuleFileError(
                f"two rules have the code {rule.code}: {other.name} and {rule.name}", hint="give one of them a free code"
            )
    return tuple(by_code[code] for code in sorted(by_code))


def _load_file(path: Path, name: str) -> type[Rule]:
    from gradlint.rule import Rule

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


def _describe_file(path: Path, module: str) -> Description:
    try:
        tree = ast.parse(path.read_bytes(), path)
    except (OSError, SyntaxError, ValueError) as error:
        raise RuleFileError(f"{path}: {type(error).__name__}: {error}", hint="fix the rule file") from error
    stated = _stated(tree)
    if stated is None:
        rule = _load_file(path, module)
        stated = rule.code, rule.name, rule.severity.value
    return Description(*stated, ast.get_docstring(tree) or "")


def _stated(tree: ast.Module) -> tuple[str, str, str] | None:
    """Return code, name and severity if the only derived class of a file states them as literals, else None."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
    match classes:
        case [ast.ClassDef(bases=[ast.Name(id="Rule")], keywords=[], decorator_list=[], body=body)]:
            if not all(isinstance(statement, _PLAIN) for statement in (*tree.body, *body)):
                return None
        case _:
            return None
    values: dict[str, ast.expr | None] = {}
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=key)], value=value) | ast.AnnAssign(target=ast.Name(id=key), value=value):
                values[key] = value
    match values.get("code"), values.get("name"), values.get("severity"):
        case (
            ast.Constant(value=str(code)),
            ast.Constant(value=str(name)),
            ast.Attribute(value=ast.Name(id="Severity"), attr=level),
        ) if CODE.fullmatch(code) and name and level in _SEVERITIES:
            return code, name, _SEVERITIES[level]
    return None


def select(rules: Iterable[_C], chosen: Sequence[str] = (), ignored: Sequence[str] = ()) -> tuple[_C, ...]:
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
            import difflib

            words = [rule.code for rule in known] + [rule.name for rule in known]
            near = difflib.get_close_matches(entry, words, n=5, cutoff=0.5)
            near.sort(key=lambda word: sum(map(str.__ne__, word, entry)))  # of codes that share letters, one with a slip
            hint = f"did you mean {near[0]}?" if near else "gradlint rule --all lists them"
            raise ConfigError(f"unknown rule {entry!r}", hint=hint)
    return tuple(rule for rule in known if _best(chosen or ("ALL",), rule) > _best(ignored, rule))


def _best(entries: Sequence[str], rule: _Coded) -> int:
    return max((_strength(entry, rule) for entry in entries), default=0)


def _strength(entry: str, rule: _Coded) -> int:
    """Return how specific a selection entry is for a rule, or 0 if it does not match."""
    if entry == "ALL":
        return 1
    if entry in {rule.code, rule.name}:
        return 100
    return 1 + len(entry) if entry and rule.code.startswith(entry) else 0
