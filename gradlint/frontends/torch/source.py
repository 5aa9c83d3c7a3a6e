"""Find the line of the user's code that defines a submodule."""

from __future__ import annotations

import ast
import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from gradlint.frontends.turns import own_thread
from gradlint.frontends.user_code import calling_line, is_user_file, shown
from gradlint.graph import Source

_BUILT: weakref.WeakKeyDictionary[nn.Module, Source] = weakref.WeakKeyDictionary()
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@contextmanager
def recorded_construction() -> Iterator[None]:
    """Record, for every submodule that is registered while the body of the context runs, the user's line that did so.

    This finds lines that reading the source cannot find: in functions that build a model, in loops, in calls of `add_module`.
    """
    mine = own_thread()

    def record(_parent: nn.Module, _name: str, child: nn.Module | None) -> None:
        if mine() and child is not None and child not in _BUILT and (line := calling_line(1)) is not None:
            _BUILT[child] = line

    handle = register_module_module_registration_hook(record)
    try:
        yield
    finally:
        handle.remove()


class _Definition(NamedTuple):
    """The expression that makes a submodule, and its file."""

    file: str
    expression: ast.expr

    @property
    def source(self) -> Source:
        return Source(shown(self.file), self.expression.lineno)


class Definitions:
    """The lines that define the submodules of one module, looked up by module path."""

    def __init__(self, root: nn.Module) -> None:
        self._modules = dict(root.named_modules(remove_duplicate=False))
        self._found: dict[str, _Definition | None] = {}
        self._lines: dict[str, Source | None] = {"": None}

    def line(self, path: str) -> Source | None:
        """Return the line that assigns the module at `path` to its parent or passes it to a container; None if unknown."""
        if path not in self._lines:
            self._lines[path] = self._find(path)
        return self._lines[path]

    def _find(self, path: str) -> Source | None:
        if path not in self._modules:
            return None
        definition = self._definition(path)
        if definition is not None:
            return definition.source
        parent, _, name = path.rpartition(".")
        built = _BUILT.get(self._modules[path])
        return _element_line(self._modules[parent], name, built) if built is not None else self.line(parent)

    def _definition(self, path: str) -> _Definition | None:
        if path not in self._found:
            self._found[path] = self._find_definition(path) if path in self._modules else None
        return self._found[path]

    def _find_definition(self, path: str) -> _Definition | None:
        parent_path, _, name = path.rpartition(".")
        parent = self._modules.get(parent_path)
        if parent is None or not path:
            return None
        for kind in type(parent).__mro__:
            if kind.__module__.startswith("torch.") or not issubclass(kind, nn.Module):
                continue
            file = _file(kind)
            if file is not None and (value := _assigned(file, kind.__qualname__).get(name)) is not None:
                return _Definition(file, value)
        outer = self._definition(parent_path)
        if outer is None or not type(parent).__module__.startswith("torch."):
            return None
        element = _element(outer.expression, parent, name)
        return outer if element is None else _Definition(outer.file, element)


@cache
def _tree(file: str) -> ast.Module | None:
    try:
        return ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None


def _file(kind: type[nn.Module]) -> str | None:
    try:
        file = inspect.getsourcefile(kind)
    except TypeError:  # defined at an interactive prompt
        return None
    return file if file and is_user_file(file) else None


@cache
def _assigned(file: str, qualname: str) -> dict[str, ast.expr]:
    """Return the expressions that the methods of a class assign to `self.NAME`, by NAME. `__init__` takes precedence."""
    tree = _tree(file)
    body: list[ast.stmt] = tree.body if tree is not None else []
    for part in qualname.split("."):
        if part == "<locals>":
            continue
        nested = (node for statement in body for node in ast.walk(statement))
        scope = next((n for n in nested if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == part), None)
        if scope is None:
            return {}
        body = scope.body
    methods = [statement for statement in body if isinstance(statement, ast.FunctionDef)]
    methods.sort(key=lambda method: method.name != "__init__")
    found: dict[str, ast.expr] = {}
    for method in methods:
        for name, value in _self_assignments(method):
            found.setdefault(name, value)
    return found


def _self_assignments(method: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(method):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        for target in targets:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and value is not None:
                yield target.attr, value


def _element(expression: ast.expr, container: nn.Module, name: str) -> ast.expr | None:
    """Return the argument of a container's call that makes its child `name`; None if the arguments do not tell."""
    if not isinstance(expression, ast.Call) or not isinstance(container, _CONTAINERS):
        return None
    items: list[ast.expr] = expression.args
    if len(items) == 1 and isinstance(items[0], (ast.List, ast.Tuple)):
        items = items[0].elts
    names = list(container._modules)  # noqa: SLF001 - only the names are needed, in order
    if len(items) != len(names) or any(isinstance(item, ast.Starred) for item in items):
        return None
    return items[names.index(name)]


def _element_line(parent: nn.Module, name: str, line: Source) -> Source:
    """Return the line of the argument that makes child `name`, if `line` is the call of a container; otherwise `line`."""
    tree = _tree(str(Path(line.file).resolve()))
    for node in ast.walk(tree) if tree is not None and isinstance(parent, _CONTAINERS) else ():
        if isinstance(node, ast.Call) and node.lineno == line.line and (item := _element(node, parent, name)) is not None:
            return Source(line.file, item.lineno)
    return line
