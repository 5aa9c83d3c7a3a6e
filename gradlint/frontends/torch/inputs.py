"""Inputs of a torch module: given by the user, stored with the module, or guessed from its first layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradlint.errors import InputError, TargetError
from gradlint.frontends.inputs import DTYPES, InputSpec, merge_given
from gradlint.frontends.torch.lineage import dtype_name, to_numpy
from gradlint.frontends.user_code import described, raising_line

_BATCH = 8
_LENGTH = 16  # tokens in a sequence
_STEPS = 32  # time steps of a recurrence
_SIZES = {1: (64, 224, 1024, 16000), 2: (64, 224, 32, 28, 128, 256, 299, 96, 512), 3: (16, 32, 64, 112)}
_AUDIO_LENGTHS = (4000, 8000, 16000)  # samples of an audio signal
_ENTRIES = 6  # how many layers are tried as the one that reads the input


@dataclass(frozen=True, slots=True)
class Feed:
    """The arguments of a forward call, with an `InputSpec` in place of every tensor."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Return the parameters of `module.forward` without `self`; an empty list if it has no signature."""
    if isinstance(module, torch.jit.ScriptModule):
        forward: Any = module.forward
        names = [argument.name for argument in forward.schema.arguments[1:]]
        return [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def as_spec(name: str | None, tensor: Tensor) -> InputSpec:
    """Return the specification of an input whose values are those of `tensor`."""
    return InputSpec(name, dtype_name(tensor.dtype), tuple(tensor.shape), value=to_numpy(tensor), given=True)


def feed_values(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], given: tuple[InputSpec, ...]) -> Feed:
    """Return the feed for the given arguments, with tensors replaced by those of `given`, by name or by position.

    The name of a tensor is that of its argument, followed by indices and keys if it is nested: "x", "x.0", "batch.mask". Raises
    InputError if a name in `given` does not exist.
    """
    taken = [p.name for p in parameters(module) if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    specs: dict[str, InputSpec] = {}

    def name(path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        keys = [_key(entry) for entry in path]
        if keys[0] == 0:
            keys[1] = taken[keys[1]] if keys[1] < len(taken) else f"args.{keys[1] - len(taken)}"
        spec = as_spec(".".join(map(str, keys[1:])), leaf)
        return specs.setdefault(str(spec.name), spec)

    tree = pytree.tree_map_with_path(name, (args, dict(kwargs)))
    merged = {spec.name: spec for spec in merge_given(tuple(specs.values()), given)}
    args, kwargs = pytree.tree_map(lambda leaf: merged[leaf.name] if isinstance(leaf, InputSpec) else leaf, tree)
    return Feed(args, kwargs)


def _key(entry: Any) -> Any:
    """Return the index, key or attribute of one entry in the path to a nested tensor."""
    return next(value for kind in ("idx", "key", "name") if (value := getattr(entry, kind, None)) is not None)


def feed_given(module: nn.Module, given: tuple[InputSpec, ...]) -> Feed | None:
    """Return the feed that consists of the given inputs, or None if a required argument is missing.

    Raises InputError if the forward does not take an input of that name, or not as many inputs.
    """
    taken = parameters(module)
    kinds = {parameter.kind for parameter in taken}
    named = [p for p in taken if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    names = [parameter.name for parameter in named]
    extra: list[InputSpec] = []
    by_name: dict[str, InputSpec] = {}
    for spec in given:
        free = next((name for name in names if name not in by_name), None) if spec.name is None else spec.name
        if free in names or (spec.name is not None and inspect.Parameter.VAR_KEYWORD in kinds):
            by_name[str(free)] = replace(spec, name=free)
        elif spec.name is None and inspect.Parameter.VAR_POSITIONAL in kinds:
            extra.append(replace(spec, name=f"args.{len(extra)}"))
        else:
            what = f"the model has no input {spec.name!r}" if spec.name else f"the model takes only {len(names)} inputs"
            raise InputError(what, hint=f"its inputs are {', '.join(names) or 'none'}")
    if any(p.default is p.empty and p.name not in by_name for p in named):
        return None
    return _feed(taken, by_name, extra)


def _feed(taken: list[inspect.Parameter], by_name: Mapping[str, InputSpec], extra: list[InputSpec] | None = None) -> Feed:
    """Pass arguments by position up to the first missing one, and the others by keyword."""
    args: list[InputSpec] = []
    for parameter in taken:
        if parameter.kind not in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD} or parameter.name not in by_name:
            break
        args.append(by_name[parameter.name])
    used = {spec.name for spec in args}
    return Feed((*args, *(extra or ())), {name: spec for name, spec in by_name.items() if name not in used})


def infer(module: nn.Module, given: tuple[InputSpec, ...], attempt: Callable[[Feed], None]) -> Feed:
    """Return the first guessed feed on which `attempt` runs without an exception. Given inputs are never changed.

    Raises InputError if no guess works; its message quotes the error that the forward raised on the first guess.
    """
    complaint: BaseException | None = None
    tried: dict[str, Feed] = {}
    for guess in _guesses(module, given):
        text = str([(spec.name, spec.text) for spec in (*guess.args, *guess.kwargs.values())])
        if text in tried:
            continue
        tried[text] = guess
        try:
            attempt(guess)
        except TargetError:
            raise
        except Exception as error:  # noqa: BLE001 - a wrong input can make the user's forward raise anything
            complaint = complaint or error.__cause__ or error
        else:
            return guess
    first = next((leaf for guess in tried.values() for leaf in (*guess.args, *guess.kwargs.values())), None)
    needed = [p.name for p in parameters(module) if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    needed = needed or [first.name if isinstance(first, InputSpec) and first.name else "x"]
    example = first.text if isinstance(first, InputSpec) else f"float32[{_BATCH},3,224,224]"
    line = raising_line(complaint) if complaint else None
    why = f"; with {needed[0]}={example} the forward raised {described(complaint)}" if complaint else ""
    why += f" ({line})" if line else ""
    options = " ".join(f"--input '{name}={example}'" for name in needed)
    raise InputError(f"could not infer the inputs of {type(module).__name__}{why}", hint=f"give them, as in {options}")


def _guesses(module: nn.Module, given: tuple[InputSpec, ...]) -> Iterator[Feed]:
    known = {spec.name: spec for spec in given if spec.name}
    taken = parameters(module)
    positional = (spec for spec in given if spec.name is None)
    for parameter, spec in zip((p for p in taken if p.name not in known), positional, strict=False):
        known[parameter.name] = replace(spec, name=parameter.name)
    dtype = next((dtype_name(p.dtype) for p in module.parameters() if p.is_floating_point()), "float32")
    # padding rows are zero, so that a norm multiplies their gradient by eps^-1/2; training masks them, so none is drawn
    tables = [layer for layer in module.modules() if isinstance(layer, nn.Embedding) and layer.padding_idx is not None]
    padding: dict[int | None, int | None] = {table.num_embeddings: table.padding_idx for table in tables}
    if not given:
        yield from _stored_examples(module)
    for by_name in (*_from_config(module, taken), *_from_layers(module, taken, known)):
        cast = {name: replace(_as_floats(spec, dtype), avoid=padding.get(spec.below)) for name, spec in by_name.items()}
        yield _feed(taken, {**cast, **known}) if taken else Feed(tuple(cast.values()))


def _as_floats(spec: InputSpec, dtype: str) -> InputSpec:
    return replace(spec, dtype=dtype) if spec.dtype == "float32" and dtype in DTYPES else spec


def _stored_examples(module: nn.Module) -> Iterator[Feed]:
    """Yield inputs like Lightning's `example_input_array`, and of the input size that timm stores with its models."""
    example = getattr(module, "example_input_array", None)
    if isinstance(example, Tensor):
        yield Feed((_redrawn("input", example),))
    elif isinstance(example, (tuple, list)) and all(isinstance(item, Tensor) for item in example):
        yield Feed(tuple(_redrawn(f"input.{index}", item) for index, item in enumerate(example)))
    elif isinstance(example, dict) and all(isinstance(item, Tensor) for item in example.values()):
        yield Feed((), {name: _redrawn(name, item) for name, item in example.items()})
    size = (getattr(module, "pretrained_cfg", None) or {}).get("input_size") if hasattr(module, "pretrained_cfg") else None
    if size:
        yield Feed((InputSpec("x", "float32", (_BATCH, *size)),))


def _redrawn(name: str, example: Tensor) -> InputSpec:
    return replace(as_spec(name, example), given=False)


def _from_config(module: nn.Module, taken: list[inspect.Parameter]) -> Iterator[dict[str, InputSpec]]:
    """Yield inputs of a transformers model, from the name of its main input and the sizes in its configuration."""
    config, main = getattr(module, "config", None), getattr(module, "main_input_name", None)
    if config is None or not isinstance(main, str):
        return
    accepted = {parameter.name for parameter in taken}
    names = [main]
    towers = getattr(config, "vision_config", None) is not None and getattr(config, "text_config", None) is not None
    if towers or (hasattr(config, "image_size") and hasattr(config, "vocab_size")):
        names += [name for name in ("input_ids", "pixel_values") if name in accepted and name != main]
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        names.append("decoder_input_ids")
    for samples in _AUDIO_LENGTHS:
        found = {name: spec for name in names if (spec := _config_spec(name, config, samples)) is not None}
        if found:
            yield found
        if main != "input_values":
            return


def _config_spec(name: str, config: Any, samples: int) -> InputSpec | None:
    def look(*keys: str) -> Any:
        parts = (config, getattr(config, "text_config", None), getattr(config, "vision_config", None))
        return next((value for key in keys for part in parts if (value := getattr(part, key, None)) is not None), None)

    if name in {"input_ids", "decoder_input_ids"}:
        longest = look("max_position_embeddings", "n_positions", "max_target_positions") or _LENGTH
        return InputSpec(name, "int64", (_BATCH, min(_LENGTH, longest)), look("vocab_size"))
    if name == "pixel_values":
        size = look("image_size") or 224
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return InputSpec(name, "float32", (_BATCH, look("num_channels") or 3, height, width))
    bins, frames = look("num_mel_bins", "feature_size", "input_feat_per_channel"), look("max_source_positions")
    if name == "input_values":  # a spectrogram if the configuration gives its length, otherwise an audio signal
        spectrogram = bins and look("max_length")
        return InputSpec(name, "float32", (_BATCH, look("max_length"), bins) if spectrogram else (_BATCH, samples))
    if name == "input_features" and bins:
        channels_first = frames and not look("input_feat_per_channel")
        return InputSpec(name, "float32", (_BATCH, bins, 2 * frames) if channels_first else (_BATCH, 4 * _STEPS, bins))
    if name == "past_values" and look("context_length"):
        return InputSpec(name, "float32", (_BATCH, look("context_length"), look("num_input_channels") or 1))
    return None


def _from_layers(
    module: nn.Module, taken: list[inspect.Parameter], known: Mapping[str, InputSpec]
) -> Iterator[dict[str, InputSpec]]:
    """Yield inputs that the first layers can read.

    Either all arguments have the layout that one layer reads, or each argument has that of its own layer. The second kind comes
    first if those layers are embeddings.
    """
    single = [p for p in taken if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    names = [p.name for p in single if p.default is p.empty and p.name not in known]
    if not names and not known:
        names = [p.name for p in single[:1]] or (["x"] if taken or isinstance(module, torch.jit.ScriptModule) else [])
    if not names:
        yield {}
        return
    entries = list(islice(_entries(module), _ENTRIES)) or [_fallback_layouts(module)]
    if isinstance(module, nn.Transformer):
        names = [name for name in ("src", "tgt") if name not in known]
    same = [{name: InputSpec(name, *layout) for name in names} for each in entries for layout in each]
    own = [{name: InputSpec(name, *each[0]) for name, each in zip(names, entries, strict=False)}]
    own = own if len(names) <= len(entries) else []
    tables = all(each[0][0] == "int64" for each in entries[: len(names)])
    yield from (*own, *same) if tables else (*same, *own)
    if all(p.default is not p.empty for p in single):
        yield {}


_Layout = tuple[str, tuple[int, ...], int | None]


def _entries(module: nn.Module) -> Iterator[list[_Layout]]:
    """Yield the layouts that each layer with a weight can read, in the order of `module.modules()`, without repetition."""
    seen: list[list[_Layout]] = []
    for layer in module.modules():
        if (layouts := _layouts(layer)) and layouts not in seen:
            seen.append(layouts)
            yield layouts


def _layouts(layer: nn.Module) -> list[_Layout]:
    batch_first = bool(getattr(layer, "batch_first", False))
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return [("int64", shape, layer.num_embeddings) for shape in ((_BATCH, _LENGTH), (_BATCH,))]
    if isinstance(layer, nn.Transformer):
        return [_sequence(layer.d_model, _LENGTH, batch_first=batch_first)]
    if isinstance(layer, nn.MultiheadAttention):
        return [_sequence(layer.embed_dim, _LENGTH, batch_first=batch_first)]
    if isinstance(layer, nn.RNNBase):
        return [_sequence(layer.input_size, _STEPS, batch_first=batch_first)]
    if isinstance(layer, nn.RNNCellBase):
        width = layer.input_size
    elif isinstance(layer, nn.Bilinear):
        width = layer.in1_features
    elif isinstance(getattr(layer, "in_features", None), int):
        width = int(layer.in_features)  # type: ignore[arg-type]
    elif isinstance(layer, nn.LayerNorm):
        shape = tuple(layer.normalized_shape)
        return [("float32", (_BATCH, *shape), None), ("float32", (_BATCH, _LENGTH, *shape), None)]
    else:
        return _image_layouts(layer)
    width = width or _STEPS  # a lazy layer accepts any width
    return [("float32", shape, None) for shape in ((_BATCH, width), (_BATCH, _LENGTH, width))]


def _sequence(width: int, steps: int, *, batch_first: bool) -> _Layout:
    return "float32", (_BATCH, steps, width) if batch_first else (steps, _BATCH, width), None


def _image_layouts(layer: nn.Module) -> list[_Layout]:
    name = type(layer).__name__
    dims = next((dims for dims in _SIZES if name.endswith(f"{dims}d")), 0)
    channels = getattr(layer, "in_channels", getattr(layer, "num_features", None))
    if not dims or channels is None:
        return []
    flat = [("float32", (_BATCH, int(channels)), None)] if "BatchNorm1d" in name else []
    sizes = (4, *_SIZES[dims]) if "ConvTranspose" in name else _SIZES[dims]  # a generator starts from a small map
    return flat + [("float32", (_BATCH, int(channels) or 3, *(size,) * dims), None) for size in sizes]


def _fallback_layouts(module: nn.Module) -> list[_Layout]:
    """Return layouts for a module without known layers: those that its first matrix can multiply, and common shapes."""
    matrix = next((parameter for parameter in module.parameters() if parameter.ndim == 2), None)
    widths = tuple(matrix.shape) if matrix is not None else (_STEPS,)
    shapes = [(_BATCH, width) for width in widths] + [(_BATCH, _LENGTH, width) for width in widths]
    return [("float32", shape, None) for shape in (*shapes, (_BATCH, 3, _SIZES[2][0], _SIZES[2][0]))]
