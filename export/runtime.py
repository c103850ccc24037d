"""ONNX Runtime sessions, and which operators one really runs."""

import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime

from export.metadata import VerificationError


def open_session(path: str | Path, options: onnxruntime.SessionOptions | None = None) -> onnxruntime.InferenceSession:
    """A session on the CPU.

    Raises:
        FileNotFoundError: no such file.
        VerificationError: ONNX Runtime cannot read or run the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if options is None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise VerificationError(f"{path} does not start in ONNX Runtime: {error}") from error


def integer_operators(path: str | Path) -> dict[str, int]:
    """How often each operator is in the graph as ONNX Runtime optimizes it for this machine, floats too.

    `MatMulIntegerToFloat` and `QLinearConv` are integer products; a `MatMul` or `Conv` is float, whatever
    the file stores: the runtime folds a lonely DequantizeLinear of a weight to float32.

    Raises:
        FileNotFoundError: no such file.
        VerificationError: ONNX Runtime cannot read or run the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        open_session(path, options)
        graph = onnx.load(options.optimized_model_filepath).graph
    return dict(Counter(node.op_type for node in graph.node))
