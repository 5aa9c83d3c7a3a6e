"""Random numbers of a test are the same in any run and in any order."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

RNG = np.random.default_rng(3)
AT_IMPORT = random.random()


def drawn():
    return random.random(), np.random.rand(), torch.rand(()).item(), RNG.random()  # noqa: NPY002


@pytest.fixture
def weights():
    return drawn()[:3]


@pytest.fixture
def inputs():
    return drawn()[:3]


@pytest.fixture(scope="session")
def seen():
    return []


@pytest.mark.parametrize("again", range(3))
def test_every_test_draws_the_same_numbers(again, weights, inputs, seen):
    seen.append((weights, inputs, drawn()))
    assert all(numbers == seen[0] for numbers in seen)
    assert len({weights, inputs, seen[0][2][:3]}) == 3
    random.seed(again)
    torch.manual_seed(again)


def test_the_numbers_are_those_of_the_seed():
    assert drawn() == pytest.approx(
        (random.Random(0).random(), np.random.RandomState(0).rand(),
         torch.rand((), generator=torch.Generator().manual_seed(0)).item(), np.random.default_rng(3).random())
    )  # fmt: skip
    assert random.Random(0).random() == AT_IMPORT
