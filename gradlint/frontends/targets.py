"""Targets in Python code: import `pkg.mod:attr` and `path/file.py:attr`, and call factories."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from gradlint.errors import ConfigError, TargetError
from gradlint.frontends.user_code import described, raising_line
from gradlint.recipe import Recipe, Task

_LONGEST = 10_000  # characters of what is named in a target


@dataclass(frozen=True, slots=True)
class Target:
    """A module with its inputs and its training task. A factory can return it.

    Attributes:
        module: The `torch.nn.Module`.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.
        loss: A function called as `loss(output, target)`.
        target: The second argument of `loss`.
        recipe: A `gradlint.Recipe`, its text, a dict of its settings, or a `torch.optim.Optimizer`.
    """

    module: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    loss: Callable[[Any, Any], Any] | None = None
    target: Any = None
    recipe: Any = None

    @property
    def task(self) -> Task:
        """Loss, target and recipe as a `Task`. Raises ConfigError if the recipe is not valid."""
        return Task(self.loss, self.target, as_recipe(self.recipe))


def as_recipe(given: Any) -> Recipe | None:
    """Convert `given` to a `Recipe`: a Recipe, its text, a mapping of its settings, an optimizer, or several. None stays None.

    Raises ConfigError for any other object, and for settings that are not valid.
    """
    if given is None or isinstance(given, Recipe):
        return given
    if isinstance(given, str):
        return Recipe.parse(given)
    if isinstance(given, Mapping):
        return Recipe.made(given)
    if hasattr(given, "param_groups"):
        return Recipe.from_optimizer(given)
    if isinstance(given, (tuple, list)) and given and all(hasattr(one, "param_groups") for one in given):
        return Recipe.from_optimizer(*given)
    raise ConfigError(f"a recipe cannot be made of a {type(given).__name__}", hint="give a gradlint.Recipe or an optimizer")


def is_python_target(text: str) -> bool:
    """Return whether `text` has the form `pkg.mod:attr` or `path/file.py:attr`, and is not the name of a file."""
    return split(text) is not None


def split(text: str) -> tuple[str, str] | None:
    """Split a Python target into where it is and what is named there, or return None for other text.

    What is named is a chain of attributes and calls with literal arguments: `net`, `Net.encode`, `GPT(n_layer=4)`.
    """
    for place in (index for index, char in enumerate(text) if char == ":"):
        where, name = text[:place], text[place + 1 :]
        if (where.endswith(".py") or all(part.isidentifier() for part in where.split("."))) and _parsed(name) is not None:
            return where, name
    return None


def _parsed(name: str) -> ast.expr | None:
    """Return the syntax tree of a chain of attributes and calls, or None if `name` is none."""
    try:
        tree = ast.parse(name.strip(), mode="eval").body if len(name) < _LONGEST else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    link = tree
    while isinstance(link, (ast.Attribute, ast.Call)):
        link = link.value if isinstance(link, ast.Attribute) else link.func
    return tree if isinstance(link, ast.Name) else None


def lies_below(text: str, folder: Path) -> bool:
    """Return whether the code that `text` names lies in or below `folder`, which has to be resolved. Nothing is imported."""
    where = text.rpartition(":")[0]
    if where.endswith(".py"):
        return Path(where).resolve().is_relative_to(folder)
    with importable(Path.cwd()):
        try:
            spec = importlib.util.find_spec(where.partition(".")[0])
        except (ImportError, ValueError):
            return False
    if spec is None:
        return False
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    return bool(places) and all(Path(place).resolve().is_relative_to(folder) for place in places)


def load_target(text: str, cwd: Path | None = None) -> tuple[Any, str | None]:
    """Import the object that `text` names; return it and the file of its module.

    During the import, `sys.path` includes `cwd` and, for a file, its folder, and `sys.argv` holds the name of the script alone.
    Arguments of calls are read as literals; nothing in `text` is evaluated. Raises TargetError if `text` names nothing, if the
    import or a call raises (the message has the user's error and line), or if the attribute does not exist.
    """
    cwd = cwd or Path.cwd()
    found = split(text)
    if found is None:
        raise TargetError(f"{text!r} does not name a model", hint="write pkg.mod:attr or path/file.py:attr, as in net.py:build")
    where, name = found
    path = (cwd / where).resolve()
    if where.endswith(".py") and not path.is_file():
        raise TargetError(f"{where}: no such file", hint=f"looked for it in {cwd}")
    with at_home(text, cwd):
        module = _imported(
            where, (lambda: _import_file(path)) if where.endswith(".py") else lambda: importlib.import_module(where)
        )
        tree = _parsed(name)
        assert tree is not None
        return _evaluated(tree, module, where), getattr(module, "__file__", None)


@contextmanager
def at_home(text: str, cwd: Path | None = None) -> Iterator[None]:
    """Give the user's code what a script sees while the context is open: its folder in `sys.path`, its own `sys.argv`."""
    cwd = cwd or Path.cwd()
    where = (split(text) or (text, ""))[0]
    folders = [(cwd / where).resolve().parent] if where.endswith(".py") else []
    argv = sys.argv
    sys.argv = [where]
    try:
        with importable(cwd, *folders):
            yield
    finally:
        sys.argv = argv


@contextmanager
def importable(*folders: Path) -> Iterator[None]:
    """Put `folders` at the front of `sys.path` while the body of the context runs."""
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def _import_file(path: Path) -> ModuleType:
    """Import one file, once per path, under a module name that no other module has; within its package if it reads from that."""
    if _imports_relatively(path):
        return _import_within_package(path)
    name = path.stem if sys.modules.get(path.stem) is None else f"{path.stem}@{path}"
    for module in (sys.modules.get(path.stem), sys.modules.get(name)):
        if module is not None and getattr(module, "__file__", None) == str(path):
            return module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded as a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _imports_relatively(path: Path) -> bool:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return False  # the import says it better
    return any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def _import_within_package(path: Path) -> ModuleType:
    """Import a file as a module of the package that its folder is, or is in: folders with an `__init__.py` belong to it."""
    root = path.parent.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    with importable(root):
        importlib.invalidate_caches()
        module = importlib.import_module(name)
    if Path(getattr(module, "__file__", None) or "").resolve() != path:
        raise ImportError(f"{path} has relative imports, and {name} is another module; name it as PACKAGE.{path.stem}:NAME")
    return module


def _imported(where: str, load: Callable[[], ModuleType]) -> ModuleType:
    try:
        return load()
    except (Exception, SystemExit) as error:
        hint = None
        if isinstance(error, ModuleNotFoundError) and error.name:
            missing_itself = where == error.name or where.startswith(f"{error.name}.")
            hint = "run gradlint in the folder that holds it" if missing_itself else f"{error.name} has to be installed for it"
        raise user_error(f"cannot import {where}", error, hint=hint) from error


def user_error(what: str, error: BaseException, *, hint: str | None = None) -> TargetError:
    """Return a TargetError whose message contains the user's own error and the line that raised it."""
    line = raising_line(error)
    return TargetError(f"{what}: {described(error)}" + (f" ({line})" if line else ""), hint=hint)


def _evaluated(tree: ast.expr, module: ModuleType, where: str) -> Any:
    """Follow a chain of attributes and calls from a module on. A method that is read from a class gets an instance of it."""
    if isinstance(tree, ast.Name):
        return _attribute(module, tree.id, where, module.__name__)
    if isinstance(tree, ast.Attribute):
        owner = _evaluated(tree.value, module, where)
        found = _attribute(owner, tree.attr, where, module.__name__)
        method = inspect.isclass(owner) and inspect.isfunction(inspect.getattr_static(owner, tree.attr, None))
        return getattr(called(owner, owner.__name__), tree.attr) if method else found
    assert isinstance(tree, ast.Call)
    function = _evaluated(tree.func, module, where)
    shown = ast.unparse(tree.func)
    if not callable(function):
        raise TargetError(f"{where}: {shown} cannot be called")
    try:
        args = [ast.literal_eval(arg) for arg in tree.args]
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords if keyword.arg}
    except (ValueError, TypeError, RecursionError, MemoryError, SyntaxError) as error:
        hint = "numbers, strings, True, False, None, and lists, tuples and dicts of them"
        raise TargetError(f"{where}: the arguments of {shown} are not all literals", hint=f"write {hint}") from error
    if len(kwargs) != len(tree.keywords):
        raise TargetError(f"{where}: the arguments of {shown} are not all literals", hint="write name=value for each")
    return called(function, shown, *args, **kwargs)


