"""Drift of the gradients of weights along layers of one kind."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlint.graph_builder import GraphBuilder
from gradlint.growth import FLOOR
from gradlint.growth.weights import LIKE, like_weights, spread
from gradlint.structure import Structure

INF = math.inf


def stack(*widths: int) -> tuple[Structure, list[str]]:
    """Linear layers from width to width; the names of their weights."""
    builder = GraphBuilder()
    x, names = builder.input(8, widths[0]), []
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        names.append(f"w{index}")
        weights = {"weight": builder.weight(after, before, name=names[-1])}
        x = builder.op("linear", x, weights=weights, shape=(8, after), module=f"layers.{index}")
        x = builder.op("tanh", x, shape=(8, after))
    return Structure(builder.graph), names


@given(st.floats(-2.0, 2.0), st.integers(LIKE, 12))
def test_a_steady_drift_is_found_without_its_largest_step(step, count):
    structure, names = stack(*[32] * (count + 1))
    found = spread(structure, {name: -step * index for index, name in enumerate(names)})
    assert found.decades == pytest.approx(step * (count - 2), abs=1e-9)


def test_too_few_weights_have_no_drift():
    structure, names = stack(*[32] * LIKE)
    assert spread(structure, dict.fromkeys(names, 0.0)) is None


def test_weights_of_many_shapes_are_compared_by_what_enters_and_leaves_them():
    structure, names = stack(16, 64, 256, 64, 16, 4)
    levels = {name: -0.5 * math.log10(structure.graph.weights[name].fan_out) for name in names}
    assert spread(structure, levels).decades == pytest.approx(0.0, abs=1e-9)
    falling = {name: level + index for index, (name, level) in enumerate(levels.items())}
    assert spread(structure, falling).decades == pytest.approx(-(len(names) - 2))


@pytest.mark.parametrize(("lowest", "value"), [(-25.0, FLOOR), (-3.0, None)])
def test_a_zero_beside_tiny_gradients_has_underflowed_and_another_is_left_out(lowest, value):
    structure, names = stack(*[32] * 7)
    levels = dict(zip(names, [-INF, -INF, lowest, 0.7 * lowest, 0.5 * lowest, 0.0], strict=True))
    found = spread(structure, levels)
    assert (found.decades < FLOOR / 2) is (value is not None)


def numbered(paths: list[str], *, parallel: bool) -> list[list[str]]:
    """The kinds of linear layers with these module paths: one behind another, or in towers that the first number tells apart."""
    builder = GraphBuilder()
    x = builder.input(8, 32)
    ends: dict[str, str] = {}
    for path in paths:
        tower = path.split(".")[1] if parallel else ""
        weights = {"weight": builder.weight(32, 32, name=path)}
        ends[tower] = builder.op("linear", ends.get(tower, x), weights=weights, shape=(8, 32), module=path)
    if len(ends) > 1:
        builder.op("add", *ends.values(), shape=(8, 32))
    return [[name for _, name in members] for members in like_weights(Structure(builder.graph))]


def test_parallel_parts_are_kinds_of_their_own():
    paths = [f"towers.{tower}.{index}" for tower in range(2) for index in range(5)]
    assert numbered(paths, parallel=True) == [paths[:5], paths[5:]]


def test_numbers_that_count_along_the_depth_do_not_part_a_kind():
    paths = [f"stages.{stage}.blocks.{block}" for stage in range(3) for block in range(2)]
    assert numbered(paths, parallel=False) == [paths]


def test_experts_of_one_layer_are_kinds_of_their_own_over_all_layers():
    builder = GraphBuilder()
    x = builder.input(8, 32)
    for block in range(4):
        made = []
        for expert in range(2):
            weights = {"weight": builder.weight(32, 32, name=f"{block}{expert}")}
            path = f"blocks.{block}.experts.{expert}"
            made.append(builder.op("linear", x, weights=weights, shape=(8, 32), module=path))
        x = builder.op("add", *made, shape=(8, 32))
    found = [[name for _, name in members] for members in like_weights(Structure(builder.graph))]
    assert found == [[f"{block}{expert}" for block in range(4)] for expert in range(2)]
