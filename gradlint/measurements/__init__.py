"""Results of the probe's experiments as plain data, one module for each experiment."""

from __future__ import annotations

SURROGATE = "a surrogate"
"""The start of the description of a loss that gradlint made up because neither the user nor the model gave one."""


def is_surrogate(stands_in: str) -> bool:
    """Return whether a loss that replaces the user's was made up by gradlint, given its description."""
    return stands_in.startswith(SURROGATE)
