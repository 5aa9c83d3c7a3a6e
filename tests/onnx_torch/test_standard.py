"""The evaluator against the test cases of the ONNX standard.

Shares are ratchets: raise them when more passes, never lower them. What a newer standard adds and the evaluator lacks is
listed with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from tests.models.onnx_cases import (
    Case,
    all_node_cases,
    failing_node_cases,
    light_cases,
    model_cases,
    node_cases,
    passes,
    quantized_cases,
)

MISSING = {  # pattern of names, and why
    r"test_quantizelinear_u?int[24]$": "the type of the zero point gives the range, and torch holds 2 and 4 bits in 8",
    r"test_quantizelinear_float4e2m1$": "torch has no 4-bit float",
}
FLOAT_SHARE = 1.0  # of 1290 in onnx 1.23
SUITE_SHARE = 1.0  # of 82, 35, 15 and 9
ALL_SHARE = 0.91  # of 1884: strings, images, trees, optimizers, random draws and narrow types included


def failed(cases: Sequence[Case]) -> list[str]:
    """Names of the node tests among `cases` that do not pass."""
    return [case.name for case in cases if case.name in failing_node_cases()]


def share(cases: Sequence[Case], wrong: Sequence[str]) -> float:
    return 1 - len(wrong) / len(cases)


def unlisted(names: Sequence[str]) -> list[str]:
    return [name for name in names if not any(re.match(pattern, name) for pattern in MISSING)]


def test_the_float_node_tests_pass():
    wrong = failed(node_cases())
    assert len(node_cases()) > 500
    assert share(node_cases(), wrong) >= FLOAT_SHARE, wrong
    assert not unlisted(wrong)


@pytest.mark.parametrize(("suite", "least"), [("pytorch-converted", 80), ("pytorch-operator", 30), ("simple", 10), ("light", 5)])
def test_the_model_suites_pass(suite, least):
    cases = list(light_cases() if suite == "light" else model_cases(suite))
    wrong = [case.name for case in cases if not passes(case)]
    assert len(cases) >= least
    assert share(cases, wrong) >= SUITE_SHARE, wrong


def test_the_node_tests_of_quantized_tensors_pass_except_those_listed():
    wrong = failed(quantized_cases())
    assert len(quantized_cases()) > 20
    assert not unlisted(wrong)
    assert len(wrong) <= 5


def test_nine_node_tests_in_ten_pass_whatever_they_are_about():
    wrong = failed(all_node_cases())
    assert share(all_node_cases(), wrong) >= ALL_SHARE, wrong
