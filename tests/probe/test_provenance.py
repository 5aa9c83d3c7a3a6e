"""The operator that is named for a NaN or an infinity, its place, and what the report says to do about it."""

from __future__ import annotations

import inspect
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlint
from gradlint.result import Finding

INF = math.inf
RULED_OUT = torch.tensor([False, True, False, False])


class Head(nn.Module):
    """Four outputs of a small network, changed by a function that may read further inputs."""

    def __init__(self, change: Callable[..., Tensor] = lambda y: y) -> None:
        super().__init__()
        self.body, self.change = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)), change

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.change(self.body(x), *others)


def square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def culprit(module: nn.Module, *others: Tensor, loss: Any = square, target: Any = None, batch: int = 8) -> Finding:
    """The one finding about the first operator that is not finite."""
    torch.manual_seed(0)
    report = gradlint.check(
        module, (torch.randn(batch, 6), *others), loss=loss, target=torch.zeros(1) if target is None else target, seeds=1
    )
    assert report.verdict == "non-finite"
    (found,) = [finding for finding in report.findings if finding.rule in {"GL804", "GL805"}]
    assert not [
        finding for finding in report.findings if finding.rule == "GL806" and finding.evidence.get("cause") == "flat loss"
    ]
    return found


def line_of(function: Callable[..., Any], text: str) -> int:
    """The line of a function that has a text."""
    lines, first = inspect.getsourcelines(function)
    return next(first + index for index, line in enumerate(lines) if text in line)


# 0 * -inf: a mask that was meant, and a product that was not ----------------------------------------------------------------


def masked_fill(y: Tensor) -> Tensor:
    return y.masked_fill(RULED_OUT, -INF)


def where(y: Tensor) -> Tensor:
    return torch.where(RULED_OUT, torch.tensor(-INF), y)


def added(y: Tensor) -> Tensor:
    return y + torch.zeros(4).masked_fill(RULED_OUT, -INF)


def written(y: Tensor) -> Tensor:
    y = y.clone()
    y[:, 1] = -INF
    return y


def log_of_ones(y: Tensor, allowed: Tensor) -> Tensor:
    return y + allowed.log()


def entropy(logits: Tensor, _: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * log_p).sum(-1).mean()  # the product


def filled_entropy(logits: Tensor, _: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * log_p.masked_fill(RULED_OUT, 0.0)).sum(-1).mean()


MASKS = [masked_fill, where, added, written]


@pytest.mark.parametrize("mask", MASKS)
def test_the_product_in_the_loss_is_named_and_not_the_mask_in_the_model(mask):
    found = culprit(Head(mask), loss=entropy)
    assert found.message.startswith("in the loss: mul makes NaN")
    assert "0 * inf" in found.message
    assert found.source.line == line_of(entropy, "# the product")
    assert found.nodes == ()
    assert "finite value" in found.remedy.summary
    assert "clamp" not in found.remedy.summary


def test_the_line_that_put_in_the_mask_is_told():
    found = culprit(Head(masked_fill), loss=entropy)
    assert f"masked_fill (tests/probe/test_provenance.py:{line_of(masked_fill, 'RULED_OUT')})" in found.message


def test_a_mask_from_the_log_of_an_input_of_zeros_and_ones_is_meant_too():
    found = culprit(Head(log_of_ones), (~RULED_OUT).float().expand(8, 4).contiguous(), loss=entropy)
    assert found.message.startswith("in the loss: mul makes NaN")


def test_the_product_is_named_where_it_stands_in_the_model():
    found = culprit(Head(lambda y: entropy(masked_fill(y), y)[None]))
    assert found.message.startswith("mul makes NaN in the forward pass")
    assert found.source.line == line_of(entropy, "# the product")


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (functional.cross_entropy, torch.zeros(8, dtype=torch.int64)),
        (lambda y, t: functional.nll_loss(y.log_softmax(-1), t), torch.zeros(8, dtype=torch.int64)),
        (lambda y, _: -y.log_softmax(-1)[:, 0].mean(), torch.zeros(1)),
        (filled_entropy, torch.zeros(1)),
    ],
    ids=["cross entropy", "nll", "by hand", "filled before the product"],
)
@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_that_the_loss_does_not_trip_over_is_silent(mask, loss, target):
    report = gradlint.check(Head(mask), torch.randn(8, 6), loss=loss, target=target, recipe="adam lr=1e-3", rehearse=3, seeds=1)
    assert report.verdict == "healthy"
    assert not [finding for finding in report.findings if finding.rule in {"GL604", "GL804", "GL805", "GL807"}]


def test_the_finite_fill_that_is_advised_has_finite_gradients():
    y = torch.randn(8, 4, requires_grad=True)
    entropy(y.masked_fill(RULED_OUT, torch.finfo(y.dtype).min), y).backward()
    assert y.grad.isfinite().all()


