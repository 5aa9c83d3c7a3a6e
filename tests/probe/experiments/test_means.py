"""What optimizers hold, how low a loss comes, and which weights stand bare, measured on small modules and told by their rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlint
from gradlint.api import _with_inputs
from gradlint.engine import examine
from gradlint.options import Options
from gradlint.recipe import Recipe, Task
from gradlint.result import Measurement

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(32, 8, generator=GENERATOR)
CLASSES = X[:, :4].argmax(1)
SIGNS = (X[:, :1] > 0.0).float()
MAPS = torch.randn(4, 3, 6, 6, generator=GENERATOR)


def _net(out: int = 4, *last: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, out), *last)


def _measured(module: nn.Module, inputs: Tensor = X, **task: Any) -> Measurement:
    model, specs = _with_inputs(module, inputs)
    measurement = examine(model, Options(inputs=specs, seeds=1, task=Task(rehearse=0, **task)))[1].measurement
    assert measurement is not None
    return measurement


def _told(module: nn.Module, inputs: Tensor = X, **given: Any) -> dict[str, str]:
    found = gradlint.check(module, inputs, rehearse=0, seeds=1, **given).findings
    return {finding.rule: str(finding.severity) for finding in found}


# held -------------------------------------------------------------------------------------------------------------------------


def test_optimizers_hold_what_their_groups_hold_and_decay_it_at_the_rate_of_the_group():
    net = _net()
    groups = [{"params": [net[0].weight], "weight_decay": 0.1}, {"params": [net[0].bias], "weight_decay": 0.0}]
    held = _measured(net, recipe=Recipe.from_optimizer(torch.optim.AdamW(groups, lr=1e-3))).held
    assert held is not None
    assert (held.held, held.missing, held.foreign) == (2, ("2.weight", "2.bias"), 0)
    assert held.decay == {"0.weight": 0.1}


def test_two_optimizers_together_hold_all():
    net = _net()
    both = [torch.optim.SGD(net[0].parameters(), lr=0.1), torch.optim.Adam(net[2].parameters(), lr=1e-3)]
    assert "GL711" not in _told(net, loss=functional.cross_entropy, target=CLASSES, recipe=both)
    assert _told(net, loss=functional.cross_entropy, target=CLASSES, recipe=both[0])["GL711"] == "warning"


def test_an_optimizer_of_another_instance_is_an_error():
    stale = torch.optim.SGD(_net().parameters(), lr=0.1)
    assert _told(_net(), loss=functional.cross_entropy, target=CLASSES, recipe=stale)["GL711"] == "error"


def test_frozen_weights_need_no_optimizer():
    net = _net()
    net[0].requires_grad_(False)
    assert "GL711" not in _told(net, recipe=torch.optim.SGD(net[2].parameters(), lr=0.1))


def test_a_recipe_in_words_holds_everything():
    assert _measured(_net(), recipe=Recipe()).held is None


def test_a_copy_with_other_weights_is_not_compared_with_the_optimizer():
    net = _net()
    recipe = Recipe.from_optimizer(torch.optim.SGD(_net().parameters(), lr=0.1))
    assert _measured(net, recipe=recipe, copied=True).held is None


# floor ------------------------------------------------------------------------------------------------------------------------


def _smoothed(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output, target, label_smoothing=0.1)


def _of_log(output: Tensor, target: Tensor) -> Tensor:
    return functional.nll_loss(output.log(), target)


@pytest.mark.parametrize(
    ("net", "loss", "target", "twice"),
    [
        (_net(4, nn.Softmax(-1)), functional.cross_entropy, CLASSES, True),
        (_net(4, nn.Softmax(-1)), _smoothed, CLASSES, True),
        (_net(1, nn.Sigmoid()), functional.binary_cross_entropy_with_logits, SIGNS, True),
        (_net(4, nn.Softmax(-1)), _of_log, CLASSES, False),
        (_net(4, nn.LogSoftmax(-1)), functional.cross_entropy, CLASSES, False),
        (_net(4), functional.cross_entropy, CLASSES, False),
        (_net(1, nn.Sigmoid()), functional.binary_cross_entropy, SIGNS, False),
        (_net(1, nn.Sigmoid()), functional.mse_loss, SIGNS, False),
    ],
)
def test_a_second_softmax_is_told_from_the_loss_alone(
    net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], target: Tensor, *, twice: bool
):
    floor = _measured(net, loss=loss, target=target).floor
    assert floor is not None
    assert floor.takes_logits is twice


def test_classes_of_maps_lie_on_the_second_axis():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Softmax(1))
    floor = _measured(net, MAPS, loss=functional.cross_entropy, target=torch.zeros(4, 6, 6, dtype=torch.int64)).floor
    assert floor is not None
    assert floor.certain == pytest.approx(float(torch.log(1.0 + 4.0 * torch.exp(torch.tensor(-1.0)))), rel=1e-5)
    assert floor.takes_logits


def test_the_rule_names_the_second_softmax():
    assert _told(_net(4, nn.Softmax(-1)), loss=functional.cross_entropy, target=CLASSES)["GL709"] == "warning"


def test_the_likelihood_of_what_is_no_logarithm_has_no_floor():
    assert _told(_net(), loss=functional.nll_loss, target=CLASSES)["GL710"] == "error"
    assert "GL710" not in _told(_net(4, nn.LogSoftmax(-1)), loss=functional.nll_loss, target=CLASSES)
    assert "GL710" not in _told(_net(), loss=functional.cross_entropy, target=CLASSES)


def test_a_target_of_numbers_has_no_floor_to_find():
    assert _measured(_net(1), loss=functional.mse_loss, target=X[:, :1]).floor is None


# bare -------------------------------------------------------------------------------------------------------------------------


class Divided(nn.Module):
    """A layer whose result is divided by a weight, as it is or made positive."""

    def __init__(self, step: float, *, positive: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 4)
        self.step = nn.Parameter(torch.full((4,), step))
        self.positive = positive

    def forward(self, x: Tensor) -> Tensor:
        """Divide."""
        return self.layer(x) / (functional.softplus(self.step) if self.positive else self.step)


def test_a_bare_divisor_is_found_with_its_size_and_its_gradient():
    net = Divided(0.5)
    functional.cross_entropy(net(X), CLASSES).backward()
    (found,) = _measured(net, loss=functional.cross_entropy, target=CLASSES).bare
    assert (found.weight, found.function, found.least) == ("step", "division", 0.5)
    assert net.step.grad is not None
    assert found.gradient == pytest.approx(float(net.step.grad.abs().max()), rel=1e-4)
    assert _measured(Divided(0.5, positive=True)).bare == ()


def test_a_divisor_that_one_update_takes_to_zero_is_a_warning():
    given = {"loss": functional.cross_entropy, "target": CLASSES}
    assert _told(Divided(0.01), recipe="adam lr=0.01", **given)["GL607"] == "warning"
    assert _told(Divided(0.01), recipe="adam lr=0.005", **given)["GL607"] == "note"
    assert _told(Divided(0.01))["GL607"] == "note"
