"""The runtimes that a file runs in, by the names that users type."""

from typing import Literal, get_args

# OpenVINO at the precision that it takes by itself on the processor (bfloat16 where that is fast), and in float32.
Runtime = Literal["onnxruntime", "openvino", "openvino_f32"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
DEFAULT: Runtime = "onnxruntime"
