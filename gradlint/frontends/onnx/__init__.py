"""The static ONNX front end, on onnx and numpy alone."""
