"""Gradients of every operator: the adjoint identity, and the derivative of the reference operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.autograd import forward_ad

from gradlint.onnx_torch.engine import Engine
from gradlint.onnx_torch.quantize import INTEGERS
from gradlint.onnx_torch.registry import KERNELS
from tests.models.onnx_cases import Case, as_torch, node_cases

STEP = 1e-6
BY_RULE = INTEGERS | {"QuantizeLinear", "Cast", "CastLike", "CausalConvWithState", "LinearAttention", "RMSNormalization"}
BY_RULE |= {"DynamicQuantizeLSTM"}
"""Operators that round on the way, to integers or to float32, so that differences tell nothing."""
HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
SETTINGS = {"Dropout": {1}, "Pad": {2}, "Resize": {1, 2}}  # input slots that hold numbers, not signals
RNG = np.random.default_rng(0)
NO_PATH = {  # operators through which no gradient passes, by what they give
    "indices": {"ArgMax", "ArgMin", "NonMaxSuppression", "NonZero"},
    "truth": {"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor"},
    "whole numbers": {"BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"},
    "sizes": {"OptionalHasElement", "SequenceLength", "Shape", "Size"},
    "what no input decides": {"Constant", "ConstantOfShape", "EyeLike", "Hardmax", "MelWeightMatrix", "SequenceEmpty"},
    "random draws": {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"},
}


def floats(*shape: int) -> Any:
    return RNG.uniform(0.1, 1.0, shape).astype(np.float32)


def branch(op: str) -> Any:
    """A branch of If that reads a tensor of the graph around it."""
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(op, ["x1"], ["out"])], op, [], [out])


SCALE, ZERO = np.float32(0.02), np.uint8(7)
CODES = np.random.default_rng(0).integers(-100, 100, (1, 5, 8)).astype(np.int8)
WORDS = np.array([[0, 2, 1], [1, 1, 0]], np.int32)
EXTRA: dict[str, tuple[Sequence[Any], dict[str, Any]]] = {  # operators that the node tests leave out: inputs and attributes
    "GlobalLpPool": ([floats(1, 2, 3, 3)], {"p": 3}),
    "MaxRoiPool": ([floats(1, 2, 6, 6), np.array([[0, 0, 0, 3, 4], [0, 2, 1, 9, 5]], np.float32)], {"pooled_shape": [2, 2]}),
    "Optional": ([floats(2)], {}),
    "SequenceConstruct": ([floats(2), floats(2)], {}),
    "SequenceErase": ([[floats(2), floats(2)]], {}),
    "SequenceAt": ([[floats(2), floats(2)], np.int64(1)], {}),
    "SequenceInsert": ([[floats(2), floats(2)], floats(2), np.int64(1)], {}),
    "Swish": ([floats(2, 3)], {"alpha": 1.5}),
    "CumProd": ([floats(2, 3), np.int32(1)], {"reverse": 1}),
    "LpNormalization": ([floats(2, 3)], {"axis": 1, "p": 2}),
    "TensorScatter": ([floats(2, 5, 3), floats(2, 2, 3), np.array([1, 3])], {"axis": 1}),
    "Trilu": ([floats(3, 3)], {}),
    "If": ([np.array(True), floats(2, 3)], {"then_branch": branch("Tanh"), "else_branch": branch("Relu")}),
    "Cast": ([floats(2, 3)], {"to": TensorProto.DOUBLE}),
    "CastLike": ([floats(2, 3), floats(1)], {}),
    "QuantizeLinear": ([floats(2, 3), SCALE, ZERO], {}),
    "ConcatFromSequence": ([[floats(2), floats(2)]], {"axis": 0}),
    "ConvInteger": ([floats(1, 2, 4, 4), floats(3, 2, 2, 2)], {}),
    "DequantizeLinear": ([floats(2, 3), SCALE, ZERO], {}),
    "DynamicQuantizeLinear": ([floats(3, 4)], {}),
    "MatMulInteger": ([floats(2, 3), floats(3, 2)], {}),
    "QLinearConv": ([floats(1, 2, 4, 4), SCALE, ZERO, floats(3, 2, 2, 2), SCALE, ZERO, SCALE, ZERO], {}),
    "QLinearMatMul": ([floats(2, 3), SCALE, ZERO, floats(3, 2), SCALE, ZERO, SCALE, ZERO], {}),
    "SimplifiedLayerNormalization": ([floats(2, 4), floats(4)], {}),
    "com.microsoft::Attention": ([floats(2, 3, 4), floats(4, 12), floats(12)], {"num_heads": 2, "unidirectional": 1}),
    "com.microsoft::BiasGelu": ([floats(2, 4), floats(4)], {}),
    "com.microsoft::DequantizeLinear": ([floats(2, 3), SCALE, ZERO], {}),
    "com.microsoft::DynamicQuantizeLSTM": (
        [
            *(floats(4, 2, 3), CODES[:, :3], CODES[:, 3:], floats(1, 16), np.array([4, 3], np.int32)),
            *(floats(1, 2, 2), floats(1, 2, 2), floats(1, 6), SCALE[None], np.int8([0]), SCALE[None], np.int8([0])),
        ],
        {"hidden_size": 2},
    ),
    "com.microsoft::EmbedLayerNormalization": (
        [WORDS, WORDS, floats(3, 4), floats(5, 4), floats(3, 4), floats(4), floats(4)], {},
    ),
    "com.microsoft::FastGelu": ([floats(2, 4), floats(4)], {}),
    "com.microsoft::FusedMatMul": ([floats(3, 2), floats(4, 3)], {"alpha": 0.5, "transA": 1, "transB": 1}),
    "com.microsoft::Gelu": ([floats(2, 4)], {}),
    "com.microsoft::MultiHeadAttention": ([floats(2, 3, 4), floats(2, 5, 4), floats(2, 5, 4), floats(12)], {"num_heads": 2}),
    "com.microsoft::QGemm": (
        [floats(2, 3), SCALE, ZERO, floats(4, 3), SCALE, ZERO, np.zeros(4, np.int32), SCALE, ZERO], {"transB": 1},
    ),
    "com.microsoft::QLinearAdd": ([floats(2, 3), SCALE, ZERO, floats(2, 3), SCALE, ZERO, SCALE, ZERO], {}),
    "com.microsoft::QLinearConcat": ([SCALE, ZERO, floats(2, 3), SCALE, ZERO, floats(2, 3), SCALE, ZERO], {"axis": 1}),
    "com.microsoft::QLinearGlobalAveragePool": ([floats(1, 2, 3, 3), SCALE, ZERO, SCALE, ZERO], {}),
    "com.microsoft::QLinearLeakyRelu": ([floats(2, 3), SCALE, ZERO, SCALE, ZERO], {}),
    "com.microsoft::QLinearMul": ([floats(2, 3), SCALE, ZERO, floats(2, 3), SCALE, ZERO, SCALE, ZERO], {}),
    "com.microsoft::QLinearSigmoid": ([floats(2, 3), SCALE, ZERO, SCALE, ZERO], {}),
    "com.microsoft::QuantizeLinear": ([floats(2, 3), SCALE, ZERO], {}),
    "com.microsoft::QuickGelu": ([floats(2, 4)], {}),
    "com.microsoft::SimplifiedLayerNormalization": ([floats(2, 4), floats(4)], {}),
    "com.microsoft::SkipLayerNormalization": ([floats(2, 4), floats(2, 4), floats(4), floats(4), floats(4)], {}),
    "com.microsoft::SkipSimplifiedLayerNormalization": ([floats(2, 4), floats(2, 4), floats(4)], {}),
}  # fmt: skip


def made_case(operator: str) -> Case:
    """The case of EXTRA for an operator."""
    domain, _, op = operator.rpartition("::")
    inputs, attributes = EXTRA[operator]
    names = [f"x{k}" for k in range(len(inputs))]
    node = helper.make_node(op, names[:1] if op == "If" else names, ["y"], domain=domain, **attributes)
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    graph = helper.make_graph([node], "g", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return Case(operator, helper.make_model(graph, opset_imports=imports), [(inputs, [])], 0, 0)


def cases_of(operator: str) -> Iterator[Case]:
    if operator in EXTRA:
        yield made_case(operator)
    for case in node_cases():
        if case.is_single and case.operators == {operator} and _is_tame(case.data_sets[0][0]) and not _is_coarse(case):
            yield case


def _is_coarse(case: Case) -> bool:
    """Whether this is a cast to half precision, to which its gradient is rounded too."""
    return bool(case.operators & {"Cast", "CastLike"}) and case.model.graph.output[0].type.tensor_type.elem_type in HALF


def _is_tame(values: Any) -> bool:
    if isinstance(values, (list, tuple)):
        return all(map(_is_tame, values))
    return not isinstance(values, np.ndarray) or values.dtype.kind != "f" or bool(np.isfinite(values).all() and values.size < 1e5)


def leaves(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of floats in a value, in order."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, torch.Tensor) and value.is_floating_point():
        yield value


class Function:
    """An operator as a function of the float inputs of a case, in float64 and a little off its kinks."""

    def __init__(self, case: Case) -> None:
        self.engine = Engine(case.model, numpy_helper.to_array)
        self.inputs = [as_torch(value) for value in case.data_sets[0][0]]
        generator = torch.Generator().manual_seed(0)
        settings = set().union(*(SETTINGS.get(op, set()) for op in case.operators))
        self.moved = [k not in settings for k, value in enumerate(self.inputs)]
        signals = leaves([value for value, moved in zip(self.inputs, self.moved, strict=True) if moved])
        self.points = [x.double() + 1e-3 * torch.rand(x.shape, generator=generator, dtype=torch.float64) for x in signals]

    def __call__(self, points: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The float outputs at the given points."""
        torch.manual_seed(0)
        following = iter(points)
        values = [_replaced(x, following) if moved else x for x, moved in zip(self.inputs, self.moved, strict=True)]
        return list(leaves(self.engine.run(dict(zip(self.engine.plan.inputs, values, strict=False)), {})))

    def pull_back(self, u: Sequence[torch.Tensor], live: Sequence[int]) -> list[torch.Tensor]:
        """J^T u for the outputs in `live`; zeros where autograd gives none."""
        points = [x.clone().requires_grad_() for x in self.points]
        outputs = self([x.clone() for x in points])
        cotangents = [c.to(outputs[k].dtype) for c, k in zip(u, live, strict=True)]
        pulled = torch.autograd.grad([outputs[k] for k in live], points, cotangents, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for g, x in zip(pulled, points, strict=True)]

    def push_forward(self, v: Sequence[torch.Tensor], live: Sequence[int]) -> list[torch.Tensor]:
        """Jv by central differences."""
        high, low = (self([x + h * d for x, d in zip(self.points, v, strict=True)]) for h in (STEP, -STEP))
        return [(high[k] - low[k]) / (2 * STEP) for k in live]

    def push_forward_by_rule(self, v: Sequence[torch.Tensor], live: Sequence[int]) -> list[torch.Tensor]:
        """Jv by forward-mode differentiation: for what rounds to float32 on the way, or straight through to integers."""
        with forward_ad.dual_level():
            duals = [
                forward_ad.unpack_dual(y) for y in self([forward_ad.make_dual(x, d) for x, d in zip(self.points, v, strict=True)])
            ]
            return [torch.zeros_like(duals[k].primal) if duals[k].tangent is None else duals[k].tangent for k in live]