def test_a_target_under_the_mask_is_named_at_the_loss():
    found = culprit(Head(masked_fill), loss=functional.cross_entropy, target=torch.ones(8, dtype=torch.int64))
    assert found.message.startswith("in the loss: cross_entropy makes infinity")
    assert "must not be a target" in found.remedy.summary


def test_a_divergence_from_zero_probabilities_is_a_product_too():
    target = torch.tensor([0.5, 0.0, 0.25, 0.25]).expand(8, 4)
    loss = nn.KLDivLoss(reduction="batchmean")
    found = culprit(Head(lambda y: masked_fill(y).log_softmax(-1)), loss=loss, target=target)
    assert found.message.startswith("in the loss: kl_div makes NaN")
    assert "0 * inf" in found.message


def test_the_backward_pass_of_a_product_with_a_mask_is_named_where_its_value_is_replaced():
    def replaced(logits: Tensor, _: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)
        return torch.where(RULED_OUT, 0.0, log_p.exp() * log_p).sum()

    found = culprit(Head(masked_fill), loss=replaced)
    assert found.rule in {"GL804", "GL805"}
    assert "mul makes NaN" in found.message
    assert "finite value before the product" in found.remedy.summary


# infinities that an operator makes ------------------------------------------------------------------------------------------


def test_an_infinity_that_overflows_is_named_before_the_difference_that_makes_nan_of_it():
    found = culprit(Head(lambda y: (y.abs() * 1e4).exp() - (y.abs() * 1e4).exp().mean()))
    assert found.message.startswith("exp makes infinity")
    assert "sub (" in found.message
    assert "exponent" in found.remedy.summary


def test_a_log_of_zero_in_the_model_is_named_if_the_loss_is_not_finite():
    found = culprit(Head(lambda y: torch.relu(y).log()))
    assert found.nodes == ("log",)
    assert "and the loss is not finite" in found.message


def test_a_log_of_zero_in_the_loss_is_named_with_the_product_behind_it():
    found = culprit(Head(lambda y: (1e4 * y).softmax(-1)), loss=lambda p, _: (p * p.log()).sum())
    assert found.message.startswith("in the loss: log makes infinity")
    assert "makes NaN of it" in found.message
    assert "0 * log 0" in found.remedy.summary


FORWARD = {
    "negative root": (lambda y: y.sqrt(), "sqrt", "zero or more"),
    "negative log": (lambda y: y.log(), "log", "clamp the operand of the log"),
    "fractional power": (lambda y: y**1.5, "pow", "zero or more"),
    "0/0": (lambda y: torch.relu(y - 99.0) / torch.relu(y - 99.0).sum(), "div", "divisor"),
    "empty selection": (lambda y: y[y > 1e6].mean()[None], "mean", "nothing is selected"),
    "one element": (lambda y: y[:1].std(0), "std", "correction=0"),
    "row masked wholly": (
        lambda y: y.masked_fill(torch.arange(8)[:, None] < 1, -INF).softmax(-1),
        "softmax",
        "position of each row",
    ),
    "logdet": (lambda y: torch.logdet(y[:2].T @ y[:2] * 0.0)[None], "logdet", "torch.eye"),
}


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize("name", FORWARD)
def test_the_remedy_fits_the_operator_forward(name):
    change, op, advice = FORWARD[name]
    for found in (culprit(Head(change)), culprit(Head(), loss=lambda y, t: square(change(y), t))):
        assert f"{op} makes " in found.message
        assert advice in found.message + found.remedy.summary
        assert found.source.file.endswith("test_provenance.py")


@pytest.mark.parametrize(
    ("module", "others", "loss"),
    [
        (Head(lambda y, kept: y + (1.0 - kept) * -INF), (torch.ones(8, 4),), square),
        (Head(), (), lambda y, _: (y + (1.0 - torch.ones(4)) * -INF).softmax(-1).sum()),
    ],
    ids=["model", "loss"],
)
def test_a_mask_that_is_made_by_a_product_is_nan_where_nothing_is_masked(module, others, loss):
    found = culprit(module, *others, loss=loss)
    assert "mul makes NaN" in found.message
    assert "0 * inf" in found.message


