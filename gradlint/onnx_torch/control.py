"""Control flow, sequences and optionals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradlint.errors import GradlintError
from gradlint.frontends.base import PartialRun
from gradlint.onnx_torch.registry import MAX_TRIPS, BudgetError, Context, SubGraph, Value, ints, op


@op("If")
def _if(ctx: Context, condition: Tensor, *, then_branch: SubGraph, else_branch: SubGraph) -> tuple[Value, ...]:
    return ctx.run(then_branch if bool(condition) else else_branch, (), True)


@op("Loop")
def _loop(
    ctx: Context, trips: Tensor | None = None, condition: Tensor | None = None, *state: Value, body: SubGraph
) -> tuple[Value, ...]:
    scanned: list[list[Tensor]] = [[] for _ in body.outputs[1 + len(state) :]]
    going = condition is None or bool(condition)
    count = 0
    while going and (trips is None or count < int(trips)):
        if count >= MAX_TRIPS:
            raise BudgetError(f"it makes more than {MAX_TRIPS} trips")
        results = ctx.run(body, (torch.tensor(count), torch.tensor(going), *state), False)
        going, state = bool(results[0]), results[1 : 1 + len(state)]
        for rows, row in zip(scanned, results[1 + len(state) :], strict=True):
            rows.append(row)
        count += 1
    if not count and scanned:
        return (*state, *_unscanned(ctx, body, (torch.tensor(0), torch.tensor(going), *state), len(scanned)))
    return (*state, *(torch.stack(rows) for rows in scanned))


def _unscanned(ctx: Context, body: SubGraph, arguments: Sequence[Value], count: int) -> list[Tensor]:
    """Return the scan outputs of a body that never runs: no rows, of the shape that a trip on these arguments would give."""
    try:
        rows = ctx.run(body, arguments, False)[-count:]
    except (GradlintError, PartialRun):  # a body may need what only a trip brings
        return [torch.zeros(0)] * count
    return [row.new_zeros((0, *row.shape)) if isinstance(row, Tensor) else torch.zeros(0) for row in rows]


@op("Scan")
def _scan(
    ctx: Context,
    *arguments: Value,
    body: SubGraph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
    directions: Sequence[int] | None = None,
) -> tuple[Value, ...]:
    if ctx.opset < 9:
        return _batched_scan(ctx, arguments, body, num_scan_inputs, directions)
    states = len(arguments) - num_scan_inputs
    state, sequences = arguments[:states], arguments[states:]
    in_axes = list(scan_input_axes or [0] * num_scan_inputs)
    backwards = list(scan_input_directions or [0] * num_scan_inputs)
    length = sequences[0].shape[in_axes[0]]
    rows: list[tuple[Value, ...]] = []
    for t in range(length):
        slices = [
            x.select(axis, length - 1 - t if back else t) for x, axis, back in zip(sequences, in_axes, backwards, strict=True)
        ]
        results = ctx.run(body, (*state, *slices), False)
        state = results[:states]
        rows.append(results[states:])
    count = len(body.outputs) - states
    out_axes = list(scan_output_axes or [0] * count)
    out_back = list(scan_output_directions or [0] * count)
    if not rows and count:
        absent = [x.new_zeros((*x.shape[:axis], *x.shape[axis + 1 :])) for x, axis in zip(sequences, in_axes, strict=True)]
        return (*state, *_unscanned(ctx, body, (*state, *absent), count))
    scanned = [
        torch.stack(list(reversed(parts)) if back else list(parts), axis)
        for parts, axis, back in zip(zip(*rows, strict=True), out_axes, out_back, strict=True)
    ]
    return (*state, *scanned)


def _batched_scan(
    ctx: Context, arguments: Sequence[Value], body: SubGraph, scanned: int, directions: Sequence[int] | None
) -> tuple[Value, ...]:
    """Run the Scan of opset 8: axis 0 is the batch, axis 1 is time, and the optional first input holds the lengths.

    The outputs of shorter sequences are padded with zeros.
    """
    lengths, values = arguments[0], arguments[1:]
    states, longest = len(values) - scanned, values[-1].shape[1]
    rows = []
    for b in range(values[-1].shape[0]):
        length = longest if lengths is None else int(lengths[b])
        own = (*(value[b] for value in values[:states]), *(value[b, :length] for value in values[states:]))
        after = Context(ctx.op, 9, ctx.outputs, ctx.run)
        results = _scan(after, *own, body=body, num_scan_inputs=scanned, scan_input_directions=directions)
        filled = (torch.cat([y, y.new_zeros(longest - length, *y.shape[1:])]) for y in results[states:])
        rows.append((*results[:states], *filled))
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


@op("SequenceEmpty")
def _sequence_empty(*, dtype: int = 1) -> list[Tensor]:
    del dtype
    return []


@op("SequenceConstruct")
def _sequence_construct(*xs: Tensor) -> list[Tensor]:
    return list(xs)


@op("SequenceInsert")
def _sequence_insert(xs: list[Tensor], x: Tensor, position: Tensor | None = None) -> list[Tensor]:
    where = len(xs) if position is None else int(position)
    where = where + len(xs) if where < 0 else where
    return [*xs[:where], x, *xs[where:]]


@op("SequenceErase")
def _sequence_erase(xs: list[Tensor], position: Tensor | None = None) -> list[Tensor]:
    where = (-1 if position is None else int(position)) % len(xs)
    return [*xs[:where], *xs[where + 1 :]]


@op("SequenceAt")
def _sequence_at(xs: list[Tensor], position: Tensor) -> Tensor:
    return xs[int(position)]


@op("SequenceLength")
def _sequence_length(xs: list[Tensor]) -> Tensor:
    return torch.tensor(len(xs))


@op("ConcatFromSequence")
def _concat_from_sequence(xs: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(xs, axis) if new_axis else torch.cat(xs, axis)


@op("SplitToSequence")
def _split_to_sequence(x: Tensor, split: Tensor | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    if split is None:
        return list(torch.split(x, 1, axis) if keepdims else x.unbind(axis))
    return list(torch.split(x, list(ints(split)) if split.dim() else int(split), axis))


@op("Optional")
def _optional(value: Value = None, *, type_: Any = None) -> Value:
    del type_
    return value


@op("OptionalHasElement")
def _optional_has_element(value: Value = None) -> Tensor:
    return torch.tensor(value is not None)


@op("OptionalGetElement")
def _optional_get_element(value: Value) -> Value:
    if value is None:
        raise ValueError("the optional holds nothing")
    return value
