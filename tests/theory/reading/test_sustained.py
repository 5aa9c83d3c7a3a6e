"""Sustained growth against trying every run."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gradlint.theory.reading.sustained import Run, largest_run

# quarters are exact in binary, so that sums of them can be compared without a tolerance
LEVELS = st.lists(st.integers(-20, 20).map(lambda value: value / 4), min_size=1, max_size=20)
COARSE = st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=20)  # many equal steps


def by_trying(levels: list[float]) -> Run:
    """The largest sum of consecutive steps less their largest; of equal ones that whose largest step comes first, then first."""
    steps = [before - after for before, after in itertools.pairwise(levels)]
    found = [
        (start + steps[start:end].index(max(steps[start:end])), start, end)
        for start in range(len(steps))
        for end in range(start + 1, len(steps) + 1)
    ]
    runs = [Run(levels[start] - levels[end] - steps[left_out], start, end) for left_out, start, end in sorted(found)]
    best = max(runs, key=lambda run: run.decades, default=Run(0.0, 0, 0))
    return best if best.decades > 0.0 else Run(0.0, 0, 0)


@given(LEVELS)
@example([])
def test_the_largest_run_is_that_of_trying_every_run(levels):
    assert largest_run(levels) == by_trying(levels)


@given(COARSE)
@example([3.0, 1.0, 3.0, 2.0, 1.0, 2.0, 0.0])  # its first and its last step are equal
def test_of_equal_runs_the_first_is_taken(levels):
    assert largest_run(levels) == by_trying(levels)


@given(LEVELS)
def test_a_run_is_as_large_as_its_steps_without_the_largest(levels):
    run = largest_run(levels)
    steps = [before - after for before, after in itertools.pairwise(levels)][run.start : run.end]
    assert run.decades == (sum(steps) - max(steps) if steps else 0.0)


def test_one_large_step_is_no_growth():
    assert largest_run([10.0, 0.0, 0.0]) == Run(0.0, 0, 0)


@pytest.mark.parametrize("count", range(2, 40))
def test_equal_steps_grow_by_all_of_them_but_one(count):
    assert largest_run([float(level) for level in range(count, -1, -1)]) == Run(count - 1.0, 0, count)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_growth_of_any_size_is_a_run(scale):
    assert largest_run([2.0 * scale, scale, 0.0]) == Run(scale, 0, 2)


def test_gains_in_single_precision_are_summed_in_double_precision():
    levels = np.array([1e8, 3.0, 1.0, 0.0], np.float32)
    assert largest_run(levels) == largest_run([float(level) for level in levels])
