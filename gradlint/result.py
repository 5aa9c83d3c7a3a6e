"""The plain data types of a result: gains, growth, measurements, findings, reports.

Three quantities describe a node n with output h_n, for a cotangent v ~ N(0, I) on the trunk output and J_n = d out / d h_n. All
are in decades, that is log10 of an amplitude:

* backward gain B_n = 1/2 log10(E |J_n^T v|^2 / E |v|^2): the gradient at n for a unit gradient at the output;
* forward level F_n = 1/2 log10 mean(h_n^2): the size of the signal at n;
* relative gain R_n = B_n + log10 |h_n| - log10 |out|: the relative change of the output for a relative change at n
  (Philipp, Song, Carbonell 2018, arXiv 1712.05577).

Growth is what B gains over many steps of a chain of nodes; see `Growth`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from gradlint.graph import Source
from gradlint.measurements.coverage import Coverage, InputInfo, Skipped
from gradlint.measurements.curvature import Curvature
from gradlint.measurements.evidence import Evidence, Score
from gradlint.measurements.faults import NonFinite
from gradlint.measurements.learning import Learning
from gradlint.measurements.loss import InputFacts, LossFacts
from gradlint.measurements.means import Bare, Floor, Held
from gradlint.measurements.numbers import Headroom, Range, Suspect
from gradlint.measurements.rehearsal import Rehearsal
from gradlint.measurements.reinitialization import Redraws
from gradlint.measurements.segments import Segment
from gradlint.measurements.trainability import Trainability
from gradlint.measurements.units import Cut, Units, ZeroGradient
from gradlint.recipe import Recipe

if TYPE_CHECKING:
    from gradlint.theory.reading.attribution import Attribution
    from gradlint.theory.reading.stacks import Stack


class Verdict(StrEnum):
    """What training will do with a model.

    EXPLODES and VANISHES are about the size of gradients. A part of an UNTRAINABLE model that should learn gets no gradient at
    all. An UNSTABLE model is sound, but its recipe fails in the rehearsal. With NOTHING_TO_TRAIN there is no weight that could be
    trained, as in a quantized file or a forest of trees.
    """

    HEALTHY = "healthy"
    EXPLODES = "explodes"
    VANISHES = "vanishes"
    NON_FINITE = "non-finite"
    UNTRAINABLE = "untrainable"
    UNSTABLE = "unstable"
    NOTHING_TO_TRAIN = "nothing-to-train"
    UNKNOWN = "unknown"


class Severity(StrEnum):
    """How severe a finding is. One error is likely to make training fail."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """Position in the order of severity: 0 for an error, 1 for a warning, 2 for a note."""
        return list(Severity).index(self)


class Confidence(StrEnum):
    """Whether the probe confirmed a finding (measured), refuted it, or did not check it (predicted)."""

    MEASURED = "measured"
    PREDICTED = "predicted"
    REFUTED = "refuted"


class Effect(StrEnum):
    """The effect on the gradient that a rule claims for a cause. The probe checks the claim."""

    EXPLODES = "explodes"
    VANISHES = "vanishes"
    EITHER = "either"


@dataclass(frozen=True, slots=True)
class Place:
    """A node id and the path of its module."""

    node: str
    module: str = ""


@dataclass(frozen=True, slots=True)
class Jump:
    """One step of the chain that changes the gradient by more than a decade.

    `place` is where the step ends, nearer to the output. `decades` is positive if the gradient grows towards the input.
    """

    place: Place
    decades: float


@dataclass(frozen=True, slots=True)
class Growth:
    """Sustained growth of the gradient over a chain of nodes, in decades.

    The steps of the chain are d_i = B_i - B_(i+1), from the input to the output. The rise is the largest sum of consecutive
    steps, the fall is minus the smallest. Each sum leaves out its one largest step, because one large step is a stem, a head or
    a first norm, whereas many steps that share growth explode or vanish.

    Attributes:
        decades: The rise, or minus the fall if that is larger. Positive if the gradient explodes towards the input, negative if
            it vanishes.
        rise: Sustained rise, at least 0.
        fall: Sustained fall, at least 0.
        total: B(first) - B(last), the unrestricted change over the chain.
        spread: The largest deviation of `decades` of one seed from the median over seeds. None with a single seed.
        relative: The change of the relative gain over the same run. It stays near zero for weights of the wrong scale and grows
            in chaotic networks.
        per_step: Decades per time step, for growth along the time axis of a recurrence.
        start: First node of the run that makes `decades`, the one nearer to the input.
        end: Last node of that run.
        jumps: Single steps of more than one decade.
        interval: The interval that holds a predicted growth with 90 % probability. None for a measured growth.
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
    """Gains of one node in decades, the median over seeds. A gain that was not measured is None.

    Attributes:
        backward: B_n, the size of the gradient for a unit gradient at the output; -inf for a gradient of exactly zero.
        forward: F_n, the root mean square of the signal; -inf for a signal of exactly zero.
        relative: R_n, the relative gain.

    A gain is inf or NaN if the tensor or its gradient was.
    """

    backward: float | None = None
    forward: float | None = None
    relative: float | None = None


