"""Inputs that a module brings along: examples of it, and sizes in its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.torch.infer.layouts import BATCH, LENGTH, STEPS
from gradlint.frontends.torch.inputs import Feed, as_spec
from gradlint.frontends.torch.lineage import dtype_name

_AUDIO_LENGTHS = (4000, 8000, 16000)  # samples of an audio signal


def examples(module: nn.Module) -> Iterator[Feed]:
    """Yield the inputs that a module holds: of its export, `example_input_array`, `dummy_inputs`, and the input size of timm."""
    if isinstance(module, fx.GraphModule):
        nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
        values = [node.meta.get("val") for node in nodes]
        if values and all(isinstance(value, Tensor) for value in values):
            sizes = [tuple(int(size) for size in value.shape) for value in values]
            pairs = zip(nodes, values, sizes, strict=True)
            yield Feed(tuple(InputSpec(str(node.target), dtype_name(value.dtype), shape) for node, value, shape in pairs))
    names = ["example_input_array", *(["dummy_inputs"] if not hasattr(module, "main_input_name") else [])]
    for name in names:
        try:
            yield from _feeds(getattr(module, name, None))
        except Exception:  # noqa: BLE001, S112 - a property of the user's that raises holds no example
            continue
    size = (getattr(module, "pretrained_cfg", None) or {}).get("input_size") if hasattr(module, "pretrained_cfg") else None
    if size:
        yield Feed((InputSpec("x", "float32", (BATCH, *size)),))


def _feeds(example: Any) -> Iterator[Feed]:
    if isinstance(example, Tensor):
        yield Feed((_redrawn("input", example),))
    elif isinstance(example, (tuple, list)) and all(isinstance(item, Tensor) for item in example):
        yield Feed(tuple(_redrawn(f"input.{index}", item) for index, item in enumerate(example)))
    elif isinstance(example, dict) and example and all(isinstance(item, Tensor) for item in example.values()):
        yield Feed((), {name: _redrawn(name, item) for name, item in example.items()})


def _redrawn(name: str, example: Tensor) -> InputSpec:
    return replace(as_spec(name, example), given=False)


def from_config(module: nn.Module, taken: list[inspect.Parameter]) -> Iterator[dict[str, InputSpec]]:
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
        longest = look("max_position_embeddings", "n_positions", "max_target_positions") or LENGTH
        return InputSpec(name, "int64", (BATCH, min(LENGTH, longest)), look("vocab_size"))
    if name == "pixel_values":
        size = look("image_size") or 224
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return InputSpec(name, "float32", (BATCH, look("num_channels") or 3, height, width))
    bins, frames = look("num_mel_bins", "feature_size", "input_feat_per_channel"), look("max_source_positions")
    if name == "input_values":  # a spectrogram if the configuration gives its length, otherwise an audio signal
        spectrogram = bins and look("max_length")
        return InputSpec(name, "float32", (BATCH, look("max_length"), bins) if spectrogram else (BATCH, samples))
    if name == "input_features" and bins:
        channels_first = frames and not look("input_feat_per_channel")
        return InputSpec(name, "float32", (BATCH, bins, 2 * frames) if channels_first else (BATCH, 4 * STEPS, bins))
    if name == "past_values" and look("context_length"):
        return InputSpec(name, "float32", (BATCH, look("context_length"), look("num_input_channels") or 1))
    return None
