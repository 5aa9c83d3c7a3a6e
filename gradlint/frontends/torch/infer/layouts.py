"""The layouts of tensors that a layer can read, from its sizes."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from gradlint.frontends.inputs import InputSpec

BATCH = 8
LENGTH = 16  # tokens in a sequence
STEPS = 32  # time steps of a recurrence
SIZES = {1: (64, 224, 1024, 16000), 2: (64, 32, 28, 224, 128, 256, 299, 96, 512), 3: (16, 32, 64, 112)}
ROUND = (64, 32, 28, 16, 96, 128, 224, 256)  # sizes that models want without saying so
LARGE = (224, 128, 299, 512)  # and where those are too small
Layout = tuple[str, tuple[int, ...], int | None]


def integer(value: object) -> int | None:
    """Return an integer of any library as `int`, or None for another object and for booleans."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def spec(name: str, layout: Layout) -> InputSpec:
    """Return the specification of an input in a layout."""
    return InputSpec(name, *layout)


def entries(module: nn.Module) -> Iterator[list[Layout]]:
    """Yield the layouts that each layer with a weight can read, in the order of `module.modules()`, without repetition."""
    seen: list[list[Layout]] = []
    for layer in module.modules():
        if (found := layouts(layer)) and found not in seen:
            seen.append(found)
            yield found


def layouts(layer: nn.Module) -> list[Layout]:
    """Return the layouts that one layer can read, the likeliest first; an empty list if the layer is not known."""
    batch_first = bool(getattr(layer, "batch_first", False))
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return [("int64", shape, integer(layer.num_embeddings)) for shape in ((BATCH, LENGTH), (BATCH,))]
    if isinstance(layer, nn.Transformer):
        own = type(layer).forward is nn.Transformer.forward
        return [_sequence(layer.d_model, LENGTH, batch_first=batch_first)] if own else []
    if isinstance(layer, nn.MultiheadAttention):
        return [_sequence(layer.embed_dim, LENGTH, batch_first=batch_first)]
    if isinstance(layer, nn.RNNBase):
        return [_sequence(layer.input_size, STEPS, batch_first=batch_first)]
    width: int | None
    if isinstance(layer, nn.RNNCellBase):
        width = layer.input_size
    elif isinstance(layer, nn.Bilinear):
        width = layer.in1_features
    elif (features := integer(getattr(layer, "in_features", None))) is not None:
        width = features
    elif isinstance(layer, nn.LayerNorm):
        shape = tuple(map(int, layer.normalized_shape))
        return [("float32", (BATCH, *shape), None), ("float32", (BATCH, LENGTH, *shape), None)]
    else:
        return _image_layouts(layer)
    width = width or STEPS  # a lazy layer accepts any width
    return [("float32", shape, None) for shape in ((BATCH, width), (BATCH, LENGTH, width))]


def _sequence(width: Any, steps: int, *, batch_first: bool) -> Layout:
    return "float32", (BATCH, steps, int(width)) if batch_first else (steps, BATCH, int(width)), None


def _image_layouts(layer: nn.Module) -> list[Layout]:
    name = type(layer).__name__
    dims = next((dims for dims in SIZES if name.endswith(f"{dims}d")), 0)
    channels = integer(getattr(layer, "in_channels", getattr(layer, "num_features", None)))
    if not dims or channels is None:
        return []
    flat = [("float32", (BATCH, channels), None)] if "BatchNorm1d" in name else []
    sizes = (4, *SIZES[dims]) if "ConvTranspose" in name else SIZES[dims]  # a generator starts from a small map
    return flat + [("float32", (BATCH, channels or 3, *(size,) * dims), None) for size in sizes]


def fallback(module: nn.Module) -> list[Layout]:
    """Return layouts for a module whose layers do not tell: those that its first matrix can multiply, and common shapes."""
    matrix = next((parameter for parameter in module.parameters() if parameter.ndim == 2), None)
    widths = tuple(matrix.shape) if matrix is not None else (STEPS,)
    shapes = [(BATCH, width) for width in widths] + [(BATCH, LENGTH, width) for width in widths]
    return [("float32", shape, None) for shape in (*shapes, (BATCH, 3, SIZES[2][0], SIZES[2][0]))]


def last_resorts(module: nn.Module) -> list[Layout]:
    """Return layouts to try after those of the layers: images, with the channels that the module names first, and tokens."""
    size = next(iter(hinted_sizes(module)), SIZES[2][0])
    named = setting(module, "in_channels", "channels", "in_chans", "num_channels", "image_channels")
    images = [("float32", (BATCH, channels, size, size), None) for channels in dict.fromkeys((named or 3, 3, 1))]
    table = next((integer(layer.num_embeddings) for layer in module.modules() if isinstance(layer, nn.Embedding)), None)
    volume = ("float32", (BATCH, 3, SIZES[3][0], size, size), None)
    return [*images, ("int64", (BATCH, LENGTH), table or 2), ("int64", (BATCH,), table or 2), volume]


_SIZE_NAME = re.compile(
    r"(image|img|input|seq|sequence|block|sample|context).*(size|len|length|resolution)$|^(max_)?len(gth)?$|resolution$|_ctx$"
)


def hinted_sizes(module: nn.Module) -> Iterator[int]:
    """Yield the sizes of images and sequences that the module or its configuration names, such as `image_size`."""
    seen = set()
    for owner in (module, *settings(module)):
        for key, value in vars(owner).items() if hasattr(owner, "__dict__") else ():
            if _SIZE_NAME.search(key.lower()):
                for entry in value if isinstance(value, (tuple, list)) else (value,):
                    size = integer(entry)
                    if size is not None and 4 <= size <= 1024 and size not in seen:
                        seen.add(size)
                        yield size


def settings(module: nn.Module) -> Iterator[Any]:
    """Yield the configuration objects that the module holds."""
    for name in ("config", "cfg", "args", "hparams", "dims", "params"):
        found = vars(module).get(name)
        if found is not None:
            yield found


def setting(module: nn.Module, *names: str) -> int | None:
    """Return the first integer that the module, one of its children or its configuration holds under one of `names`."""
    for owner in (module, *settings(module), *module.children()):
        for name in names:
            if (found := integer(getattr(owner, name, None))) is not None:
                return found
    return None
