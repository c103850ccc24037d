"""Files of encoders, for tests that go on with their paths, and what several tests write in a configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import export
from encoders import Encoder, StreamingTransformer

# Of a pretraining's configuration: the smallest that trains.
SIMSIAM = """
model:
  class_path: SimSiam
  init_args:
    encoder: {class_path: encoders.SpeechTransformer, init_args: {width: 16, depth: 1, heads: 2}}
    augmentation: {class_path: ssql.augment.SpeechAugmentation}
    dim: 16
"""


def to_file(encoder: Encoder, path: str | Path, bit_width: str = "fp", **options: Any) -> Path:
    """`export.to_onnx`, and the path."""
    export.to_onnx(encoder, path, bit_width=bit_width, **options)
    return Path(path)


def to_stream_file(encoder: StreamingTransformer, path: str | Path, bit_width: str = "fp", **options: Any) -> Path:
    """`export.stream_to_onnx`, and the path."""
    export.stream_to_onnx(encoder, path, bit_width=bit_width, **options)
    return Path(path)


def unmeasured(files: Sequence[str | Path], *_: Any) -> list[dict[str, Any]]:
    """In the place of `export.measure_files`, which starts six processes a file."""
    row: dict[str, Any] = {"size_bytes": 1, "size_ratio": 1.0, "cold_start_ms": 1.0, "peak_memory_bytes": 1}
    row |= {"threads": 1, "seconds": 1.0, "latency_ms": 1.0, "spread_ms": 0.1, "fastest_ms": 1.0, "speedup": 1.0}
    return [row | {"file": Path(file).name, "real_time_factor": 0.1} for file in files]
