"""The verdict rests on every weight that should learn: branches, second inputs, conditions, cuts, and zeros by design."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradlint
from gradlint import Confidence, Report, Severity
from tests.models.learning_cases import HE, Fed, Heads, Joined, Ladder, Pair
from tests.models.zero_starts import STARTS


def errors(report: Report) -> dict[str, str]:
    found = (f for f in report.findings if f.severity is Severity.ERROR and f.confidence is not Confidence.REFUTED)
    return {finding.rule: finding.module for finding in found}


def linted(make: Callable[[], nn.Module], *shapes: tuple[int, ...], **options: object) -> Report:
    torch.manual_seed(0)
    module = make()
    return gradlint.check(module, tuple(torch.randn(*shape) for shape in shapes), **options)


def joined(how: str, gain: float | None, **options: object) -> tuple[Callable[[], nn.Module], tuple[int, int]]:
    return lambda: Joined(how, gain, **options), (16, 40)


# chains beside the spine -----------------------------------------------------------------------------------------------------

HEADS, LADDER, PAIR = (16, 20), (8, 2, 32), ((8, 5), (8, 3, 12, 12))

FAILING = {
    "towers joined by cat, too large": (*joined("cat", 2.4), "explodes", "GL101", "deep"),
    "towers joined by sum, too large": (*joined("sum", 2.4), "explodes", "GL101", "deep"),
    "towers joined by a product, too large": (*joined("product", 2.4), "explodes", "GL101", "deep"),
    "towers joined by cat, default init": (*joined("cat", None), "vanishes", "GL103", "deep"),
    "towers joined by sum, default init": (*joined("sum", None), "vanishes", "GL103", "deep"),
    "three towers, default init": (*joined("cat", None, towers=3), "vanishes", "GL103", "deep"),
    "a tower of sigmoids": (*joined("cat", 1.0, act=nn.Sigmoid, depth=16), "vanishes", "GL402", "deep"),
    "a chaotic tower": (*joined("cat", 2.5, act=nn.Tanh, depth=40), "explodes", "GL801", "deep"),
    "a deep head, default init": (lambda: Heads(None), HEADS, "vanishes", "GL103", "deep"),
    "a deep head, too large": (lambda: Heads(2.4), HEADS, "explodes", "GL101", "deep"),
    "the bottom of a U-Net, default init": (lambda: Ladder(None), LADDER, "vanishes", "GL103", "bottom"),
    "the bottom of a U-Net, too large": (lambda: Ladder(2.6), LADDER, "explodes", "GL101", "bottom"),
    "one of two inputs, default init": (lambda: Pair(None), PAIR, "vanishes", "GL103", "picture"),
    "one of two inputs, too large": (lambda: Pair(2.6), PAIR, "explodes", "GL101", "picture"),
    "a condition added at every layer": (lambda: Fed("sum"), ((16, 32), (16, 16)), "vanishes", "GL103", "layers"),
    "a condition that scales every layer": (lambda: Fed("film"), ((16, 32), (16, 16)), "vanishes", "GL103", "layers"),
    "a condition joined at every layer": (lambda: Fed("cat"), ((16, 32), (16, 16)), "vanishes", "GL802", "layers"),
}

HEALTHY = {
    "towers joined by cat": joined("cat", HE),
    "towers joined by sum": joined("sum", HE),
    "towers joined by a product": joined("product", HE),
    "a critical tower of tanh": joined("cat", 1.0, act=nn.Tanh),
    "a deep head": (lambda: Heads(HE), HEADS),
    "a U-Net": (lambda: Ladder(HE), LADDER),
    "two inputs": (lambda: Pair(HE), PAIR),
    "a condition added, with skips": (lambda: Fed("sum", skip=True), ((16, 32), (16, 16))),
    "a condition that scales, with skips": (lambda: Fed("film", skip=True), ((16, 32), (16, 16))),
    "a condition joined, with skips": (lambda: Fed("cat", skip=True), ((16, 32), (16, 16))),
}


def shapes_of(given: tuple[object, ...]) -> tuple[tuple[int, ...], ...]:
    return given if isinstance(given[0], tuple) else (given,)


@pytest.mark.parametrize("name", FAILING)
def test_a_part_beside_the_spine_that_fails_is_found_in_its_place(name):
    make, shapes, verdict, rule, where = FAILING[name]
    report = linted(make, *shapes_of(shapes))
    assert report.verdict == verdict
    assert where in errors(report)[rule]
    assert report.score < 50


@pytest.mark.parametrize("name", [name for name in FAILING if "chaotic" not in name and "U-Net, too large" not in name])
def test_theory_alone_finds_it_as_well(name):
    make, shapes, verdict, _, where = FAILING[name]
    report = linted(make, *shapes_of(shapes), probe=False)
    assert report.verdict == verdict
    assert any(where in module for module in errors(report).values())


@pytest.mark.parametrize("name", HEALTHY)
def test_its_twin_is_healthy(name):
    make, shapes = HEALTHY[name]
    for probe in (True, False):
        report = linted(make, *shapes_of(shapes), probe=probe)
        assert (report.verdict, errors(report)) == ("healthy", {})


@pytest.mark.parametrize(("name", "verdict"), [("towers joined by sum, default init", "vanishes"), ("a U-Net", "healthy")])
def test_an_exported_file_is_judged_alike(name, verdict, tmp_path):
    make, shapes, *_ = (FAILING | HEALTHY)[name]
    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    torch.onnx.export(make(), tuple(torch.randn(*shape) for shape in shapes_of(shapes)), path, dynamo=False)
    assert [gradlint.check(path, probe=probe).verdict for probe in (True, False)] == [verdict] * 2


def test_the_report_shows_the_worst_track_and_says_what_stands_beside_it():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = Joined("cat", None), Joined("cat", None, depth=34)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + self.right(x)

    report = linted(Two, (16, 40))
    assert all(point.place.module.startswith("right") for point in report.spine[:-1])
    text = report.to("full")
    assert "over 35 layers (right.deep.0 to right.head)" in text
    assert "beside it: the gradient shrinks to" in text


# cuts ------------------------------------------------------------------------------------------------------------------------


class Front(nn.Module):
    """Two layers that are cut off before a head."""

    def __init__(self, cut: Callable[[nn.Module, Tensor], Tensor], end: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.front, self.head = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 16)), nn.Linear(16, 3)
        self.cut, self.end = cut, end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(torch.tanh(self.cut(self.front, x))))


def without_gradient(front: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return front(x)


CUTS = {
    "no_grad": (without_gradient, "front"),
    "inference of parts": (lambda front, x: front[2](without_gradient(front[:2], x)), "front.0"),
    "detach": (lambda front, x: front(x).detach(), ""),
    "round": (lambda front, x: front(x).round(), ""),
    "sign": (lambda front, x: front(x).sign(), ""),
    "integers": (lambda front, x: F.one_hot(front(x).argmax(1), 16).float(), ""),
    "lists": (lambda front, x: torch.tensor(front(x).tolist()), "front"),
    "arrays": (lambda front, x: torch.from_numpy(front(x).detach().numpy()), "front"),
    "re-entrant checkpoint": (lambda front, x: checkpoint(front, x, use_reentrant=True), "front"),
}


@pytest.mark.parametrize("name", CUTS)
def test_layers_that_are_cut_off_are_an_error_that_names_the_place(name):
    cut, where = CUTS[name]
    report = linted(lambda: Front(cut), (8, 10))
    assert report.verdict == "untrainable"
    assert where in errors(report)["GL806"]


@pytest.mark.parametrize("name", ["no_grad", "inference of parts", "detach", "round", "sign"])
def test_operators_that_cut_are_known_without_a_probe(name):
    cut, where = CUTS[name]
    report = linted(lambda: Front(cut), (8, 10), probe=False)
    assert report.verdict == "untrainable"
    assert where in errors(report)["GL806"]
    assert report.trainability is not None
    assert report.trainability.stuck


def test_frozen_and_unused_parameters_are_counted_without_a_probe():
    module = Front(lambda front, x: front(x)).requires_grad_(requires_grad=False)
    assert gradlint.check(module, torch.randn(8, 10), probe=False).verdict == "untrainable"
    module = Front(lambda front, x: x.repeat(1, 2)[:, :16])
    found = gradlint.check(module, torch.randn(8, 10), probe=False).trainability
    assert found is not None
    assert set(found.unused) == {f"front.{name}" for name, _ in module.front.named_parameters()}


@pytest.mark.parametrize("end", [torch.round, torch.sign, lambda y: y.argmax(1), lambda y: y.detach()])
def test_a_module_that_returns_nothing_with_a_gradient_cannot_learn(end):
    report = linted(lambda: Front(lambda front, x: front(x), end), (8, 10))
    assert report.verdict == "untrainable"
    assert "GL806" in errors(report)


class TwoHeads(nn.Module):
    """A trunk with two heads, the second one cut off at its output."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk, self.first, self.second, self.end = nn.Linear(10, 16), nn.Linear(16, 3), nn.Linear(16, 2), end

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.trunk(x))
        return self.first(h), self.end(self.second(h))


