"""The rehearsal takes the steps that plain torch takes, gives everything back, and keeps its bounds."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlint
from gradlint.api import Inputs
from gradlint.errors import InputError
from gradlint.frontends.onnx.file import read_onnx
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.measurements.rehearsal import Rehearsal
from gradlint.onnx_torch.runnable import OnnxRunnable
from gradlint.probe.experiments import catalog, training
from gradlint.probe.experiments import rehearsal as stage
from gradlint.probe.measure import measure
from gradlint.process.messages import pack, unpack
from gradlint.recipe import Recipe, Task
from gradlint.result import Severity
from tests.models.exports import SCRIPT
from tests.models.rehearsal_cases import LABELS, blobs, by_hand, ce, mlp, probed, rehearsed, trained

STEPS = 12


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# the model is given back -------------------------------------------------------------------------------------------------


def everything(model: nn.Module) -> dict[str, Any]:
    """Copies of all that a training loop changes."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "places": {name: tensor.data_ptr() for name, tensor in model.state_dict().items()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "trains": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: child.training for name, child in model.named_modules()},
        "hooks": {name: list(child._forward_hooks) for name, child in model.named_modules()},
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor(np.random.get_state()[1].astype(np.int64)),  # noqa: NPY002
        "python": random.getstate(),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def untidy() -> nn.Sequential:
    """A model with buffers that training writes to, dropout, gradients, a hook, a frozen weight and mixed modes."""
    model = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 4))
    model(torch.randn(8, 16)).sum().backward()
    model[0].register_forward_hook(lambda *_: None)
    model[4].bias.requires_grad_(False)
    model[4].bias.grad = None
    model[1].eval()
    return model


@pytest.mark.parametrize("recipe", ["sgd lr=0.1 momentum=0.9", "adamw lr=1e-2 clip_norm=1", "sgd lr=1e6", "adam precision=bf16"])
def test_model_and_random_states_come_back_bit_for_bit(recipe: str):
    model, x = untidy(), blobs()
    before = everything(model)
    found = rehearsed(model, x, recipe, loss=functional.cross_entropy, target=LABELS)
    assert found.steps > 1
    assert same(everything(model), before)


def test_model_comes_back_when_the_loss_raises_in_the_middle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalog, "EXPERIMENTS", (("rehearsal", stage.rehearsal),))
    model, x, calls = untidy(), blobs(), iter(range(1000))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if next(calls) > 20:
            raise RuntimeError("no more")
        return functional.cross_entropy(output, target)

    before = everything(model)
    with pytest.raises(InputError, match="the loss raised RuntimeError: no more"):
        probed(model, x, "sgd lr=0.1", loss=loss, target=LABELS)
    assert same(everything(model), before)


def test_tied_weights_stay_tied_and_are_updated_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids))

    model, ids = Tied(), torch.arange(11)
    before = everything(model)
    found = rehearsed(model, ids, "sgd lr=0.1", loss=functional.cross_entropy, target=ids, rehearse=5)
    assert same(everything(model), before)
    assert model.head.weight is model.embed.weight
    assert found.losses == pytest.approx(trained(model, ids, ids, Recipe.parse("sgd lr=0.1"), 5))


def test_onnx_weights_and_file_come_back_bit_for_bit(tmp_path: Path):
    path = tmp_path / "model.onnx"
    torch.onnx.export(mlp(16, 24, 4), (torch.randn(8, 16),), path, **SCRIPT, input_names=["x"])
    content = path.read_bytes()
    model = OnnxRunnable(read_onnx(path))
    before = {name: tensor.clone() for name, tensor in model.parameters().items()}
    state = torch.get_rng_state()
    found = measure(model, seeds=1, task=Task(recipe=Recipe("sgd", 0.1), rehearse=STEPS)).rehearsal
    assert found is not None
    assert found.steps == STEPS
    assert found.last < found.first
    assert same(dict(model.parameters()), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert path.read_bytes() == content


# the steps are those of plain torch --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("sgd lr=0.3", {}),
        ("sgd lr=0.1 momentum=0.9 weight_decay=0.01 nesterov=true", {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
        ("adam lr=0.01 betas=0.8/0.9 eps=1e-6", {"betas": (0.8, 0.9), "eps": 1e-6}),
        ("adamw lr=0.01 weight_decay=0.1", {"weight_decay": 0.1}),
        ("rmsprop lr=0.01 momentum=0.5", {"momentum": 0.5}),
        ("adagrad lr=0.05", {"eps": 1e-8}),
        ("adamax lr=0.01", {}),
        ("nadam lr=0.01", {}),
        ("radam lr=0.01", {}),
        ("sgd lr=1 clip_norm=0.1", {}),
        ("sgd lr=1 clip_value=0.01", {}),
        ("adam lr=0.01 schedule=warmup:8+cosine", {}),
        ("adam lr=0.01 precision=bf16", {}),
        ("adam lr=0.01 precision=fp16", {}),
    ],
)
def test_losses_are_those_of_a_plain_training_loop(recipe: str, settings: dict[str, Any]):
    model, inputs = mlp(16, 24, 24, 4), blobs()
    parsed = Recipe.parse(recipe)
    settings = {**({"weight_decay": 0.0} if parsed.optimizer == "adamw" else {}), **settings}
    found = rehearsed(model, inputs, recipe, loss=functional.cross_entropy, target=LABELS, rehearse=STEPS)
    assert found.losses == pytest.approx(trained(model, inputs, LABELS, parsed, STEPS, **settings), rel=1e-5)
    assert found.steps == STEPS


def test_gradient_norms_and_changes_of_the_first_step_are_those_of_autograd():
    model, inputs = mlp(16, 24, 4), blobs()
    found = rehearsed(model, inputs, "sgd lr=0.5", loss=functional.cross_entropy, target=LABELS, rehearse=3)
    gradients = torch.autograd.grad(functional.cross_entropy(model(inputs), LABELS), list(model.parameters()))
    assert found.gradient_norms[0] == pytest.approx(math.hypot(*(float(g.norm()) for g in gradients)))
    named = dict(zip(dict(model.named_parameters()), gradients, strict=True))
    assert {name: norms[0] for name, norms in found.layers.items()} == pytest.approx(
        {n: float(g.norm()) for n, g in named.items()}
    )
    matrices = [(p, g) for p, g in zip(model.parameters(), gradients, strict=True) if p.dim() > 1]
    assert found.changes[0] == pytest.approx(max(float(0.5 * g.norm() / p.detach().norm()) for p, g in matrices), rel=1e-4)


def test_gradients_that_share_memory_are_clipped_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.one + self.other)

    found = rehearsed(Twice(), torch.ones(2, 4), "sgd lr=0.5 clip_norm=1", loss=lambda y, _: 3 * y.mean(), rehearse=1)
    moved = 0.5 / math.sqrt(8)  # each of eight weights by an eighth of the squared norm
    assert found.losses == pytest.approx((6.0, 3.0 * (2.0 - 2.0 * moved)))


