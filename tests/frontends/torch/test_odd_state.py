"""Modules with state of their own are handed back as they came, or the report says what could not be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gradlint
from tests.models import odd_process, odd_state
from tests.models.odd_state import LEFT, Odd

CASES = {**odd_state.CASES, **odd_process.CASES}


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@pytest.mark.parametrize("name", CASES)
def test_an_odd_module_is_handed_back_as_it_came(name):
    case = CASES[name]
    expected = case.observe(Odd(case))  # of a module of its own, since to look at an iterator is to use it up
    torch.manual_seed(0)
    module = Odd(case)
    used_up = "peek" in case.observe.__code__.co_names or name == "iterator in a closure"
    before = expected if used_up else case.observe(module)
    report = gradlint.check(module, (torch.ones(8, 4),), seeds=1)
    told = [note for note in report.result.notes if "handed back" in note]
    if name in LEFT:
        assert any(LEFT[name] in note for note in told), report.result.notes
        return
    assert told == []
    after = case.observe(module)
    assert same(before, after), (before, after)
