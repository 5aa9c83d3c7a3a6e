"""--train-mode: BatchNorms of an ONNX file on the statistics of the batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from torch import nn

import gradlint

FOLDER = Path(__file__).resolve().parents[2] / "sample_models"


def _factory(name):
    spec = importlib.util.spec_from_file_location("sample_models_in_train_mode", FOLDER / "models.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)()


def test_the_growth_is_that_of_the_torch_module_in_train_mode():
    module, args = _factory("batch_norm_no_skip_broken")
    assert any(isinstance(child, nn.BatchNorm1d) for child in module.modules())
    torch_side = gradlint.check(module, args, mode="train").result
    onnx_side = gradlint.check(FOLDER / "batch_norm_no_skip_broken.onnx", args, mode="train").result
    assert onnx_side.mode == "train"
    spread = max(onnx_side.growth.spread, torch_side.growth.spread)  # 60 norms without skips amplify what is rounded differently
    assert spread < 0.3
    assert onnx_side.growth.decades == pytest.approx(torch_side.growth.decades, abs=spread)
    assert [f.rule for f in onnx_side.findings] == [f.rule for f in torch_side.findings]


def test_the_file_itself_is_eval_mode():
    report = gradlint.check(FOLDER / "batch_norm_no_skip_broken.onnx")
    assert report.result.mode == "eval"


def test_a_file_without_batch_norm_says_that_nothing_changed():
    changed = gradlint.check(FOLDER / "tanh_gain_healthy.onnx", mode="train").result
    plain = gradlint.check(FOLDER / "tanh_gain_healthy.onnx").result
    assert changed.growth == plain.growth
    assert any("train mode changes nothing" in note for note in changed.notes)
