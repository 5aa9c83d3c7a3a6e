"""The published failures really fail when they are trained, and their published fixes really train: plain torch, no gradlint."""

from __future__ import annotations

import math

import pytest

from tests.models.versions import CLAMP_PASSES_AT_ITS_BOUNDS
from tests.published import CASES, Case
from tests.published.training import failure, train

# what the report on the deviation of one element complains of: torch says so as well
pytestmark = pytest.mark.filterwarnings("ignore:(var|std).*degrees of freedom")


AT_BOUNDS = {"angle-between-equals"}


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=CLAMP_PASSES_AT_ITS_BOUNDS if c.name in AT_BOUNDS else ()) for c in CASES]
)
def test_the_broken_model_fails_as_reported_and_the_fixed_one_trains(case: Case) -> None:
    fixed = train(case.fixed(), case.steps)
    assert all(math.isfinite(loss) for loss in fixed), f"the fixed model ends at step {len(fixed)}"
    assert not failure(fixed, fixed), f"the fixed model goes from {fixed[0]:.4g} to {fixed[-1]:.4g}"
    broken = train(case.broken(), case.steps)
    ways = failure(broken, fixed)
    assert case.fails in ways, f"the broken model goes from {broken[0]:.4g} to {broken[-1]:.4g}: {sorted(ways) or 'it trains'}"


def test_every_case_is_told_apart_and_sourced() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 20
    assert all(case.expects and len(case.source) > 20 for case in CASES)


def test_a_case_is_built_anew_and_alike_every_time() -> None:
    for case in CASES:
        first, second = case.broken(), case.broken()
        assert first.model is not second.model
        pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
        assert all(bool((one == other).all()) for one, other in pairs), case.name