def _attribute(owner: Any, part: str, where: str, home: str) -> Any:
    if not hasattr(owner, part):
        public = [key for key in dir(owner) if not key.startswith("_")]
        close = difflib.get_close_matches(part, public, n=3)
        own = [key for key in public if getattr(getattr(owner, key, None), "__module__", None) == home]
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(own[:8])}" if own else None
        raise TargetError(f"{where} has no attribute {part!r}", hint=hint)
    return getattr(owner, part)


def called(factory: Callable[..., Any], name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a factory or a class and return the result.

    Raises TargetError if it requires arguments that are not given (the message names them), takes others, or raises.
    """
    try:
        signature: inspect.Signature | None = inspect.signature(factory)
    except (TypeError, ValueError):  # a builtin without a signature: only a call can tell
        signature = None
    if signature is not None:
        _check_arguments(signature, name, args, kwargs)
    home = getattr(inspect.getmodule(factory), "__file__", None)
    try:
        with importable(Path.cwd(), *([Path(home).parent] if home else ())):
            return factory(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raise user_error(f"{name}() raised", error) from error


def _check_arguments(signature: inspect.Signature, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    taken = signature.parameters
    try:
        bound = signature.bind_partial(*args, **kwargs).arguments
    except TypeError as error:
        lost = next((key for key in kwargs if key not in taken), None)
        close = difflib.get_close_matches(lost, taken, n=1) if lost else []
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(taken) or 'no arguments'}"
        raise TargetError(f"{name}: {error}", hint=hint) from error
    needed = [p.name for p in taken.values() if p.default is p.empty and p.kind not in variable and p.name not in bound]
    if needed:
        given = ", ".join(f"{key}=..." for key in needed)
        hint = f"give literals, as in FILE.py:{name}({given}), or name a function without arguments that returns the model"
        raise TargetError(f"{name} needs {', '.join(needed)}", hint=hint)
