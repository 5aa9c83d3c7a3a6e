"""The rehearsal names why training fails, and leaves healthy training alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlint
from gradlint.measurements.rehearsal import Cause
from gradlint.probe.experiments import catalog
from gradlint.probe.experiments import rehearsal as stage
from gradlint.recipe import Recipe
from gradlint.result import Severity
from tests.models.rehearsal_cases import LABELS, blobs, by_hand, ce, mlp, mse, rehearsed, trained
from tests.published.handwritten_losses import Autoencoder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# failures are found, and their causes -------------------------------------------------------------------------------------


def test_a_learning_rate_of_ten_diverges_and_a_lower_one_is_shown_to_train():
    x = blobs()
    report = gradlint.check(mlp(16, 32, 32, 4, act=nn.Tanh), x, loss=mse, target=x[:, :4], recipe="sgd lr=10", seeds=1)
    (finding,) = [finding for finding in report.findings if finding.rule == "GL807"]
    assert finding.severity is Severity.ERROR
    assert finding.evidence["cause"] == Cause.RATE
    assert "learning rate is too high" in finding.message
    assert "with lr 1" in finding.remedy.summary or "with lr 0.1" in finding.remedy.summary
    assert report.score < 50
    assert json.loads(report.to("json"))


def test_the_lower_rate_that_is_reported_trains_in_plain_torch():
    model, x = mlp(16, 32, 32, 4), blobs()
    found = rehearsed(model, x, "sgd lr=100", loss=ce, target=LABELS)
    assert found.fails
    assert found.cure is not None
    losses = trained(model, x, LABELS, Recipe("sgd", found.cure.lr), 40)
    assert losses[-1] < losses[0]


def test_units_that_a_long_step_kills_are_named():
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    found = rehearsed(model, blobs(features=8).abs(), "sgd lr=30", loss=ce, target=LABELS)
    assert found.cause is Cause.UNITS
    assert found.dead is not None
    assert found.dead.node in {"1:relu", "3:relu"}
    assert (found.dead.before, found.dead.after) == (pytest.approx(0.0, abs=0.4), 1.0)


class Deep(nn.Module):
    """A transformer with the norms after the sums, or before them."""

    def __init__(self, *, norm_first: bool, layers: int = 16) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.embed, self.head = nn.Embedding(24, 32), nn.Linear(32, 24)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        for parameter in (*self.body.parameters(), *self.embed.parameters()):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embed(ids))).flatten(0, 1)


def sentences() -> tuple[Tensor, Tensor]:
    """Every word as often as any other at every place, so that nothing is learned but what follows what."""
    text = (torch.arange(24)[:, None] + 5 * torch.arange(9)) % 24
    return text[:, :-1], text[:, 1:].flatten()


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_deep_post_norm_transformer_without_warm_up_is_told_from_the_pre_norm_one(
    norm_first: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(catalog, "EXPERIMENTS", (("rehearsal", stage.rehearsal),))
    model, (text, following) = Deep(norm_first=norm_first), sentences()
    found = rehearsed(model, text, "adam lr=1e-2", loss=ce, target=following, rehearse=25)
    assert found.fails is not norm_first
    if not norm_first:
        assert found.cause in {Cause.WARMUP, Cause.RATE}
        assert any(trial.change.startswith("a warm-up") for trial in found.trials)


def test_a_log_in_the_loss_whose_operand_reaches_zero_after_some_steps_is_named_with_its_line():
    found = rehearsed(mlp(16, 32, 4), 3 * blobs(), "sgd lr=20", loss=by_hand, target=LABELS)
    assert found.cause is Cause.OPERATOR
    assert found.diverged_at is not None
    assert found.diverged_at > 0
    assert found.breach is not None
    assert (found.breach.node, found.breach.op) == ("", "log")
    assert found.breach.operands[0][0] == 0.0
    line = by_hand.__code__.co_firstlineno + 1
    assert found.breach.source.endswith(f"rehearsal_cases.py:{line}")
    assert not rehearsed(mlp(16, 32, 4), 3 * blobs(), "sgd lr=0.05", loss=by_hand, target=LABELS).fails


class LogOfProbability(nn.Module):
    """The same inside the model, where a node of the graph is to blame."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(16, 32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).softmax(-1).log()


