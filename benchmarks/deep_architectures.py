"""Architectures at their published depth, narrow enough for a probe of seconds.

Those of `transformers_architectures.py` have as many layers as were published; others are convolutional and recurrent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from plain_architectures import Recurrent, WaveNet, mlp_mixer, resnet
from torch import Tensor, nn
from transformers_architectures import TRANSFORMERS

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
_STAGED = {  # depths of the stages, as published
    "swin-base": ("swin", {"depths": [2, 18], "num_heads": [2, 4]}),
    "swinv2-base": ("swinv2", {"depths": [2, 18], "num_heads": [2, 4]}),
    "convnext-large": ("convnext", {"depths": [3, 3, 27, 3]}),
    "convnextv2-large": ("convnextv2", {"depths": [3, 3, 27, 3]}),
    "poolformer-m48": ("poolformer", {"depths": [8, 8, 24, 8]}),
    "regnet-x": ("regnet", {"depths": [2, 6, 17, 2]}),
}
_DEEP = {  # further depths that were published
    "bert-large": ("bert", 24),
    "roberta-large": ("roberta", 24),
    "electra-large": ("electra", 24),
    "deberta-large": ("deberta-v2", 24),
    "modernbert-large": ("modernbert", 28),
    "gpt2-medium": ("gpt2", 24),
    "gpt2-xl": ("gpt2", 48),
    "gpt-neox-20b": ("gpt-neox", 44),
    "opt-13b": ("opt", 40),
    "llama-7b": ("llama", 32),
    "mistral-7b": ("mistral", 32),
    "qwen2-7b": ("qwen2", 28),
    "qwen3-14b": ("qwen3", 40),
    "gemma-7b": ("gemma", 28),
    "falcon-7b": ("falcon", 32),
    "mpt-7b": ("mpt", 32),
    "olmo2-7b": ("olmo2", 32),
    "mixtral-8x7b": ("mixtral", 32),
    "t5-large": ("t5", 24),
    "vit-large": ("vit", 24),
    "vit-huge": ("vit", 32),
    "beit-large": ("beit", 24),
    "dinov2-giant": ("dinov2", 40),
    "mamba-370m": ("mamba", 48),
    "rwkv-430m": ("rwkv", 24),
    "wav2vec2-large": ("wav2vec2", 24),
}


def _with_layers(settings: dict[str, Any], layers: int) -> dict[str, Any]:
    return {key: layers if key in _LAYERS else value for key, value in settings.items()}


def transformers_at_depth() -> dict[str, tuple[str, dict[str, Any]]]:
    """Class and settings by name: 12 layers where the configuration counts them, and the depths above."""
    found = {}
    for name, (class_name, settings) in TRANSFORMERS.items():
        if any(key in settings for key in _LAYERS) and "attention_types" not in settings:
            found[f"{name}, 12 layers"] = (class_name, _with_layers(settings, 12))
    for name, (base, layers) in _DEEP.items():
        class_name, settings = TRANSFORMERS[base]
        found[name] = (class_name, _with_layers(settings, layers))
    for name, (base, stages) in _STAGED.items():
        class_name, settings = TRANSFORMERS[base]
        found[name] = (class_name, {**settings, **stages})
    return found


class DenseNet(nn.Module):
    """Blocks in which every layer reads all before it (Huang et al. 2017)."""

    def __init__(self, depths: tuple[int, ...], growth: int = 8) -> None:
        super().__init__()
        width = 2 * growth
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stages, self.between = nn.ModuleList(), nn.ModuleList()
        for depth in depths:
            layers = nn.ModuleList(_dense(width + index * growth, growth) for index in range(depth))
            width += depth * growth
            self.stages.append(layers)
            narrow = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2))
            self.between.append(narrow)
            width //= 2
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 3, side, side) to (batch, 10)."""
        x = self.stem(x)
        for layers, narrow in zip(self.stages, self.between, strict=True):
            for layer in layers:
                x = torch.cat([x, layer(x)], 1)
            x = narrow(x)
        return self.head(x.mean((2, 3)))


def _dense(inside: int, growth: int) -> nn.Module:
    made = nn.Sequential(
        nn.BatchNorm2d(inside), nn.ReLU(), nn.Conv2d(inside, 4 * growth, 1, bias=False),
        nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
    )  # fmt: skip
    for layer in made:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return made


class Dilated(nn.Module):
    """Residual blocks of two dilated convolutions (Bai et al. 2018)."""

    def __init__(self, levels: int, width: int = 24) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(1, width, 1), nn.Linear(width, 3)
        pairs = ((2**level, 2**level) for level in range(levels))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    part
                    for dilation in pair
                    for part in (nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation), nn.ReLU(), nn.Dropout(0.1))
                )
            )
            for pair in pairs
        )

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, 1, length) to (batch, 3)."""
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x[..., -1])


def _images(batch: int, side: int) -> Tensor:
    return torch.randn(batch, 3, side, side)


def _resnets() -> dict[str, tuple[Callable[[], nn.Module], Any]]:
    depths = {
        "18": ((2, 2, 2, 2), False),
        "34": ((3, 4, 6, 3), False),
        "50": ((3, 4, 6, 3), True),
        "101": ((3, 4, 23, 3), True),
        "152": ((3, 8, 36, 3), True),
        "200": ((3, 24, 36, 3), True),
    }
    return {
        f"resnet{name}, {batch} of {side}": (
            lambda stages=stages, bottleneck=bottleneck: resnet(stages, bottleneck=bottleneck),
            (lambda batch=batch, side=side: _images(batch, side)),
        )
        for name, (stages, bottleneck) in depths.items()
        for batch, side in ((8, 64), (16, 32), (4, 96))
    }


PLAIN_DEEP: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    **_resnets(),
    "densenet121": (lambda: DenseNet((6, 12, 24, 16)), lambda: _images(8, 32)),
    "densenet201": (lambda: DenseNet((6, 12, 48, 32)), lambda: _images(8, 32)),
    "wavenet, 30 layers": (lambda: WaveNet(30), None),
    "tcn, 8 levels": (lambda: Dilated(8), lambda: torch.randn(8, 1, 300)),
    "tcn, 10 levels": (lambda: Dilated(10), lambda: torch.randn(8, 1, 300)),
    "mlp-mixer, 12 layers": (lambda: mlp_mixer(layers=12), None),
    "mlp-mixer, 24 layers": (lambda: mlp_mixer(layers=24), None),
    "4-layer LSTM": (lambda: Recurrent(nn.LSTM(32, 64, 4, batch_first=True), 100, vocabulary=100), None),
    "4-layer GRU": (lambda: Recurrent(nn.GRU(32, 64, 4, batch_first=True), 100, vocabulary=100), None),
    "4-layer LSTM, both directions": (
        lambda: Recurrent(nn.LSTM(32, 48, 4, batch_first=True, bidirectional=True), 9, last=True),
        None,
    ),
    "nn-transformer, 6 + 6": (lambda: nn.Transformer(64, 4, 6, 6, 128, batch_first=True), None),
    "nn-transformer, 12 + 12, pre-norm": (
        lambda: nn.Transformer(64, 4, 12, 12, 128, batch_first=True, norm_first=True),
        None,
    ),
}
"""Builders by name, with a function that makes the inputs where they cannot be inferred."""
