"""The activations: one row each, which is all that gradlint knows of it. `operator` says what the columns mean.

A function that is made of the parts in `pointwise` stands in its row. One that needs more, or that attributes change, stands
above the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlint.ops.operator import Attributes, Kernel, Kind, Operator, Spelling
from gradlint.ops.pointwise import Pointwise, clipped, erf, rectifier, sech2, sigmoid, sigmoids, softplus

if TYPE_CHECKING:
    from gradlint.ops.pointwise import Array

_ROOT2 = math.sqrt(2.0)
_ROOT_2PI = math.sqrt(2.0 * math.pi)
_SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}  # Klambauer 2017


def _leaky_relu(given: Attributes) -> Pointwise:
    """Read the slope from its attribute in torch or ONNX, or take the mean of the bounds of a random slope."""
    drawn = 0.5 * (given["lower"] + given["upper"]) if "lower" in given and "upper" in given else 0.01
    return rectifier(float(given.get("negative_slope", given.get("alpha", drawn))), 1.0)


def _elu(alpha: float, scale: float = 1.0) -> Pointwise:
    return Pointwise(
        lambda z: scale * np.where(z > 0.0, z, alpha * np.expm1(np.minimum(z, 0.0))),
        lambda z: scale * np.where(z > 0.0, 1.0, alpha * np.exp(np.minimum(z, 0.0))),
        (0.0,),
    )


def _celu(given: Attributes) -> Pointwise:
    alpha = float(given.get("alpha", 1.0))
    return Pointwise(
        lambda z: np.where(z > 0.0, z, alpha * np.expm1(np.minimum(z, 0.0) / alpha)),
        lambda z: np.where(z > 0.0, 1.0, np.exp(np.minimum(z, 0.0) / alpha)),
        (0.0,),
        scale=abs(alpha),
    )


@lru_cache(maxsize=64)
def _swish(alpha: float) -> Pointwise:
    """Return z sigmoid(alpha z): SiLU for alpha 1, the quick GELU for 1.702 (Hendrycks 2016)."""
    if alpha == 0.0:
        return rectifier(0.5, 0.5)

    def both(z: Array) -> tuple[Array, Array]:
        scaled = alpha * z
        above, below = sigmoids(scaled)
        return z * above, above + scaled * above * below

    return Pointwise(lambda z: z * sigmoid(alpha * z), lambda z: both(z)[1], scale=1.0 / abs(alpha), both=both)


def _gelu(given: Attributes) -> Pointwise:
    name = str(given.get("name", "")).rpartition(":")[2]
    if name == "QuickGelu":
        return _swish(float(given.get("alpha", 1.702)))
    return _TANH_GELU if name == "FastGelu" or given.get("approximate") == "tanh" else _EXACT_GELU


def _exact_gelu(z: Array) -> tuple[Array, Array]:
    whole = 1.0 + erf(z / _ROOT2)
    return 0.5 * z * whole, 0.5 * whole + z * np.exp(-0.5 * z * z) / _ROOT_2PI


_EXACT_GELU = Pointwise(lambda z: 0.5 * z * (1.0 + erf(z / _ROOT2)), lambda z: _exact_gelu(z)[1], both=_exact_gelu)


def _tanh_gelu() -> Pointwise:
    """GELU by its approximation with tanh (Hendrycks 2016), which is flat beyond 20."""
    factor, cubic = math.sqrt(2.0 / math.pi), 0.044715

    def inner(z: Array) -> tuple[Array, Array]:
        near = np.clip(z, -20.0, 20.0)
        return factor * (near + cubic * near**3), factor * (1.0 + 3.0 * cubic * near**2)

    def slope(z: Array) -> Array:
        u, rate = inner(z)
        return np.asarray(0.5 * (1.0 + np.tanh(u)) + 0.5 * z * sech2(u) * rate)

    return Pointwise(lambda z: 0.5 * z * (1.0 + np.tanh(inner(z)[0])), slope)


_TANH_GELU = _tanh_gelu()


def _mish_slope(z: Array) -> Array:
    soft = softplus(z)
    return np.asarray(np.tanh(soft) + z * sech2(soft) * sigmoid(z))


def _sigmoid(z: Array) -> tuple[Array, Array]:
    above, below = sigmoids(z)
    return above, above * below


def _hard_sigmoid(given: Attributes) -> Pointwise:
    alpha, beta = float(given.get("alpha", 1.0 / 6.0)), float(given.get("beta", 0.5))
    low, high = sorted((-beta / alpha, (1.0 - beta) / alpha)) if alpha else (0.0, 0.0)
    return Pointwise(
        lambda z: np.clip(alpha * z + beta, 0.0, 1.0), lambda z: np.where((z > low) & (z < high), alpha, 0.0), (low, high)
    )


def _softplus(given: Attributes) -> Pointwise:
    """log(1 + exp(beta z)) / beta, and z itself where beta z is above the threshold."""
    beta, threshold = float(given.get("beta", 1.0)), float(given.get("threshold", 20.0))
    return Pointwise(
        lambda z: np.where(beta * z > threshold, z, softplus(beta * z) / beta),
        lambda z: np.where(beta * z > threshold, 1.0, sigmoid(beta * z)),
        (threshold / beta,),
        scale=1.0 / abs(beta),
    )


def _tanhshrink(z: Array) -> Array:
    near = np.clip(z, -0.03, 0.03)
    series = near**3 * (1.0 / 3.0 - near**2 * (2.0 / 15.0 - near**2 * (17.0 / 315.0)))
    return np.where(np.abs(z) < 0.03, series, z - np.tanh(z))


def _shrink(lambd: float, bias: float) -> Pointwise:
    """Return the function that is 0 for |z| <= lambd and z - sign(z) bias otherwise."""
    return Pointwise(
        lambda z: np.where(np.abs(z) > lambd, z - bias * np.sign(z), 0.0),
        lambda z: (np.abs(z) > lambd).astype(np.float64),
        (-lambd, lambd),
    )


def _soft_shrink(given: Attributes) -> Pointwise:
    """Return the soft shrinkage. Its bias is `lambd` in torch and a separate attribute in ONNX."""
    lambd = float(given.get("lambd", 0.5))
    return _shrink(lambd, float(given.get("bias", lambd)))


def _threshold(given: Attributes) -> Pointwise:
    """Return the threshold function. ONNX calls its limit alpha, and its value below the limit is 0."""
    limit, value = float(given.get("threshold", given.get("alpha", 1.0))), float(given.get("value", 0.0))
    if limit == value == 0.0:
        return rectifier(0.0, 1.0)
    return Pointwise(lambda z: np.where(z > limit, z, value), lambda z: (z > limit).astype(np.float64), (limit,))


def _onnx_shrink(torch: Any, x: Any, *, bias: float = 0.0, lambd: float = 0.5) -> Any:
    above = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, above)


def _onnx_fast_gelu(torch: Any, x: Any, bias: Any = None) -> Any:
    return torch.nn.functional.gelu(x if bias is None else x + bias, approximate="tanh")


def _onnx_bias_gelu(torch: Any, x: Any, bias: Any = None) -> Any:
    return torch.nn.functional.gelu(x if bias is None else x + bias)


def _row(
    name: str,
    torch: str,
    onnx: Mapping[str, Kernel | None],
    function: Pointwise | Callable[[Attributes], Pointwise],
    parameters: str = "",
    **columns: Any,
) -> Operator:
    """Return a row. An ONNX op type maps to None if its kernel needs more than its inputs and is defined in `onnx_torch`."""
    types = tuple(dict.fromkeys(key.rpartition("::")[2] for key in onnx))
    kernels = {key: kernel for key, kernel in onnx.items() if kernel is not None}
    return Operator(name, Kind.ACTIVATION, tuple(torch.split()), types, function, tuple(parameters.split()), kernels, **columns)


ROWS = (
    _row("relu", "relu", {"Relu": "relu"}, rectifier(0.0, 1.0), rectifier=True, dead="below"),
    _row("relu6", "relu6", {}, clipped(0.0, 6.0), rectifier=True, bounded=True, dead="ends", ends=(0.0, 6.0), clip=(0.0, 6.0)),
    _row(
        "leaky_relu",
        "leaky_relu rrelu",
        {"LeakyRelu": lambda torch, x, *, alpha=0.01: torch.nn.functional.leaky_relu(x, alpha)},
        _leaky_relu,
        "negative_slope alpha lower upper",
        rectifier=True,
    ),
    _row(
        "prelu",
        "prelu _prelu_kernel",
        {"PRelu": None},
        lambda given: rectifier(float(given.get("negative_slope", 0.25)), 1.0),
        "negative_slope",
        rectifier=True,
        learned="negative_slope",
    ),
    _row(
        "elu",
        "elu",
        {"Elu": lambda torch, x, *, alpha=1.0: torch.nn.functional.elu(x, alpha)},
        lambda given: _elu(float(given.get("alpha", 1.0))),
        "alpha",
        dead="below",
    ),
    _row(
        "celu",
        "celu",
        {"Celu": lambda torch, x, *, alpha=1.0: torch.nn.functional.celu(x, alpha)},
        _celu,
        "alpha",
        dead="below",
    ),
    _row(
        "selu",
        "selu",
        {"Selu": None},
        lambda given: _elu(float(given.get("alpha", _SELU["alpha"])), float(given.get("gamma", _SELU["gamma"]))),
        "alpha gamma",
        dead="below",
    ),
    _row(
        "gelu",
        "gelu",
        {
            "Gelu": lambda torch, x, *, approximate="none": torch.nn.functional.gelu(x, approximate=approximate),
            "com.microsoft::Gelu": _onnx_bias_gelu,
            "com.microsoft::BiasGelu": _onnx_bias_gelu,
            "com.microsoft::FastGelu": _onnx_fast_gelu,
            "com.microsoft::QuickGelu": lambda torch, x, *, alpha=1.702: x * torch.sigmoid(alpha * x),
        },
        _gelu,
        "name approximate alpha",
        rectifier=True,
        monotone=False,
        dead="below",
        spelling=Spelling(("erf", "tanh", "sigmoid"), 0.021),  # by tanh 0.0005, by x sigmoid(1.702 x) 0.0203 (Hendrycks 2016)
    ),
    _row(
        "silu",
        "silu",
        {"Swish": lambda torch, x, *, alpha=1.0: x * torch.sigmoid(alpha * x)},
        lambda given: _swish(float(given.get("alpha", 1.0))),
        "alpha",
        rectifier=True,
        monotone=False,
        dead="below",
        spelling=Spelling(("sigmoid",)),
    ),
    _row(
        "mish",
        "mish",
        {"Mish": "nn.functional.mish"},
        Pointwise(lambda z: z * np.tanh(softplus(z)), _mish_slope),
        rectifier=True,
        monotone=False,
        dead="below",
        spelling=Spelling(("softplus", "tanh")),
    ),
    _row("tanh", "tanh", {"Tanh": "tanh"}, Pointwise(np.tanh, sech2), bounded=True, dead="ends", ends=(-1.0, 1.0)),
    _row(
        "hardtanh",
        "hardtanh",
        {},
        lambda given: clipped(float(given.get("min_val", -1.0)), float(given.get("max_val", 1.0))),
        "min_val max_val",
        bounded=True,
        dead="ends",
        clip=(-1.0, 1.0),
    ),
    _row(
        "sigmoid",
        "sigmoid expit",
        {"Sigmoid": "sigmoid"},
        Pointwise(sigmoid, lambda z: _sigmoid(z)[1], both=_sigmoid),
        bounded=True,
        dead="ends",
        ends=(0.0, 1.0),
        final=True,
    ),
    _row(
        "hardsigmoid",
        "hardsigmoid",
        {"HardSigmoid": lambda torch, x, *, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0.0, 1.0)},
        _hard_sigmoid,
        "alpha beta",
        bounded=True,
        dead="ends",
        ends=(0.0, 1.0),
        final=True,
    ),
    _row(
        "hardswish",
        "hardswish",
        {"HardSwish": "nn.functional.hardswish"},
        Pointwise(
            lambda z: z * np.clip(z / 6.0 + 0.5, 0.0, 1.0),
            lambda z: np.where(z >= 3.0, 1.0, np.where(z <= -3.0, 0.0, z / 3.0 + 0.5)),
            (-3.0, 3.0),
        ),
        rectifier=True,
        monotone=False,
        dead="below",
        spelling=Spelling(("hardsigmoid", "relu6", "clamp")),
    ),
    _row("softplus", "softplus", {"Softplus": "nn.functional.softplus"}, _softplus, "beta threshold", dead="below"),
    _row(
        "softsign",
        "softsign",
        {"Softsign": "nn.functional.softsign"},
        Pointwise(lambda z: z / (1.0 + np.abs(z)), lambda z: 1.0 / (1.0 + np.abs(z)) ** 2, (0.0,)),
        bounded=True,
    ),
    _row("logsigmoid", "logsigmoid log_sigmoid", {}, Pointwise(lambda z: -softplus(-z), lambda z: sigmoid(-z)), final=True),
    _row(
        "tanhshrink",
        "tanhshrink",
        {},
        Pointwise(_tanhshrink, lambda z: np.tanh(z) ** 2),
        shrinks=True,
        spelling=Spelling(("tanh",)),
    ),
    _row("hardshrink", "hardshrink", {}, lambda given: _shrink(float(given.get("lambd", 0.5)), 0.0), "lambd", shrinks=True),
    _row("softshrink", "softshrink", {"Shrink": _onnx_shrink}, _soft_shrink, "lambd bias", shrinks=True),
    _row(
        "threshold",
        "threshold _threshold",
        {"ThresholdedRelu": lambda torch, x, *, alpha=1.0: torch.nn.functional.threshold(x, alpha, 0.0)},
        _threshold,
        "threshold alpha value",
        dead="below",
    ),
    _row(  # flat at both ends, but what a GELU that is written out multiplies x by: a unit there is not dead
        "erf",
        "erf",
        {"Erf": "erf"},
        Pointwise(erf, lambda z: (2.0 / math.sqrt(math.pi)) * np.exp(-z * z)),
        bounded=True,
    ),
)
"""In the order in which torch names them, of functions that one tensor goes through."""
