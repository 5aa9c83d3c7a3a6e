"""The test cases that the onnx package brings: node tests, and models with their data."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, TypeProto, numpy_helper
from onnx.backend.test import loader

from gradlint.errors import GradlintError
from gradlint.frontends.base import PartialRun
from gradlint.onnx_torch.dtypes import from_numpy, from_proto
from gradlint.onnx_torch.engine import Engine
from tests.models.versions import older

FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
TYPES = FLOATS | {TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}
OUT_OF_SCOPE = {"Adam", "Adagrad", "Momentum", "Gradient", "Bernoulli", "Multinomial"}  # optimizers and random numbers
QUANTIZED = {"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"} | {
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
}
UNSOUND = {  # pattern of names: the first onnx whose cases are right, and what is wrong before
    r"averagepool_3d_dilations_large_count_include_pad_is_1_ceil_mode_is_True$": "1.18",  # it counts cells beyond the padding
    r"cast(like)?_(\w+_to_BFLOAT16|BFLOAT16_to_\w+?)(_expanded)?$": "1.19",  # codes in place of values, cut off, not rounded
    r"qlinearmatmul_[23]D_int8_float(16|32)$": "1.22",  # sums wrap around
}
FOREIGN = ("ai.onnx.ml", "training")  # domains of trees and of optimizers


@dataclass(frozen=True)
class Case:
    """A model, and inputs with the outputs that it must give."""

    name: str
    model: ModelProto
    data_sets: Sequence[tuple[Sequence[Any], Sequence[Any]]]
    rtol: float
    atol: float

    @property
    def operators(self) -> set[str]:
        return {node.op_type for node in self.model.graph.node}

    @property
    def is_single(self) -> bool:
        return len(self.model.graph.node) == 1


@cache
def all_node_cases() -> tuple[Case, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = (Case(c.name, c.model, c.data_sets, c.rtol, c.atol) for c in collect_testcases(None))
        return tuple(case for case in cases if not _is_unsound(case.name))


def _is_unsound(name: str) -> bool:
    return any(re.match(f"test_{pattern}", name) and older("onnx", first) for pattern, first in UNSOUND.items())


@cache
def node_cases() -> tuple[Case, ...]:
    """The node tests that take and give floats, and are about running models."""
    return tuple(case for case in all_node_cases() if _takes_and_gives_floats(case))


@cache
def quantized_cases() -> tuple[Case, ...]:
    """The node tests of operators on quantized tensors."""
    return tuple(case for case in all_node_cases() if case.is_single and case.operators & QUANTIZED)


@cache
def failing_node_cases() -> frozenset[str]:
    """Names of the node tests that do not pass."""
    return frozenset(case.name for case in all_node_cases() if not passes(case))


def model_cases(suite: str) -> Iterator[Case]:
    """The models of a suite whose files the onnx package brings: "simple", "pytorch-operator" or "pytorch-converted"."""
    for test in loader.load_model_tests(kind=suite):
        folder = Path(test.model_dir)
        model = onnx.load(folder / "model.onnx")
        foreign = any(word in node.domain for node in model.graph.node for word in FOREIGN)
        strings = any(_element(v.type) == TensorProto.STRING for v in model.graph.input)
        if not foreign and not strings:
            yield Case(test.name, model, [_read(model, data) for data in sorted(folder.glob("test_data_set_*"))], test.rtol, 1e-6)


def light_cases() -> Iterator[Case]:
    """Well-known image networks whose weights are all alike; the input rises from 0 to 1, as in onnx's own test runner."""
    for path in sorted((Path(loader.DATA_DIR) / "light").glob("*.onnx")):
        model = onnx.load(path)
        held = {tensor.name for tensor in model.graph.initializer}
        inputs = []
        for value in model.graph.input:
            if value.name not in held:
                shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
                inputs.append((np.arange(np.prod(shape)) / np.prod(shape)).reshape(shape).astype(np.float32))
        output = onnx.load_tensor(str(path.with_name(f"{path.stem}_output_0.pb")))
        yield Case(path.stem, model, [(inputs, [output])], 1e-3, 1e-6)


def as_torch(value: Any) -> Any:
    if isinstance(value, list):
        return [as_torch(item) for item in value]
    if isinstance(value, TensorProto):
        return from_proto(value, numpy_helper.to_array)
    return None if value is None else from_numpy(np.asarray(value))


def run(case: Case, inputs: Sequence[Any]) -> tuple[Any, ...]:
    engine = Engine(case.model, numpy_helper.to_array)
    return engine.run(dict(zip(engine.plan.inputs, map(as_torch, inputs), strict=False)), {})


def passes(case: Case) -> bool:
    """Whether every output has the dtype, the shape and, within the tolerance of the case, the values that it must have."""
    try:
        for inputs, outputs in case.data_sets:
            got = run(case, inputs)
            if len(got) != len(outputs):
                return False
            if not all(_agree(g, e, case.rtol, max(case.atol, 1e-6)) for g, e in zip(got, outputs, strict=True)):
                return False
    except (GradlintError, PartialRun, TypeError):
        return False
    return True


def _agree(got: Any, expected: Any, rtol: float, atol: float) -> bool:
    if isinstance(expected, list):
        return len(got) == len(expected) and all(_agree(g, e, rtol, atol) for g, e in zip(got, expected, strict=True))
    if expected is None:
        return got is None
    expected = as_torch(expected)
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return False
    if got.dtype in {torch.bfloat16, torch.float16}:  # 8 and 11 bits of mantissa
        rtol = atol = 1e-2 if got.dtype == torch.bfloat16 else 2e-3
    if not (got.is_floating_point() or got.is_complex()):
        return torch.equal(got, expected)
    return torch.allclose(got.to(torch.complex128), expected.to(torch.complex128), rtol, atol, equal_nan=True)


def _element(kind: TypeProto) -> int | None:
    while kind.WhichOneof("value") in {"sequence_type", "optional_type"}:
        kind = getattr(kind, kind.WhichOneof("value")).elem_type
    return kind.tensor_type.elem_type if kind.HasField("tensor_type") else None


def _takes_and_gives_floats(case: Case) -> bool:
    given = {_element(value.type) for value in case.model.graph.input}
    made = {_element(value.type) for value in case.model.graph.output}
    foreign = any(word in node.domain for node in case.model.graph.node for word in FOREIGN)
    random = any("Random" in op for op in case.operators) or "training_dropout" in case.name
    typed = given | made <= TYPES and bool(given & FLOATS) and bool(made & FLOATS)
    return typed and not foreign and not random and not case.operators & OUT_OF_SCOPE


def _read(model: ModelProto, folder: Path) -> tuple[list[Any], list[Any]]:
    inputs = [_value(folder / f"input_{k}.pb", value.type) for k, value in enumerate(model.graph.input)]
    outputs = [_value(folder / f"output_{k}.pb", value.type) for k, value in enumerate(model.graph.output)]
    return inputs, outputs


def _value(path: Path, kind: TypeProto) -> Any:
    if not path.is_file():  # an initializer
        return None
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(path.read_bytes()))
    return onnx.load_tensor(str(path))