BACKWARD = {
    "eigh": (
        lambda y: torch.linalg.eigh(y.square().mean() * torch.eye(4))[1][:, -2:].sum()[None],
        "linalg_eigh",
        "distinct jitter",
    ),
    "svd": (lambda y: torch.linalg.svd(y.square().mean() * torch.eye(4))[0].sum()[None], "linalg_svd", "distinct jitter"),
    "root": (lambda y: (y - y.detach()).square().sum().sqrt()[None], "sqrt", "eps inside the root"),
    "root behind where": (lambda y: torch.where(y > 0.0, y.sqrt(), 0.0), "sqrt", "eps inside the root"),
    "power": (lambda y: (y - y.detach()).abs() ** 0.5, "pow", "base"),
    "angle": (lambda y: torch.acos(torch.tanh(99.0 * y.abs() + 99.0)), "acos", "strictly inside"),
    "cholesky": (lambda y: torch.linalg.cholesky_ex(y.mean() * torch.zeros(4, 4))[0].sum()[None], "cholesky_ex", "torch.eye"),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_the_remedy_fits_the_operator_backward(name):
    change, op, advice = BACKWARD[name]
    for found in (culprit(Head(change)), culprit(Head(), loss=lambda y, t: square(change(y), t))):
        assert found.rule == "GL805"
        assert f"{op} makes " in found.message
        assert advice in found.remedy.summary
        assert ("sqrt" in found.remedy.summary) <= ("root" in name)


def test_the_jitter_that_is_advised_has_finite_gradients():
    x = torch.ones((), requires_grad=True)
    matrix = x * torch.eye(4) + torch.diag(torch.linspace(0, 1e-3, 4))
    torch.linalg.eigh(matrix)[1].sum().backward()
    assert x.grad.isfinite()


def test_a_factorization_that_raises_later_is_told_to_shift_the_diagonal():
    class Variance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.size = nn.Parameter(torch.tensor(0.01))

        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.cholesky(self.size * torch.eye(2)) @ x

    report = gradlint.check(
        Variance(), torch.ones(2, 3), loss=square, target=torch.full((2, 3), -1.0), recipe="sgd lr=1", rehearse=9, seeds=1
    )
    (found,) = [finding for finding in report.findings if finding.rule == "GL807"]
    assert "torch.eye" in found.remedy.summary


# labels and targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "label"),
    [
        (functional.cross_entropy, -100),
        (nn.CrossEntropyLoss(ignore_index=0), 0),
        (lambda y, t: functional.cross_entropy(y, t, ignore_index=255), 255),
        (lambda y, t: functional.nll_loss(y.log_softmax(-1), t), -100),
    ],
    ids=["default", "module", "keyword", "nll"],
)
def test_labels_that_are_all_ignored_are_told(loss, label):
    found = culprit(Head(), loss=loss, target=torch.full((8,), label))
    assert "every label is ignored" in found.message
    assert "ignore_index" in found.remedy.summary
    assert "eps" not in found.remedy.summary


def test_labels_that_are_all_ignored_inside_the_model_are_told():
    labels = torch.full((8,), -100)
    found = culprit(Head(functional.cross_entropy), labels, loss=None)
    assert found.nodes == ("loss",)
    assert "every label is ignored" in found.message


def test_class_weights_of_zero_are_told():
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0])
    labels = torch.zeros(8, dtype=torch.int64)
    found = culprit(Head(), loss=lambda y, t: functional.cross_entropy(y, t, weight=weight), target=labels)
    assert "class weights" in found.message


@pytest.mark.parametrize("value", [math.nan, INF])
def test_a_target_that_is_not_finite_is_blamed_and_no_operator(value):
    target = torch.zeros(8, 4)
    target[0, 0] = value
    found = culprit(Head(), target=target)
    assert found.message.startswith("in the loss: the target holds")
    assert "clean the target" in found.remedy.summary


def test_a_label_that_is_missing_in_some_samples_is_no_fault():
    labels = torch.tensor([0, -100, 1, -100, 2, 3, 0, 1])
    report = gradlint.check(Head(), torch.randn(8, 6), loss=functional.cross_entropy, target=labels, seeds=1)
    assert report.verdict == "healthy"


# the same by a file ---------------------------------------------------------------------------------------------------------


def exported(module: nn.Module, *args: Tensor) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), args, stream, dynamo=False, input_names=["x"])
    return stream.getvalue()


@pytest.mark.parametrize(
    ("change", "op", "advice"),
    [
        (lambda y: entropy(masked_fill(y), y)[None], "Mul", "finite value"),
        (lambda y: y.masked_fill(torch.arange(8)[:, None] < 1, -INF).softmax(-1), "softmax", "position of each row"),
        (lambda y: y.sqrt(), "Sqrt", "zero or more"),
    ],
)
def test_the_culprit_of_an_onnx_file_is_the_same(tmp_path, change, op, advice):
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    (tmp_path / "model.onnx").write_bytes(exported(Head(change), x))
    report = gradlint.check(tmp_path / "model.onnx", {"x": x.numpy()}, seeds=1)
    (found,) = [finding for finding in report.findings if finding.rule == "GL804"]
    assert f"{op} makes NaN" in found.message
    assert advice in found.remedy.summary


def test_the_product_in_the_loss_of_an_onnx_file_is_named(tmp_path):
    x = torch.randn(8, 6)
    (tmp_path / "model.onnx").write_bytes(exported(Head(masked_fill), x))
    report = gradlint.check(
        tmp_path / "model.onnx", {"x": x.numpy()}, loss=lambda y, t: entropy(y[0], t), target=torch.zeros(1), seeds=1
    )
    (found,) = [finding for finding in report.findings if finding.rule == "GL804"]
    assert found.message.startswith("in the loss: mul makes NaN")
