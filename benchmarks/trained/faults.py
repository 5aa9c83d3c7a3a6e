"""What can be planted: each fault with its strength, drawn from harmless to deadly, and the least that must be known to see it.

A planted fault need not hurt: the label of a case says what training came to.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from benchmarks.trained.families import build, places
from benchmarks.trained.spec import Spec, Surgery

RECURRENT = frozenset({"rnn", "lstm", "gru", "seq2seq"})
TOKENS = frozenset({"pre_transformer", "post_transformer", "seq2seq"})
SKIPS = frozenset({"resnet", "mixer", "pre_transformer", "moe"})
REGRESSIONS = frozenset({"mse", "l1", "huber"})


@dataclass(frozen=True)
class Fault:
    """A fault: what it is visible at, which cases may have it, how it is put in, and how often it is drawn among those."""

    visible: str
    fits: Callable[[Spec], bool]
    put: Callable[[Spec, random.Random], Spec]
    share: float = 1.0


def plant(spec: Spec, by: random.Random) -> Spec:
    """The case with one fault drawn from those that fit it."""
    names = [name for name, fault in FAULTS.items() if fault.fits(spec)]
    name = by.choices(names, [FAULTS[each].share for each in names])[0]
    return replace(FAULTS[name].put(spec, by), planted=name, visible=FAULTS[name].visible)


def _power(by: random.Random, low: float, high: float) -> float:
    return float(f"{10 ** by.uniform(low, high):.3g}")


def _shape(spec: Spec, strength: float, place: str = "", **changes: object) -> Spec:
    return replace(spec, architecture=replace(spec.architecture, **changes), strength=strength, place=place)  # type: ignore[arg-type]


def _problem(spec: Spec, strength: float, **changes: object) -> Spec:
    return replace(spec, problem=replace(spec.problem, **changes), strength=strength)  # type: ignore[arg-type]


def _loss(spec: Spec, strength: float, **changes: object) -> Spec:
    return replace(spec, loss=replace(spec.loss, **changes), strength=strength)  # type: ignore[arg-type]


def _training(spec: Spec, strength: float, **changes: object) -> Spec:
    return replace(spec, training=replace(spec.training, **changes), strength=strength)  # type: ignore[arg-type]


def _operation(spec: Spec, by: random.Random, kind: str, value: float, strength: float) -> Spec:
    with torch.random.fork_rng():
        place = by.choice(places(build(spec)))
    return replace(spec, surgery=(Surgery(place, kind, value),), strength=strength, place=place)


def _gain_large(spec: Spec, by: random.Random) -> Spec:
    # A gain acts once a layer, so that its strength is that of the whole depth.
    depth = max(2, spec.architecture.depth)
    gain = float(f"{10 ** (by.uniform(0.8, 15) / (depth + 4)):.3g}")
    return _shape(spec, gain, gain=gain, norm="none")


def _gain_small(spec: Spec, by: random.Random) -> Spec:
    depth = max(2, spec.architecture.depth)
    gain = float(f"{10 ** (-by.uniform(4, 26) / (depth + 4)):.3g}")
    return _shape(spec, gain, gain=gain, norm=by.choice(("none", "none", spec.architecture.norm)))


def _layer_large(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 0.8, 5)
    spec = _shape(spec, strength, norm=by.choice(("none", "none", "none", spec.architecture.norm)))
    return _operation(spec, by, "scale", strength, strength)


def _layer_small(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, -9, -0.5)
    return _operation(spec, by, "scale", strength, strength)


def _constant(spec: Spec, by: random.Random) -> Spec:
    value = by.choice((0.0, 0.0, 0.0, 0.001, 0.03, 0.3))
    if by.random() < 0.75:
        return replace(spec, surgery=(Surgery("", "constant", value),), strength=value)
    return _operation(spec, by, "constant", value, value)


def _too_deep(spec: Spec, by: random.Random) -> Spec:
    low, high = (6, 20) if spec.family in {"cnn", "autoencoder", "vae", "contrastive", "gnn"} else (12, 60)
    if spec.family in SKIPS | {"unet"}:
        low, high = (2, 6) if spec.family == "unet" else (4, 12)
    depth = round(low * (high / low) ** (by.random() ** 1.3))
    act = by.choice(("relu", "relu", "tanh", "sigmoid", "sigmoid", "gelu", "softsign"))
    return _shape(
        spec,
        depth,
        depth=depth,
        act=act,
        norm="none",
        residual=False,
        branch=1.0,
        init=by.choice(("default", "default", "xavier")),
    )


def _no_norm(spec: Spec, by: random.Random) -> Spec:
    low, high = (
        (4, 12)
        if spec.family in SKIPS | {"cnn", "densenet", "post_transformer"}
        else (1, 5)
        if spec.family == "unet"
        else (4, 28)
    )
    depth = round(low * (high / low) ** by.random())
    return _shape(spec, depth, depth=depth, norm="none", branch=1.0, residual=True)


def _saturating(spec: Spec, by: random.Random) -> Spec:
    gain = _power(by, 0, 1.3)
    act = by.choice(("sigmoid", "sigmoid", "tanh", "hardtanh"))
    return _shape(
        spec, gain, act=act, gain=gain, norm="none", residual=False, depth=max(spec.architecture.depth, by.choice((4, 6, 8, 10)))
    )


def _branch(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 0.5, 2.5)
    return _shape(spec, strength, branch=strength, norm=by.choice(("none", "none", spec.architecture.norm)))


def _dead(spec: Spec, by: random.Random) -> Spec:
    strength = -_power(by, 0, 2)
    spec = _shape(spec, strength, act="relu", norm="none", residual=False, depth=min(spec.architecture.depth, 8))
    if by.random() < 0.4:
        return _operation(spec, by, "bias", strength, strength)
    return replace(spec, surgery=(Surgery("", "bias", strength),))


def _super_linear(spec: Spec, by: random.Random) -> Spec:
    act = by.choice(("square", "cube", "exp", "tenfold_silu"))
    depth = min(spec.architecture.depth, by.choice((2, 3, 4, 6, 8)))
    norm = by.choice(("none", "none", spec.architecture.norm))
    return _shape(spec, depth, act=act, depth=depth, norm=norm, gain=by.choice((1.0, 1.0, 1.5, 2.5)))


def _recurrence(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 0.3, 1.7 if spec.family == "rnn" else 2.3)
    return _shape(spec, strength, "encoder" if spec.family == "seq2seq" else "rnn", recurrent=strength)


def _relu_cell(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 0, 0.9)
    return _shape(spec, strength, "rnn", recurrent=strength, relu_cell=True)


def _gate(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 0.6, 2) * by.choice((-1, -1, 1))
    depth = spec.architecture.depth if spec.family in RECURRENT else max(6, spec.architecture.depth)
    return _shape(spec, strength, "rnn" if spec.family in RECURRENT else "", gate_bias=strength, depth=depth)


def _logits(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 1, 5)
    return _shape(spec, strength, logits=strength)


def _embedding(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 1, 5.5) if by.random() < 0.8 else _power(by, -5, -1)
    place = "source" if spec.family == "seq2seq" else "embed"
    norm = spec.architecture.norm if by.random() < 0.5 else "none"
    return _shape(spec, strength, place, embedding=strength, norm=norm)


def _frequency(spec: Spec, by: random.Random) -> Spec:
    if by.random() < 0.4:
        return _shape(spec, 1.0, act=by.choice(("relu", "tanh", "sigmoid")), depth=max(4, spec.architecture.depth))
    strength = _power(by, 1.2, 3)
    return _shape(spec, strength, omega=strength, init=by.choice(("default", "xavier")))


def _cut(spec: Spec, by: random.Random) -> Spec:
    return _operation(spec, by, "cut", 0.0, 1.0)


def _input_large(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 1, 5.5)
    spec = _shape(spec, strength, norm=by.choice(("none", "none", spec.architecture.norm)))
    return _problem(spec, strength, input_scale=strength)


def _input_small(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, -8, -2.5)
    return _problem(spec, strength, input_scale=strength)


def _input_offset(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 1, 4.3) * by.choice((-1, 1))
    return _problem(spec, strength, input_offset=strength)


def _target(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 1, 5) if by.random() < 0.8 else _power(by, -5, -1.5)
    return _problem(spec, strength, target_scale=strength)


def _summed(spec: Spec, _: random.Random) -> Spec:
    return _loss(spec, float(spec.batch), summed=True)


def _double(spec: Spec, by: random.Random) -> Spec:
    return _shape(_loss(spec, 1.0), 1.0, "softmax", softmax=True, gain=by.choice((1.0, 1.0, 3.0)))


def _log(spec: Spec, by: random.Random) -> Spec:
    gain = by.choice((1.0, 2.0, 4.0, 8.0))
    spec = _shape(spec, gain, "softmax", softmax=True, norm="none")
    return replace(_loss(spec, gain, log=True), surgery=(Surgery("head", "scale", gain**3),))


def _weight(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 0.7, 4) if by.random() < 0.5 else _power(by, -8, -2)
    return _loss(spec, strength, weight=strength)


def _lr(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 0.9, 3.7)
    return _training(spec, strength, lr=float(f"{spec.training.lr * strength:.2g}"))


def _no_warmup(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, 0.3, 1.7)
    spec = _shape(spec, strength, depth=max(spec.architecture.depth, by.choice((3, 4, 6))))
    return _training(spec, strength, lr=float(f"{spec.training.lr * strength:.2g}"), warmup=0, clip_norm=None)


def _momentum(spec: Spec, by: random.Random) -> Spec:
    momentum, factor = by.choice((0.97, 0.99, 0.995)), _power(by, 0, 1.8)
    return _training(spec, momentum, momentum=momentum, lr=float(f"{spec.training.lr * factor:.2g}"))


def _clip(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, -8, -2.5)
    return _training(spec, strength, **{by.choice(("clip_norm", "clip_value")): strength})


def _underflow(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, -10, -4)
    return _training(_loss(spec, strength, weight=strength), strength, precision="fp16")


def _overflow(spec: Spec, by: random.Random) -> Spec:
    strength = float(2 ** by.randint(8, 26))
    return _training(spec, strength, precision="fp16", loss_scale=strength)


def _eps(spec: Spec, by: random.Random) -> Spec:
    strength = _power(by, -1.5, 4)
    return _training(spec, strength, eps=strength)


def _decay(spec: Spec, by: random.Random) -> Spec:
    # What the weights lose in a step is rate x decay for decoupled decay, and competes with the gradient otherwise.
    strength = _power(by, -0.9, 1.8)
    decay = (
        strength
        if spec.training.optimizer not in {"adamw", "lion", "muon"}
        else float(f"{0.1 * strength / spec.training.lr:.3g}")
    )
    return _training(spec, decay, weight_decay=decay)


def _tiny_batch(spec: Spec, by: random.Random) -> Spec:
    strength = by.choice((2, 2, 3, 4))
    spec = _training(spec, strength, lr=float(f"{spec.training.lr * _power(by, 0, 1):.2g}"))
    return replace(spec, batch=strength)


def _omits(spec: Spec, by: random.Random) -> Spec:
    with torch.random.fork_rng():
        names = [name for name, _ in build(spec).named_parameters()]
    roots = sorted({name.split(".")[0] for name in names})
    kept = by.choice(roots) if by.random() < 0.4 else by.choice(names)
    omitted = (
        [name for name in names if not name.startswith(kept)]
        if by.random() < 0.7
        else [name for name in names if name.startswith(kept)]
    )
    tops = sorted({name.split(".")[0] for name in omitted}) if by.random() < 0.3 else omitted
    tops = tops if len(tops) < len(roots) or tops is omitted else omitted
    return _training(spec, len(omitted) / len(names), omits=tuple(tops))


def _floating(spec: Spec) -> bool:
    return spec.family not in TOKENS


def _sgd(spec: Spec) -> bool:
    return spec.training.optimizer in {"sgd", "nesterov"}


def _half(spec: Spec) -> bool:
    return spec.training.optimizer != "lbfgs" and spec.family not in RECURRENT  # not every processor has these cells in half


def _classes(spec: Spec) -> bool:
    return spec.loss.name == "ce" and spec.family not in {"seq2seq", "gnn"}  # a softmax takes one input


def _chain(spec: Spec) -> bool:
    return spec.family not in RECURRENT | {"densenet", "flow", "highway", "siren", "post_transformer"}


def _residual(spec: Spec) -> bool:
    return spec.architecture.residual or spec.family in {"densenet", "flow"}


def _activated(spec: Spec) -> bool:
    return spec.family not in RECURRENT | {"siren"}


FAULTS = {
    "gain too large": Fault("model", lambda spec: spec.family != "siren", _gain_large, 2.2),
    "gain too small": Fault("model", lambda spec: spec.family != "siren", _gain_small, 1.4),
    "one layer too large": Fault("model", lambda _: True, _layer_large, 1.4),
    "one layer too small": Fault("model", lambda _: True, _layer_small, 0.3),
    "constant start": Fault("model", lambda _: True, _constant, 0.8),
    "too deep": Fault("model", _chain, _too_deep, 1.8),
    "norm missing": Fault("model", lambda spec: _residual(spec) and spec.family != "flow", _no_norm, 1.2),
    "saturating chain": Fault("model", _chain, _saturating),
    "branch too large": Fault("model", _residual, _branch, 1.5),
    "dead units": Fault("model", _activated, _dead, 1.3),
    "super-linear activation": Fault("model", _activated, _super_linear),
    "recurrence too large": Fault("model", lambda spec: spec.family in RECURRENT, _recurrence, 1.6),
    "unbounded recurrence": Fault("model", lambda spec: spec.family == "rnn", _relu_cell, 3.0),
    "gate bias": Fault("model", lambda spec: spec.family in {"lstm", "gru", "highway"}, _gate, 1.5),
    "attention logits": Fault("model", lambda spec: spec.family in TOKENS | {"moe"}, _logits, 1.5),
    "embedding scale": Fault("model", lambda spec: spec.family in TOKENS, _embedding, 2.0),
    "frequency": Fault("model", lambda spec: spec.family == "siren", _frequency, 4.0),
    "cut": Fault("model", lambda _: True, _cut, 0.9),
    "input too large": Fault("model", _floating, _input_large, 0.9),
    "input too small": Fault("model", _floating, _input_small, 0.5),
    "input offset": Fault("model", _floating, _input_offset, 1.0),
    "target scale": Fault("loss", lambda spec: spec.loss.name in REGRESSIONS, _target, 3.2),
    "summed loss": Fault("loss", lambda spec: spec.loss.name in REGRESSIONS | {"ce", "bce"}, _summed, 0.4),
    "softmax twice": Fault("loss", _classes, _double, 1.0),
    "unguarded log": Fault("loss", _classes, _log, 2.0),
    "loss weight": Fault("loss", _sgd, _weight, 2.2),
    "rate too high": Fault("recipe", lambda spec: spec.training.optimizer != "lbfgs", _lr, 3.4),
    "no warm-up": Fault("recipe", lambda spec: spec.family == "post_transformer", _no_warmup, 3.0),
    "momentum too high": Fault("recipe", _sgd, _momentum, 2.0),
    "clipping too tight": Fault("recipe", lambda spec: spec.training.optimizer in {"sgd", "nesterov", "adagrad"}, _clip, 1.5),
    "half precision underflow": Fault("recipe", lambda spec: _half(spec) and not _sgd(spec), _underflow, 0.5),
    "loss scale overflow": Fault("recipe", _half, _overflow, 0.5),
    "epsilon": Fault("recipe", lambda spec: spec.training.optimizer in {"adam", "adamw", "rmsprop"}, _eps, 1.2),
    "weight decay": Fault("recipe", lambda spec: spec.training.optimizer != "lbfgs", _decay, 1.5),
    "batch too small": Fault("recipe", lambda spec: spec.family != "contrastive", _tiny_batch, 0.3),
    "parameters left out": Fault("recipe", lambda _: True, _omits, 1.2),
}
