"""Models, batches and losses out of the ordinary are measured, or it is said why not; nothing escapes and nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlint
from gradlint.errors import ConfigError, InputError
from gradlint.measurements.rehearsal import Cause
from gradlint.probe.trainability import _moved
from gradlint.recipe import Task
from tests.models.rehearsal_cases import ce, mlp, mse, probed
from tests.models.versions import skip_from

RECIPE = "sgd lr=0.1"
FEW = {"recipe": RECIPE, "rehearse": 3, "seeds": 1}


@dataclass
class Output:
    logits: Tensor
    nothing: None = None


class Wrapped(nn.Module):
    """A layer whose output is handed on as something else."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.layer(x))


class Complex(nn.Module):
    """A complex weight between real ends."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((torch.fft.fft(x) @ self.weight).conj().abs())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def batch() -> Tensor:
    return torch.randn(6, 4)


def classes() -> Tensor:
    return torch.arange(6) % 3


def test_a_sparse_gradient_has_the_norm_of_the_dense_one():
    norms = []
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(10, 4, sparse=sparse)
        model, tokens = nn.Sequential(table, nn.Flatten(), nn.Linear(8, 3)), torch.tensor([[1, 1], [2, 3], [4, 1]])
        found = probed(model, tokens, RECIPE, loss=ce, target=classes()[:3], rehearse=3)
        assert found.loss is not None
        assert found.rehearsal is not None
        norms.append((found.loss.gradients["0.weight"], found.rehearsal.losses))
    assert norms[0][0] == pytest.approx(norms[1][0], rel=1e-6)
    assert norms[0][1] == pytest.approx(norms[1][1], rel=1e-5)


def test_an_empty_batch_is_not_rehearsed():
    found = probed(mlp(4, 8, 3), torch.randn(0, 4), RECIPE, loss=ce, target=classes()[:0])
    assert "rehearsal: not measured, the batch is empty" in found.notes


@pytest.mark.parametrize("wrap", [Output, lambda y: {"logits": y, "n": None, "i": 3}, lambda y: (y, None)])
def test_a_loss_stands_in_for_outputs_of_any_form(wrap: Any):
    found = probed(Wrapped(wrap), batch(), RECIPE, rehearse=3)
    assert found.curvature is not None, found.notes
    assert "cross-entropy" in found.curvature.stands_in


def test_headroom_is_measured_behind_a_dataclass():
    found = probed(
        Wrapped(Output), batch(), "sgd precision=fp16", loss=lambda out, y: ce(out.logits, y), target=classes(), rehearse=0
    )
    assert found.headroom is not None, found.notes


def test_outputs_that_carry_no_gradient_are_said():
    found = probed(Wrapped(lambda y: y.argmax(-1)), batch(), RECIPE)
    assert any("returns nothing that a loss could be computed of" in note for note in found.notes)


def test_a_loss_that_writes_into_its_target_gets_the_same_target_every_time():
    def writing(output: Tensor, target: Tensor) -> Tensor:
        return functional.mse_loss(output, target.mul_(0.5))

    target = torch.randn(6, 3)
    kept = target.clone()
    found = probed(nn.Linear(4, 3), batch(), "sgd lr=0.0", loss=writing, target=target, rehearse=5)
    assert torch.equal(target, kept)
    assert found.rehearsal is not None
    assert len(set(found.rehearsal.losses)) == 1


def test_a_frozen_model_is_checked_in_spite_of_its_loss():
    model = mlp(4, 8, 3).requires_grad_(requires_grad=False)
    report = gradlint.check(model, batch(), loss=ce, target=classes(), **FEW)
    assert any("no weights to train" in note for note in report.result.notes)


def test_a_complex_loss_is_refused():
    with pytest.raises(InputError, match="complex"):
        gradlint.check(Complex(), batch(), loss=lambda out, _: out.sum() * 1j, **FEW)


@pytest.mark.parametrize("recipe", ["sgd lr=0.01 precision=fp16", "adam lr=1e-3"])
def test_complex_weights_are_measured_and_rehearsed(recipe: str):
    found = probed(Complex(), batch(), recipe, loss=ce, target=classes(), rehearse=3)
    assert found.rehearsal is not None, found.notes
    assert not any("not measured" in note for note in found.notes)


def test_a_weight_that_shares_its_memory_cannot_be_trained_and_is_handed_back():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.randn(1, 4).expand(4, 4))
    kept = model[0].weight.detach().clone()
    found = probed(model, batch(), RECIPE, loss=mse, target=batch())
    assert any(note.startswith("rehearsal: not measured, the optimizer ") for note in found.notes)
    assert torch.equal(model[0].weight, kept)


def test_adam_on_weights_in_half_precision_fails_for_want_of_precision():
    """Its eps of 1e-8 is zero in fp16, so that a weight without a gradient becomes 0/0."""
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)).half()
    found = probed(model, batch().half(), "adam lr=1e-3", rehearse=5)
    assert found.rehearsal is not None
    assert found.rehearsal.cause is Cause.PRECISION


def test_a_batch_with_nan_is_named_as_the_input():
    report = gradlint.check(nn.Linear(4, 3), torch.full((6, 4), float("nan")), seeds=1)
    (finding,) = [finding for finding in report.findings if finding.rule == "GL804"]
    assert finding.message == "the input 'input' holds NaN"


@skip_from("torch", "2.14", "the norm of sparse gradients can be clipped")
def test_a_long_error_of_torch_becomes_a_short_note():
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    found = probed(model, torch.randint(10, (3, 2)), "sgd lr=0.1 clip_norm=1", loss=ce, target=classes()[:3])
    (note,) = [note for note in found.notes if note.startswith("rehearsal: not measured")]
    assert len(note) < 250


def test_sparse_buffers_and_operators_do_not_stop_a_check():
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.register_buffer("adjacency", torch.eye(6).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(self.adjacency, self.layer(x))

    report = gradlint.check(Graph(), torch.randn(6, 6), loss=mse, target=torch.randn(6, 6), **FEW)
    assert not any("not measured" in note for note in report.result.notes)


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ConfigError, match="rehearse is -1"):
        gradlint.check(nn.Linear(4, 3), batch(), recipe=RECIPE, rehearse=-1)
    with pytest.raises(ConfigError, match="rehearse is -2"):
        Task(rehearse=-2)


@pytest.mark.parametrize("scale", [1e-44, 1e-42, 1e-38, 1e-20, 1.0])
def test_a_virtual_step_has_its_length_whatever_the_size_of_the_gradient(scale):
    """The inverse of a gradient of next to nothing is not a float."""
    weight = torch.ones(4)
    with _moved({"weight": weight}) as move:
        move({"weight": torch.full((4,), scale)})
        assert torch.allclose(weight - 1.0, (weight - 1.0)[:1].expand(4))
        assert 0.0 < float(weight[0] - 1.0) < 0.1
    assert torch.equal(weight, torch.ones(4))