def _replaced(value: Any, points: Iterator[torch.Tensor]) -> Any:
    """The same value with the tensors of floats taken from `points`."""
    if isinstance(value, (list, tuple)):
        return [_replaced(item, points) for item in value]
    return next(points) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def inner(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    return float(sum((a.double() * b.double()).sum() for a, b in zip(first, second, strict=True)))


def adjoint(case: Case) -> tuple[float, float, float] | None:
    """<u, Jv>, <J^T u, v> and the size of their terms, for random u and v; None where no gradient passes."""
    function, generator = Function(case), torch.Generator().manual_seed(1)
    outputs = function([x.clone().requires_grad_() for x in function.points])
    live = [k for k, y in enumerate(outputs) if y.requires_grad and torch.isfinite(y).all()]
    if not live:
        return None
    u = [torch.randn(outputs[k].shape, generator=generator, dtype=torch.float64) for k in live]
    v = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in function.points]
    push = function.push_forward_by_rule if case.operators & BY_RULE else function.push_forward
    pushed = push(v, live)
    return (
        inner(pushed, u),
        inner(function.pull_back(u, live), v),
        sum(float(a.norm() * b.norm()) for a, b in zip(pushed, u, strict=True)),
    )


OPERATORS = sorted(KERNELS.keys() | {op for case in node_cases() if case.is_single for op in case.operators})


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_gradient_is_adjoint_to_the_derivative(operator):
    cases = list(cases_of(operator))
    found = [pair for case in cases[:12] if (pair := adjoint(case)) is not None]
    cut = set().union(*NO_PATH.values())
    assert bool(found) == (operator not in cut), f"{len(cases)} cases"
    for pushed, pulled, size in found:
        assert pushed == pytest.approx(pulled, rel=1e-4, abs=1e-10 + 1e-9 * size)