@pytest.mark.parametrize(
    "end", [torch.round, torch.sign, lambda y: y.argmax(1), lambda y: y.detach(), lambda y: 2.0 * y.detach()]
)
def test_a_head_that_is_cut_off_at_its_output_is_found_beside_one_that_learns(end):
    report = linted(lambda: TwoHeads(end), (8, 10))
    assert report.verdict == "untrainable"
    assert "second" in errors(report)["GL806"]


@pytest.mark.parametrize("end", [lambda y: y, lambda y: y.softmax(1)])
def test_two_heads_that_learn_are_healthy(end):
    report = linted(lambda: TwoHeads(end), (8, 10))
    assert (report.verdict, errors(report)) == ("healthy", {})


@pytest.mark.parametrize(("layers", "verdict"), [(2, "healthy"), (4, "healthy"), (12, "vanishes")])
def test_the_layers_inside_one_recurrent_module_are_compared(layers, verdict):
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTM(16, 16, layers, batch_first=True), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0])

    assert linted(Deep, (8, 6, 16)).verdict == verdict


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_that_passes_gradients_is_healthy(reentrant):
    """A re-entrant one does where its input requires grad, as that of an inner layer does."""

    class Inner(Front):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.front[2], torch.tanh(self.front[0](x)), use_reentrant=reentrant))

    report = linted(lambda: Inner(lambda front, x: front(x)), (8, 10))
    assert (report.verdict, errors(report)) == ("healthy", {})


