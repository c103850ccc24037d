"""ONNX Runtime sessions, what they say when they fail, and which operators one really runs."""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from encoders.speech.log_mel import HOP, SAMPLE_RATE
from export.metadata import VerificationError, longest_input
from export.runtime.fresh_process import reason_of, session_options, start_failure

# Of ONNX Runtime's names for the inputs that files of ours have.
DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}


class Session(onnxruntime.InferenceSession):
    """A session whose errors are sentences that name the file.

    Args:
        path: of the file.
        options: of the session.
    """

    def __init__(self, path: str | Path, options: onnxruntime.SessionOptions) -> None:
        self.path = path
        super().__init__(str(path), options, providers=["CPUExecutionProvider"])

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, np.ndarray], run_options: Any = None
    ) -> list[np.ndarray]:
        """Outputs by name, all of them when None.

        Raises:
            ValueError: inputs that the file does not take.
            VerificationError: the file cannot be computed.
        """
        try:
            outputs: list[np.ndarray] = super().run(output_names, input_feed, run_options)
        except Exception as error:
            wrong = self._unfit(input_feed)
            if wrong is not None:
                raise ValueError(f"{self.path} {wrong}") from error
            raise VerificationError(f"{self.path} fails in ONNX Runtime: {reason_of(error)}") from error
        return outputs

    def _unfit(self, feeds: Mapping[str, np.ndarray]) -> str | None:
        """What is wrong with inputs that the file does not take; None when nothing is."""
        specs = {spec.name: spec for spec in self.get_inputs()}
        if specs.keys() != feeds.keys():
            return f"takes the inputs {', '.join(specs)}, got {', '.join(feeds) or 'none'}"
        for name, spec in specs.items():
            found, dtype = feeds[name], DTYPES.get(spec.type, spec.type)
            fits = len(found.shape) == len(spec.shape) and all(
                isinstance(size, str) or size is None or size == given
                for size, given in zip(spec.shape, found.shape, strict=True)
            )
            if not fits or str(found.dtype) != dtype:
                shape = ", ".join(map(str, spec.shape))
                return f"takes {name} of shape ({shape}), {dtype}; got {found.shape}, {found.dtype}"
        about = self.get_modelmeta().custom_metadata_map
        try:
            longest = longest_input(about)
        except (KeyError, ValueError):
            return None
        hop = 1 if "waveform" in feeds else HOP
        samples = int(np.max(feeds["lengths"], initial=0)) * hop if "lengths" in feeds else 0
        if longest is None or samples <= longest:
            return None
        return (
            f"has positions for {longest / SAMPLE_RATE:g} s at most, got a clip of {samples / SAMPLE_RATE:.2f} s: cut "
            "it into windows (ssql features does)"
        )


def open_session(path: str | Path, options: onnxruntime.SessionOptions | None = None) -> Session:
    """A session on the CPU.

    Args:
        path: of the file.
        options: of the session; exact ones when None.

    Raises:
        FileNotFoundError: no such file.
        VerificationError: ONNX Runtime cannot read or run the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return Session(path, options or session_options(0, exact=True))
    except Exception as error:
        raise VerificationError(start_failure(path, error)) from error


def run_session(session: onnxruntime.InferenceSession, inputs: tuple[Tensor, ...]) -> list[Tensor]:
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
        open_session(path, options)
        graph = onnx.load(options.optimized_model_filepath).graph
    return dict(Counter(node.op_type for node in graph.node))
