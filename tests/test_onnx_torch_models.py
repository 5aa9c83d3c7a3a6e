"""The evaluator on models that people ship: outputs as onnxruntime gives them, and a finite backward pass."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from gradlint.frontends.onnx_file import read_onnx
from gradlint.onnx_torch import OnnxModule, OnnxRunnable

onnxruntime = pytest.importorskip("onnxruntime")

MODELS = {
    "silero_vad": (
        "data/silero_vad.onnx",
        "data/silero_vad_16k_op15.onnx",
        "data/silero_vad_16k_sequence.onnx",
        "data/silero_vad_half.onnx",
        "data/silero_vad_op18_ifless.onnx",
        "data/silero_vad_openvino_16k.onnx",
    ),
    "rapidocr_onnxruntime": (
        "models/ch_PP-OCRv4_det_infer.onnx",
        "models/ch_PP-OCRv4_rec_infer.onnx",
        "models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    ),
    "magika": ("models/standard_v3_3/model.onnx",),
}


def model_path(package: str, file: str) -> Path:
    """The file in an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.submodule_search_locations[0]) / file if spec else Path(file)
    if not path.is_file():
        pytest.skip(f"{package} does not bring {file}")
    return path


@pytest.fixture(params=[(package, file) for package, files in MODELS.items() for file in files], ids=lambda p: p[1])
def path(request):
    return model_path(*request.param)


@pytest.fixture
def runnable(path):
    return OnnxRunnable(read_onnx(path))


@pytest.fixture
def arrays(runnable):
    rng = np.random.default_rng(0)
    return [spec.draw(rng) for spec in runnable.inputs]


def test_outputs_equal_those_of_onnxruntime(path, runnable, arrays):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {spec.name: array for spec, array in zip(runnable.inputs, arrays, strict=True)}
    expected = session.run([value.name for value in session.get_outputs()], feeds)
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
