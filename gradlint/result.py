"""Plain data that the parts hand to one another and to the user. Nothing here computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from gradlint.graph import Source
from gradlint.measurements.curvature import Curvature
from gradlint.measurements.loss import InputFacts, LossFacts
from gradlint.measurements.numbers import Headroom, Range, Suspect
from gradlint.measurements.rehearsal import Rehearsal
from gradlint.measurements.reinitialization import Redraws
from gradlint.measurements.segments import Segment
from gradlint.measurements.units import Units, ZeroGradient
from gradlint.recipe import Recipe

if TYPE_CHECKING:
    from gradlint.theory.reading.attribution import Attribution
    from gradlint.theory.reading.stacks import Stack


class Verdict(StrEnum):
    """What the model's gradients do."""

    HEALTHY = "healthy"
    EXPLODES = "explodes"
    VANISHES = "vanishes"
    NON_FINITE = "non-finite"
    UNKNOWN = "unknown"


class Severity(StrEnum):
    """How bad a finding is: an error alone is likely to make training fail."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """0 for error, growing as findings get milder."""
        return list(Severity).index(self)


class Confidence(StrEnum):
    """Whether the probe was asked, and what it said."""

    MEASURED = "measured"
    PREDICTED = "predicted"
    REFUTED = "refuted"


class Effect(StrEnum):
    """What a rule claims that a cause does to the gradient; the probe checks the claim."""

    EXPLODES = "explodes"
    VANISHES = "vanishes"
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class Place:
    """A node and its module path, as reports show it."""

    node: str
    module: str = ""


@dataclass(frozen=True, slots=True)
class Jump:
    """One spine step over a decade."""

    place: Place
    decades: float


@dataclass(frozen=True, slots=True)
class Growth:
    """Sustained growth of the gradient over a chain of nodes, in decades (DESIGN section 5); positive explodes towards the input.

    `start` is the end of the run nearer to the input. `total` is B(first) - B(last), `spread` the largest deviation between
    seeds, `relative` the same growth read from the relative gain, `per_step` decades per time step of a recurrence.
    `interval` holds a prediction with 90 % probability.
    """

    decades: float
    rise: float = 0.0
    fall: float = 0.0
    total: float = 0.0
    spread: float | None = None
    relative: float | None = None
    per_step: float | None = None
    start: Place | None = None
    end: Place | None = None
    jumps: tuple[Jump, ...] = ()
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Gains:
    """What one node does, in decades, median over seeds. None where it was not measured.

    `backward` is -inf for a gradient that is exactly zero; any of them is inf or NaN where the run was.
    """

    backward: float | None = None
    forward: float | None = None
    relative: float | None = None


@dataclass(frozen=True, slots=True)
class NonFinite:
    """The first operator that makes a NaN or an infinity out of finite operands."""

    node: str
    kind: str  # "NaN" or "infinity"
    operands: tuple[tuple[float, float], ...] = ()  # (min, max) of each float operand

    @property
    def given(self) -> str:
        """The operands for a message, " (operands in [-3, 5], [0, 0])", or nothing where there is none."""
        operands = ", ".join(f"[{low:.3g}, {high:.3g}]" for low, high in self.operands)
        return f" (operands in {operands})" if operands else ""


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where the gradient stops although trainable weights lie before it."""

    node: str
    cause: str  # "detach", "argmax", "round", "no-grad region", "zero weight", "zero gradient", ...
    starved: tuple[str, ...] = ()  # weights that get no gradient because of it
    on_spine: bool = False

    @property
    def stops_all(self) -> bool:
        """Whether nothing before it can learn. A no-grad region is left out: it is written on purpose, around a frozen part."""
        return self.on_spine and bool(self.starved) and self.cause != "no-grad region"


@dataclass(frozen=True, slots=True)
class TimeGrowth:
    """Growth along the time axis of one recurrence: `backward` has one value per step, the last step last.

    `backward` are decades for a unit cotangent on the last step, in the order of processing: of the "reverse" `direction` that
    is the first step of the sequence. `slope` is in decades per step, positive when the gradient grows towards the first step,
    `slope_error` its standard error, `horizon` the steps until three decades are gained or lost. `lyapunov` are the largest
    exponents of the state in nats per step, where the cell is known. `axis` is the time axis of the sequence, None for a loop
    that no sequence feeds.
    """

    node: str
    backward: tuple[float, ...]
    growth: Growth
    slope: float | None = None
    slope_error: float | None = None
    horizon: float | None = None
    lyapunov: tuple[float, ...] = ()
    axis: int | None = None
    steps: int = 0
    direction: str = "forward"


