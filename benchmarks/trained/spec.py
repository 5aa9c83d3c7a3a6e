"""What one case of the benchmark is: a network, its task, loss and recipe in plain numbers, and which families are held out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

# Fixed before anything was fitted. Each kind (convolution, recurrence, attention, residual, gated, custom loss) is on both sides,
# so that what is held out is new in its form and not in its kind.
FIT = (
    "mlp",
    "cnn",
    "resnet",
    "densenet",
    "rnn",
    "lstm",
    "pre_transformer",
    "autoencoder",
    "vae",
    "gnn",
    "seq2seq",
    "siren",
    "highway",
)
TEST = ("unet", "mixer", "gru", "post_transformer", "flow", "contrastive", "hypernet", "moe")
FAMILIES = FIT + TEST


@dataclass(frozen=True)
class Architecture:
    """The numbers that a family builds a network from.

    Attributes:
        depth: Blocks of the trunk; layers of a recurrence; couplings of a flow.
        width: Units or channels of a block.
        act: Name of an activation in `families.parts`.
        init: "default" (torch's), "kaiming", "xavier", "orthogonal".
        norm: "none", "layer", "batch" or "rms".
        residual: Whether blocks add their input.
        branch: Factor of what a residual block adds.
        gain: Factor of every initial weight matrix.
        gate_bias: Initial bias of forget, update and carry gates, or None for the usual one.
        logits: Factor of attention logits beside 1 / sqrt(width of a head).
        embedding: Standard deviation of the initial embedding.
        recurrent: Factor of initial recurrent weights.
        omega: Frequency of a sine layer.
        relu_cell: Whether a plain recurrence applies ReLU instead of tanh.
        softmax: Whether the network ends in a softmax.
    """

    depth: int
    width: int
    act: str = "relu"
    init: str = "default"
    norm: str = "none"
    residual: bool = False
    branch: float = 1.0
    gain: float = 1.0
    gate_bias: float | None = None
    logits: float = 1.0
    embedding: float = 1.0
    recurrent: float = 1.0
    omega: float = 8.0
    relu_cell: bool = False
    softmax: bool = False


@dataclass(frozen=True)
class Problem:
    """The task: its kind (a function of `data`), and the scale and offset of inputs and targets."""

    kind: str
    input_scale: float = 1.0
    input_offset: float = 0.0
    target_scale: float = 1.0


@dataclass(frozen=True)
class Loss:
    """The loss: its name in `losses`, whether it sums instead of averaging, its weight, and whether it takes an unguarded log."""

    name: str
    summed: bool = False
    weight: float = 1.0
    log: bool = False


@dataclass(frozen=True)
class Training:
    """The recipe: the optimizer and its settings, schedule, clipping and precision.

    `omits` are prefixes of the names of parameters that the optimizer is not given.
    """

    optimizer: str
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    eps: float = 1e-8
    warmup: int = 0
    cosine: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None
    precision: str = "fp32"
    loss_scale: float | None = None
    omits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surgery:
    """A change of one module after it is built.

    Attributes:
        place: Path of the module; "" for every weight matrix.
        kind: "scale" (its weights times `by`), "constant" (its weights become `by`), "bias" (its bias becomes `by`) or "cut" (no
            gradient passes).
        by: A number.
    """

    place: str
    kind: str
    by: float = 0.0


@dataclass(frozen=True)
class Spec:
    """One case.

    `planted` names the cause that was planted ("" in an intact case), `strength` its size, `place` the path of the module that it
    sits in ("" if everywhere or in no module). `visible` is the least that must be known to see it: "model" (with inputs), "loss"
    (with targets) or "recipe"; "" in an intact case.
    """

    number: int
    family: str
    seed: int
    architecture: Architecture
    problem: Problem
    loss: Loss
    training: Training
    batch: int
    steps: int
    planted: str = ""
    strength: float = 0.0
    place: str = ""
    visible: str = ""
    surgery: tuple[Surgery, ...] = field(default=())

    @property
    def split(self) -> str:
        """The side that the family is on: "fit" or "test"."""
        return "fit" if self.family in FIT else "test"


def as_json(spec: Spec) -> dict[str, Any]:
    """The spec as a table that JSON can hold, without what is at its default."""
    return {name: value for name, value in _sparse(spec).items() if value != ()}


def _sparse(record: Any) -> dict[str, Any]:
    table = {}
    for name, value in asdict(record).items():
        held = getattr(record, name)
        usual = type(record).__dataclass_fields__[name].default
        if hasattr(held, "__dataclass_fields__"):
            table[name] = _sparse(held)
        elif held != usual:
            table[name] = value
    return table


def from_json(table: dict[str, Any]) -> Spec:
    """The spec that `as_json` wrote."""
    training = dict(table["training"])
    training["omits"] = tuple(training.get("omits", ()))
    return Spec(
        **{
            **table,
            "architecture": Architecture(**table["architecture"]),
            "problem": Problem(**table["problem"]),
            "loss": Loss(**table["loss"]),
            "training": Training(**training),
            "surgery": tuple(Surgery(**each) for each in table.get("surgery", ())),
        }
    )
