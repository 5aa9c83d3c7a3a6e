"""Look again, on more samples, before gradients that vanish on one are taken for a fault of the model.

A few samples may silence a whole layer of a sound network. Where a pass takes few of them, as in a file whose batch is fixed
at 1, the first one may do so by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace

from gradlint.frontends.base import Runnable
from gradlint.graph import Graph
from gradlint.measurements.learning import Learning
from gradlint.probe.budget import ENDLESS, Budget
from gradlint.probe.jacobian import observe
from gradlint.result import Measurement
from gradlint.theory.initialization import looks_initialized

SAMPLES = 16
"""The fewest samples that must agree that a layer is silent: one that 4 in 100 silence passes 1 in 10^22 times."""

_HALF = 0.5  # the share of dead units that symmetric weights give where all samples are alike


def look_again(
    model: Runnable,
    found: Measurement,
    *,
    seeds: int,
    seed: int,
    progress: Callable[[str], None],
    budget: Budget = ENDLESS,
) -> tuple[Measurement, int]:
    """Return what holds for every sample, and the seed to go on with.

    Where some samples get a gradient through all layers, the measurement is that of seeds that do, with a note. Nothing is run
    again unless a gradient is zero by its values; inputs that are all given cannot be drawn again.

    Args:
        model: The model, inside `untouched`.
        found: What the probe measured, with `seeds` seeds from `seed` on.
        seeds: How many seeds to draw.
        seed: The first seed.
        progress: Called with one line of text before each pass.
        budget: The time that is left. What is silent in the looks that it allows counts as unknown.
    """
    if not model.inputs or all(spec.value is not None for spec in model.inputs):
        return found, seed
    batch = max((spec.shape[0] for spec in model.inputs if len(spec.shape) > 1), default=1)
    looks = max(seeds, math.ceil(SAMPLES / max(batch, 1)))
    if looks > seeds and any(units.always > _HALF for units in found.units):
        more = observe(model, seeds=looks, seed=seed, progress=progress, most=looks, budget=budget)
        if more.seeds < looks:
            found = replace(found, units=(), notes=(*found.notes, budget.lacks("units that are always dead")))
        else:
            found = replace(found, units=more.units)
    if not _is_silent(found):
        return found, seed
    seen = []
    for index in range(looks):
        if budget.is_spent:
            return _unsure(found, budget), seed
        seen.append(observe(model, seeds=1, seed=seed + index, progress=progress, most=1))
    passing = [not _is_silent(one) for one in seen]
    if not any(passing):
        return _of_trained(_agreed(found, seen), model.graph), seed
    reach = [sum(passing[index : index + seeds]) if own else 0 for index, own in enumerate(passing)]
    first = reach.index(max(reach))
    count = seeds if 2 * reach[first] > seeds else 1
    told = observe(model, seeds=count, seed=seed + first, progress=progress)
    silent = [one for one, passes in zip(seen, passing, strict=True) if not passes]
    places = sorted({cut.node for one in silent for cut in one.cuts if cut.depends_on_values})
    where = f" {places[0]}" if len(places) == 1 else " a layer"
    many = (
        f"{len(silent)} of {looks} draws of {batch} samples silence" if batch > 1 else f"{len(silent)} of {looks} samples silence"
    )
    note = f"{many}{where}: the gradients of others are shown"
    return replace(told, units=found.units if looks > seeds else told.units, notes=(*told.notes, note)), seed + first


def _unsure(found: Measurement, budget: Budget) -> Measurement:
    """Return a measurement without verdict on layers that are silent in the few samples that were seen."""
    return replace(
        found,
        cuts=tuple(replace(cut, on_spine=False) if cut.depends_on_values else cut for cut in found.cuts),
        dead=False,
        learning=Learning(),
        notes=(*found.notes, budget.lacks("whether other samples pass a gradient through layers that are silent here")),
    )


def _is_silent(found: Measurement) -> bool:
    """Return whether values alone stopped a gradient."""
    if found.nonfinite_forward is not None or found.stopped_at is not None:
        return False
    return found.dead or found.growth.decades == -math.inf or any(cut.depends_on_values for cut in found.cuts)


def _of_trained(found: Measurement, graph: Graph) -> Measurement:
    """Return a measurement without verdict on trained layers that random inputs silence: real ones may not.

    If that leaves less than half of the weight matrices, their gradients count as unknown.
    """
    matrices = {weight.name: weight for weight in graph.weights.values() if len(weight.shape) > 1 and weight.trainable}

    def is_trained(names: Collection[str]) -> bool:
        own = [matrices[name] for name in names if name in matrices]
        return bool(own) and not looks_initialized(own)

    silent = [cut for cut in found.cuts if cut.depends_on_values and is_trained(cut.starved)]
    dead = found.dead and not is_trained(matrices)
    if not silent and dead is found.dead:
        return found
    starved = {name for cut in silent for name in cut.starved if name in matrices} if dead is found.dead else matrices.keys()
    note = "a layer is silent for all inputs that were drawn, which need not be so for real ones: give some with --input"
    return replace(
        found,
        cuts=tuple(replace(cut, on_spine=False) if cut in silent else cut for cut in found.cuts),
        dead=dead,
        learning=Learning() if 2 * len(starved) >= len(matrices) else found.learning,
        notes=(*found.notes, note),
    )


def _agreed(found: Measurement, seen: Collection[Measurement]) -> Measurement:
    """Return a measurement with the cuts that every look shows."""
    cuts = []
    for cut in found.cuts:
        others = [next((other for other in one.cuts if other.node == cut.node), None) for one in seen]
        if not cut.depends_on_values:
            cuts.append(cut)
        elif all(others):
            starved = [set(other.starved) for other in others if other is not None]
            cuts.append(replace(cut, starved=tuple(name for name in cut.starved if all(name in names for names in starved))))
    return replace(found, cuts=tuple(cuts), dead=all(one.dead for one in seen))