_OBSERVED = ("inputs", "loss", "curvature", "rehearsal", "suspects", "headroom", "units", "idle", "segments", "redraws")


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the probe saw."""

    gains: Mapping[str, Gains]
    spine: tuple[str, ...]
    trunk: tuple[str, ...]
    growth: Growth
    seeds: int
    time: tuple[TimeGrowth, ...] = ()
    nonfinite_forward: NonFinite | None = None
    nonfinite_backward: NonFinite | None = None
    cuts: tuple[Cut, ...] = ()
    dead: bool = False  # no weight of the model can get a gradient that is not zero
    stopped_at: str | None = None  # the operator that the evaluator could not run
    ran: frozenset[str] = frozenset()
    live: frozenset[str] | None = None  # nodes whose output requires grad; None: all
    by_cuts: bool = False  # growth was read from cuts by depth, for want of a spine
    notes: tuple[str, ...] = ()
    units: tuple[Units, ...] = ()
    idle: tuple[ZeroGradient, ...] = ()
    segments: tuple[Segment, ...] = ()
    redraws: Redraws | None = None
    inputs: tuple[InputFacts, ...] = ()
    loss: LossFacts | None = None
    curvature: Curvature | None = None
    rehearsal: Rehearsal | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    suspects: tuple[Suspect, ...] = ()
    headroom: Headroom | None = None

    @property
    def observed(self) -> Mapping[str, Any]:
        """What observers and experiments found, by field; without what found nothing."""
        return {name: value for name in _OBSERVED if (value := getattr(self, name))}

    def backward(self, node: str) -> float | None:
        """Backward gain at a node in decades."""
        gains = self.gains.get(node)
        return None if gains is None else gains.backward


@dataclass(frozen=True, slots=True)
class Remedy:
    """What to do about a finding; `verified` holds growth before and after, where it was tried."""

    summary: str
    edits: tuple[Mapping[str, Any], ...] = ()
    verified: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule has to say about one place.

    `nodes` are all places that it covers, in execution order; the first is where reports point. `effect` and `span` (first and
    last node) are the claim that the probe can check. `caused_by` is the code of the rule that explains this symptom. `verdict`
    and `states_growth` are what its rule declares of it; see `gradlint.rule.Rule`. They are not part of the reports.
    """

    rule: str
    name: str
    severity: Severity
    message: str
    nodes: tuple[str, ...] = ()
    module: str = ""
    source: Source | None = None
    confidence: Confidence = Confidence.PREDICTED
    evidence: Mapping[str, Any] = field(default_factory=dict)
    remedy: Remedy | None = None
    effect: Effect | None = None
    span: tuple[str, str] | None = None
    caused_by: str | None = None
    fingerprint: str = ""
    verdict: Verdict | None = None
    states_growth: bool = False

    @property
    def node(self) -> str | None:
        """Id of the node that reports point at."""
        return self.nodes[0] if self.nodes else None

    @property
    def file(self) -> str | None:
        """File of the user's line."""
        return self.source.file if self.source else None

    @property
    def line(self) -> int | None:
        """The user's line."""
        return self.source.line if self.source else None

    @property
    def decades(self) -> float:
        """Decades of growth that the finding explains; findings are ordered by it."""
        return abs(float(self.evidence.get("decades", 0.0)))

    def shares_place(self, other: Finding) -> bool:
        """Whether both findings are about a common node, or both about the loss function, which has no nodes."""
        if not self.nodes or not other.nodes:
            return self.nodes == other.nodes
        return not set(self.nodes).isdisjoint(other.nodes)


@dataclass(frozen=True, slots=True)
class SpinePoint:
    """One row of the chart: backward and forward decades, measured and predicted."""

    place: Place
    op: str
    backward: float | None = None
    forward: float | None = None
    predicted_backward: float | None = None
    predicted_forward: float | None = None
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the model was understood and probed."""

    nodes: int
    understood: int
    probed: int
    unknown_ops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A rule that was not applied, and why."""

    rule: str
    because: str


@dataclass(frozen=True, slots=True)
class InputInfo:
    """An input as it was fed: `spec` reads like the --input option, `given` is False where it was inferred."""

    name: str
    spec: str
    given: bool


@dataclass(frozen=True, slots=True)
class TargetReport:
    """All that gradlint has to say about one target."""

    target: str
    frontend: str
    mode: str
    verdict: Verdict
    score: int
    growth: Growth | None
    spine: tuple[SpinePoint, ...]
    findings: tuple[Finding, ...]
    coverage: Coverage
    skipped: tuple[Skipped, ...]
    inputs: tuple[InputInfo, ...]
    timings: Mapping[str, float]
    seeds: int = 0
    rules_checked: int = 0
    notes: tuple[str, ...] = ()
    capture: str = "full"  # how the graph was taken; see frontends
    predicted: Growth | None = None  # the theory's growth, over the same spine
    time: tuple[TimeGrowth, ...] = ()  # growth along the time axis of each recurrence
    attribution: Attribution | None = None  # what the growth is made of, where theory agrees with what was measured
    recipe: Recipe | None = None
    observed: Mapping[str, Any] = field(default_factory=dict)  # see Measurement.observed
    stack: Stack | None = None  # the stack of one repeated layer, if any, with its phase
