"""Expand the targets of the command line: a folder or a glob becomes the model files in it."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from gradlint.errors import TargetError
from gradlint.frontends.targets import split

MODEL_SUFFIXES = (".onnx", ".pt2")
_ATTRIBUTE = re.compile(r"^(?P<owner>[^:].*):[^\W\d]\w*(\.[^\W\d]\w*)*$")
_MODULE = re.compile(r"^[^\W\d]\w*(\.[^\W\d]\w*)*$")
_MAGIC = re.compile(r"[*?[]")
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt"})
_ANY_FOLDERS = "**"


class FileTarget(str):
    """A target that was found as a file. It is read, whatever its name, and never imported."""

    __slots__ = ()


@contextmanager
def model_on_stdin() -> Iterator[BinaryIO]:
    """Give the stream of a model on stdin. Raises TargetError if it is closed, or cannot be read in the body of the context."""
    if sys.stdin is None:
        raise TargetError("-: stdin is closed", hint="send the model there, as in: gradlint - < model.onnx")
    try:
        yield sys.stdin.buffer
    except OSError as error:  # a folder, say
        raise TargetError(f"-: stdin cannot be read: {error.strerror}", hint="send the model there") from error


def is_name(target: str) -> bool:
    """Return whether a target can only be a name of the configuration: no path that exists, no stdin, glob or Python name."""
    return not (target == "-" or ":" in target or _MAGIC.search(target) or os.path.lexists(target))


def expand(targets: Sequence[str], cwd: Path) -> list[str]:
    """Return the single targets that `targets` denote, each once, in order.

    Files, `-`, `pkg.mod:attr` and `file.py:attr` are returned unchanged; files are `FileTarget`s, and what exists is a file or a
    folder, whatever its name. A folder is replaced by the model files below it, a glob by the files that match; both are sorted,
    hidden files are left out, and links to folders are not followed. Relative paths are relative to `cwd` and stay relative.
    Raises TargetError for a path that does not exist, a folder or a glob without models, and a Python file without an attribute.
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
        return [FileTarget(target)]
    if path.is_dir() and os.path.lexists(path / "config.json") and _has_weights(path):
        return [FileTarget(target)]  # a model as Hugging Face saves it
    if path.is_dir():
        return _models_below(target, path)
    if os.path.lexists(path):
        raise TargetError(f"{target}: neither a file nor a folder", hint="it is a link to nothing, a device or a pipe")
    found, match = split(target), _ATTRIBUTE.match(target)
    if found or match:
        _check_owner(found[0] if found else match["owner"], cwd)  # type: ignore[index]
        return [target]
    if _MAGIC.search(target):
        return _matches(target, cwd)
    raise TargetError(f"{target}: no such file or folder", hint=_suggestion(target, cwd))


def _has_weights(folder: Path) -> bool:
    return any(Path(name).suffix in _WEIGHTS for name in os.listdir(folder))  # noqa: PTH208 - names


def _models_below(target: str, folder: Path) -> list[str]:
    found = [
        FileTarget(Path(target, *path.relative_to(folder).parts).as_posix())
        for inner in _folders_below(folder)
        for path in _entries(inner)
        if path.suffix in MODEL_SUFFIXES and _is(path.is_file)
    ]
    if not found:
        raise TargetError(f"{target}: no model in this folder", hint=f"gradlint looks for {', '.join(MODEL_SUFFIXES)}")
    return sorted(found)


def _matches(target: str, cwd: Path) -> list[str]:
    pattern = Path(target)
    wanted = {*MODEL_SUFFIXES, pattern.suffix} - {"", ".py"}
    start = Path(pattern.anchor) if pattern.anchor else cwd
    matches = {
        path
        for path in _matching(start, pattern.parts[bool(pattern.anchor) :], set())
        if path.suffix in wanted and _is(path.is_file)
    }
    files: list[str] = sorted(FileTarget((path if pattern.anchor else path.relative_to(cwd)).as_posix()) for path in matches)
    if not files:
        raise TargetError(
            f"{target}: no model file matches", hint="quote the pattern to let gradlint expand it; ** crosses folders"
        )
    return files


def _matching(folder: Path, parts: Sequence[str], seen: set[tuple[int, int, int]]) -> Iterator[Path]:
    """Yield the paths below `folder` that match the parts of a pattern; one may come twice. `**` does not follow links.

    `seen` holds the folders in which a part was looked for: links make many ways to one folder, and the first is enough.
    """
    if not parts:
        yield folder
        return
    try:
        status = folder.stat()
    except (OSError, ValueError):  # too long, or no name at all
        return
    here = status.st_dev, status.st_ino, len(parts)
    if here in seen:
        return
    seen.add(here)
    part, *rest = parts
    if part == _ANY_FOLDERS:
        while rest[:1] == [_ANY_FOLDERS]:
            rest = rest[1:]
        for inner in _folders_below(folder):
            yield from _matching(inner, rest or ["*"], seen)
    elif not _MAGIC.search(part):
        yield from _matching(folder / part, rest, seen) if os.path.lexists(folder / part) else ()
    else:
        for path in sorted(_entries(folder, hidden=part.startswith(".")), key=lambda path: (_is(path.is_symlink), path.name)):
            if fnmatch(path.name, part):
                yield from _matching(path, rest, seen)


def _folders_below(folder: Path) -> Iterator[Path]:
    """Yield a folder and all folders below it that are not hidden. A link is none of them: it may lead back."""
    waiting = [folder]
    while waiting:
        inner = waiting.pop()
        yield inner
        waiting += [path for path in _entries(inner) if _is(path.is_dir) and not path.is_symlink()]


def _is(kind: Callable[[], bool]) -> bool:
    """Return what a path says of itself; no for one that is too long to be looked at."""
    try:
        return kind()
    except OSError:
        return False


def _entries(folder: Path, *, hidden: bool = False) -> list[Path]:
    """Return what is in a folder, without hidden entries unless asked for; nothing for what is no folder or cannot be read."""
    try:
        return [folder / name for name in os.listdir(folder) if hidden or not name.startswith(".")]  # noqa: PTH208 - names
    except OSError:
        return []


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
