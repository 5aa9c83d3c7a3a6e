"""The benchmark of trained networks: what is drawn, trained, labelled and kept."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.trained.case import task
from benchmarks.trained.data import HELD_OUT, batch, dataset, held_out
from benchmarks.trained.draw import draw
from benchmarks.trained.families import build
from benchmarks.trained.faults import FAULTS, plant
from benchmarks.trained.kept import FILE, parse, read, write
from benchmarks.trained.labels import label, run_label
from benchmarks.trained.losses import floors, loss_function
from benchmarks.trained.optimizers import Lion, MuonAndAdam, optimizer, orthogonalized, rate, recipe_text
from benchmarks.trained.spec import FAMILIES, FIT, TEST, Loss, Problem, Training, as_json, from_json
from benchmarks.trained.tables import PAGE, page
from benchmarks.trained.train import network, train
from gradlint import Recipe


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def kept():
    return read()


def test_families_of_fit_and_test_are_disjoint():
    assert not set(FIT) & set(TEST)
    assert len(FAMILIES) == len(set(FAMILIES)) == 21
    assert {draw(number).family for number in range(21)} == set(FAMILIES)


@pytest.mark.parametrize("number", range(21), ids=FAMILIES)
def test_an_intact_network_of_each_family_learns_in_a_few_steps(number):
    spec = draw(number, intact=True)
    assert spec.planted == spec.visible == ""
    spec = replace(spec, steps=40, training=Training("adam", lr=4e-3))
    run = train(spec, seed=0)
    assert run["broken"] is None
    assert run["last"] < 0.97 * min(run["first"], 2 * run["floor"])


def test_a_spec_gives_the_same_weights_and_batches_each_time():
    spec = draw(22)
    first, second, other = network(spec, 0).state_dict(), network(spec, 0).state_dict(), network(spec, 1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(batch(spec, 0, 3)[1], batch(spec, 0, 3)[1])
    assert not torch.equal(batch(spec, 0, 3)[0][0], batch(spec, 0, 4)[0][0])
    assert not torch.equal(batch(spec, 0, 3)[0][0], batch(spec, 1, 3)[0][0])


def test_the_same_run_ends_the_same():
    spec = replace(draw(8, intact=True), steps=6)  # a VAE, which draws in its forward pass
    assert train(spec, 1) == train(spec, 1)
    assert train(spec, 1) != train(spec, 2)


def test_held_out_rows_are_not_trained_on():
    spec = draw(0, intact=True)
    (inputs,), _ = dataset(spec)
    seen = {tuple(row.tolist()) for index in range(40) for row in batch(spec, 0, index)[0][0]}
    assert seen <= {tuple(row.tolist()) for row in inputs[:-HELD_OUT]}
    assert not seen & {tuple(row.tolist()) for (rows,), _ in held_out(spec) for row in rows}


def test_specs_survive_json():
    for number in range(0, 1300, 7):
        spec = draw(number)
        assert from_json(json.loads(json.dumps(as_json(spec)))) == spec


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_put_where_it_says(name):
    fault = FAULTS[name]
    spec = next(spec for number in range(400) if fault.fits(spec := draw(number, intact=True)))
    planted = fault.put(spec, random.Random(1))
    assert planted != spec
    assert planted.strength or name == "constant start"
    model = build(planted)
    assert planted.place in dict(model.named_modules())
    assert fault.visible in {"model", "loss", "recipe"}
    if fault.visible == "recipe" and name != "no warm-up":
        assert planted.architecture == spec.architecture
        assert planted.problem == spec.problem


def test_a_cut_passes_no_gradient():
    spec = FAULTS["cut"].put(draw(0, intact=True), random.Random(0))
    model = build(spec)
    (inputs,), target = batch(spec, 0, 0)
    loss_function(spec.loss)(model(inputs), target).backward()
    before = list(model.get_submodule(spec.place).parameters())
    assert before
    assert all(weight.grad is None for weight in before)


def test_planting_names_the_fault_and_where_it_can_be_seen():
    for number in range(40):
        spec = plant(draw(number, intact=True), random.Random(number))
        assert FAULTS[spec.planted].visible == spec.visible
        assert FAULTS[spec.planted].fits(draw(number, intact=True))


@pytest.mark.parametrize(("kind", "name"), [("clusters", "ce"), ("signs", "bce"), ("teacher", "mse"), ("teacher", "l1")])
def test_no_constant_is_better_than_the_floor(kind, name):
    spec = replace(draw(0, intact=True), problem=Problem(kind, target_scale=3.0 if name == "mse" else 1.0), loss=Loss(name))
    _, target = dataset(spec)
    seen = target[:-HELD_OUT]
    constant = nn.Parameter(torch.zeros(6 if name == "ce" else target.shape[-1]))
    search = torch.optim.LBFGS([constant], max_iter=200, line_search_fn="strong_wolfe")
    loss = loss_function(spec.loss)

    def closure():
        search.zero_grad()
        value = loss(constant.expand(len(seen), -1), seen)
        value.backward()
        return value

    search.step(closure)
    of_training, of_held_out = floors(spec)
    assert float(closure().detach()) == pytest.approx(of_training, rel=2e-3)
    assert of_held_out == pytest.approx(of_training, rel=0.3)
    assert of_held_out != of_training


def test_a_summed_and_weighted_loss_has_its_floor():
    spec = replace(draw(0, intact=True), problem=Problem("teacher"), loss=Loss("mse"), batch=32)
    summed = floors(replace(spec, loss=Loss("mse", summed=True, weight=0.5)))
    assert summed == pytest.approx([32 * 3 / 2 * value for value in floors(spec)])


def _run(*losses, floor=1.0, broken=None):
    curve = [losses[min(index * len(losses) // 13, len(losses) - 1)] for index in range(13)]
    ends = {"first": losses[0], "last": losses[-1], "least": min(losses), "held_out": losses[-1]}
    return {**ends, "losses": curve, "floor": floor, "held_out_floor": floor, "broken": broken}


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (_run(1.3, 0.8, 0.5), "trains"),
        (_run(1.0, 1.0, 1.0), "stuck"),
        (_run(1.4, 1.02, 1.0), "stuck"),
        (_run(1.6, 1.5, 1.4, 1.2, 1.1, 0.97), "grey"),  # still falls
        (_run(1.0, 0.95, 0.92), "grey"),
        (_run(1.2, 0.7, 1.0), "stuck"),
        (_run(1.0, 0.5, 2.5), "diverged"),
        (_run(5.0, 5.0, 5.0), "stuck"),
        (_run(9.0, 8.0, 7.0, 6.0, 5.0, 3.0), "grey"),
        (_run(1.9e9, 1e8, 3e6), "diverged"),
        (_run(1.0, 0.5, 0.4, broken=7), "diverged"),
        (_run(300.0, 200.0, 100.0, floor=1000.0), "trains"),
        (_run(4.0, 3.0, 2.0, floor=-3.0), "trains"),  # no floor over zero: against the first loss
    ],
)
def test_a_run_is_labelled_by_where_it_ends(run, expected):
    assert run_label(run) == expected


def test_a_case_is_what_its_runs_agree_on():
    trains, stuck, broken, grey = _run(1.0, 0.4), _run(1.0, 1.0), _run(1.0, 1.0, broken=1), _run(1.0, 0.92)
    assert label([trains] * 3) == "trains"
    assert label([trains, trains, stuck]) == label([trains, stuck]) == "grey"
    assert label([trains, trains, grey]) == label([stuck, grey, grey]) == "grey"
    assert label([broken, broken, stuck]) == "diverged"
    assert label([broken, stuck, stuck]) == "stuck"


def test_lion_steps_by_the_sign():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    weight.grad = torch.tensor([0.3, -40.0])
    Lion([weight], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(weight.detach(), torch.tensor([1.0 * 0.95 - 0.1, -2.0 * 0.95 + 0.1]))


def test_muon_steps_along_an_orthogonal_matrix():
    sizes = torch.linalg.svdvals(orthogonalized(torch.randn(24, 60)))
    assert 0.5 < sizes.min() < sizes.max() < 1.4
    weight, bias = nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.zeros(8))
    weight.grad, bias.grad = torch.randn(8, 8), torch.full((8,), 100.0)
    MuonAndAdam([weight, bias], lr=0.1).step()
    assert 0.05 < torch.linalg.matrix_norm(weight.detach(), 2) < 0.14
    assert torch.allclose(bias.detach(), torch.full((8,), -0.01))


def test_what_the_optimizer_omits_it_does_not_hold():
    model = network(draw(0, intact=True), 0)
    held = optimizer(Training("adam", 1e-3, omits=("body",)), model).param_groups[0]["params"]
    assert len(held) == len([name for name, _ in model.named_parameters() if not name.startswith("body")])
    assert len(optimizer(Training("adam", 1e-3), model).param_groups[0]["params"]) == len(list(model.parameters()))


def test_the_rate_follows_its_schedule():
    rates = [rate(Training("sgd", 2.0, warmup=4, cosine=True), step, 100) for step in range(100)]
    assert rates[0] == 0.5
    assert max(rates) == pytest.approx(2.0, rel=0.01)
    assert rates[50] == pytest.approx(1.0, rel=0.01)


def test_every_recipe_text_is_one_that_is_understood():
    texts = Counter()
    for number in range(300):
        training = draw(number).training
        text = recipe_text(training)
        if text is None:
            assert training.optimizer in {"adadelta", "lion", "muon", "lbfgs"}
            continue
        recipe = Recipe.parse(text)
        assert (recipe.lr, recipe.momentum, recipe.warmup) == (training.lr, training.momentum, training.warmup)
        texts[recipe.optimizer] += 1
    assert set(texts) == {"sgd", "adam", "adamw", "rmsprop", "adagrad"}


def test_a_case_gives_a_tool_what_the_run_has():
    for number in (9, 18, 21):  # two inputs, two outputs, one of each
        case = task(draw(number, intact=True), batches=2)
        model = case.model_factory()
        opt = case.optimizer_factory(model)
        loss = case.loss(model(*case.inputs) if isinstance(case.inputs, tuple) else model(case.inputs), case.target)
        assert float(loss.detach()) == pytest.approx(train(replace(case.spec, steps=1), 0)["first"])
        assert opt.param_groups[0]["lr"] == case.spec.training.lr
        assert len(case.batches) == 2


def test_the_kept_cases_are_those_that_are_drawn(kept):
    assert len(kept) >= 1200
    assert FILE.stat().st_size < 3_000_000
    assert [case.spec.number for case in kept] == list(range(len(kept)))
    assert all(case.spec == draw(case.spec.number) for case in kept)


def test_kept_labels_are_by_the_rule_and_mixed(kept):
    with gzip.open(FILE, "rt", encoding="utf-8") as stream:
        assert [json.loads(line)["label"] for line in stream] == [case.label for case in kept]
    counts = Counter(case.label for case in kept if case.label != "grey")
    shares = {name: count / counts.total() for name, count in counts.items()}
    assert 0.35 < shares["trains"] < 0.6
    assert 0.2 < shares["diverged"] < 0.4
    assert 0.12 < shares["stuck"] < 0.3
    intact = [case.label for case in kept if not case.spec.planted]
    assert intact.count("trains") > 0.9 * len(intact)


def test_the_page_shows_the_tables_of_the_kept_cases(kept):
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, kept) == text
    assert f"{len(kept)} cases" in text


def test_the_file_is_read_as_it_is_written(kept, tmp_path):
    some = kept[:5]
    write(some, tmp_path / "some.jsonl.gz")
    assert read(tmp_path / "some.jsonl.gz") == some
    assert all(case.label != "grey" for case in read(grey=False))
    with pytest.raises(KeyError):
        parse("{}")
