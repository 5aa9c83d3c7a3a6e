"""What part an argument of a forward plays, by its name, its annotation and its default."""

from __future__ import annotations

import inspect
import re
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.torch.infer.layouts import BATCH, LENGTH, entries, layouts, setting, spec
from gradlint.frontends.torch.inputs import parameters

_MASK = re.compile(r"mask")
_STATE = re.compile(r"^(h|c|hx|cx|hc|h0|c0|h_0|c_0|hn|prev|.*state.*|.*hidden.*|.*cache.*|mem|mems|past.*|carry)$")
_ADJACENCY = re.compile(r"^(adj.*|.*_adj|a_hat|laplacian|graph|adjacency.*)$")
_TIME = re.compile(r"^(t|ts|time|times|timestep|timesteps|time_?steps?|step|steps|noise_level|sigma|sigmas)$")
_LABEL = re.compile(r"^(y|label|labels|class_labels|classes|cls|class_id|class_ids|target_class)$")
_TOKENS = re.compile(r"^(.*ids|idx|tokens?|.*_tokens|indices|words|src_tokens|text)$")
_NUMBERS = re.compile(r"^(scale|temperature|temp|alpha|lam|lambda_|eps|epsilon|tau|dropout_p|ratio|.*_ratio)$")
_SEVERAL = re.compile(r"\b(?P<kind>[Tt]uple|[Ll]ist|Sequence)\[")
_EDGES = re.compile(r"^edge_(index|indices|list)$")
_LENGTHS = re.compile(r"^(lengths?|lens?|seq_len(gth)?s?|.*_lengths?|.*_lens)$")
_INDICES: tuple[tuple[re.Pattern[str], tuple[int, ...], tuple[str, ...], int], ...] = (
    (_TIME, (BATCH,), ("num_timesteps", "timesteps", "n_steps"), 100),
    (_LABEL, (BATCH,), ("num_classes", "n_classes", "num_labels"), 2),
    (_TOKENS, (BATCH, LENGTH), ("vocab_size", "n_vocab", "num_tokens"), 2),
)
"""Arguments that are indices: the pattern of the name, the shape, settings that may bound them, and the bound without any."""


def planned(module: nn.Module, parameter: inspect.Parameter) -> Any:
    """Return what is passed for an argument at first, or `inspect.Parameter.empty` if its name and annotation do not tell.

    What may be left out by passing None is left out: masks, states of a recurrence, and arguments that are annotated as optional.
    """
    name, annotation = parameter.name.lower(), str(parameter.annotation)
    plain = _plain(parameter.annotation)
    if plain is not None:
        return plain
    state = _STATE.match(name) and next(iter(parameters(module)), parameter).name != parameter.name
    if "Optional" in annotation or "None" in annotation or _MASK.search(name) or state:
        return None
    if _NUMBERS.match(name):
        return 1.0
    several = _SEVERAL.search(annotation)
    if several and "Tensor" in annotation and (layout := next((each[0] for each in entries(module)), None)):
        count = annotation.count("Tensor") if several["kind"].lower() == "tuple" else 1
        items = [spec(f"{parameter.name}.{index}", layout) for index in range(count)]
        return tuple(items) if several["kind"].lower() == "tuple" else items
    if _ADJACENCY.match(name):
        return adjacency(parameter.name, BATCH)
    if _EDGES.match(name):
        return InputSpec(parameter.name, "int64", (2, 2 * BATCH), BATCH)
    if _LENGTHS.match(name):
        return InputSpec(parameter.name, "int64", (BATCH,), value=np.full(BATCH, LENGTH, np.int64))
    for pattern, shape, settings, usual in _INDICES:
        if pattern.match(name):
            return InputSpec(parameter.name, "int64", shape, setting(module, *settings) or _table(module, name) or usual)
    own = next((found for path, layer in module.named_modules() if _named_after(path, name) and (found := layouts(layer))), None)
    return spec(parameter.name, own[0]) if own else parameter.empty


