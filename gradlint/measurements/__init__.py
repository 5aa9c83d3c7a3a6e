"""What the experiments of the probe saw: plain data, one module for each concern."""

from __future__ import annotations

SURROGATE = "a surrogate"
"""How a description of a loss begins that was made up, for want of one."""


def is_surrogate(stands_in: str) -> bool:
    """Whether what stands in for the user's loss was made up."""
    return stands_in.startswith(SURROGATE)
