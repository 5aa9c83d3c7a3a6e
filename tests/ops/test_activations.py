"""Every row that has a function, against torch: names, value, derivative, kinks, kernels, and what the other columns claim.

A claim is held in both directions where that is possible: a row that says nothing of what is so fails as well.
"""

from __future__ import annotations

import inspect
import math

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as nnf

from gradlint.onnx_torch import activation as kernels  # noqa: F401 - fills the table
from gradlint.onnx_torch.registry import KERNELS
from gradlint.ops import OPERATORS, Kind, derivative
from tests.models.versions import skip_before

ROWS = {row.name: row for row in OPERATORS.values() if row.function is not None}
ACTIVATIONS = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
ATTRIBUTES = {  # other than the defaults, where torch takes some
    "leaky_relu": {"negative_slope": 0.3},
    "elu": {"alpha": 1.7},
    "celu": {"alpha": 0.4},
    "gelu": {"approximate": "tanh"},
    "hardtanh": {"min_val": -0.5, "max_val": 2.0},
    "softplus": {"beta": 3.0, "threshold": 2.0},
    "hardshrink": {"lambd": 0.7},
    "softshrink": {"lambd": 0.7},
    "threshold": {"threshold": 0.3, "value": -1.0},
}
SAME = {"prelu": {"negative_slope": 0.25}, "threshold": {"threshold": 1.0, "value": 0.0}}  # torch has no default
GRID = np.linspace(-40.0, 40.0, 8001)
NEVER_DEAD = {"erf"}  # flat at both ends, but a factor of a GELU that is written out: see its row
AT_KINKS = {"hardswish": skip_before("torch", "2.8", "its derivative at -3 and 3 is that of the parabola between them")}
NEWER = {"Swish"}  # op types that older versions of onnx do not have


def torch_function(row, attrs):
    """The function of torch by the first of its names."""
    name, attrs = row.torch[0], dict(attrs)
    function = next(getattr(place, name) for place in (nnf, torch, torch.special) if hasattr(place, name))
    if row.learned:
        slope = attrs.pop(row.learned)
        return lambda z: function(z, z.new_tensor(slope))
    return lambda z: function(z, **attrs)


def in_torch(row, attrs, points):
    """Value and derivative, in double precision."""
    z = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    values = torch_function(row, {**SAME.get(row.name, {}), **attrs})(z)
    values.sum().backward()
    return values.detach().numpy(), z.grad.numpy()


def of_torch(row, points):
    return in_torch(row, {}, points)


def at(row, attrs=None):
    found = row.of(attrs or {})
    assert found is not None
    return found


# names ------------------------------------------------------------------------------------------------------------------


@ACTIVATIONS
def test_every_name_is_one_of_torch(row):
    places = (torch, nnf, torch.special, torch.ops.aten, torch.Tensor)
    assert row.torch
    assert [name for name in row.torch if not any(hasattr(place, name) for place in places)] == []


@ACTIVATIONS
def test_every_op_type_of_the_default_domain_is_in_the_standard_and_has_a_kernel(row):
    standard = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    foreign = {key.rpartition("::")[2] for key in row.kernels if "::" in key}
    own = set(row.onnx) - foreign | {key for key in row.kernels if "::" not in key}
    assert own - standard <= NEWER
    assert own <= KERNELS.keys()
    assert row.kernels.keys() <= KERNELS.keys()


# functions --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "attrs"), [*(pytest.param(name, {}, marks=AT_KINKS.get(name, ())) for name in ROWS), *ATTRIBUTES.items()]
)
def test_value_and_derivative_are_those_of_torch_at_kinks_too(name, attrs):
    row = ROWS[name]
    phi = at(row, attrs)
    points = np.array([*phi.kinks, *GRID, 1e-9, -1e-9, 300.0, -300.0])
    values, slopes = in_torch(row, attrs, points)
    assert phi(points) == pytest.approx(values, abs=1e-12)
    assert derivative(phi)(points) == pytest.approx(slopes, abs=2e-8)  # torch computes one of them in float32


