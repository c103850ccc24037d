"""The names of the files that an encoder is exported to."""

from collections.abc import Sequence
from pathlib import Path

from quant import parse_bit_width

NAMES = {"fp": "fp32", "fp16": "fp16", "w8a8": "int8", "w4a8": "int4"}


def file_paths(output: str, what: str, bit_widths: Sequence[str]) -> dict[str, Path]:
    """`<output>/<what>-int8.onnx` for w8a8, and so on, for each bit-width.

    Raises:
        ValueError: an unknown bit-width.
    """
    return {b: Path(output) / f"{what}-{NAMES.get(b) or parse_bit_width(b)}.onnx" for b in bit_widths}
