"""All data types that a measurement may hold, in one namespace for the examples of rules."""

from gradlint.measurements.curvature import Curvature
from gradlint.measurements.faults import NonFinite
from gradlint.measurements.loss import InputFacts, LossFacts
from gradlint.measurements.means import Bare, Floor, Held
from gradlint.measurements.numbers import Headroom, Levels, Range, Suspect
from gradlint.measurements.rehearsal import Cause, DeadUnits, Leaving, NonFiniteUpdate, Outlook, Rehearsal, Trial
from gradlint.measurements.reinitialization import Redraws
from gradlint.measurements.segments import Segment
from gradlint.measurements.trainability import Trainability
from gradlint.measurements.units import ASIDE, Cut, Units, ZeroGradient
from gradlint.result import Gains, Growth, Measurement, TimeGrowth

__all__ = [
    "ASIDE",
    "Bare",
    "Cause",
    "Curvature",
    "Cut",
    "DeadUnits",
    "Floor",
    "Gains",
    "Growth",
    "Headroom",
    "Held",
    "InputFacts",
    "Leaving",
    "Levels",
    "LossFacts",
    "Measurement",
    "NonFinite",
    "NonFiniteUpdate",
    "Outlook",
    "Range",
    "Redraws",
    "Rehearsal",
    "Segment",
    "Suspect",
    "TimeGrowth",
    "Trainability",
    "Trial",
    "Units",
    "ZeroGradient",
]