def test_a_log_in_the_model_is_named_by_its_node():
    found = rehearsed(LogOfProbability(), 3 * blobs(), "sgd lr=20", loss=functional.nll_loss, target=LABELS)
    assert found.cause is Cause.OPERATOR
    assert found.breach is not None
    assert found.breach.op == "log"
    assert found.breach.node == "log"


def evidence_bound(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    rebuilt, mean, log_variance = output
    divergence = 0.5 * (log_variance.exp() + mean.square() - 1.0 - log_variance).sum(-1)
    return (rebuilt - target).square().sum(-1).mean() + divergence.mean()


def test_an_unbounded_log_variance_overflows_in_exp_and_a_bounded_one_trains():
    x = torch.randn(64, 6)
    x[::16] *= 20.0
    broken = rehearsed(Autoencoder(math.inf), x, "sgd lr=1e-4", loss=evidence_bound, target=x)
    assert broken.diverged_at is not None
    assert broken.diverged_at > 0
    assert broken.breach is not None
    assert broken.breach.op == "exp"
    assert broken.cause is Cause.OPERATOR
    assert not rehearsed(Autoencoder(5.0), x, "sgd lr=1e-4", loss=evidence_bound, target=x).fails


def test_a_root_whose_derivative_is_infinite_from_some_step_on_is_named():
    class Distance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.place - x).square().sum(-1).sqrt()

    found = rehearsed(Distance(), torch.zeros(4, 1), "sgd lr=0.25", loss=lambda d, _: d.mean())
    assert found.losses == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert found.breach is not None
    assert (found.breach.op, found.breach.backward) == ("sqrt", True)
    assert found.cause is Cause.OPERATOR


def test_gradients_that_no_loss_scale_brings_into_half_precision_are_blamed_on_it():
    class Amplified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.inner(x) * 3e4 / 3e4)

    model, x = Amplified(), blobs()
    found = rehearsed(model, 30.0 * x, "sgd lr=1e-5 precision=fp16", loss=ce, target=LABELS)
    assert found.fails
    assert found.breach is not None or found.cause is Cause.PRECISION
    assert not rehearsed(model, 30.0 * x, "sgd lr=1e-5", loss=ce, target=LABELS).fails


def test_growth_at_initialization_is_blamed_where_it_is_the_reason():
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(30))
            for layer in self.layers:
                nn.init.normal_(layer.weight, std=2.5 / math.sqrt(32))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    found = rehearsed(Doubling(), torch.randn(16, 32), "sgd lr=0.1", loss=mse, target=torch.zeros(16, 32))
    assert found.diverged_at is not None
    assert found.cause is Cause.GROWTH


# healthy training is left alone -------------------------------------------------------------------------------------------


