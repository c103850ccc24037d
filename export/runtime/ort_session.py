"""ONNX Runtime sessions on the CPU, and what they say when they fail; no torch is imported."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from export.errors import VerificationError
from export.external_data import missing_data
from export.runtime.runtimes import Runtime
from export.runtime.unfit import too_long, unfit

# What ONNX Runtime computes less exactly unless it is told otherwise, each faster so. Without VNNI it adds pairs of
# uint8 times int8 in 16 bits, and the sums of 8-bit weights saturate. Float inputs of MatMulNBits it rounds to 8 bits.
EXACT = {"session.x64quantprecision": "1", "session.qdq_matmulnbits_accuracy_level": "1"}

FOLDER = "session.model_external_initializers_file_folder_path"


class Session(onnxruntime.InferenceSession):
    """A session whose errors are sentences that name the file.

    Args:
        path: of the file.
        options: of the session.
        content: of a file that is only in memory; weights that it has in another file are in the folder of `path`.

    Attributes:
        precision: of what is not on integers: `f32`.

    Raises:
        VerificationError: ONNX Runtime cannot read or run the file.
    """

    runtime: Runtime = "onnxruntime"
    precision = "f32"

    def __init__(self, path: str | Path, options: onnxruntime.SessionOptions, content: bytes | None = None) -> None:
        self.path = path
        if content is not None:
            options.add_session_config_entry(FOLDER, str(Path(path).parent))
        try:
            super().__init__(content or str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise VerificationError(
                missing_data(path)
                or f"{path} does not start in ONNX Runtime {onnxruntime.__version__}, which takes an .onnx file that "
                f"ssql export wrote: {reason_of(error)}"
            ) from error

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
            about = self.get_modelmeta().custom_metadata_map
            wrong = unfit(self.get_inputs(), input_feed) or too_long(about, input_feed)
            if wrong is not None:
                raise ValueError(f"{self.path} {wrong}") from error
            raise VerificationError(f"{self.path} fails in ONNX Runtime: {reason_of(error)}") from error
        return outputs


def session_options(threads: int, exact: bool = False) -> onnxruntime.SessionOptions:
    """Options that all sessions share.

    Args:
        threads: 0 takes the runtime's default.
        exact: let the session compute what the file says, on every processor, at the cost of speed.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised
    for name, value in EXACT.items() if exact else ():
        options.add_session_config_entry(name, value)
    return options


def reason_of(error: Exception) -> str:
    """The runtime's own first line, without its code."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip().split("\n")[0])
