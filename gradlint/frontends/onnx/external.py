"""Where a model may keep weights outside of its file, and at which bytes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from gradlint.errors import TargetError, UnsafeFileError

_NUMBER = re.compile(r"[0-9]{1,30}")  # int() also takes underscores, spaces and the digits of other scripts


def external_file(model: Path, label: str, weight: str, location: str) -> Path:
    """Return the file that holds the values of a weight.

    Its folder has to be that of the path of the model, and for a link also that of the file behind it: a cache keeps downloads
    so. A file with a second name elsewhere is refused, because nobody can tell whose it is.

    Raises:
        UnsafeFileError: The file is outside of the model's folder, a hard link, or the model itself.
        TargetError: There is no such file.
    """
    where = f"{label}: weight {weight!r} points at {location!r}"
    folder = Path(os.path.realpath(model.parent))
    homes = {folder, Path(os.path.realpath(model)).parent} if model.is_symlink() else {folder}
    missing = TargetError(
        f"{label}: the external data file {location!r} of weight {weight!r} is missing",
        hint=f"put it beside the model, in {model.parent}",
    )
    try:
        target = Path(os.path.realpath(folder / location))  # Path.resolve raises RuntimeError for a link to itself
        inside = bool(location) and not Path(location).is_absolute() and ".." not in Path(location).parts
        if not (inside and any(target.is_relative_to(home) for home in homes)):
            raise UnsafeFileError(
                f"{where}, outside the model's folder",
                hint="external data must be a file in or below the folder of the model, and no link out of it",
            )
        if not target.is_file():
            raise TargetError(f"{where}, which is no file", hint=missing.hint) if target.exists() else missing
        links = target.stat().st_nlink
        itself = target.samefile(model)
    except (OSError, ValueError) as error:  # not a valid file name
        raise missing from error
    if links > 1:
        raise UnsafeFileError(f"{where}, which is a hard link to a file with other names", hint=_copied(target))
    if itself:
        raise UnsafeFileError(f"{where}, which is the model itself", hint="export the model again")
    return target


def _copied(path: Path) -> str:
    """Return how to give a model a weight file of its own. The name comes from the model, so that it is quoted for a shell."""
    own = "give the model a copy of its own"
    name = str(path)
    if not name.isprintable():
        return own
    old, new = shlex.quote(name), shlex.quote(f"{name}.copy")
    return f"package managers share files so; {own}: cp {old} {new} && mv {new} {old}"


def offset_and_length(entries: Mapping[str, str], total: int, what: str) -> tuple[int, int]:
    """Return where the values of a weight begin and how many bytes they may take, of a file of `total` bytes.

    `entries` are the fields of its external reference, and `what` names it in messages. Raises TargetError if one is not a number
    of bytes, or beyond the end of the file.
    """
    texts = [entries.get(key) or default for key, default in (("offset", "0"), ("length", ""))]
    if not all(_NUMBER.fullmatch(text) for text in texts if text):
        raise TargetError(f"{what} has an external reference that is not a number", hint="export the model again")
    offset = int(texts[0])
    length = int(texts[1]) if texts[1] else max(total - offset, 0)
    if offset + length > total and (texts[1] or offset > total):
        last = f"bytes {offset} to {offset + length}" if texts[1] else f"bytes from {offset}"
        raise TargetError(
            f"{what} takes {last} of a file of {total}", hint="the file is damaged or incomplete; export or download it again"
        )
    return offset, length
