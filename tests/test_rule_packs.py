"""What a rule pack relies on: the names of `gradlint.rule`, and that nothing of the core knows a rule by its code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import gradlint
from gradlint import engine
from gradlint import rule as api
from gradlint.catalog import builtin_dir, load_rules
from gradlint.frontends.targets import Target
from gradlint.options import Options
from tests.models import EXAMPLE_PACK

PACKAGE = Path(gradlint.__file__).parent
DOCUMENTED = PACKAGE.parent / "docs" / "rule-packs.md"


def imported(path: Path) -> set[str]:
    """The names that a rule file takes from `gradlint.rule`."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        name.name for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "gradlint.rule" for name in node.names
    }


def test_no_file_of_the_core_names_a_rule_by_its_code():
    text = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert len(text) > 100
    assert [str(path) for path, source in text.items() if re.search(r"\bGL\d{3}\b", source)] == []


def test_the_names_for_rule_files_are_few_and_each_is_used_by_one():
    used = set().union(*(imported(path) for folder in (builtin_dir(), EXAMPLE_PACK) for path in folder.glob("*.py")))
    assert set(api.__all__) == used
    assert len(api.__all__) <= 28


def test_every_name_for_rule_files_is_described():
    text = DOCUMENTED.read_text(encoding="utf-8")
    assert [name for name in api.__all__ if f"`{name}" not in text] == []


def test_what_the_page_says_a_subject_has_it_has():
    """Names in the tables of `docs/rule-packs.md`: `subject.x`, `subject.companion.x` and attributes of a rule."""
    text = DOCUMENTED.read_text(encoding="utf-8")
    builder = api.GraphBuilder()
    builder.stack(2)
    subject = api.Subject(builder.ramp(4.0).graph, builder.measurement, builder.trained(api.Recipe()).task)
    chains = set(re.findall(r"`subject((?:\.[a-z_]+)+)", text))
    assert len(chains) > 30
    for chain in chains:
        found = subject
        for name in chain[1:].split("."):
            found = getattr(found, name)
    for name in re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE):
        assert name in api.Rule.__annotations__ or hasattr(api.Rule, name)


# the example pack ---------------------------------------------------------------------------------------------------------


def test_the_example_pack_is_loaded_beside_the_built_in_rules():
    found = [rule.code for rule in load_rules([EXAMPLE_PACK])]
    assert [code for code in found if code.startswith("XP")] == ["XP101", "XP102"]
    assert len(found) == len(load_rules()) + 2


def lint(model: nn.Module, x: torch.Tensor, *codes: str) -> gradlint.Report:
    return gradlint.Report(engine.check(Target(model, (x,)), Options(select=codes, rules_dirs=(EXAMPLE_PACK,))))


def test_a_rule_of_the_pack_finds_its_pattern_in_a_real_model():
    broken = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 2))
    cured = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 2))
    for model, expected in ((broken, ["4"]), (cured, [])):
        assert [finding.module for finding in lint(model, torch.randn(32, 64), "XP").findings] == expected


class Faded(torch.autograd.Function):
    """The signal is made smaller, and the gradient is not."""

    @staticmethod
    def forward(ctx, x, factor):
        return x * factor

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Fading(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.layers, self.factor = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(3)), factor
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)

    def forward(self, x):
        for layer in self.layers:
            x = Faded.apply(layer(x), self.factor)
        return x


@pytest.mark.parametrize(("factor", "verdict"), [(1e-14, "untrainable"), (1e-5, "healthy"), (1.0, "healthy")])
def test_an_error_of_a_pack_makes_the_verdict_that_its_rule_declares_and_the_headline_names_its_place(factor, verdict):
    torch.manual_seed(0)
    report = lint(Fading(factor).double(), torch.randn(32, 16, dtype=torch.float64), "XP102")
    assert report.verdict == verdict
    assert [finding.severity for finding in report.findings] == {1e-14: ["error"], 1e-5: ["warning"], 1.0: []}[factor]
    assert ("nothing before it can learn" in report.to("full")) is (verdict == "untrainable")
    assert lint(Fading(factor).double(), torch.randn(32, 16, dtype=torch.float64), "XP101").verdict == "healthy"


def test_the_example_pack_works_from_the_command_line(run):
    code, out, _ = run("rule", "--rules", str(EXAMPLE_PACK), "XP101", "signal-lost")
    assert code == 0
    assert out.index("XP101 norm-behind-dropout: ") < out.index("XP102 signal-lost: ")
    assert run("rule", "XP101")[0] == 2


@pytest.mark.parametrize("name", ["probe", "recipe"])
def test_a_rule_that_did_not_say_what_it_needs_is_told_so(name):
    builder = api.GraphBuilder()
    builder.stack(2)
    with pytest.raises(LookupError, match=rf"needs = Needs\.{name.upper()}"):
        getattr(api.Subject(builder.graph), name)
