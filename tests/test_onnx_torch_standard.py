"""The evaluator against the node tests of the ONNX standard, and its gradients against the reference operators."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, TypeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from gradlint.errors import GradlintError
from gradlint.frontends.base import PartialRun
from gradlint.onnx_torch.dtypes import from_numpy
from gradlint.onnx_torch.engine import Engine

FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
TYPES = FLOATS | {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
OUT_OF_SCOPE = {"Adam", "Adagrad", "Momentum", "Gradient", "Bernoulli", "Multinomial"}  # optimizers and random numbers
SHARE = 0.99  # of the node tests: raise it when more pass


def element_type(kind: TypeProto) -> int | None:
    while kind.WhichOneof("value") in {"sequence_type", "optional_type"}:
        kind = getattr(kind, kind.WhichOneof("value")).elem_type
    return kind.tensor_type.elem_type if kind.HasField("tensor_type") else None


def in_scope(model: ModelProto, name: str) -> bool:
    """Whether a case takes and gives floats, and is about running models."""
    given = {element_type(value.type) for value in model.graph.input}
    made = {element_type(value.type) for value in model.graph.output}
    operators = {node.op_type for node in model.graph.node}
    foreign = any("ml" in node.domain or "training" in node.domain for node in model.graph.node)
    random = any("Random" in op for op in operators) or "training_dropout" in name
    return bool(given | made <= TYPES and given & FLOATS and made & FLOATS and not operators & OUT_OF_SCOPE) and not (
        foreign or random
    )


@cache
def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        return [case for case in collect_testcases(None) if in_scope(case.model, case.name)]


def as_torch(value: Any) -> Any:
    if isinstance(value, list):
        return [as_torch(item) for item in value]
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    return None if value is None else from_numpy(np.asarray(value))


def agree(got: Any, expected: Any, rtol: float, atol: float) -> bool:
    if isinstance(expected, list):
        return len(got) == len(expected) and all(agree(g, e, rtol, atol) for g, e in zip(got, expected, strict=True))
    expected = as_torch(expected)
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return False
    if got.dtype in {torch.bfloat16, torch.float16}:  # 8 and 11 bits of mantissa
        rtol = atol = 1e-2 if got.dtype == torch.bfloat16 else 2e-3
    return torch.allclose(got.double(), expected.double(), rtol, atol, equal_nan=True)


def passes(case: Any) -> bool:
    try:
        engine = Engine(case.model, numpy_helper.to_array)
        for inputs, outputs in case.data_sets:
            got = engine.run(dict(zip(engine.plan.inputs, map(as_torch, inputs), strict=False)), {})
            if len(got) != len(outputs):
                return False
            if not all(agree(g, e, case.rtol, max(case.atol, 1e-6)) for g, e in zip(got, outputs, strict=True)):
                return False
    except (GradlintError, PartialRun):
        return False
    return True


def test_the_node_tests_of_the_standard_pass():
    failed = [case.name for case in cases() if not passes(case)]
    assert len(cases()) > 500
    assert 1 - len(failed) / len(cases()) >= SHARE, failed


NO_DERIVATIVE = {"EyeLike", "Hardmax", "OneHot"}
NO_REFERENCE = {"GroupNormalization", "MeanVarianceNormalization", "Scan", "Scatter", "SplitToSequence"}  # none in float64
ROUNDED = {"AffineGrid", "LinearAttention"}  # whose reference rounds to float32 on the way, so that steps must be large


def smooth_cases() -> Iterator[Any]:
    """The first case of every operator, with one float input that can be moved a little."""
    seen: set[str] = set()
    for case in cases():
        op = case.model.graph.node[0].op_type
        inputs = case.data_sets[0][0]
        if len(case.model.graph.node) > 1 or op in seen | NO_DERIVATIVE | NO_REFERENCE:
            continue
        if isinstance(inputs[0], np.ndarray) and inputs[0].dtype == np.float32 and 0 < inputs[0].size < 2000:
            seen.add(op)
            yield pytest.param(case, id=op)


@pytest.mark.parametrize("case", smooth_cases())
def test_the_gradient_is_the_derivative_of_the_reference_operator(case):
    rng = np.random.default_rng(0)
    first, *rest = [
        x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x for x in case.data_sets[0][0]
    ]
    first = np.clip(first, -5, 5) + rng.uniform(0.01, 0.02, first.shape)
    names = [value.name for value in case.model.graph.input]
    direction = rng.standard_normal(first.shape)
    reference = ReferenceEvaluator(case.model)

    def value(x):
        return np.asarray(reference.run(None, dict(zip(names, [x, *rest], strict=False)))[0], np.float64)

    step = 0.1 if case.model.graph.node[0].op_type in ROUNDED else 1e-5
    slope = (value(first + step * direction) - value(first - step * direction)) / (2 * step)
    cotangent = rng.standard_normal(slope.shape)
    engine = Engine(case.model, numpy_helper.to_array)
    x = torch.from_numpy(first).requires_grad_()
    out = engine.run(dict(zip(names, [x, *map(as_torch, rest)], strict=False)), {})[0]
    (gradient,) = torch.autograd.grad(out, x, torch.from_numpy(cotangent).to(out.dtype))
    assert (gradient * torch.from_numpy(direction)).sum().item() == pytest.approx((cotangent * slope).sum(), rel=1e-4, abs=1e-5)