def test_parts_that_the_user_froze_are_counted_and_no_error():
    module = Front(lambda front, x: front(x))
    module.front.requires_grad_(False)
    report = gradlint.check(module, torch.randn(8, 10))
    assert (report.verdict, errors(report)) == ("healthy", {})
    assert "51 of 499 parameters, 448 frozen" in report.to("full")


def test_a_model_that_is_frozen_as_a_whole_learns_nothing():
    report = linted(lambda: Front(lambda front, x: front(x)).requires_grad_(False), (8, 10))
    assert (report.verdict, report.score) == ("untrainable", 0)
    assert "all 499 parameters are frozen" in report.to("full")


# magnitude -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "verdict"), [(1e15, "untrainable"), (1e26, "non-finite"), (0.02, "healthy")])
def test_a_parameter_that_nobody_filled_is_found_behind_a_norm(size, verdict):
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(20, 16), nn.Parameter(size * torch.randn(6, 16))
            self.body = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))

        def forward(self, ids: Tensor) -> Tensor:
            return self.body(self.embed(ids) + self.place)

    torch.manual_seed(0)
    report = gradlint.check(Placed(), torch.randint(0, 20, (8, 6)))
    assert report.verdict == verdict
    assert ("GL108" in errors(report)) is (verdict != "healthy")


