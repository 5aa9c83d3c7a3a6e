"""Elementwise operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from gradlint.onnx_torch.dtypes import is_float8, saturated, torch_dtype
from gradlint.onnx_torch.registry import Value, op, plain

plain(
    {
        "Abs": torch.abs,
        "Acos": torch.acos,
        "Acosh": torch.acosh,
        "Asin": torch.asin,
        "Asinh": torch.asinh,
        "Atan": torch.atan,
        "Atanh": torch.atanh,
        "BitwiseAnd": torch.bitwise_and,
        "BitwiseNot": torch.bitwise_not,
        "BitwiseOr": torch.bitwise_or,
        "BitwiseXor": torch.bitwise_xor,
        "Cos": torch.cos,
        "Cosh": torch.cosh,
        "Det": torch.linalg.det,
        "GreaterOrEqual": torch.ge,
        "IsNaN": torch.isnan,
        "LessOrEqual": torch.le,
        "Not": torch.logical_not,
        "Round": torch.round,
        "Sign": torch.sign,
        "Sin": torch.sin,
        "Sinh": torch.sinh,
        "Tan": torch.tan,
        "Where": torch.where,
    }
)


def _unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @op(name)
    def kernel(x: Tensor) -> Tensor:
        return function(x)


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Ceil": torch.ceil,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Neg": torch.neg,
    "Reciprocal": torch.reciprocal,
    "Sqrt": torch.sqrt,
}
for _name, _function in _UNARY.items():
    _unary(_name, _function)


def align(a: Tensor, b: Tensor, axis: int | None) -> Tensor:
    """Append axes to `b` so that its first axis is aligned with `axis` of `a`: the broadcasting of opsets before 7."""
    return b if axis is None else b.reshape(b.shape + (1,) * (a.dim() - axis % max(a.dim(), 1) - b.dim()))


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @op(name)
    def kernel(
        a: Tensor,
        b: Tensor,
        *,
        axis: int | None = None,
        broadcast: int = 0,
    ) -> Tensor:
        return function(a, align(a, b, axis) if broadcast else b)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    if not base.is_floating_point():  # an integer to a negative or fractional power
        return torch.pow(base.double(), exponent).to(base.dtype)
    return torch.pow(base, exponent).to(base.dtype)


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Div": _divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "Less": torch.lt,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": _power,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
for _name, _combine in _BINARY.items():
    _binary(_name, _combine)


@op("Max")
def _maximum(*xs: Tensor) -> Tensor:
    return reduce(torch.maximum, xs)


@op("Min")
def _minimum(*xs: Tensor) -> Tensor:
    return reduce(torch.minimum, xs)


@op("Sum")
def _total(*xs: Tensor) -> Tensor:
    return reduce(torch.add, xs)


@op("Mean")
def _mean(*xs: Tensor) -> Tensor:
    return reduce(torch.add, xs) / len(xs)


@op("Mod")
def _modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@op("BitShift")
def _bit_shift(x: Tensor, by: Tensor, *, direction: str) -> Tensor:
    wide, amount = x.long(), by.long()
    return (wide << amount if direction == "LEFT" else wide >> amount).to(x.dtype)


@op("Clip")
def _clip(
    x: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    *,
    min_: float | None = None,
    max_: float | None = None,
) -> Tensor:
    floor, ceiling = (low if low is not None else min_), (high if high is not None else max_)
    bounds = [None if bound is None else torch.as_tensor(bound, dtype=x.dtype) for bound in (floor, ceiling)]
    return x if bounds == [None, None] else torch.clamp(x, *bounds)


@op("IsInf")
def _is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    return (torch.isposinf(x) & bool(detect_positive)) | (torch.isneginf(x) & bool(detect_negative))


@op("Identity")
def _identity(x: Value) -> Value:
    return x


@op("Cast")
def _cast(x: Tensor | NDArray[Any], *, to: int | str, saturate: int = 1, round_mode: str = "up") -> Tensor:
    del round_mode  # only for float8e8m0, which torch lacks
    values = torch.from_numpy(x.astype(np.float64)) if isinstance(x, np.ndarray) else x  # numbers as text
    return _as(values, torch_dtype(TensorProto.DataType.Value(to) if isinstance(to, str) else to), saturate)  # opset 1: a name


@op("CastLike")
def _cast_like(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    del round_mode
    return _as(x, like.dtype, saturate)


def _as(x: Tensor, dtype: torch.dtype, saturate: int) -> Tensor:
    return saturated(x, dtype) if saturate and is_float8(dtype) else x.to(dtype)