@ACTIVATIONS
def test_kinks_are_where_the_derivative_of_torch_jumps_or_breaks_and_nowhere_else(row):
    attrs = ATTRIBUTES.get(row.name, {})
    step = 0.004
    points = np.arange(-8.0 + step / 3.0, 8.0, step)
    _, slopes = in_torch(row, attrs, points)
    breaks = points[1:-1][np.abs(np.diff(slopes, 2)) > 0.1 * step]  # of smooth ones a step of 0.004 bends far less
    kinks = np.array(at(row, attrs).kinks)
    distance = np.abs(np.subtract.outer(breaks, kinks))
    assert (distance.min(axis=1, initial=math.inf) <= 2.0 * step).all()
    assert (distance.min(axis=0, initial=math.inf) <= 2.0 * step).all()


@pytest.mark.parametrize(("name", "attrs"), [*((name, {}) for name in ROWS), *ATTRIBUTES.items()])
def test_value_and_slope_at_once_are_value_and_slope(name, attrs):
    phi = at(ROWS[name], attrs)
    if phi.both is not None:
        for found, expected in zip(phi.both(GRID), (phi.value(GRID), phi.slope(GRID)), strict=True):
            assert found == pytest.approx(expected, rel=1e-12, abs=1e-300)


@ACTIVATIONS
def test_the_slopes_of_two_sides_are_those_of_the_function(row):
    phi, points = at(row), np.array([-7.0, -0.01, 0.01, 7.0])
    if phi.sides is not None:
        below, above = phi.sides
        assert of_torch(row, points)[0] == pytest.approx(points * np.array([below, below, above, above]), abs=1e-12)


