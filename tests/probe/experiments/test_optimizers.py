"""Optimizers in a rehearsal: the user's own class, groups and state, compared with a plain training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlint

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
Y = torch.randn(16, 2, generator=torch.Generator().manual_seed(2))
STEPS = 12


class Signs(torch.optim.Optimizer):
    """An optimizer of the user's own, with an attribute and an argument that torch does not know."""

    def __init__(self, weights: Any, pace: float) -> None:
        super().__init__(weights, {"pace": pace})
        self.counter = [0]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        del closure
        self.counter[0] += 1
        for group in self.param_groups:
            for weight in group["params"]:
                weight.add_(weight.grad.sign(), alpha=-group["pace"] / self.counter[0])


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 2, bias=False))


def _rehearsed(net: nn.Module, optimizers: Any, **more: Any) -> list[float]:
    report = gradlint.check(
        net, (X,), loss=nn.functional.mse_loss, target=Y, recipe=optimizers, rehearse=STEPS, seeds=1, select=["GL8"], **more
    )
    found = report.result.observed["rehearsal"]
    assert not [note for note in report.result.notes if "rehearsal: not measured" in note]
    return list(found.losses)


def _trained(net: nn.Module, optimizers: list[Any]) -> list[float]:
    """A plain loop."""
    losses: list[float] = []

    def closure() -> Tensor:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(X), Y)
        loss.backward()
        return loss

    for _ in range(STEPS):
        losses.append(float(closure().detach()))
        for optimizer in optimizers:
            optimizer.step(closure) if isinstance(optimizer, torch.optim.LBFGS) else optimizer.step()
    return [*losses, float(closure().detach())]


KINDS: dict[str, Callable[[nn.Module], list[Any]]] = {
    "adadelta": lambda net: [torch.optim.Adadelta(net.parameters(), lr=0.5)],
    "asgd": lambda net: [torch.optim.ASGD(net.parameters(), lr=0.1)],
    "rprop": lambda net: [torch.optim.Rprop(net.parameters(), lr=0.01)],
    "lbfgs": lambda net: [torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)],
    "own class": lambda net: [Signs(net.parameters(), 0.02)],
    "own betas": lambda net: [torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.5, 0.7), amsgrad=True)],
    "groups": lambda net: [
        torch.optim.SGD([{"params": net[0].parameters(), "lr": 0.3}, {"params": net[2].parameters()}], lr=0.01)
    ],
    "two": lambda net: [torch.optim.SGD(net[0].parameters(), lr=0.1), torch.optim.Adam(net[2].parameters(), lr=0.01)],
    "one layer alone": lambda net: [torch.optim.SGD(net[2].parameters(), lr=0.1)],
}
if hasattr(torch.optim, "Muon"):
    KINDS["muon"] = lambda net: [torch.optim.Muon(net.parameters(), lr=0.02)]
if hasattr(torch.optim, "Adafactor"):
    KINDS["adafactor"] = lambda net: [torch.optim.Adafactor(net.parameters(), lr=0.05)]


@pytest.mark.parametrize("kind", KINDS)
def test_rehearsal_takes_the_steps_of_a_plain_loop(kind: str) -> None:
    net = _net()
    optimizers = KINDS[kind](net)
    rehearsed = _rehearsed(net, optimizers if len(optimizers) > 1 else optimizers[0])
    expected = _trained(net, optimizers)  # the net and the optimizers were handed back as they were
    assert rehearsed == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < expected[0]


def test_state_goes_on_and_stays_with_the_user() -> None:
    net = _net()
    optimizer = Signs(net.parameters(), 0.05)
    _trained(net, [optimizer])
    before = copy.deepcopy(net.state_dict())
    rehearsed = _rehearsed(net, optimizer)
    assert optimizer.counter == [STEPS]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert rehearsed == pytest.approx(_trained(net, [optimizer]), rel=1e-4)


def test_hooks_and_schedulers_of_the_user_are_not_called() -> None:
    net, calls = _net(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: calls.append("hook"))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    rehearsed = _rehearsed(net, optimizer)
    assert not calls
    assert scheduler.last_epoch == 0
    assert rehearsed == pytest.approx(_trained(net, [torch.optim.SGD(net.parameters(), lr=0.1)]), rel=1e-4)


@pytest.mark.parametrize("name", ["adadelta", "asgd", "rprop", "lbfgs", "muon", "adafactor"])
def test_names_of_torch_as_text(name: str) -> None:
    if name not in {kind.lower() for kind in dir(torch.optim)}:
        pytest.skip(f"this torch has no {name}")
    losses = _rehearsed(_net(), f"{name} lr=0.05")
    assert losses[-1] < losses[0]


def test_no_limit_is_claimed_for_what_has_no_formula() -> None:
    net = _net()
    optimizer = torch.optim.Adadelta(net.parameters(), lr=1.0)
    report = gradlint.check(net, (X,), loss=nn.functional.mse_loss, target=Y, recipe=optimizer, rehearse=8, seeds=1)
    skipped = {item.rule: item.because for item in report.skipped}
    assert skipped["GL703"] == "no formula gives the stability limit of adadelta"
    assert "stable up to" not in str(report)
