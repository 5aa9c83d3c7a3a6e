"""The batch and the loss before training: chance, reduction, scales, gradients of the real loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradlint
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.probe.measure import measure
from gradlint.process.messages import pack, unpack
from gradlint.recipe import Recipe, Task
from gradlint.result import Measurement

CLASSES = torch.arange(16) % 10


def net(out, *, inside=20, head=1.0, last=None):
    torch.manual_seed(0)
    layers = [nn.Linear(inside, 64), nn.ReLU(), nn.Linear(64, out)]
    with torch.no_grad():
        layers[-1].weight *= head
    return nn.Sequential(*layers, *([last] if last else []))


def batch(inside=20):
    return torch.randn(16, inside, generator=torch.Generator().manual_seed(1))


def facts(module, loss, target, x=None):
    x = batch() if x is None else x
    return measure(TorchRunnable(module, (), args=(x,)), seeds=1, task=Task(loss=loss, target=target)).loss


def rules(report, severities=("error", "warning", "note")):
    return {f.rule for f in report.findings if f.severity in severities and f.confidence is not gradlint.Confidence.REFUTED}


# the loss ---------------------------------------------------------------------------------------------------------------

CHANCE = [
    (None, 10, nn.CrossEntropyLoss(), CLASSES, math.log(10)),
    (None, 10, F.cross_entropy, CLASSES, math.log(10)),
    (None, 10, nn.CrossEntropyLoss(label_smoothing=0.2), CLASSES, math.log(10)),
    (nn.LogSoftmax(-1), 10, nn.NLLLoss(), CLASSES, math.log(10)),
    (nn.Softmax(-1), 10, lambda p, y: F.nll_loss(p.log(), y), CLASSES, math.log(10)),
    (None, 1, lambda z, y: F.binary_cross_entropy_with_logits(z[:, 0], y), (CLASSES % 2).float(), math.log(2)),
    (nn.Sigmoid(), 1, lambda p, y: F.binary_cross_entropy(p[:, 0], y), (CLASSES % 2).float(), math.log(2)),
]


@pytest.mark.parametrize(("last", "out", "loss", "target", "chance"), CHANCE)
def test_chance_is_the_loss_of_a_prediction_that_says_nothing(last, out, loss, target, chance):
    assert facts(net(out, last=last), loss, target).chance == pytest.approx(chance, rel=1e-5)


def test_value_and_gradients_are_those_of_the_users_loss():
    module, x = net(10), batch()
    found = facts(module, nn.CrossEntropyLoss(), CLASSES, x)
    loss = F.cross_entropy(module(x), CLASSES)
    loss.backward()
    assert found.value == pytest.approx(loss.item())
    for name, weight in module.named_parameters():
        assert found.gradients[name] == pytest.approx(float(weight.grad.norm()), rel=1e-5)
    assert found.gradient_norm == pytest.approx(math.sqrt(sum(norm**2 for norm in found.gradients.values())))


class Mean(nn.Module):
    def forward(self, z, y):
        return (z[:, 0] - y).abs().mean()


REDUCTIONS = [
    (10, nn.CrossEntropyLoss(reduction="sum"), CLASSES, 2.0),
    (10, nn.CrossEntropyLoss(), CLASSES, 1.0),
    (1, nn.MSELoss(reduction="sum"), torch.ones(16, 1), 2.0),
    (1, nn.MSELoss(), torch.ones(16, 1), 1.0),
    (1, lambda z, y: ((z - y) ** 2).sum(), torch.ones(16, 1), 2.0),
    (1, lambda z, y: ((z - y) ** 2).sum(1).mean(), torch.ones(16, 1), 1.0),
    (3, lambda z, y: ((z - y) ** 2).sum() / len(y), torch.ones(16, 3), 1.0),
    (1, Mean(), torch.ones(16), 1.0),
    (10, lambda z, y: sum(F.cross_entropy(row[None], label[None]) for row, label in zip(z, y, strict=True)), CLASSES, 2.0),
    (1, lambda z, y: ((z - y["goal"]) ** 2).sum(), {"goal": torch.ones(16, 1)}, 2.0),
    (1, lambda z, y: ((z[:, 0] - torch.as_tensor(y)) ** 2).sum(), np.ones(16, np.float32), 2.0),
]


@pytest.mark.parametrize(("out", "loss", "target", "factor"), REDUCTIONS)
def test_a_sum_over_the_batch_is_told_from_a_mean(out, loss, target, factor):
    found = facts(net(out), loss, target)
    assert found.repeated == pytest.approx(factor, rel=1e-4)
    assert found.is_sum == (factor == 2.0)


def test_a_batch_of_one_tells_a_sum_too():
    assert facts(net(10), nn.CrossEntropyLoss(reduction="sum"), CLASSES[:1], batch()[:1]).is_sum


def test_a_loss_that_takes_no_other_batch_leaves_the_reduction_open():
    def fixed(z, y):
        assert z.shape[0] == 16
        return ((z - y) ** 2).sum()

    found = facts(net(1), fixed, torch.ones(16, 1))
    assert found.repeated is None
    assert found.value > 0.0


@pytest.mark.parametrize(
    ("recipe", "severity"),
    [
        (None, "note"),
        (Recipe("sgd", lr=0.1), "warning"),
        (Recipe("sgd", lr=0.01), "note"),
        (Recipe("sgd", lr=0.1, clip_norm=1.0), "note"),
        (Recipe("adam", lr=0.1), "note"),
    ],
)
def test_a_sum_is_a_warning_where_the_recipe_is_made_too_fast_by_it(recipe, severity):
    options = {"loss": nn.CrossEntropyLoss(reduction="sum"), "target": CLASSES, "recipe": recipe, "rehearse": 0}
    report = gradlint.check(net(10), batch(), **options)
    (finding,) = [finding for finding in report.findings if finding.rule == "GL705"]
    assert finding.severity == severity
    assert "GL705" not in rules(gradlint.check(net(10), batch(), **{**options, "loss": nn.CrossEntropyLoss()}))


@pytest.mark.parametrize("head", [20.0, 100.0])
def test_a_head_far_above_chance_is_found_and_its_cure_is_silent(head):
    task = {"loss": nn.CrossEntropyLoss(), "target": CLASSES}
    (finding,) = [f for f in gradlint.check(net(10, head=head), batch(), **task).findings if f.rule == "GL107"]
    assert finding.evidence["chance"] == pytest.approx(math.log(10), rel=1e-5)
    assert "GL107" not in rules(gradlint.check(net(10), batch(), **task))


def test_without_a_loss_nothing_is_claimed_of_it():
    report = gradlint.check(net(10, head=100.0), batch())
    assert not rules(report) & {"GL107", "GL705"}
    assert {skipped.rule for skipped in report.skipped} >= {"GL107", "GL705"}


def test_a_model_that_computes_its_own_loss_is_held_against_the_logarithm_of_its_classes():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net(10, head=50.0)

        def forward(self, x, labels=None):
            logits = self.body(x)
            output = {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}
            return type("Output", (dict,), {"__getattr__": dict.__getitem__})(output)

    runnable = TorchRunnable(Own(), (), kwargs={"x": batch(), "labels": CLASSES})
    found = measure(runnable, seeds=1).loss
    assert found is not None
    assert found.chance == pytest.approx(math.log(10))
    assert found.value > 2.0 * found.chance


# the batch --------------------------------------------------------------------------------------------------------------


def images(*, raw):
    pixels = torch.randint(0, 256, (8, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    return pixels if raw else pixels / 255.0


def convolutional(*first, norm=False):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*first, *layers, nn.Linear(8, 4))


class Divide(nn.Module):
    def forward(self, x):
        return x / 255.0 - 0.5


def table(**columns):
    x = batch()
    for name, (scale, shift) in columns.items():
        x[:, int(name[1:])] = x[:, int(name[1:])] * scale + shift
    return x


FED = [
    (convolutional, images(raw=True), True),
    (convolutional, images(raw=False), False),
    (lambda: convolutional(Divide()), images(raw=True), False),
    (lambda: convolutional(nn.BatchNorm2d(3)), images(raw=True), False),
    (lambda: convolutional(norm=True), images(raw=True), False),
    (lambda: net(4), batch(), False),
    (lambda: net(4), table(c3=(5000.0, 30000.0)), True),
    (lambda: net(4), batch() + 100.0, True),
    (lambda: net(4), batch() * 0.5 + 0.5, False),
    (lambda: net(4), batch() * 1e-4, True),
    (lambda: nn.Sequential(nn.LayerNorm(20), net(4)), table(c3=(5000.0, 30000.0)), False),
    (lambda: nn.Sequential(nn.Embedding(200, 8), nn.Flatten(), net(4, inside=32)), torch.randint(200, (8, 4)), False),
    (lambda: nn.Sequential(nn.Flatten(), net(4, inside=12)), torch.randint(0, 2, (8, 3, 4)).float(), False),
]


@pytest.mark.parametrize(("build", "x", "off"), FED)
def test_the_scale_of_given_inputs_that_meet_a_layer_before_any_norm(build, x, off):
    report = gradlint.check(build(), x)
    assert ("GL601" in rules(report, ("warning",))) is off


def test_inputs_that_were_not_given_are_nobodys_fault():
    found = measure(TorchRunnable(net(4)), seeds=1)
    assert found.inputs == ()


def test_facts_of_an_input_are_those_of_numpy():
    x = table(c7=(300.0, 4.0))
    (found,) = measure(TorchRunnable(net(4), (), args=(x,)), seeds=1).inputs
    values = x.numpy().astype(np.float64)
    expected = (values.mean(), values.std(), values.min(), values.max())
    assert (found.mean, found.deviation, found.low, found.high) == pytest.approx(expected)
    levels = np.sqrt((values**2).mean(0))
    assert found.column == 7
    assert found.columns == pytest.approx(math.log10(levels[7] / np.median(levels)))


@pytest.mark.parametrize(("scale", "off"), [(1.0, False), (20.0, False), (5000.0, True)])
def test_a_target_out_of_reach_is_told_with_the_gradient_it_makes(scale, off):
    target = scale * torch.randn(16, 1, generator=torch.Generator().manual_seed(2))
    report = gradlint.check(net(1), batch(), loss=nn.MSELoss(), target=target)
    found = [finding for finding in report.findings if finding.rule == "GL601"]
    assert bool(found) is off
    assert not off or found[0].evidence["gradient_norm"] > scale


def test_facts_survive_the_way_between_processes():
    task = Task(loss=nn.CrossEntropyLoss(), target=CLASSES)
    found = measure(TorchRunnable(net(10), (), args=(batch(),)), seeds=1, task=task)
    again = unpack(Measurement, pack(found))
    assert (again.loss, again.inputs) == (found.loss, found.inputs)


def test_weights_are_untouched_by_what_is_asked_of_the_loss():
    module = convolutional(norm=True).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    gradlint.check(module, images(raw=False), loss=nn.CrossEntropyLoss(), target=torch.arange(8) % 4)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())
