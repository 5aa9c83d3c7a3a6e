"""Draws cases: a network, task and recipe that are sensible for their family, and, in most, one fault."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from benchmarks.trained.faults import RECURRENT, plant
from benchmarks.trained.spec import FAMILIES, Architecture, Loss, Problem, Spec, Training

PLANTED = 0.93  # share of cases that get a fault; many of these faults do nothing
GENTLE = ("adam", "adam", "adamw", "adamw", "rmsprop", "adagrad", "lion", "muon")
ANY = (
    "sgd",
    "sgd",
    "momentum",
    "momentum",
    "nesterov",
    "adam",
    "adam",
    "adamw",
    "rmsprop",
    "adagrad",
    "adadelta",
    "lion",
    "muon",
    "lbfgs",
)
# What each optimizer usually takes, on networks of this size.
_RATES = {
    "sgd": 0.1,
    "momentum": 0.03,
    "nesterov": 0.03,
    "adam": 3e-3,
    "adamw": 3e-3,
    "rmsprop": 1.5e-3,
    "adagrad": 0.03,
    "adadelta": 1.0,
    "lion": 1e-3,
    "muon": 0.02,
    "lbfgs": 0.4,
}
_SMOOTH = ("relu", "relu", "gelu", "silu", "leaky", "elu", "tanh")
_VECTORS = (("clusters", "ce"), ("teacher", "mse"), ("signs", "bce"), ("teacher", "l1"), ("teacher", "huber"))
_IMAGES = (("patterns", "ce"), ("patterns", "ce"), ("mixture", "mse"))
_SEQUENCES = (("trend", "ce"), ("total", "mse"))


@dataclass(frozen=True)
class Family:
    """What a family draws from; depths are drawn in their logarithm, the small ones more often."""

    tasks: tuple[tuple[str, str], ...]
    depths: tuple[int, int]
    widths: tuple[int, ...]
    acts: tuple[str, ...] = _SMOOTH
    norms: tuple[str, ...] = ("none", "layer", "batch", "rms")
    residual: float = 0.5
    optimizers: tuple[str, ...] = ANY
    batches: tuple[int, ...] = (32, 48, 64)
    steps: int = 120
    speed: float = 1.0


_TABLE = {
    "mlp": Family(_VECTORS, (2, 48), (24, 32, 48, 64)),
    "highway": Family(_VECTORS, (2, 30), (24, 32, 48), norms=("none", "none", "layer")),
    "moe": Family(
        (("pieces", "mse"), ("clusters", "ce"), ("pieces", "huber")), (1, 4), (16, 24, 32), norms=("none", "layer"), residual=1.0
    ),
    "hypernet": Family((("context", "mse"), ("context", "l1")), (1, 16), (24, 32, 48)),
    "siren": Family((("signal", "mse"), ("signal", "l1")), (2, 8), (32, 48), ("sine",), ("none",), 0.0, GENTLE, (128,), 150, 0.5),
    "autoencoder": Family((("rebuild", "mse"), ("rebuild", "l1")), (1, 12), (32, 48, 64)),
    "vae": Family((("rebuild", "elbo"),), (1, 8), (32, 48, 64), optimizers=GENTLE),
    "flow": Family((("density", "nll"),), (2, 12), (16, 24, 32), norms=("none",), residual=0.0, optimizers=GENTLE, batches=(64,)),
    "contrastive": Family((("views", "infonce"),), (1, 12), (24, 32, 48), batches=(32, 64)),
    "cnn": Family(_IMAGES, (2, 20), (8, 12), norms=("none", "layer", "batch")),
    "resnet": Family(_IMAGES, (1, 10), (8, 12), ("relu", "relu", "silu"), ("batch", "batch", "layer"), 1.0),
    "densenet": Family(_IMAGES, (2, 12), (8, 12), ("relu", "relu", "gelu"), ("batch", "batch", "layer"), 0.0),
    "unet": Family(
        (("denoise", "mse"), ("mask", "bce"), ("denoise", "l1")), (1, 4), (8, 12), norms=("none", "batch", "layer"), batches=(24,)
    ),
    "mixer": Family(_IMAGES, (1, 10), (16, 24), ("gelu", "relu", "silu"), ("layer", "layer", "rms"), 1.0, batches=(24, 32)),
    "rnn": Family(_SEQUENCES, (1, 3), (24, 32, 48), ("tanh",), ("none",), 0.0),
    "lstm": Family(_SEQUENCES, (1, 3), (24, 32), ("tanh",), ("none",), 0.0, GENTLE),
    "gru": Family(_SEQUENCES, (1, 3), (24, 32), ("tanh",), ("none",), 0.0, GENTLE),
    "seq2seq": Family((("translate", "ce"),), (1, 2), (24, 32), ("tanh", "relu"), ("none",), 0.0, GENTLE, speed=2.0),
    "pre_transformer": Family(
        (("markov", "ce"), ("topic", "ce")), (1, 8), (24, 32), ("gelu", "relu"), ("layer", "layer", "rms"), 1.0, GENTLE, (24,)
    ),
    "post_transformer": Family(
        (("markov", "ce"), ("topic", "ce")), (1, 6), (24, 32), ("gelu", "relu"), ("layer",), 1.0, GENTLE, (24,), speed=0.6
    ),
    "gnn": Family((("nodes", "ce"), ("levels", "mse")), (1, 16), (16, 24, 32), batches=(24, 32)),
}


# From this round through the families on, in each second one, costly families leave their turn to a deep network of a cheap one.
DEEP_FROM, DEEP = 24, (12, 56)
_DEEP_INSTEAD = {
    "cnn": "mlp",
    "seq2seq": "mlp",
    "pre_transformer": "highway",
    "densenet": "gnn",
    "unet": "contrastive",
    "mixer": "contrastive",
    "gru": "hypernet",
    "post_transformer": "hypernet",
}


def _turn(number: int) -> tuple[str, Family]:
    turn, name = number // len(FAMILIES), FAMILIES[number % len(FAMILIES)]
    if turn >= DEEP_FROM and turn % 2 and name in _DEEP_INSTEAD:
        name = _DEEP_INSTEAD[name]
        return name, replace(_TABLE[name], depths=DEEP)
    return name, _TABLE[name]


def draw(number: int, *, intact: bool = False) -> Spec:
    """The case of that number, the same at every call; with `intact`, before a fault is planted."""
    by = random.Random(7919 * number + 13)  # noqa: S311 - a benchmark, no secret
    name, family = _turn(number)
    shape = _architecture(by, family)
    kind, loss = by.choice(family.tasks)
    training, steps = _training(by, family, shape)
    spec = Spec(
        number=number,
        family=name,
        seed=number,
        architecture=shape,
        problem=Problem(kind),
        loss=Loss(loss),
        training=training,
        batch=256 if training.optimizer == "lbfgs" else by.choice(family.batches),
        steps=steps,
    )
    return plant(spec, by) if not intact and by.random() < PLANTED else spec


def _architecture(by: random.Random, family: Family) -> Architecture:
    low, high = family.depths
    depth = round(low * ((high + 0.49) / low) ** (by.random() ** 1.4))
    act, norm = by.choice(family.acts), by.choice(family.norms)
    residual = by.random() < family.residual
    deep = depth > 6
    if deep and family.residual < 1:
        # Deep chains train with skips; without them only at the right start.
        residual = family.residual > 0 and (depth > 12 or by.random() < 0.7)
    rectifies = act in {"relu", "leaky", "gelu", "silu", "elu"}
    good = ("kaiming", "orthogonal") if rectifies else ("xavier", "orthogonal")
    init = by.choice(good) if deep and not residual else by.choice(("default", *good))
    if act == "sine":
        init = "default"
    if deep and not residual and norm == "none" and act in {"gelu", "silu", "elu"}:
        act = "relu"
    return Architecture(
        depth=depth,
        width=by.choice(family.widths),
        act=act,
        init=init,
        norm=norm,
        residual=residual,
        branch=round(1 / math.sqrt(depth + 1), 3) if residual and (norm == "none" or depth > 10) else 1.0,
        embedding=by.choice((0.5, 1.0)),
    )


def _training(by: random.Random, family: Family, shape: Architecture) -> tuple[Training, int]:
    name = by.choice(family.optimizers)
    if name == "lbfgs" and (shape.depth > 6 or shape.norm == "batch"):
        name = "adam"
    lr = _RATES[name] * family.speed * 10 ** by.uniform(-0.15, 0.25) / max(1.0, shape.depth / 8) ** 0.5
    steps = family.steps
    training = Training("sgd" if name == "momentum" else name, float(f"{lr:.2g}"))
    if name in {"momentum", "nesterov"}:
        training = replace(training, momentum=0.9)
    if name == "lbfgs":
        return training, steps // 5
    if name == "adamw" or by.random() < 0.15:
        training = replace(training, weight_decay=by.choice((1e-4, 1e-3, 1e-2) if name == "adamw" else (1e-5, 1e-4)))
    schedule = by.random()
    if schedule < 0.35:
        training = replace(training, warmup=steps // 10 if schedule < 0.2 else 0, cosine=schedule > 0.1)
    if by.random() < 0.2:
        training = replace(training, clip_norm=by.choice((1.0, 1.0, 5.0)))
    if by.random() < 0.08 and family not in (_TABLE[name] for name in RECURRENT):  # not every processor has these cells in half
        training = replace(training, precision="bf16")
    return training, steps + (30 if name == "sgd" else 0)