def convolutional(*, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside, outside in ((3, 16), (16, 16), (16, 32)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), *([nn.BatchNorm2d(outside)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 32, 2, batch_first=True), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


IMAGES, SERIES = (32, 3, 8, 8), (32, 12, 8)
HEALTHY: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "mlp-sgd": (lambda: mlp(16, 64, 64, 4), (32, 16), "sgd lr=0.1 momentum=0.9"),
    "mlp-adam": (lambda: mlp(16, 64, 64, 4), (32, 16), "adam lr=1e-3"),
    "mlp-adam-fp16": (lambda: mlp(16, 64, 64, 4), (32, 16), "adam lr=1e-3 precision=fp16"),
    "tanh-mlp-rmsprop": (lambda: mlp(16, 64, 64, 4, act=nn.Tanh), (32, 16), "rmsprop lr=1e-3"),
    "conv-sgd": (lambda: convolutional(norm=False), IMAGES, "sgd lr=0.01 momentum=0.9"),
    "conv-norm-sgd": (lambda: convolutional(norm=True), IMAGES, "sgd lr=0.1 momentum=0.9 weight_decay=1e-4"),
    "conv-norm-adam": (lambda: convolutional(norm=True), IMAGES, "adam lr=1e-3"),
    "lstm-adam-clipped": (Recurrent, SERIES, "adam lr=1e-3 clip_norm=1"),
    "lstm-sgd": (Recurrent, SERIES, "sgd lr=0.5 clip_norm=0.25"),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("task", ["labels", "numbers", "surrogate", "fresh"])
def test_standard_models_with_standard_recipes_are_silent(name: str, task: str):
    build, shape, recipe = HEALTHY[name]
    x = torch.randn(shape)
    target = {"labels": LABELS, "numbers": torch.randn(32, 4)}.get(task)
    loss = {"labels": ce, "numbers": mse}.get(task)
    inputs = None if task == "fresh" and "mlp" in name else x
    report = gradlint.check(build(), inputs, loss=loss, target=target, recipe=recipe, seeds=1)
    assert [finding.message for finding in report.findings if finding.rule == "GL807"] == []
    assert not [note for note in report.result.notes if note.startswith("rehearsal")]


def test_a_pre_norm_transformer_with_adamw_is_silent():
    model, (text, following) = Deep(norm_first=True, layers=4), sentences()
    found = rehearsed(model, text, "adamw lr=3e-4 weight_decay=0.1", loss=ce, target=following)
    assert not found.fails
    assert found.trials == ()
    assert found.last < found.first


def test_a_loss_that_spikes_and_comes_back_is_no_divergence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog, "EXPERIMENTS", (("rehearsal", stage.rehearsal),))
    rate = torch.ones(())  # the loss is that of a fixed course, whatever the weights
    course = iter([1.0, 1.0, *([30.0] * 4), *torch.linspace(5.0, 0.5, 200).tolist()])

    def loss(output: Tensor, _: Tensor) -> Tensor:
        return next(course) * rate + 0.0 * output.sum()

    found = rehearsed(mlp(4, 4, 4), torch.randn(4, 4), "sgd lr=0.1", loss=loss, rehearse=40)
    assert max(found.losses) > 10 * found.losses[0]
    assert found.diverged_at is None


# what a first user met ----------------------------------------------------------------------------------------------------


def report_of(model: nn.Module, x: Tensor, recipe: str, monkeypatch: pytest.MonkeyPatch, **task: object) -> gradlint.Report:
    """A check without the experiments that the rehearsal does not read."""
    wanted = [pair for pair in catalog.EXPERIMENTS if pair[0] in {"loss", "curvature", "rehearsal"}]
    monkeypatch.setattr(catalog, "EXPERIMENTS", tuple(wanted))
    return gradlint.check(model, x, recipe=recipe, seeds=1, **task)


def of_rule(report: gradlint.Report, code: str) -> gradlint.Finding:
    (finding,) = [finding for finding in report.findings if finding.rule == code]
    return finding


def picky(output: Tensor, target: Tensor) -> Tensor:
    """A loss that refuses NaN, as binary cross-entropy and validated distributions do, and breaks the weights before."""
    if not bool(torch.isfinite(output).all()):
        raise ValueError("all elements should be between 0 and 1")
    return (output - target.float()).square().sum() * 1e30


def test_a_loss_that_raises_after_an_update_has_diverged_and_is_quoted(monkeypatch: pytest.MonkeyPatch):
    report = report_of(mlp(16, 4, 1), blobs(), "sgd lr=1e12", monkeypatch, loss=picky, target=LABELS[:, None])
    found = report.result.observed["rehearsal"]
    assert found.diverged_at is not None
    assert found.diverged_at > 0
    assert math.isnan(found.last)
    finding = of_rule(report, "GL807")
    assert "the loss raised ValueError: all elements should be between 0 and 1" in finding.message
    assert f"after {found.diverged_at} update" in finding.message
    assert "1 updates" not in finding.message


def test_the_rate_that_is_quoted_beats_the_others_that_were_tried_and_both_rules_name_it(monkeypatch: pytest.MonkeyPatch):
    model, x = mlp(16, 32, 32, 4), 30.0 * blobs()
    report = report_of(model, x, "sgd lr=1 momentum=0.9", monkeypatch, loss=ce, target=LABELS)
    found = report.result.observed["rehearsal"]
    assert found.cure is not None
    assert found.cure.last < 0.97 * min(found.first, math.log(4))
    assert found.cure.last < 0.9 * found.first
    assert all(trial.last > found.cure.last or math.isnan(trial.last) for trial in found.trials if trial.lr > found.cure.lr)
    for code in ("GL703", "GL807"):
        assert f"{found.cure.lr:.2g}" in of_rule(report, code).remedy.summary


def test_a_loss_above_its_start_that_a_lower_rate_brings_down_is_an_error(monkeypatch: pytest.MonkeyPatch):
    model = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4))
    report = report_of(model, blobs(), "adam lr=5", monkeypatch, loss=ce, target=torch.randint(4, (32,)), rehearse=10)
    found = report.result.observed["rehearsal"]
    assert found.diverged_at is None
    assert found.behind
    assert found.last > 1.1 * found.first
    assert of_rule(report, "GL807").severity is Severity.ERROR
    assert report.score < 20


