"""Builders of networks, by family: `build(spec)` makes the network of a case, with what was planted in it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.trained.data import sizes
from benchmarks.trained.families import images, plain, sequences
from benchmarks.trained.families.parts import mixing, start
from benchmarks.trained.spec import Architecture, Spec, Surgery

_MAKERS: dict[str, Callable[[Architecture, int, int], nn.Module]] = {
    "mlp": plain.MLP,
    "highway": plain.Highway,
    "moe": plain.MoE,
    "hypernet": plain.Hypernet,
    "siren": plain.Siren,
    "autoencoder": plain.Autoencoder,
    "vae": plain.VAE,
    "flow": plain.Flow,
    "contrastive": plain.Towers,
    "cnn": images.CNN,
    "resnet": images.ResNet,
    "densenet": images.DenseNet,
    "unet": images.UNet,
    "mixer": images.Mixer,
    "seq2seq": sequences.Seq2Seq,
    "gnn": sequences.GNN,
}


class Cut(nn.Module):
    """A module whose output is detached."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Tensor:
        """As the module inside."""
        return self.inner(*args).detach()


def build(spec: Spec) -> nn.Module:
    """The network of the case, drawn from torch's generator, in train mode."""
    shape, family = spec.architecture, spec.family
    inputs, outputs = sizes(spec.problem.kind)
    model: nn.Module
    if family in {"rnn", "lstm", "gru"}:
        model = sequences.Recurrent(family, shape, inputs, outputs)
    elif family in {"pre_transformer", "post_transformer"}:
        causal = spec.problem.kind == "markov"
        model = sequences.Transformer(shape, outputs, first=family == "pre_transformer", causal=causal)
    else:
        model = _MAKERS[family](shape, inputs, outputs)
    start(model, shape)
    for each in spec.surgery:
        _operate(model, each)
    return nn.Sequential(OrderedDict(net=model, softmax=nn.Softmax(-1))) if shape.softmax else model


def places(model: nn.Module) -> list[str]:
    """Paths of modules that surgery may change."""
    return [name for name, _ in mixing(model)]


def _operate(model: nn.Module, each: Surgery) -> None:
    if each.kind == "cut":
        parent, _, name = each.place.rpartition(".")
        holder = model.get_submodule(parent)
        setattr(holder, name, Cut(holder.get_submodule(name)))
        return
    with torch.no_grad():
        for name, module in mixing(model):
            if each.place in {"", name}:
                if each.kind == "scale":
                    module.weight.mul_(each.by)
                elif each.kind == "constant":
                    module.weight.fill_(each.by)
                elif module.bias is not None:
                    module.bias.fill_(each.by)