ZERO_DERIVATIVE = {"EyeLike", "Hardmax", "OneHot"}
NO_REFERENCE = {"GroupNormalization", "MeanVarianceNormalization", "Scan", "Scatter", "SplitToSequence"}  # none in float64
ROUNDED = {"AffineGrid", "LinearAttention"}  # whose reference rounds to float32 on the way, so that steps must be large


def smooth_cases() -> Iterator[Any]:
    """The first case of every operator whose first input is one of floats that can be moved a little."""
    seen: set[str] = set()
    for case in node_cases():
        op = case.model.graph.node[0].op_type
        first = case.data_sets[0][0][0]
        if not case.is_single or op in seen | ZERO_DERIVATIVE | NO_REFERENCE or _is_coarse(case):
            continue
        if isinstance(first, np.ndarray) and first.dtype == np.float32 and 0 < first.size < 2000:
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

    step = 0.1 if case.operators & ROUNDED else 1e-5
    slope = (value(first + step * direction) - value(first - step * direction)) / (2 * step)
    cotangent = rng.standard_normal(slope.shape)
    engine = Engine(case.model, numpy_helper.to_array)
    x = torch.from_numpy(first).requires_grad_()
    out = engine.run(dict(zip(names, [x, *map(as_torch, rest)], strict=False)), {})[0]
    (gradient,) = torch.autograd.grad(out, x, torch.from_numpy(cotangent).to(out.dtype))
    assert (gradient * torch.from_numpy(direction)).sum().item() == pytest.approx((cotangent * slope).sum(), rel=1e-4, abs=1e-5)
