"""What an ONNX file holds: the traced graph, and each part of it in its export form."""
