"""The names of the files that an encoder is exported to."""

from collections.abc import Sequence
from pathlib import Path

from quant import parse_bit_width

NAMES = {"fp": "fp32", "w8a8": "int8", "w4a8": "int4"}


def file_paths(output: str, what: str, bit_widths: Sequence[str], float16: bool = False) -> dict[str, Path]:
    """`<output>/<what>-int8.onnx` for w8a8, and so on, for each bit-width; of fp, `-fp16` where float16 is stored.

    Raises:
        ValueError: an unknown bit-width.
    """
    names = NAMES | ({"fp": "fp16"} if float16 else {})
    return {b: Path(output) / f"{what}-{names.get(b) or parse_bit_width(b)}.onnx" for b in bit_widths}
