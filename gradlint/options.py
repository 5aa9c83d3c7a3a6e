"""How a target is checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gradlint.errors import ConfigError
from gradlint.frontends.inputs import InputSpec
from gradlint.recipe import Task


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for one target: `seconds`, and for a model file `memory` in gigabytes, without memory-mapped weights.

    When the seconds are over, what was measured is reported and the rest left out. The probe of
    a model file that goes on all the same is given up, and the report is that of the static analysis; code of the user is not
    interrupted.
    """

    seconds: float = 600.0
    memory: float = 16.0


@dataclass(frozen=True)
class Options:
    """How a target is checked. Raises ConfigError for an option out of range."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    inputs: tuple[InputSpec, ...] = ()
    probe: bool = True
    seed: int = 0
    seeds: int = 3
    mode: str | None = None
    lenient: bool = False  # whether an ONNX node that its schema rejects is a note
    rules_dirs: tuple[Path, ...] = ()
    task: Task = field(default_factory=Task)
    weights: Path | None = None
    materialize: bool = False
    limits: Limits | None = field(default_factory=Limits)  # None: model files are read in this process, without bounds
    given_up: str = ""  # why a probe that was asked for was given up, so that the verdict is left open

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.seed < 0:
            raise ConfigError(f"seed {self.seed}, seeds {self.seeds}", hint="give a seed of 0 or more, and at least one of them")
        if self.mode not in {None, "train", "eval"}:
            raise ConfigError(f"unknown mode {self.mode!r}", hint="one of train, eval")
