"""Targets in Python code: import `pkg.mod:attr` and `path/file.py:attr`, and call factories."""

from __future__ import annotations

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
    """Convert `given` to a `Recipe`: a Recipe, its text, a mapping of its settings, or an optimizer. None stays None.

    Raises ConfigError for any other object, and for settings that are not valid.
    """
    if given is None or isinstance(given, Recipe):
        return given
    if isinstance(given, str):
        return Recipe.parse(given)
    if isinstance(given, Mapping):
        return Recipe(**given)
    if hasattr(given, "param_groups"):
        return Recipe.from_optimizer(given)
    raise ConfigError(f"a recipe cannot be made of a {type(given).__name__}", hint="give a gradlint.Recipe or an optimizer")


def is_python_target(text: str) -> bool:
    """Return whether `text` has the form `pkg.mod:attr` or `path/file.py:attr`, and is not the name of a file."""
    where, separator, name = text.rpartition(":")
    is_name = all(part.isidentifier() for part in name.split("."))
    return bool(separator) and is_name and (where.endswith(".py") or all(part.isidentifier() for part in where.split(".")))


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

    During the import, `sys.path` includes `cwd` and, for a file, its folder. Raises TargetError if `text` names nothing, if the
    import raises (the message has the user's error and line), or if the attribute does not exist.
    """
    cwd = cwd or Path.cwd()
    where, separator, name = text.rpartition(":")
    if not separator or not where or not name:
        raise TargetError(f"{text!r} does not name a model", hint="write pkg.mod:attr or path/file.py:attr, as in net.py:build")
    if where.endswith(".py"):
        path = (cwd / where).resolve()
        if not path.is_file():
            raise TargetError(f"{where}: no such file", hint=f"looked for it in {cwd}")
        with importable(cwd, path.parent):
            module = _imported(where, lambda: _import_file(path))
    else:
        with importable(cwd):
            module = _imported(where, lambda: importlib.import_module(where))
    return _attribute(module, where, name), getattr(module, "__file__", None)


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
    """Import one file, once per path, under a module name that no other module has."""
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


def _attribute(module: ModuleType, where: str, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key in dir(found) if not key.startswith("_")]
            close = difflib.get_close_matches(part, public, n=3)
            own = [key for key in public if getattr(getattr(found, key), "__module__", None) == module.__name__]
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(own[:8])}" if own else None
            raise TargetError(f"{where} has no attribute {part!r}", hint=hint)
        found = getattr(found, part)
    return found


def called(factory: Callable[..., Any], name: str) -> Any:
    """Call a factory or a class without arguments and return the result.

    Raises TargetError if it requires arguments (the message names them) or if it raises.
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature: only a call can tell
        parameters = ()  # type: ignore[assignment]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    if needed:
        hint = f"give a function without arguments that returns the model, as in: def build(): return {name}(...)"
        raise TargetError(f"{name} needs {', '.join(needed)}", hint=hint)
    home = getattr(inspect.getmodule(factory), "__file__", None)
    try:
        with importable(Path.cwd(), *([Path(home).parent] if home else ())):
            return factory()
    except (Exception, SystemExit) as error:
        raise user_error(f"{name}() raised", error) from error
