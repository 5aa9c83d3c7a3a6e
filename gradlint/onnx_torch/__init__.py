"""A differentiable evaluator of ONNX graphs on torch."""
