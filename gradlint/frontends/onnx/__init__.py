"""The static ONNX front end. It needs onnx and numpy, but not torch."""
