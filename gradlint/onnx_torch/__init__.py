"""A differentiable evaluator of ONNX graphs, built on torch."""

from gradlint.onnx_torch.module import OnnxModule
from gradlint.onnx_torch.runnable import OnnxRunnable

__all__ = ["OnnxModule", "OnnxRunnable"]
