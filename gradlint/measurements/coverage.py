"""How much of a model was looked at: operators, rules that were skipped, and the inputs that were fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many nodes were understood and probed. `unknown_ops` counts nodes by the name of an unknown operator."""

    nodes: int
    understood: int
    probed: int
    unknown_ops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A rule that was not applied, and the reason."""

    rule: str
    because: str


@dataclass(frozen=True, slots=True)
class InputInfo:
    """An input as it was fed. `spec` has the form of the --input option; `given` is False for an inferred input."""

    name: str
    spec: str
    given: bool
