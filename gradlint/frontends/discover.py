"""Expand the targets of the command line: a folder or a glob becomes the model files in it."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from gradlint.errors import TargetError
from gradlint.frontends.targets import split

MODEL_SUFFIXES = (".onnx",)
_ATTRIBUTE = re.compile(r"^(?P<owner>[^:].*):[^\W\d]\w*(\.[^\W\d]\w*)*$")
_MODULE = re.compile(r"^[^\W\d]\w*(\.[^\W\d]\w*)*$")
_MAGIC = re.compile(r"[*?[]")


def expand(targets: Sequence[str], cwd: Path) -> list[str]:
    """Return the single targets that `targets` denote, each once, in order.

    Files, `-`, `pkg.mod:attr` and `file.py:attr` are returned unchanged. A folder is replaced by the model files below it, a
    glob by the files that match; both are sorted, and hidden files are left out. Relative paths are relative to `cwd` and stay
    relative. Raises TargetError for a path that does not exist, a folder or a glob without models, and a Python file without
    an attribute.
    """
    found: dict[str, None] = {}
    for target in targets:
        try:
            found |= dict.fromkeys(_expand(target, cwd))
        except OSError as error:
            raise TargetError(f"{target}: {error.strerror}") from error
    return list(found)


def _expand(target: str, cwd: Path) -> Iterable[str]:
    path = cwd / target
    if target == "-":
        return [target]
    if path.is_file():
        if path.suffix == ".py":
            raise TargetError(f"{target}: which model in it?", hint=f"name a module, class or factory: {target}:build")
        return [target]
    if path.is_dir():
        return _models_below(target, path)
    found, match = split(target), _ATTRIBUTE.match(target)
    if found or match:
        _check_owner(found[0] if found else match["owner"], cwd)  # type: ignore[index]
        return [target]
    if _MAGIC.search(target):
        return _matches(target, cwd)
    raise TargetError(f"{target}: no such file or folder", hint=_suggestion(target, cwd))


def _models_below(target: str, folder: Path) -> list[str]:
    found = [
        Path(target, *path.relative_to(folder).parts).as_posix()
        for path in folder.rglob("*")
        if path.suffix in MODEL_SUFFIXES and path.is_file() and not _hidden(path.relative_to(folder))
    ]
    if not found:
        raise TargetError(f"{target}: no model in this folder", hint=f"gradlint looks for {', '.join(MODEL_SUFFIXES)}")
    return sorted(found)


def _matches(target: str, cwd: Path) -> list[str]:
    found = sorted(Path(match).as_posix() for match in glob.glob(target, root_dir=cwd, recursive=True))  # noqa: PTH207 - root_dir
    wanted = {*MODEL_SUFFIXES, Path(target).suffix} - {"", ".py"}
    files = [match for match in found if Path(match).suffix in wanted and (cwd / match).is_file()]
    if not files:
        raise TargetError(
            f"{target}: no model file matches", hint="quote the pattern to let gradlint expand it; ** crosses folders"
        )
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _check_owner(owner: str, cwd: Path) -> None:
    """Raise TargetError if `owner` is a Python file that does not exist, or no possible name of a module.

    Whether a module exists is only known once it is imported.
    """
    if owner.endswith(".py"):
        if not (cwd / owner).is_file():
            raise TargetError(f"{owner}: no such file", hint=_suggestion(owner, cwd))
    elif not _MODULE.match(owner):
        raise TargetError(f"{owner!r} is neither a module nor a Python file", hint="write pkg.mod:attr or path/file.py:attr")


def _suggestion(target: str, cwd: Path) -> str:
    """Return a hint for a path that does not exist: similar names in its folder, or else the forms of a target."""
    folder = (cwd / target).parent
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    near = difflib.get_close_matches(Path(target).name, names, n=2)
    if near:
        return f"did you mean {' or '.join((Path(target).parent / name).as_posix() for name in near)}?"
    return "a target is a model file, a folder, a glob, pkg.mod:attr or path/file.py:attr"
