"""Backward passes that are seeded without torch's own check of shapes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from gradlint.probe.cotangents import seeded

USE = """
import sys
import torch
from gradlint.probe.cotangents import seeded
x = torch.ones(3, requires_grad=True)
torch.autograd.grad(seeded([x * 2], [torch.ones(3)]), x)
assert "sympy" not in sys.modules
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.bfloat16])
def test_the_gradients_are_those_of_torch(dtype):
    torch.manual_seed(0)
    x = torch.randn(4, 3, dtype=dtype, requires_grad=True)
    outputs = [x * x, x.sum(0) * 3]
    cotangents = [torch.randn(output.shape, dtype=dtype) for output in outputs]
    (expected,) = torch.autograd.grad(outputs, x, cotangents, retain_graph=True)
    (found,) = torch.autograd.grad(seeded(outputs, cotangents), x)
    assert torch.equal(found, expected)


def test_a_backward_pass_does_without_sympy():
    subprocess.run([sys.executable, "-c", USE], check=True, timeout=120)
