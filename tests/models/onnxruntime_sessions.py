"""Sessions of onnxruntime whose results are the same on every processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto


def session(model: ModelProto | str | Path) -> Any:
    """A session on one core, with exact integer products.

    Where a processor has AVX2 and no VNNI, onnxruntime adds pairs of u8 x s8 products in 16 bits, which saturate
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html); `session.x64quantprecision` turns that off.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    source = model.SerializeToString() if isinstance(model, ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def by_onnxruntime(model: ModelProto | str | Path, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """All outputs of the model, in the order of its graph."""
    return session(model).run(None, dict(feeds))