class Reading(dict):
    """Attributes that remember which were asked for."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.read = set()

    def get(self, key, default=None):
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)


@ACTIVATIONS
def test_parameters_are_the_attributes_that_the_function_reads(row):
    read = set()
    for name in ("", "QuickGelu"):
        attrs = Reading({key: name if key == "name" else 0.4 for key in row.parameters})
        at(row, attrs)
        read |= attrs.read
    assert read == set(row.parameters)
    assert row.learned in {"", *row.parameters}


# kernels ----------------------------------------------------------------------------------------------------------------


def defaults_of(name):
    """The attributes of a kernel, with the values that they have where a file says nothing."""
    kernel = KERNELS[name]
    known = inspect.signature(kernel.function).parameters if kernel.attributes else {}
    return {key: known[key].default for key in kernel.attributes}


BY_DEFAULT = [(name, row, False) for row in ROWS.values() for name in row.kernels]
CHANGED = [(name, row, True) for name, row, _ in BY_DEFAULT if KERNELS[name].attributes]


@pytest.mark.parametrize(("name", "row", "changed"), BY_DEFAULT + CHANGED)
def test_a_kernel_computes_the_function_and_its_derivative(name, row, changed):
    kernel, attrs = KERNELS[name], defaults_of(name)
    if changed:
        attrs = {key: "tanh" if isinstance(value, str) else 0.7 * value + 0.2 for key, value in attrs.items()}
    z = torch.linspace(-9.0, 9.0, 500, dtype=torch.float64, requires_grad=True)  # 0 is not among them, nor a kink
    values = kernel.function(z, **(attrs if changed else {}))
    values.sum().backward()
    phi, points = at(row, {**attrs, "name": name}), z.detach().numpy()
    assert values.detach().numpy() == pytest.approx(phi(points), abs=1e-12)
    assert z.grad.numpy() == pytest.approx(derivative(phi)(points), rel=1e-7, abs=2e-8)


# claims -----------------------------------------------------------------------------------------------------------------


@ACTIVATIONS
def test_monotone_rows_never_fall_and_the_others_do(row):
    values, _ = of_torch(row, GRID)
    assert row.monotone is bool(np.diff(values).min() >= -1e-12)


@ACTIVATIONS
def test_bounded_rows_stay_between_their_ends_and_the_others_run_away(row):
    far, _ = of_torch(row, np.array([-1e15, 1e15]))
    values, _ = of_torch(row, GRID)
    assert row.bounded is bool(np.abs(far).max() < 1e6)
    if row.bounded:
        assert far.min() <= values.min()
        assert far.max() >= values.max()


@ACTIVATIONS
def test_units_are_dead_where_the_function_is_flat(row):
    _, slopes = of_torch(row, np.array([-40.0, -30.0, 30.0, 40.0]))
    flat = np.abs(slopes) < 1e-6
    found = "ends" if flat.all() else "below" if flat[:2].all() else ""
    assert row.dead == ("" if row.name in NEVER_DEAD else found)


@ACTIVATIONS
def test_the_ends_of_dead_units_are_the_values_there(row):
    ends, _ = of_torch(row, np.array([-1e4, 1e4]))
    moved = (at(row, dict.fromkeys(row.parameters, 2.5))(np.array([-1e4, 1e4])) != ends).any()
    assert (row.ends is not None) is (row.dead == "ends" and not moved)
    if row.ends is not None:
        assert row.ends == tuple(ends)


@ACTIVATIONS
def test_rectifiers_pass_what_is_positive_and_next_to_nothing_of_the_rest(row):
    low, middle, small, high = of_torch(row, np.array([-3.0, 0.0, 0.5, 3.0]))[0]
    passes = small > 0.25 and abs(high - 3.0) < 0.3
    assert row.rectifier is bool(passes and abs(low) < 0.9 and middle == 0.0)


@ACTIVATIONS
def test_shrinking_rows_keep_small_inputs_at_zero_and_no_output_is_beyond_its_input(row):
    values, slopes = of_torch(row, np.array([-1e-3, 0.0, 1e-3]))
    nothing = abs(values[1]) == 0.0 and np.abs(slopes).max() < 1e-5 and not row.dead
    assert row.shrinks is bool(nothing)
    if row.shrinks:
        beyond, _ = of_torch(row, GRID)
        assert (np.abs(beyond) <= np.abs(GRID)).all()
        assert (beyond * GRID >= 0.0).all()


@ACTIVATIONS
def test_what_is_final_gives_probabilities_or_their_logarithms(row):
    values, _ = of_torch(row, GRID)
    probability = bool(values.min() >= 0.0 and values.max() <= 1.0)
    logarithm = bool(np.exp(values).max() <= 1.0 and np.exp(values).max() > 0.999 and values.min() < -1.0)
    assert row.final is (row.kind is Kind.ACTIVATION and (probability or logarithm))


@ACTIVATIONS
def test_a_clip_to_the_limits_is_the_function(row):
    if row.clip is not None:
        low, high = row.clip
        assert (torch.tensor(GRID).clamp(low, high).numpy() == of_torch(row, GRID)[0]).all()


@ACTIVATIONS
def test_operators_of_a_spelling_are_in_the_vocabulary(row):
    assert row.spelling is None or set(row.spelling.at) <= OPERATORS.keys()


@ACTIVATIONS
def test_the_largest_slope_is_that_of_torch(row):
    _, slopes = of_torch(row, np.linspace(-20.0, 20.0, 40001))
    assert row.steepest == pytest.approx(slopes.max(), abs=0.005)  # of HardSwish it is the limit at a kink
    assert row.kinks == at(row).kinks


def test_what_follows_from_the_columns():
    assert {name for name, row in ROWS.items() if row.saturates} == {
        *("tanh", "hardtanh", "sigmoid", "hardsigmoid", "softsign", "erf")
    }
    assert not OPERATORS["relu6"].is_unbounded
    assert OPERATORS["relu"].is_unbounded
    assert not OPERATORS["abs"].is_unbounded  # no activation
    assert not OPERATORS["linear"].is_unbounded
    assert not OPERATORS["linear"].saturates
    assert {name for name, row in ROWS.items() if row.monotone and at(row).has_floor} == {
        *("relu", "relu6", "hardtanh", "hardsigmoid", "threshold")
    }