def test_a_loss_that_no_affordable_run_brings_below_the_best_constant_is_an_error(monkeypatch: pytest.MonkeyPatch):
    x = blobs()
    target = 1e5 * x[:, :1] + 3e5
    report = report_of(mlp(16, 32, 1), x, "adam lr=1e-4", monkeypatch, loss=mse, target=target)
    finding = of_rule(report, "GL807")
    assert finding.severity is Severity.ERROR
    assert "100000 updates do not bring it below" in finding.message
    few = report_of(mlp(16, 32, 1), x, "adam lr=1e-4", monkeypatch, loss=mse, target=target, rehearse=2)
    assert not [finding for finding in few.findings if finding.rule == "GL807"]
    rising = report_of(mlp(16, 32, 1), x, "adam lr=1e-4 schedule=warmup:400", monkeypatch, loss=mse, target=x[:, :1])
    assert not [finding for finding in rising.findings if finding.rule == "GL807"]


def test_a_breach_inside_the_loss_points_at_its_line_and_says_what_to_use_instead(monkeypatch: pytest.MonkeyPatch):
    report = report_of(mlp(16, 32, 4), 3 * blobs(), "sgd lr=20", monkeypatch, loss=by_hand, target=LABELS)
    finding = of_rule(report, "GL807")
    assert finding.nodes == ()
    assert finding.source is not None
    assert finding.source.file.endswith("rehearsal_cases.py")
    assert finding.source.line == by_hand.__code__.co_firstlineno + 1
    assert finding.remedy.summary.startswith("use log_softmax")


def test_growth_along_time_is_told_in_time_steps(monkeypatch: pytest.MonkeyPatch):
    class Loud(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.RNN(8, 32, batch_first=True, nonlinearity="relu"), nn.Linear(32, 1)
            nn.init.normal_(self.rnn.weight_hh_l0, std=3.0 / math.sqrt(32))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    report = report_of(Loud(), torch.randn(16, 30, 8), "sgd lr=0.1", monkeypatch, loss=mse, target=torch.zeros(16, 1))
    finding = of_rule(report, "GL807")
    assert finding.evidence["cause"] == Cause.GROWTH
    assert "time steps at initialization" in finding.message
    assert "grows by 0.0" not in finding.message
    assert all(trial.lr >= 1e-8 for trial in report.result.observed["rehearsal"].trials)


@pytest.mark.parametrize(
    ("rule", "loss", "advice"),
    [
        ("GL805", lambda y, _: (0.0 * y).square().sum().sqrt(), "eps inside the root"),
        ("GL804", lambda y, _: (1e4 + y).exp().mean(), "clamp the exponent"),
        ("GL804", lambda y, _: (y / (0.0 * y)).mean(), "divisor"),
        ("GL804", lambda y, _: (1.0 - (1e3 + 1e-3 * y).sigmoid()).log().mean(), "binary_cross_entropy_with_logits"),
    ],
    ids=["sqrt", "exp", "div", "log of 1 - sigmoid"],
)
def test_the_guard_that_is_advised_is_that_of_the_operator(
    rule: str, loss: Callable[[Tensor, Tensor], Tensor], advice: str, monkeypatch: pytest.MonkeyPatch
):
    report = report_of(mlp(16, 8, 1), blobs(), "sgd lr=0.1", monkeypatch, loss=loss)
    assert advice in of_rule(report, rule).remedy.summary
    assert not [finding for finding in report.findings if finding.rule == "GL807"]  # no update was taken
