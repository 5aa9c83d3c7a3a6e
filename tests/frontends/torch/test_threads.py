"""A check gives the report that it gives alone: on several threads, beside a training thread, and whatever surrounds the call."""

from __future__ import annotations

import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradlint
from gradlint.frontends.torch.state.randomness import seeded

THREADS = 4


class Restless(nn.Module):
    """Draws from every common random state, and warns."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = nn.functional.dropout(layer(x), 0.1) + 0.1 * np.random.randn()  # noqa: NPY002
            if random.random() < 0.5:
                x = torch.relu(x)
        warnings.warn("restless", stacklevel=1)
        return x


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


def stack():
    return nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3))))


KINDS = [
    (Restless, torch.ones(4, 8), {}),
    (
        stack,
        torch.ones(4, 8),
        {"loss": nn.functional.mse_loss, "target": torch.zeros(4, 8), "recipe": "adam,lr=1e-3", "rehearse": 3},
    ),
    (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)),
        torch.ones(4, 2, 6, 6),
        {},
    ),
    (lambda: nn.LSTM(5, 7, 2, dropout=0.2), torch.ones(6, 4, 5), {}),
]


def models(count):
    torch.manual_seed(0)
    return [KINDS[index % len(KINDS)][0]() for index in range(count)]


def checked(index, model):
    _, x, task = KINDS[index % len(KINDS)]
    return gradlint.check(model, (x,), seeds=1, **task).to("json", timings=False)


def train(stop, faults, steps):
    """Train a model, and draw and warn as a training loop does, until `stop` is set."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters())
    try:
        while not stop.is_set():
            x = torch.randn(8, 8, requires_grad=True)
            loss = Square.apply(checkpoint(model, x, use_reentrant=len(steps) % 2 == 0)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append((random.random(), np.random.rand()))  # noqa: NPY002
            with suppress(UserWarning):  # an error in tests; filters of its own would race with those of other threads
                warnings.warn(f"step {len(steps)}", stacklevel=1)
    except Exception as error:  # noqa: BLE001 - the test shows it
        faults.append(error)


def compared_on_threads(count):
    alone = [checked(index, model) for index, model in enumerate(models(count))]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(checked, range(count), models(count)))
    return [index for index in range(count) if alone[index] != together[index]]


def test_checks_on_four_threads_equal_those_on_one():
    assert compared_on_threads(24) == []


@pytest.mark.slow
def test_two_hundred_checks_on_four_threads_equal_those_on_one():
    assert compared_on_threads(200) == []


def test_a_check_beside_a_training_thread_equals_one_alone():
    alone = [checked(index, model) for index, model in enumerate(models(8))]
    given = models(8)
    stop, faults, steps = threading.Event(), [], []
    thread = threading.Thread(target=train, args=(stop, faults, steps))
    thread.start()
    try:
        beside = [checked(index, model) for index, model in enumerate(given)]
    finally:
        stop.set()
        thread.join()
    assert faults == []
    assert steps
    assert [index for index, report in enumerate(alone) if report != beside[index]] == []


def drawn():
    functions = nn.functional
    x = torch.ones(5, 5)
    return [
        *(functions.dropout(x), torch.rand_like(x), torch.randn_like(x), torch.rand(3), torch.randn(40), torch.randperm(9)),
        *(functions.rrelu(-x, training=True), torch.multinomial(x, 1), torch.randint(3, (7,)), torch.randint_like(x, 9)),
        *(torch.poisson(x * 3), torch.bernoulli(x * 0.5), torch.native_dropout(x, 0.5, True)[0], x.clone().exponential_()),
        *(torch.normal(x, 1.0), torch.distributions.Gamma(1.0, 1.0).sample((4,)), torch.binomial(x * 9, x * 0.5)),
        torch.tensor([random.random(), random.gauss(0, 1), random.choice(range(99)), np.random.rand(), np.random.choice(9)]),  # noqa: NPY002
    ]


