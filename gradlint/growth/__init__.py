"""From gains at nodes and gradients of weights to growth: along the spine, along every track, and over layers of one kind."""

from gradlint.growth.summary import (
    FLOOR,
    HEALTHY,
    JUMP,
    LIMIT,
    UNDERFLOW,
    about,
    along,
    nearness,
    place,
    signed,
    spine_points,
    summarize,
)

__all__ = [
    "FLOOR",
    "HEALTHY",
    "JUMP",
    "LIMIT",
    "UNDERFLOW",
    "about",
    "along",
    "nearness",
    "place",
    "signed",
    "spine_points",
    "summarize",
]
