"""Exports to ONNX, for less than torch takes for each: what an export looks up anew every time is looked up once."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import pytest
import torch
from onnx import ModelProto
from torch import nn

from tests.models.versions import older, skip_before


@functools.cache
def share_registries() -> None:
    """Let the exports of this process share the tables of operators, which make up two thirds of exporting a small model.

    They depend on the opset alone. Where torch has them elsewhere, exports are only slower.
    """
    try:
        from torch._export import utils
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return
    for owner, name, wrap in (
        (ONNXRegistry, "from_torchlib", staticmethod),
        (utils, "_collect_all_valid_cia_ops_for_namespace", lambda function: function),
    ):
        if function := getattr(owner, name, None):
            setattr(owner, name, wrap(functools.cache(function)))


def has_dynamo() -> bool:
    """Whether torch has the exporter that takes `optimize` and gives a program with a `model_proto`."""
    return not older("torch", "2.6")


EXPORTER = skip_before("torch", "2.6", "it lacks the exporter with options")
SCRIPT = {"dynamo": False} if has_dynamo() else {}  # options of torch.onnx.export that make it trace with TorchScript


def by_dynamo(module: nn.Module, args: Sequence[Any], **options: Any) -> ModelProto:
    """What torch.export makes of a module in eval mode."""
    pytest.importorskip("onnxscript")
    if not has_dynamo():
        pytest.skip("the exporter came with torch 2.6")
    share_registries()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(module.eval(), tuple(args), dynamo=True, verbose=False, **options).model_proto


def by_torchscript(module: nn.Module, args: Sequence[Any], **options: Any) -> ModelProto:
    """What tracing with TorchScript makes of a module in eval mode."""
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), tuple(args), data, **SCRIPT, **options)
    return onnx.load_from_string(data.getvalue())
