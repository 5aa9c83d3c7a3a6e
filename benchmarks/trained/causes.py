"""Which rules name a planted cause, and whether the first finding of a report does so in the right place."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.trained.evidence import Known

NAMES: Mapping[str, frozenset[str]] = {
    fault: frozenset(rules.split())
    for fault, rules in {
        "gain too large": "GL101 GL107 GL203 GL502 GL803",
        "gain too small": "GL102 GL103 GL203",
        "one layer too large": "GL101 GL107 GL105 GL203 GL606",
        "one layer too small": "GL102 GL606",
        "constant start": "GL104 GL102 GL806",
        "too deep": "GL103 GL201 GL402 GL102 GL101",
        "norm missing": "GL301 GL202 GL203",
        "saturating chain": "GL402 GL102 GL101",
        "branch too large": "GL203 GL202 GL107",
        "dead units": "GL403 GL806",
        "super-linear activation": "GL401 GL405 GL107 GL203",
        "recurrence too large": "GL502 GL505 GL501",
        "unbounded recurrence": "GL501 GL502 GL505",
        "gate bias": "GL503 GL506",
        "attention logits": "GL404",
        "embedding scale": "GL106 GL107 GL606",
        "frequency": "GL101 GL803 GL107",
        "cut": "GL806",
        "input too large": "GL601",
        "input too small": "GL601",
        "input offset": "GL601",
        "target scale": "GL601 GL705",
        "summed loss": "GL705",
        "softmax twice": "GL708 GL607 GL709",
        "unguarded log": "GL602 GL804 GL805",
        "loss weight": "GL703 GL705 GL704",
        "rate too high": "GL703 GL704",
        "no warm-up": "GL706 GL703 GL303",
        "momentum too high": "GL703 GL704",
        "clipping too tight": "GL702",
        "half precision underflow": "GL605 GL807",
        "loss scale overflow": "GL605 GL807",
        "epsilon": "GL704 GL608 GL709",
        "weight decay": "GL704 GL709",
        "batch too small": "GL304",
        "parameters left out": "GL710 GL711",
    }.items()
}
"""Rules that name each planted cause."""


def leading(case: Known) -> list[list[str]]:
    """The findings that a report leads with: errors, or warnings without any, those that are explained left out."""
    held = [finding for finding in case.row["findings"] if not finding[3]]
    return [finding for finding in held if finding[1] == "error"] or held


def names_cause(case: Known) -> bool:
    """Whether one of the two findings that a report leads with is of a rule that names the planted cause."""
    return any(finding[0] in NAMES[case.case.spec.planted] for finding in leading(case)[:2])


def names_place(case: Known) -> bool:
    """Whether one of the two findings that a report leads with lies in the module of the fault, or around it."""
    place = case.case.spec.place
    return any(_around(module.strip(), place) for finding in leading(case)[:2] for module in finding[2].split(","))


def _around(module: str, place: str) -> bool:
    first = module.replace("-", ".").split(".")
    return place.startswith(module) or module.startswith(place) or place.split(".")[: len(first) - 1] == first[:-1]