@dataclass(frozen=True, slots=True)
class Track:
    """A chain of nodes from the input to the output, and the growth along it: the spine, or a part that some paths go round."""

    nodes: tuple[str, ...]
    growth: Growth


@dataclass(frozen=True, slots=True)
class TimeGrowth:
    """Growth of the gradient along the time axis of one recurrence.

    Attributes:
        node: Id of the recurrent node, or of the first node of an unrolled loop.
        backward: Backward gain at each step in decades, for a unit cotangent on the last one, in the order of processing.
        growth: Sustained growth over the steps.
        slope: Least-squares slope in decades per step, positive if the gradient grows towards the first processed step.
        slope_error: Standard error of the slope (Newey and West 1987). None for fewer than three increments.
        horizon: Steps over which the gradient gains or loses three decades. Infinite if the slope is not told from zero.
        lyapunov: Largest Lyapunov exponents of the state in nats per step (Engelken et al. 2020, arXiv 2006.02427). Empty for
            an unknown cell.
        axis: The time axis of the input sequence. None for a loop without an input sequence.
        steps: Number of time steps.
        direction: "forward" or "reverse".
        reads: Which of its states the model reads, "last", "every" or "pooled"; see `gradlint.theory.recurrence.readout`.
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
    reads: str = "every"


_OBSERVED = ("inputs", "loss", "curvature", "rehearsal", "suspects", "headroom", "units", "idle", "segments", "redraws")


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything that the probe and its experiments measured.

    `gains` and `ranges` are by node id. `spine` holds the nodes of the chain along which `growth` is read, from the input to the
    output: the track that decides the verdict, which is the spine of the model unless another one is worse. `tracks` are all
    others. `trunk` are the nodes that the cotangents were put on. `time` has one entry for each direction of each recurrence.
    """

    gains: Mapping[str, Gains]
    spine: tuple[str, ...]
    trunk: tuple[str, ...]
    growth: Growth
    seeds: int
    learning: Learning = field(default_factory=Learning)
    trainability: Trainability = field(default_factory=Trainability)
    tracks: tuple[Track, ...] = ()
    time: tuple[TimeGrowth, ...] = ()
    nonfinite_forward: NonFinite | None = None
    nonfinite_backward: NonFinite | None = None
    cuts: tuple[Cut, ...] = ()
    dead: bool = False  # every weight of the model gets a gradient of exactly zero
    stopped_at: str | None = None  # the operator that the evaluator could not run
    ran: frozenset[str] = frozenset()  # nodes that ran
    live: frozenset[str] | None = None  # nodes whose output requires grad; None if all do
    cut_gains: Mapping[str, Gains] = field(default_factory=dict)  # of cuts by depth, along which a model without a spine is read
    notes: tuple[str, ...] = ()
    units: tuple[Units, ...] = ()
    idle: tuple[ZeroGradient, ...] = ()  # weights whose gradient is zero by construction
    segments: tuple[Segment, ...] = ()  # Jacobians of the segments in which growth arises
    redraws: Redraws | None = None  # growth with other draws of the weights
    inputs: tuple[InputFacts, ...] = ()
    loss: LossFacts | None = None
    curvature: Curvature | None = None
    rehearsal: Rehearsal | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    suspects: tuple[Suspect, ...] = ()  # operators of the loss function that may break
    headroom: Headroom | None = None  # what a low-precision format holds of the values
    held: Held | None = None  # which weights the user's optimizers hold
    floor: Floor | None = None  # how low the loss of a classifier comes
    bare: tuple[Bare, ...] = ()  # weights that stand under a log, a root or a fraction bar

    @property
    def observed(self) -> Mapping[str, Any]:
        """The non-empty results of observers and experiments, by field name."""
        return {name: value for name in _OBSERVED if (value := getattr(self, name))}

    @property
    def is_cut_off(self) -> bool:
        """Whether no weight gets a gradient: every one is zero, or a cut stops all of them."""
        return self.dead or any(cut.stops_all for cut in self.cuts)

    @property
    def spine_gains(self) -> Mapping[str, Gains]:
        """The gains along `spine`: those of nodes, or of all tensors of a cut together."""
        return {**self.gains, **self.cut_gains}

    def backward(self, node: str) -> float | None:
        """Return the backward gain at a node in decades, or None if it was not measured."""
        gains = self.gains.get(node)
        return None if gains is None else gains.backward


