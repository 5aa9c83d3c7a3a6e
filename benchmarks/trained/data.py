"""Synthetic tasks that can be learned: a fixed data set per case, from which every step draws a fresh batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Generator, Tensor

from benchmarks.trained.spec import Problem, Spec

ROWS, HELD_OUT = 2048, 512
VECTOR, SIDE, STEPS, FEATURES, TOKENS, VOCABULARY, NODES, SIZE = 12, 8, 16, 4, 16, 12, 10, 6

Data = tuple[tuple[Tensor, ...], Tensor]

# Numbers that a row has at its input and at its output.
_SIZES = {
    "clusters": (VECTOR, 6),
    "teacher": (VECTOR, 3),
    "signs": (VECTOR, 4),
    "pieces": (VECTOR, 3),
    "context": (VECTOR, 2),
    "patterns": (1, 6),
    "mixture": (1, 3),
    "denoise": (1, 1),
    "mask": (1, 1),
    "rebuild": (SIDE * SIDE, SIDE * SIDE),
    "trend": (FEATURES, 5),
    "total": (FEATURES, 2),
    "markov": (TOKENS, VOCABULARY),
    "topic": (TOKENS, 5),
    "translate": (TOKENS, VOCABULARY),
    "nodes": (FEATURES, 4),
    "levels": (FEATURES, 2),
    "density": (SIZE, SIZE),
    "views": (VECTOR, VECTOR),
    "signal": (2, 1),
}


def sizes(kind: str) -> tuple[int, int]:
    """Numbers at the input and at the output of a network for this task."""
    return _SIZES[kind]


def _normal(*shape: int, by: Generator) -> Tensor:
    return torch.randn(*shape, generator=by)


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0)


def _clusters(by: Generator) -> Data:
    label = torch.randint(6, (ROWS,), generator=by)
    return (_standard(1.2 * _normal(6, VECTOR, by=by)[label] + 0.7 * _normal(ROWS, VECTOR, by=by)),), label


def _taught(x: Tensor, outputs: int, by: Generator) -> Tensor:
    width = x.shape[-1]
    line = x @ _normal(width, outputs, by=by) / math.sqrt(width)
    bent = torch.tanh(1.5 * x @ _normal(width, 16, by=by) / math.sqrt(width)) @ _normal(16, outputs, by=by) / 4
    return _standard(line + 0.7 * bent)


def _teacher(by: Generator) -> Data:
    x = _normal(ROWS, VECTOR, by=by)
    return (x,), _taught(x, 3, by)


def _signs(by: Generator) -> Data:
    x = _normal(ROWS, VECTOR, by=by)
    return (x,), (_taught(x, 4, by) > 0).float()


def _pieces(by: Generator) -> Data:
    which = torch.randint(3, (ROWS,), generator=by)
    x = 0.8 * _normal(3, VECTOR, by=by)[which] + 0.7 * _normal(ROWS, VECTOR, by=by)
    maps = _normal(3, VECTOR, 3, by=by) / math.sqrt(VECTOR) + _normal(VECTOR, 3, by=by) / math.sqrt(VECTOR)
    return (_standard(x),), _standard(torch.einsum("bi,bio->bo", x, maps[which]))


def _context(by: Generator) -> Data:
    x = _normal(ROWS, VECTOR, by=by)
    half = VECTOR // 2
    mixed = torch.einsum("bi,bj,ijo->bo", x[:, :half], x[:, half:], _normal(half, half, 2, by=by)) / half
    return (x,), _standard(0.6 * mixed + _taught(x[:, :half], 2, by))


def _templates(count: int, by: Generator) -> Tensor:
    coarse = _normal(count, 1, 4, 4, by=by)
    return 1.4 * torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bilinear")


def _patterns(by: Generator) -> Data:
    label = torch.randint(6, (ROWS,), generator=by)
    return (_templates(6, by)[label] + 0.8 * _normal(ROWS, 1, SIDE, SIDE, by=by),), label


def _mixture(by: Generator) -> Data:
    share = _normal(ROWS, 3, by=by)
    image = torch.einsum("bk,kchw->bchw", share, _templates(3, by))
    return (image / image.std() + 0.3 * _normal(*image.shape, by=by),), share


def _smooth(by: Generator) -> Tensor:
    image = torch.einsum("bk,kchw->bchw", _normal(ROWS, 5, by=by), _templates(5, by))
    return image / image.std()


def _denoise(by: Generator) -> Data:
    clean = _smooth(by)
    return (clean + 0.7 * _normal(*clean.shape, by=by),), clean


def _mask(by: Generator) -> Data:
    clean = _smooth(by)
    return (clean + 0.4 * _normal(*clean.shape, by=by),), (clean > 0).float()


def _rebuild(by: Generator) -> Data:
    clean = _smooth(by)
    image = clean + 0.2 * _normal(*clean.shape, by=by)
    return (image,), image


def _trend(by: Generator) -> Data:
    label = torch.randint(5, (ROWS,), generator=by)
    return (0.8 * _normal(5, STEPS, FEATURES, by=by)[label] + 0.7 * _normal(ROWS, STEPS, FEATURES, by=by),), label


def _total(by: Generator) -> Data:
    x = _normal(ROWS, STEPS, FEATURES, by=by)
    fade = torch.linspace(0.5, 1.0, STEPS)[None, :, None]
    return (x,), _standard((x * fade).sum(1) @ _normal(FEATURES, 2, by=by))


def _walk(moves: Tensor, length: int, by: Generator, *, noise: float) -> Tensor:
    state = torch.randint(VOCABULARY, (ROWS,), generator=by)
    steps = []
    for _ in range(length):
        steps.append(state)
        jump = torch.rand(ROWS, generator=by) < noise
        state = torch.where(jump, torch.randint(VOCABULARY, (ROWS,), generator=by), moves[state])
    return torch.stack(steps, 1)


def _markov(by: Generator) -> Data:
    walk = _walk(torch.randperm(VOCABULARY, generator=by), TOKENS + 1, by, noise=0.2)
    return (walk[:, :-1].contiguous(),), walk[:, 1:].contiguous()


def _topic(by: Generator) -> Data:
    label = torch.randint(5, (ROWS,), generator=by)
    weights = torch.softmax(1.2 * _normal(5, VOCABULARY, by=by), -1)[label]
    return (torch.multinomial(weights, TOKENS, replacement=True, generator=by),), label


def _translate(by: Generator) -> Data:
    source = torch.randint(VOCABULARY, (ROWS, 8), generator=by)
    moves = torch.stack([torch.randperm(VOCABULARY, generator=by) for _ in range(2)])
    which = (source[:, 0] >= VOCABULARY // 2).long()
    state, written = source[:, 0], []
    for _ in range(9):
        written.append(state)
        jump = torch.rand(ROWS, generator=by) < 0.1
        state = torch.where(jump, torch.randint(VOCABULARY, (ROWS,), generator=by), moves[which, state])
    target = torch.stack(written, 1)
    return (source, target[:, :-1].contiguous()), target[:, 1:].contiguous()


def _graph(by: Generator) -> tuple[Tensor, Tensor]:
    edges = (torch.rand(ROWS, NODES, NODES, generator=by) < 0.15).float().triu(1)
    joined = edges + edges.transpose(1, 2) + torch.eye(NODES)
    scale = joined.sum(-1).rsqrt()
    return _normal(ROWS, NODES, FEATURES, by=by), scale[:, :, None] * joined * scale[:, None, :]


def _nodes(by: Generator) -> Data:
    x, adjacency = _graph(by)
    return (x, adjacency), (adjacency @ x @ _normal(FEATURES, 4, by=by)).argmax(-1)


def _levels(by: Generator) -> Data:
    x, adjacency = _graph(by)
    level = adjacency @ x @ _normal(FEATURES, 2, by=by)
    return (x, adjacency), level / level.std()


def _density(by: Generator) -> Data:
    half = SIZE // 2
    first = _normal(ROWS, half, by=by)
    bent = (first.square() - 1) @ torch.linalg.qr(_normal(half, half, by=by)).Q + 0.3 * _normal(ROWS, half, by=by)
    x = _standard(torch.cat([first, bent], -1))
    return (x,), x


def _views(by: Generator) -> Data:
    hidden = _normal(ROWS, 6, by=by)
    one, other = (torch.tanh(hidden @ _normal(6, VECTOR, by=by) / 2) + 0.2 * _normal(ROWS, VECTOR, by=by) for _ in range(2))
    return (_standard(one), _standard(other)), torch.arange(ROWS)


def _signal(by: Generator) -> Data:
    x = 2 * torch.rand(ROWS, 2, generator=by) - 1
    waves = torch.sin(x @ (3 * _normal(2, 5, by=by)) + _normal(5, by=by)) @ _normal(5, 1, by=by)
    return (x,), _standard(waves)


_TASKS: dict[str, Callable[[Generator], Data]] = {
    "clusters": _clusters,
    "teacher": _teacher,
    "signs": _signs,
    "pieces": _pieces,
    "context": _context,
    "patterns": _patterns,
    "mixture": _mixture,
    "denoise": _denoise,
    "mask": _mask,
    "rebuild": _rebuild,
    "trend": _trend,
    "total": _total,
    "markov": _markov,
    "topic": _topic,
    "translate": _translate,
    "nodes": _nodes,
    "levels": _levels,
    "density": _density,
    "views": _views,
    "signal": _signal,
}


@lru_cache(maxsize=2)
def _dataset(problem: Problem, seed: int) -> Data:
    inputs, target = _TASKS[problem.kind](Generator().manual_seed(seed))
    aims_at_inputs = target is inputs[0]
    first = inputs[0]
    if first.is_floating_point():
        first = first * problem.input_scale + problem.input_offset
    if aims_at_inputs:
        target = first
    elif target.is_floating_point():
        target = target * problem.target_scale
    return (first, *inputs[1:]), target


def dataset(spec: Spec) -> Data:
    """All rows: the inputs, a tuple of tensors of `ROWS` rows, and the target; the last `HELD_OUT` rows are never trained on.

    The target is the input where it is to be rebuilt or its density learned, and the place in the batch for two views.
    """
    return _dataset(spec.problem, spec.seed)


def batch(spec: Spec, seed: int, index: int) -> Data:
    """The `index`-th batch of a training run of this seed: the inputs (a tuple of tensors) and the target."""
    chosen = torch.randint(ROWS - HELD_OUT, (spec.batch,), generator=Generator().manual_seed(seed * 1_000_003 + index))
    return _rows(spec, chosen)


def held_out(spec: Spec) -> list[Data]:
    """Batches of rows that no run trains on, of `spec.batch` rows each: at least two batches, and 128 rows."""
    kept = torch.arange(ROWS - HELD_OUT, ROWS).split(spec.batch)
    return [_rows(spec, chosen) for chosen in kept[: max(2, 128 // spec.batch)]]


def _rows(spec: Spec, chosen: Tensor) -> Data:
    inputs, target = dataset(spec)
    aim = torch.arange(len(chosen)) if spec.problem.kind == "views" else target[chosen]
    return tuple(each[chosen] for each in inputs), aim
