"""What `-o` must not overwrite: whatever the check reads, and files that are no reports."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradlint.errors import ConfigError

if TYPE_CHECKING:
    from gradlint.config import Config

_LOOKED_AT = 1 << 16  # bytes


def refuse_to_overwrite(
    output: Path | None, targets: Sequence[str], inputs: Sequence[str], rules: Sequence[Path], config: Config | None
) -> None:
    """Raise ConfigError if `output` is a file that the check reads, by any of its names, or a file that is no text.

    The second one protects the files that a model keeps its weights in.
    """
    if output is None or not output.is_file():
        return
    for path in _read(targets, inputs, rules, config):
        if path.exists() and path.samefile(output):
            raise ConfigError(f"-o {output}: this is {path}, which the check reads", hint="name another file for the report")
    with output.open("rb") as file:
        beginning = file.read(_LOOKED_AT)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(beginning, final=len(beginning) < _LOOKED_AT)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ConfigError(f"-o {output}: this file is there and is no report", hint="name another one, or remove it")


def _read(targets: Sequence[str], inputs: Sequence[str], rules: Sequence[Path], config: Config | None) -> Iterator[Path]:
    for target in targets:
        yield Path(target)
        yield Path(target.rpartition(":")[0] or target)
    yield from (Path(spec.partition("@")[2]) for spec in inputs if "@" in spec)
    for folder in rules:
        yield from folder.glob("*.py")
    if config is not None:
        yield config.path