def mapped(batch: Tensor) -> Iterator[tuple[str, Any]]:
    yield "tensor", batch
    yield "tuple", (batch,)
    yield "dict", {"input": batch}
    yield "inputs", Inputs(batch)
    yield "keywords", Inputs(input=batch)


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "inputs", "keywords"])
def test_batches_are_taken_in_turn_in_whatever_form_they_come(form: str):
    model = mlp(16, 24, 4)
    data = [(blobs(), LABELS), (blobs(20), LABELS[:20]), (blobs(), LABELS.flip(0))]
    batches = tuple((dict(mapped(inputs))[form], target) for inputs, target in data)
    found = rehearsed(model, blobs(), "sgd lr=0.1", loss=ce, target=LABELS, batches=batches, rehearse=7)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step in range(8):
        inputs, target = data[step % 3]
        loss = functional.cross_entropy(model(inputs), target)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found.losses == pytest.approx(losses)


def test_a_batch_without_an_input_is_named():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.fc(x * mask)

    batches = ((Inputs(torch.randn(3, 4)), None),)
    found = probed(Pair(), (torch.randn(3, 4), torch.ones(3, 4)), "sgd lr=0.1", batches=batches)
    assert any("batch 0: input 'mask' is missing" in note for note in found.notes)


# bounds -------------------------------------------------------------------------------------------------------------------


def test_no_step_is_taken_without_a_recipe_or_where_none_is_asked_for():
    model, x = mlp(16, 8, 4), blobs()
    assert measure(TorchRunnable(model, args=(x,)), seeds=1, task=Task()).rehearsal is None
    assert probed(model, x, "sgd lr=0.1", rehearse=0).rehearsal is None


def test_steps_are_bounded_by_what_is_asked_for_and_forty_by_default():
    model, x = mlp(16, 8, 4), blobs()
    assert rehearsed(model, x, "sgd lr=0.1", rehearse=3).steps == 3
    assert rehearsed(model, x, "sgd lr=0.1").steps == 40


def test_time_bounds_the_default_and_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage, "SECONDS", 0.0)
    found = rehearsed(mlp(16, 8, 4), blobs(), "sgd lr=0.1")
    assert 0 < found.steps < 40
    assert f"after {found.steps} of 40 steps" in found.stopped
    assert rehearsed(mlp(16, 8, 4), blobs(), "sgd lr=0.1", rehearse=20).steps == 20


def test_memory_is_bounded_and_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "MEMORY", 1e-12)
    found = probed(mlp(16, 8, 4), blobs(), "adam lr=1e-3")
    assert found.rehearsal is None
    assert any(note.startswith("rehearsal: not measured, training takes") for note in found.notes)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("adam precision=fp8", "steps in fp8 are not rehearsed"),
        ("sgd nesterov=true", "torch.optim.SGD: Nesterov momentum requires"),
    ],
)
def test_what_cannot_be_rehearsed_is_said(recipe: str, said: str):
    found = probed(mlp(16, 8, 4), blobs(), recipe)
    assert found.rehearsal is None
    assert any(note.startswith(f"rehearsal: not measured, {said}") for note in found.notes)


def test_a_model_without_weights_is_said_to_have_none():
    found = probed(nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Tanh()), torch.randn(3, 4), "sgd lr=0.1")
    assert any(note == "rehearsal: not measured, the model has no weights to train" for note in found.notes)


def test_the_same_check_gives_the_same_rehearsal():
    model = nn.Sequential(nn.Linear(16, 24), nn.Dropout(0.5), nn.ReLU(), nn.Linear(24, 4))
    one, other = (
        rehearsed(model, blobs(), "adam lr=1e-2", rehearse=10).losses for _ in range(2) if not torch.manual_seed(0) or True
    )
    assert one == other


def test_a_surrogate_is_said_and_warns():
    report = gradlint.check(mlp(16, 32, 4, act=nn.Tanh), blobs(), recipe="sgd lr=1e4", seeds=1)
    (finding,) = [finding for finding in report.findings if finding.rule == "GL807"]
    assert finding.severity is Severity.WARNING
    assert "a surrogate: cross-entropy with random classes" in finding.message


def test_a_rehearsal_survives_the_way_between_processes():
    found = rehearsed(mlp(16, 32, 4), 3 * blobs(), "sgd lr=20", loss=by_hand, target=LABELS)
    back = unpack(Rehearsal, json.loads(json.dumps(pack(found))))
    assert repr(back) == repr(found)
