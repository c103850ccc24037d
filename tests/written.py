"""Files of encoders, for tests that go on with their paths."""

from pathlib import Path
from typing import Any

import export
from encoders import Encoder, StreamingTransformer


def to_file(encoder: Encoder, path: str | Path, bit_width: str = "fp", **options: Any) -> Path:
    """`export.to_onnx`, and the path."""
    export.to_onnx(encoder, path, bit_width=bit_width, **options)
    return Path(path)


def to_stream_file(encoder: StreamingTransformer, path: str | Path, bit_width: str = "fp", **options: Any) -> Path:
    """`export.stream_to_onnx`, and the path."""
    export.stream_to_onnx(encoder, path, bit_width=bit_width, **options)
    return Path(path)
