"""Every sample model, by both front ends: what its table says is what gradlint finds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import gradlint
from gradlint.catalog import load_rules
from gradlint.score import failed

FOLDER = Path(__file__).resolve().parent.parent / "sample_models"


def _load(name):
    spec = importlib.util.spec_from_file_location(f"sample_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


models = _load("models")
BOTH = [(sample, broken) for sample in models.SAMPLES for broken in (True, False)]
CHAOTIC = {"tanh_gain_broken", "batch_norm_no_skip_broken"}
IDS = [sample.broken if broken else sample.healthy for sample, broken in BOTH]


def _name(sample, broken):
    return sample.broken if broken else sample.healthy


def _shown(result):
    return [finding for finding in result.findings if finding.confidence is not gradlint.Confidence.REFUTED]


@pytest.mark.parametrize("frontend", ["torch", "onnx"])
@pytest.mark.parametrize(("sample", "broken"), BOTH, ids=IDS)
def test_verdict_and_rule_are_as_the_table_says(sample, broken, frontend):
    name = _name(sample, broken)
    target = f"{FOLDER / 'models.py'}:{name}" if frontend == "torch" else str(FOLDER / f"{name}.onnx")
    report = gradlint.check(target)
    errors = {finding.rule for finding in _shown(report.result) if finding.severity is gradlint.Severity.ERROR}
    assert report.verdict == (sample.verdict if broken else "healthy")
    assert (sample.rule in errors) is broken
    assert bool(errors) is broken
    assert failed(report.result, gradlint.Severity.ERROR, None) is broken
    assert report.coverage.understood == report.coverage.probed == report.coverage.nodes
    assert (report.score < 50) is broken


@pytest.mark.parametrize("frontend", ["torch", "onnx"])
def test_without_a_probe_no_healthy_twin_shows_an_error(frontend):
    for sample in models.SAMPLES:
        target = f"{FOLDER / 'models.py'}:{sample.healthy}" if frontend == "torch" else str(FOLDER / f"{sample.healthy}.onnx")
        report = gradlint.check(target, probe=False)
        assert report.verdict in {"healthy", "unknown"}, target
        assert not [f for f in _shown(report.result) if f.severity is gradlint.Severity.ERROR], target


def _perturbed(name, seed):
    """Growth after every parameter was multiplied by 1 + 1e-7 z, about the rounding of its last bit."""
    module, args = getattr(models, name)()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.0 + 1e-7 * torch.randn_like(parameter))
    return gradlint.check(module, args, mode="eval").growth.decades


@pytest.mark.parametrize(("sample", "broken"), BOTH, ids=IDS)
def test_torch_and_onnx_agree(sample, broken):
    """Eval mode and the same inputs on both sides: the same findings at the same modules, growth within 0.05 decades.

    A chaotic network turns one rounding into another growth, from another layer on: it is held to three times the range of four
    perturbations, which the difference of two draws passes once in 100,000.
    """
    name = _name(sample, broken)
    module, args = getattr(models, name)()
    torch_side = gradlint.check(module, args, mode="eval").result
    onnx_side = gradlint.check(str(FOLDER / f"{name}.onnx"), args).result
    chaotic = name in CHAOTIC
    allowed = 0.05
    if chaotic:
        drawn = [_perturbed(name, seed) for seed in range(4)]
        assert max(drawn) - min(drawn) > 0.05, "no longer chaotic: take it off the list"
        allowed = 3.0 * (max(drawn) - min(drawn))
    assert torch_side.verdict == onnx_side.verdict
    assert (torch_side.growth is None) == (onnx_side.growth is None) == (torch_side.verdict == "non-finite")
    assert torch_side.growth is None or abs(torch_side.growth.decades - onnx_side.growth.decades) < allowed

    def findings(result):
        return sorted((f.rule, f.severity, f.confidence, "" if chaotic else f.module) for f in result.findings)

    assert findings(torch_side) == findings(onnx_side)
    assert {finding.line for finding in _shown(onnx_side)} <= set(range(1, 400)) | {None}


@pytest.mark.parametrize("name", IDS)
def test_weights_are_the_same_bits_on_every_processor(name):
    """The file was written elsewhere: what the factory draws here is in it bit by bit."""
    module, (x,) = getattr(models, name)()
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(FOLDER / f"{name}.onnx").graph.initializer}
    drawn = {key: tensor.numpy() for key, tensor in module.state_dict().items() if key in stored}
    assert len(drawn) >= len(list(module.parameters()))
    assert [key for key, array in drawn.items() if array.tobytes() != stored[key].tobytes()] == []
    assert x.dtype == torch.float32


@pytest.mark.parametrize("name", IDS)
def test_no_draw_lies_where_the_last_bit_of_a_logarithm_decides_how_it_is_rounded(name, monkeypatch):
    drawn = []

    class Recording(np.random.RandomState):
        def normal(self, *args):
            drawn.append(super().normal(*args))
            return drawn[-1]

    monkeypatch.setattr(models.np.random, "RandomState", Recording)
    getattr(models, name)()
    exact = np.concatenate([array.ravel() for array in drawn])
    rounded = exact.astype(np.float32)
    neighbor = np.nextafter(rounded, np.where(exact > rounded, np.inf, -np.inf).astype(np.float32))
    middle = (rounded.astype(np.float64) + neighbor) / 2.0
    assert (np.abs(exact - middle) > 4.0 * np.spacing(np.abs(exact))).all()


def test_orthogonal_weights_are_orthogonal():
    for name, gain in (("tanh_gain_broken", 2.5), ("tanh_gain_healthy", 1.0)):
        for layer in getattr(models, name)()[0].layers:
            weight = layer.weight.detach().double() / gain
            assert torch.allclose(weight @ weight.T, torch.eye(len(weight), dtype=torch.float64), atol=1e-6)


def test_every_file_is_small_and_has_a_factory():
    files = sorted(FOLDER.glob("*.onnx"))
    assert [path.stem for path in files] == sorted(IDS)
    assert all(path.stat().st_size < 300_000 for path in files)


def test_the_table_names_rules_that_exist():
    assert {sample.rule for sample in models.SAMPLES} <= {rule.code for rule in load_rules()}


def test_no_file_names_the_machine_that_made_it():
    for path in FOLDER.glob("*.onnx"):
        assert b"site-packages" not in path.read_bytes()
        assert b'File "/' not in path.read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", IDS)
def test_exporting_again_gives_the_same_report(name, tmp_path):
    export = _load("export")
    export.export(name, tmp_path / "again.onnx")
    fresh = gradlint.check(str(tmp_path / "again.onnx")).result
    stored = gradlint.check(str(FOLDER / f"{name}.onnx")).result
    assert fresh.verdict == stored.verdict
    assert [finding.rule for finding in fresh.findings] == [finding.rule for finding in stored.findings]