# zeros by design -------------------------------------------------------------------------------------------------------------


def loss_after(module: nn.Module, args: tuple[Tensor, ...], steps: int) -> tuple[float, float]:
    """The loss of regression to random targets, before and after steps of Adam."""
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 3e-3)
    target, losses = torch.randn_like(module(*args)), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (module(*args) - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses[0], losses[-1]


@pytest.mark.parametrize("depth", [2, 5, 12])
@pytest.mark.parametrize("name", STARTS)
def test_zeros_by_design_are_healthy_and_train(name, depth):
    torch.manual_seed(0)
    module, args = STARTS[name](depth)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    report = gradlint.check(module, args)
    assert (report.verdict, errors(report)) == ("healthy", {})
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    first, last = loss_after(module, args, 100)
    assert last < 0.9 * first


class Aside(nn.Module):
    """A trunk with a head, and a second head whose result goes elsewhere."""

    def __init__(self, end: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.trunk, self.first, self.second, self.end = nn.Linear(10, 16), nn.Linear(16, 3), nn.Linear(16, 2), end

    def forward(self, x: Tensor) -> object:
        h = torch.tanh(self.trunk(x))
        found = self.end(self, self.second(h))
        return self.first(h) if found is None else (self.first(h), found)


@pytest.mark.parametrize(
    "end", [lambda _, y: y.tolist(), lambda _, y: y.detach().numpy(), lambda _, y: {"risk": y.mean().item()}]
)
def test_a_head_that_leaves_as_numbers_beside_one_that_learns_is_an_error(end):
    report = linted(lambda: Aside(end), (8, 10))
    assert report.verdict == "untrainable"
    assert errors(report)["GL806"] == "second"


@pytest.mark.parametrize("end", [lambda _, y: None, lambda module, y: setattr(module, "kept", y)])
def test_a_result_that_reaches_no_output_is_a_note_since_a_loss_may_read_it(end):
    report = linted(lambda: Aside(end), (8, 10))
    assert report.verdict == "healthy"
    assert [(finding.rule, finding.severity, finding.module) for finding in report.findings] == [("GL806", "note", "second")]


def test_zeros_that_stay_shut_are_dead():
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    for layer in (module[0], module[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    report = gradlint.check(module, torch.randn(16, 8))
    assert report.verdict == "untrainable"
    assert "GL104" in errors(report)


# reports ---------------------------------------------------------------------------------------------------------------------


def test_findings_leave_out_what_the_probe_refuted():
    """Plain layers with skips round them: theory alone would expect less."""
    torch.manual_seed(0)
    report = gradlint.check(nn.Sequential(*(nn.Linear(8, 8) for _ in range(12))), torch.randn(16, 8))
    everything = report.result.findings
    assert [finding for finding in everything if finding in report.findings or finding in report.refuted] == [*everything]
    assert all(finding.confidence is not Confidence.REFUTED for finding in report.findings)
    assert all(finding.confidence is Confidence.REFUTED for finding in report.refuted)


def test_a_direction_that_reads_one_step_alone_is_no_error():
    """Its recurrent matrix meets a state of zeros and learns nothing; the model does."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(6, 12, batch_first=True, bidirectional=True), nn.Linear(24, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x)[0][:, -1])

    report = linted(Last, (8, 7, 6))
    assert (report.verdict, errors(report)) == ("healthy", {})
    assert report.trainability.stuck == ("cell.weight_hh_l0_reverse",)


def test_two_layers_of_zeros_in_one_branch_never_open():
    class Shut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.first, self.second, self.head = (nn.Linear(8, 8) for _ in range(4))
            for layer in (self.first, self.second):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(x + self.second(torch.relu(self.first(x))))

    report = linted(Shut, (16, 8))
    assert report.verdict == "untrainable"
    assert errors(report).keys() == {"GL104", "GL806"}