def test_the_numbers_of_a_thread_of_its_own_are_those_of_the_common_states():
    """The test of the operators one by one: each draws the same beside a thread that draws too, and leaves that one alone."""
    with seeded():
        alone = drawn()
    stop, theirs = threading.Event(), []

    def noise():
        generator_states = torch.get_rng_state(), random.getstate()
        while not stop.is_set():
            theirs.append((torch.rand(()).item(), random.random()))
        torch.set_rng_state(generator_states[0])
        random.setstate(generator_states[1])
        assert [(torch.rand(()).item(), random.random()) for _ in theirs] == theirs
        theirs.append("the same")

    thread = threading.Thread(target=noise)
    thread.start()
    with seeded():
        beside = drawn()
    stop.set()
    thread.join()
    assert [index for index, numbers in enumerate(alone) if not torch.equal(numbers, beside[index])] == []
    assert theirs[-1] == "the same"


@pytest.fixture
def usual_defaults():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("given", [True, False], ids=["inputs given", "inputs inferred"])
@pytest.mark.parametrize(
    "context", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")], ids=["inference", "no grad", "meta"]
)
def test_the_context_of_the_call_does_not_matter(context, given):
    model, inputs = stack(), (torch.ones(4, 8),) if given else None
    expected = gradlint.check(model, inputs, seeds=1, recipe="sgd,lr=0.01", rehearse=2).to("json", timings=False)
    with context():
        assert gradlint.check(model, inputs, seeds=1, recipe="sgd,lr=0.01", rehearse=2).to("json", timings=False) == expected


@pytest.mark.parametrize("double", [True, False], ids=["double model", "float model"])
def test_a_default_dtype_of_double_does_not_matter(double, usual_defaults):
    model = stack().double() if double else stack()
    expected = gradlint.check(model, seeds=1, recipe="sgd,lr=0.01", rehearse=2).to("json", timings=False)
    torch.set_default_dtype(torch.float64)
    assert gradlint.check(model, seeds=1, recipe="sgd,lr=0.01", rehearse=2).to("json", timings=False) == expected
    assert torch.get_default_dtype() is torch.float64


def test_a_target_of_inference_mode_is_copied_and_weights_of_it_are_refused():
    task = {"loss": nn.functional.mse_loss, "recipe": "sgd,lr=0.01", "rehearse": 2}
    with torch.inference_mode():
        gradlint.check(OUTSIDE, (torch.ones(4, 8),), seeds=1, target=torch.zeros(4, 8), **task)
        with pytest.raises(gradlint.GradlintError, match="made in inference mode"):
            gradlint.check(stack(), (torch.ones(4, 8),))


OUTSIDE = stack()


def test_an_input_without_values_is_an_error_with_its_name():
    with pytest.raises(gradlint.GradlintError, match="on the meta device and has no values"):
        gradlint.check(stack(), (torch.ones(4, 8, device="meta"),))


def test_a_graph_recorded_before_a_rehearsal_can_still_be_differentiated():
    model = stack()
    loss = model(torch.ones(4, 8)).square().sum()
    expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    gradlint.check(model, (torch.ones(4, 8),), seeds=1, recipe="sgd,lr=0.1", rehearse=5)
    loss.backward()
    assert all(torch.equal(parameter.grad, wanted) for parameter, wanted in zip(model.parameters(), expected, strict=True))


class Unrestorable(nn.Module):
    """Writes to an array and locks it, so that its values cannot be written back, and changes a list."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.values = np.zeros(3)
        self.items = [1]

    def forward(self, x):
        self.items.append(2)
        if self.values.flags.writeable:
            self.values[:] = 1.0
            self.values.flags.writeable = False
        return self.layer(x)


def test_what_could_not_be_restored_is_said_after_the_rest_was_restored():
    model = Unrestorable()
    before = model.layer.weight.clone()
    report = gradlint.check(model, (torch.ones(4, 8),), seeds=1, recipe="sgd,lr=0.1", rehearse=3)
    assert any("values could not be restored: ValueError" in note for note in report.result.notes), report.result.notes
    assert model.items == [1]
    assert torch.equal(model.layer.weight, before)
