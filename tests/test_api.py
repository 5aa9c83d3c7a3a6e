"""gradlint from Python."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import gradlint


def _run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_gradlint_imports_nothing_heavy():
    heavy = "{'torch', 'onnx', 'rich', 'numpy', 'networkx', 'click'}"
    assert _run(f"import gradlint, sys; print({heavy} & set(sys.modules))").strip() == "set()"


def test_linting_an_onnx_file_without_a_probe_imports_no_torch():
    code = (
        "import gradlint, sys; gradlint.check('sample_models/tanh_gain_broken.onnx', probe=False); print('torch' in sys.modules)"
    )
    assert _run(code).strip() == "False"


def test_every_public_name_is_there():
    assert all(getattr(gradlint, name) is not None for name in gradlint.__all__)
    assert set(dir(gradlint)) == set(gradlint.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = gradlint.nonsense


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, a, *, b=None):
        return torch.tanh(self.left(a)) + (self.right(b) if b is not None else 0.0)


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (torch.zeros(2, 4), ["a"]),
        ((torch.zeros(2, 4),), ["a"]),
        ({"a": torch.zeros(2, 4), "b": torch.zeros(2, 5)}, ["a", "b"]),
        (gradlint.Inputs(torch.zeros(2, 4), b=torch.zeros(2, 5)), ["a", "b"]),
    ],
)
def test_inputs_in_every_form(inputs, names):
    report = gradlint.check(Pair(), inputs)
    assert [item.name for item in report.result.inputs] == names
    assert all(item.given for item in report.result.inputs)


def test_inputs_of_an_onnx_file_by_name_and_by_position():
    x = np.zeros((8, 24), dtype=np.float32)
    for inputs in (x, {"x": x}):
        report = gradlint.check("sample_models/tanh_gain_healthy.onnx", inputs)
        assert report.result.inputs[0].given


def test_an_onnx_model_in_memory():
    report = gradlint.check(onnx.load("sample_models/tanh_gain_broken.onnx"))
    assert report.verdict == "explodes"


def test_raise_if_failed():
    broken = gradlint.check("sample_models/tanh_gain_broken.onnx")
    with pytest.raises(gradlint.CheckFailedError, match="GL101") as failure:
        broken.raise_if_failed()
    assert failure.value.report is broken
    broken.raise_if_failed(fail_on=None)
    healthy = gradlint.check("sample_models/tanh_gain_healthy.onnx")
    healthy.raise_if_failed()
    with pytest.raises(gradlint.CheckFailedError):
        healthy.raise_if_failed(min_score=101)


def test_a_report_renders_itself():
    report = gradlint.check("sample_models/tanh_gain_broken.onnx")
    assert "EXPLODES" in str(report)
    assert json.loads(report.to("json"))["targets"][0]["verdict"] == "explodes"
    assert report._repr_html_().startswith("<pre>")
    with pytest.raises(gradlint.GradlintError, match="unknown format"):
        report.to("papyrus")


def test_select_and_ignore():
    report = gradlint.check("sample_models/tanh_gain_broken.onnx", select=["GL8"], ignore=["GL802", "GL803"])
    assert [finding.rule for finding in report.findings] == ["GL801"]
    with pytest.raises(gradlint.GradlintError, match="GL999"):
        gradlint.check("sample_models/tanh_gain_broken.onnx", select=["GL999"])


@pytest.mark.parametrize("options", [{"seeds": 0}, {"seed": -1}, {"mode": "fast"}])
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(gradlint.GradlintError):
        gradlint.check(nn.Linear(4, 4), **options)


@pytest.mark.parametrize(
    ("value", "complaint"), [([[1.0], [1.0, 2.0]], "not an array"), ("text", "holds float32"), (object(), "not an array")]
)
def test_inputs_that_are_no_arrays_are_refused(value, complaint):
    with pytest.raises(gradlint.GradlintError, match=complaint):
        gradlint.check("sample_models/tanh_gain_healthy.onnx", {"x": value})


def test_a_tensor_that_requires_grad_may_be_fed_to_a_file():
    given = torch.randn(8, 24, requires_grad=True)
    assert gradlint.check("sample_models/tanh_gain_healthy.onnx", given).result.inputs[0].spec == "float32[8,24]"