def _plain(annotation: Any) -> Any:
    plain = {bool: True, int: 1, float: 1.0, "bool": True, "int": 1, "float": 1.0}
    try:
        return plain.get(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return None


def _named_after(path: str, name: str) -> bool:
    """Return whether the path of a layer begins with the name of an argument of three letters or more, as in `user_table`."""
    return len(name) > 2 and path.split(".", maxsplit=1)[0].startswith(name.rstrip("0123456789"))


def _table(module: nn.Module, name: str) -> int | None:
    """Return the rows of what an argument looks up: the embedding with its name, the first one, or else the first matrix."""
    tables = [(path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Embedding)]
    near = [layer for path, layer in tables if name[:4] in path.lower()]
    rows = [int(layer.num_embeddings) for layer in (*near, *(layer for _, layer in tables))]
    return next(iter((*rows, *(len(parameter) for parameter in module.parameters(recurse=False) if parameter.ndim == 2))), None)


def adjacency(name: str, nodes: int) -> InputSpec:
    """Return a ring of nodes with self-loops as a matrix whose rows sum to one, as graph networks normalize it."""
    eye = np.eye(nodes, dtype=np.float32)
    return InputSpec(name, "float32", (nodes, nodes), value=(eye + np.roll(eye, 1, 0) + np.roll(eye, -1, 0)) / 3)


def instead_of_none(module: nn.Module, name: str, batch: int, length: int, *, tokens: bool = False) -> list[Any]:
    """Return what an argument may be that cannot be None: a state of a recurrence, a mask, or a tensor.

    `batch` and `length` are the sizes of the first two axes of the other inputs; `tokens`: these are tokens, not their features.
    """
    if _MASK.search(name.lower()):
        padding, square = (batch, length), (length, length)
        first, second = (padding, square) if tokens or "pad" in name.lower() else (square, padding)
        return [mask(name, shape) for shape in (first, second, (batch, 1, length, length), (batch, 1, length))]
    found: list[Any] = []
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            rows = layer.num_layers * (1 + bool(layer.bidirectional))
            samples = batch if layer.batch_first else length  # the second axis of what the layer reads
            shape = (rows, samples, getattr(layer, "proj_size", 0) or layer.hidden_size)
            found += _states(name, shape, rows_of_cell=(rows, samples, layer.hidden_size))[
                :: -1 if isinstance(layer, nn.LSTM) else 1
            ]
        elif isinstance(layer, nn.RNNCellBase):
            found += _states(name, (batch, int(layer.hidden_size)))[:: -1 if isinstance(layer, nn.LSTMCell) else 1]
    width = setting(module, "hidden_size", "hidden_dim", "d_model", "n_embd", "hidden")
    found += _states(name, (batch, width)) if width else []
    return [*found, *(spec(name, each[0]) for each in islice(entries(module), 3))]


def _states(name: str, shape: tuple[int, ...], rows_of_cell: tuple[int, ...] | None = None) -> list[Any]:
    """Return a state as one tensor and as a pair, both zero, as recurrences start."""
    one, two = (_zeros(f"{name}.{index}", kind) for index, kind in enumerate((shape, rows_of_cell or shape)))
    return [_zeros(name, shape), (one, two)]


def _zeros(name: str, shape: tuple[int, ...]) -> InputSpec:
    return InputSpec(name, "float32", shape, value=np.zeros(shape, np.float32))


def mask(name: str, shape: tuple[int, ...], dtype: str = "bool") -> InputSpec:
    """Return a mask of which every row has both kinds of entries, so that either reading of it leaves something to look at.

    A mask of floats is added to the scores: zeros.
    """
    rows = sum(np.indices(shape)[-2:]) % 2 == 0
    return InputSpec(name, dtype, shape, value=rows if dtype == "bool" else np.zeros(shape, dtype))


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating-point parameter."""
    return next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), torch.float32)
