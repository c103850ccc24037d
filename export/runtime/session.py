"""Sessions in the hands of torch: files are opened and run, and which operators one really runs."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnxruntime
import torch
from torch import Tensor

from export.runtime.ort_session import Session, session_options

WEIGHTS_APART = "session.optimized_model_external_initializers_file_name"

if TYPE_CHECKING:
    from export.runtime.start import AnySession


def open_session(path: str | Path, options: onnxruntime.SessionOptions | None = None) -> Session:
    """A session of ONNX Runtime on the CPU.

    Args:
        path: of the file.
        options: of the session; exact ones when None.

    Raises:
        FileNotFoundError: no such file.
        VerificationError: ONNX Runtime cannot read or run the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    return Session(path, options or session_options(0, exact=True))


def run_session(session: "AnySession", inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs of a file, in its order, of inputs in its order.

    Raises:
        ValueError: inputs that the file does not take.
        VerificationError: the file cannot be computed.
    """
    feeds = {spec.name: value.numpy() for spec, value in zip(session.get_inputs(), inputs, strict=False)}
    return [torch.from_numpy(value) for value in session.run(None, feeds)]


def integer_operators(path: str | Path) -> dict[str, int]:
    """How often each operator is in the graph as ONNX Runtime optimizes it for this machine, floats too.

    `MatMulIntegerToFloat` and `QLinearConv` are integer products; a `MatMul` or `Conv` is float, whatever
    the file stores: the runtime folds a lonely DequantizeLinear of a weight to float32.

    Raises:
        FileNotFoundError: no such file.
        VerificationError: ONNX Runtime cannot read or run the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(0)
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        # Floats may be over the 2 GB of one file.
        options.add_session_config_entry(WEIGHTS_APART, "optimized.onnx.data")
        open_session(path, options)
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node))
