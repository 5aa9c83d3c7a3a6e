"""How the user says what training means: loss, target and recipe, from Python, a target, the command line or a file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import gradlint
from gradlint.errors import ConfigError, InputError

MODELS = Path(__file__).parents[1] / "sample_models"
CLASSIFIER = MODELS / "training.py"


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 6, generator=generator), torch.randint(3, (12,), generator=generator)


def test_the_loss_that_is_measured_is_the_one_that_is_given():
    model, (x, y) = net(), batch()
    expected = nn.functional.cross_entropy(model(x), y)
    norms = torch.autograd.grad(expected, list(model.parameters()))
    seen = gradlint.check(model, x, target=y, loss=nn.functional.cross_entropy).result.observed["loss"]
    assert seen.value == pytest.approx(expected.item(), rel=1e-5)
    assert seen.gradient_norm == pytest.approx(torch.cat([g.flatten() for g in norms]).norm().item(), rel=1e-4)


def test_a_target_says_what_its_loss_and_recipe_are():
    report = gradlint.check(f"{CLASSIFIER}:learning_rate_healthy", rehearse=3).result
    assert report.recipe == gradlint.Recipe("sgd", lr=0.05, momentum=0.9)
    assert report.observed["loss"].chance == pytest.approx(1.0059, abs=1e-3)  # entropy of 39, 1, 1, 6 and 17 of 64
    assert report.observed["rehearsal"].steps == 3


def test_an_argument_goes_before_what_the_target_says():
    report = gradlint.check(f"{CLASSIFIER}:learning_rate_healthy", recipe="adam lr=0.001", rehearse=0).result
    assert report.recipe == gradlint.Recipe("adam", lr=0.001)
    assert "rehearsal" not in report.observed


@pytest.mark.parametrize(
    "given",
    [
        gradlint.Recipe("adamw", lr=0.01, weight_decay=0.1),
        "adamw lr=0.01 weight_decay=0.1",
        {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1},
        lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1),
    ],
    ids=["recipe", "text", "table", "optimizer"],
)
def test_a_recipe_may_come_in_any_of_these_forms(given):
    model = net()
    recipe = given(model) if callable(given) else given
    assert gradlint.check(model, recipe=recipe, rehearse=0).result.recipe == gradlint.Recipe("adamw", lr=0.01, weight_decay=0.1)


def test_what_is_no_recipe_is_refused():
    with pytest.raises(ConfigError, match="recipe cannot be made of a int"):
        gradlint.check(net(), recipe=3)


def test_a_loss_that_raises_is_an_error_with_its_line():
    def loss(output, target):
        return nn.functional.cross_entropy(output, target[:, 0])

    with pytest.raises(InputError, match=r"the loss raised .*test_task\.py"):
        gradlint.check(net(), batch()[0], target=batch()[1], loss=loss)


@pytest.mark.parametrize("loss", [lambda output, _: output, lambda _, target: target.float().mean()], ids=["many", "constant"])
def test_a_loss_that_is_no_number_of_the_weights_is_an_error(loss):
    with pytest.raises(InputError, match="the loss"):
        gradlint.check(net(), batch()[0], target=batch()[1], loss=loss)


def test_without_a_loss_what_stands_in_for_it_is_said():
    assert "cross-entropy" in gradlint.check(net(), recipe="sgd lr=0.1", rehearse=0).result.observed["curvature"].stands_in


@pytest.mark.parametrize("target", [f"{CLASSIFIER}:learning_rate_healthy", str(MODELS / "tanh_gain_healthy.onnx")])
def test_the_command_line_takes_a_recipe_for_both_front_ends(run, target):
    _, out, _ = run("check", target, "--recipe", "adamw lr=1e-4", "--rehearse", "2", "--output-format", "json")
    (report,) = json.loads(out)["targets"]
    assert report["recipe"] == "adamw lr=0.0001"
    assert report["observed"]["curvature"]["limit"] > 1e-4
    assert len(report["observed"]["rehearsal"]["losses"]) == 3


def test_the_configuration_takes_a_recipe(run):
    Path("gradlint.toml").write_text('recipe = { optimizer = "adamw", lr = 1e-4 }\nrehearse = 0', encoding="utf-8")
    _, out, _ = run("check", str(MODELS / "tanh_gain_healthy.onnx"), "--output-format", "json")
    (report,) = json.loads(out)["targets"]
    assert report["recipe"] == "adamw lr=0.0001"
    assert "rehearsal" not in report["observed"]


@pytest.mark.parametrize("text", ["adm lr=1", "sgd lr=fast", "sgd lrr=1", "sgd lr=-1", "sgd schedule=warm"])
def test_a_recipe_that_is_none_is_refused_before_any_work(run, text):
    code, out, err = run("check", str(MODELS / "tanh_gain_healthy.onnx"), "--recipe", text)
    assert (code, out) == (2, "")
    assert "\n  " in err  # what next


def test_the_report_shows_recipe_loss_and_rehearsal(run):
    _, out, _ = run("check", f"{CLASSIFIER}:learning_rate_healthy", "--rehearse", "5")
    recipe = "recipe: sgd lr=0.05 momentum=0.9; at the start stable up to lr"
    for part in (recipe, "1.006 by chance", "rehearsal: 5 updates, loss 1.6"):
        assert part in out


def test_an_onnx_file_takes_a_loss_from_python():
    x = torch.zeros(8, 24)
    report = gradlint.check(
        MODELS / "tanh_gain_healthy.onnx", x, target=torch.zeros(8, 1), loss=lambda outputs, y: (outputs[0] - y).square().mean()
    )
    assert report.result.observed["loss"].value >= 0.0


def test_batches_serve_as_batch_and_are_read_no_further_than_needed():
    read = []

    def stream():
        for index in range(1000):
            read.append(index)
            yield batch()

    report = gradlint.check(net(), loss=nn.functional.cross_entropy, recipe="sgd lr=0.1", rehearse=4, batches=stream()).result
    assert len(read) == 4
    assert report.inputs[0].given
    assert report.observed["rehearsal"].steps == 4


def test_a_loss_with_a_state_is_handed_back_as_it_came():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, output, target):
            self.calls += 1
            return nn.functional.cross_entropy(output, target)

    loss = Counting()
    gradlint.check(net(), batch()[0], target=batch()[1], loss=loss, recipe="sgd lr=0.1", rehearse=2)
    assert loss.calls == 0


def test_what_the_loss_warns_of_is_told_once(capfd):
    model = nn.Linear(6, 1)

    def loss(output, target):
        warnings.warn(f"sizes {len(output)} differ", UserWarning, stacklevel=1)
        return (output - target).square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        report = gradlint.check(model, torch.randn(8, 6), target=torch.randn(8, 1), loss=loss, recipe="sgd lr=0.01", rehearse=3)
    assert [note for note in report.result.notes if "warned" in note] == ["warned: sizes 8 differ"]
    assert "differ" not in capfd.readouterr().err


def test_a_loss_that_no_weight_moves_is_an_error():
    def hard(output, target):
        return ((output > 0.0).float() - target).square().mean() + 0.0 * output.sum()

    x = torch.randn(8, 6)
    report = gradlint.check(nn.Linear(6, 1), x, target=torch.ones(8, 1), loss=hard)
    assert report.verdict == "untrainable"
    assert [finding.message for finding in report.findings if finding.rule == "GL806" and "exactly zero" in finding.message]