@dataclass(frozen=True, slots=True)
class Remedy:
    """A proposed fix. `verified` is growth in decades before and after, if the fix was tried."""

    summary: str
    edits: tuple[Mapping[str, Any], ...] = ()
    verified: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One message of a rule about one place in the model.

    `rule` is the code of the rule, a prefix and three digits. `nodes` are all nodes that the finding covers, in execution
    order; reports point at the first, whose module path and line are `module` and `source`. `evidence` holds the numbers
    behind the message by name; `evidence["decades"]` is the growth that the finding explains. `effect` is the claimed effect
    on the gradient over `span` (first and last node), which the probe checks. `caused_by` is the code of the rule that
    explains this symptom, and `fingerprint` a hash that stays the same from run to run. `verdict` and `states_growth` are
    what the rule declares of the finding, see `gradlint.rule.Rule`; reports leave them out.
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
        """Id of the node that reports point at, or None for a finding about the whole model."""
        return self.nodes[0] if self.nodes else None

    @property
    def file(self) -> str | None:
        """File of the user's line, or None if it is unknown."""
        return self.source.file if self.source else None

    @property
    def line(self) -> int | None:
        """Number of the user's line, or None if it is unknown."""
        return self.source.line if self.source else None

    @property
    def decades(self) -> float:
        """Decades of growth that the finding explains, at least 0. Reports order findings by it."""
        return abs(float(self.evidence.get("decades", 0.0)))

    def shares_place(self, other: Finding) -> bool:
        """Return whether two findings share a node, or are both about the loss function, which has no nodes."""
        if not self.nodes or not other.nodes:
            return self.nodes == other.nodes
        return not set(self.nodes).isdisjoint(other.nodes)


@dataclass(frozen=True, slots=True)
class SpinePoint:
    """One row of the chart: measured and predicted gains of one node of the spine, in decades. Unknown gains are None."""

    place: Place
    op: str
    backward: float | None = None
    forward: float | None = None
    predicted_backward: float | None = None
    predicted_forward: float | None = None
    source: Source | None = None


@dataclass(frozen=True, slots=True)
class TargetReport:
    """The complete result for one target.

    `target` is the target as the user named it, `frontend` the front end that read it and `mode` "train" or "eval". `score` runs
    from 0 (training fails) to 100 (healthy), and is None where there is nothing to train. `growth` is measured, or predicted if
    the model was not probed, and None if neither is known. `timings` are seconds by stage, `seeds` is 0 without a probe, and
    `notes` are remarks about the analysis itself.
    """

    target: str
    frontend: str
    mode: str
    verdict: Verdict
    score: int | None
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
    capture: str = "full"  # how the graph was captured; see `gradlint.frontends`
    predicted: Growth | None = None  # predicted growth over the same spine
    time: tuple[TimeGrowth, ...] = ()  # growth along the time axis of each recurrence
    attribution: Attribution | None = None  # growth by operator, if theory agrees with the measurement
    recipe: Recipe | None = None
    observed: Mapping[str, Any] = field(default_factory=dict)  # see `Measurement.observed`
    weights: Learning = field(default_factory=Learning)  # gradients of weights, measured or predicted
    trainability: Trainability | None = None  # None without a probe
    tracks: tuple[Track, ...] = ()  # chains of weight layers beside the one of `spine`
    evidence: Evidence | None = None  # the numbers that the score is made of
    made: Score | None = None  # how the score came about; None where there is none
    stack: Stack | None = None  # the longest stack of one repeated layer, with its phase
    given_up: str = ""  # why a probe that was asked for was given up; what is reported is then the static analysis
