"""Rows, folding and bars."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gradlint.report.chart import ASCII, BLOCKS, MAX_LINES, Gap, Row, bars, fold, layer_rows
from gradlint.report.table import Table
from gradlint.report.wording import decimal, merged, states
from gradlint.result import Place, SpinePoint

decades = st.one_of(
    st.none(), st.floats(-300, 300), st.sampled_from([0.0, -0.0, 1e-9, math.inf, -math.inf, math.nan]), st.floats(-2, 2)
)
curves = st.lists(decades, min_size=1, max_size=400)


def rows_of(values):
    return [Row(f"layers.{index}", value) for index, value in enumerate(values)]


def point(op, module, node=None, backward=0.0):
    return SpinePoint(Place(node or f"{module}/{op}", module), op, backward)


@given(curves)
def test_folding_loses_no_row_and_keeps_to_the_limit(values):
    folded = fold(rows_of(values))
    assert len(folded) <= MAX_LINES
    assert sum(line.rows if isinstance(line, Gap) else 1 for line in folded) == len(values)
    assert [line for line in folded if isinstance(line, Gap) and line.rows < 2] == []


@given(curves, st.integers(12, 60), st.sampled_from([ASCII, BLOCKS]))
def test_no_bar_is_wider_than_its_column(values, width, glyphs):
    assert all(len(bar) <= width for bar in bars(fold(rows_of(values)), width, glyphs))


@example([None, None, 0.0, 0.0, 0.0, 1.0, 12.0, None, None, None], 40)  # the words of a gap are wider than such a page
@given(curves, st.integers(40, 120))
def test_a_line_of_the_table_fits_the_page_or_is_a_gap_without_a_bar(values, width):
    lines = fold(rows_of(values))
    table = Table(lines, "layer", width)
    for line in lines:
        left = table.left(line)
        assert len(left) == table.before or isinstance(line, Gap)
        assert len(left.rstrip()) + (table.cells + len(table.right(line)) if len(left) == table.before else 0) <= width


@given(st.floats(0.001, 50), st.integers(10, 400))
def test_a_straight_line_folds_to_its_two_ends_with_the_slope_between_them(step, depth):
    folded = fold(rows_of([step * index for index in range(depth, 0, -1)]))
    gap = folded[3]
    assert isinstance(gap, Gap)
    assert len(folded) == 7
    assert gap.even
    assert gap.step == pytest.approx(step)


def test_folding_shows_both_sides_of_a_jump():
    values = [5.0] * 40 + [2.0] * 60
    shown = [line.label for line in fold(rows_of(values)) if isinstance(line, Row)]
    assert "layers.39" in shown
    assert "layers.40" in shown


def test_folding_shows_where_the_slope_changes():
    values = [4.0 - 0.1 * min(max(index - 50, 0), 40) for index in range(120)]
    shown = {int(line.label.partition(".")[2]) for line in fold(rows_of(values)) if isinstance(line, Row)}
    assert any(abs(index - 50) <= 2 for index in shown)
    assert any(abs(index - 90) <= 2 for index in shown)


def test_a_gap_over_an_uneven_stretch_says_that_its_step_is_a_mean():
    zigzag = fold(rows_of([0.14 * (index % 2) + 0.01 * (100 - index) for index in range(100)]))
    gap = next(line for line in zigzag if isinstance(line, Gap))
    assert str(gap) == "... 94 more, +0.01 on average ..."


def test_a_flat_gap_is_called_flat_and_one_with_unknown_values_gives_no_step():
    assert str(fold(rows_of([1.0] * 50))[3]) == "... 44 more, flat ..."
    assert str(fold(rows_of([math.nan] * 50))[3]) == "... 44 more ..."


def test_bars_of_an_exploding_model_grow_to_the_right_in_proportion():
    assert bars(rows_of([8.0, 4.0, 0.0]), 9, ASCII) == ["|########", "|####", "|"]


def test_bars_of_a_vanishing_model_grow_to_the_left_from_an_axis_at_the_right():
    assert bars(rows_of([-8.0, -4.0, 0.0]), 9, ASCII) == ["########|", "    ####|", "        |"]


def test_a_model_that_does_both_has_its_axis_between():
    assert bars(rows_of([4.0, -4.0]), 9, ASCII) == ["    |####", "####|"]


def test_half_cells_are_drawn_on_the_side_that_points_away_from_the_axis():
    assert bars(rows_of([8.0, 0.5]), 9, BLOCKS)[1] == "\u2502\u258c"
    assert bars(rows_of([-8.0, -0.5]), 9, BLOCKS)[1] == "       \u2590\u2502"


def test_small_gains_do_not_fill_the_chart():
    assert bars(rows_of([0.5, 0.0]), 41, ASCII) == ["|#####", "|"]


def test_an_infinite_gain_fills_its_bar_and_a_gradient_of_zero_has_none():
    assert bars(rows_of([math.inf, 2.0]), 5, ASCII) == ["|####", "|##"]
    assert bars(rows_of([-math.inf, 2.0]), 5, ASCII) == ["|", "|##"]


def test_activations_and_norms_share_the_row_of_their_weight_layer():
    spine = [
        point("input", "", "x"),
        *(point(op, f"features.{index}") for index, op in enumerate(["conv", "batch_norm", "relu", "conv", "relu"])),
        point("reshape", ""),
        point("linear", "head"),
    ]
    assert [row.label for row in layer_rows(spine)] == ["x", "features.0", "features.3", "head"]


def test_a_row_stands_for_the_output_of_its_layer():
    (row,) = layer_rows([point("linear", "fc", backward=2.0), point("tanh", "", "tanh_0", backward=1.5)])
    assert row.backward == 1.5
    assert row.nodes == {"fc/linear", "tanh_0"}


def test_points_of_one_module_share_a_row():
    spine = [point("add", "block.0", "a"), point("add", "block.0", "b"), point("add", "block.1", "c")]
    assert [row.label for row in layer_rows(spine)] == ["block.0", "block.1"]


def test_a_layer_named_by_a_number_is_shown_with_its_operator():
    assert layer_rows([point("linear", "0")])[0].label == "0 linear"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b.0.fc", "b.1.fc", "b.2.fc"], "b.0-2.fc"),
        (["/b.3/fc/Gemm", "/b.4/fc/Gemm"], "/b.3-4/fc/Gemm"),
        (["b.0", "b.2", "b.4"], "b.0,2,4"),
        (["b.0", "b.2", "b.4", "b.6", "b.8"], "b.0,2,...,8"),
        (["b.0.fc1", "b.1.fc2"], None),
        (["stem", "head"], None),
        (["b.9", "b.10"], "b.9-10"),
    ],
)
def test_labels_that_differ_in_one_number_become_one(labels, expected):
    assert merged(labels) == expected


def test_a_number_counts_as_stated_at_the_precision_that_the_text_prints():
    assert states("gain 2.50, critical 1.0", 2.5)
    assert states("grows by 6.1 decades", 6.1234)
    assert not states("grows by 6.1 decades", 6.2)
    assert not states("in 2 layers", 2.4)
    assert states("in 2 layers", 2)


def test_decades_are_never_minus_zero():
    assert decimal(-0.01) == "0.0"
    assert decimal(-math.inf) == "zero"
    assert decimal(math.inf) == "inf"
    assert decimal(math.nan) == "nan"
    assert decimal(None) == "-"
