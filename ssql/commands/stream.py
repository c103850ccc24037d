"""`ssql stream`: one step of a streaming encoder as ONNX files."""

from pathlib import Path

import export as onnx_export
from encoders import StreamingTransformer, load_encoder
from ssql.commands.exported_files import file_paths, in_turn
from ssql.commands.unquantized import note_unquantized
from ssql.reports.result_files import reserved
from ssql.terminal.checks import not_empty


def stream(encoder: str, output: str, bit_width: list[str] | str = "w8a8", overwrite: bool = False) -> None:
    """Write one step of a streaming encoder as ONNX: a chunk and the state in, features and the next state out.

    Each file is verified, chunk by chunk, against torch on whole clips.
    Example: ssql stream --encoder runs/a/encoder --output runs/a --bit_width '[w8a8, w4a8]'

    Args:
        encoder: folder of a StreamingTransformer.
        output: folder for stream-fp32.onnx (fp), stream-int8.onnx (w8a8), stream-int4.onnx (w4a8),
            stream-<bit-width>.onnx for others.
        bit_width: one, or a list.
        overwrite: replace existing files.
    """
    not_empty(bit_width=bit_width)
    bit_widths = [bit_width] if isinstance(bit_width, str) else bit_width
    paths = file_paths(output, "stream", bit_widths)
    loaded = load_encoder(encoder)
    if not isinstance(loaded, StreamingTransformer):
        raise ValueError(f"{encoder} holds a {loaded.name} encoder: only a StreamingTransformer runs step by step")
    note_unquantized(loaded, bit_widths, encoder)
    with reserved(Path(output) / "stream", paths.values(), overwrite):
        for b, path in in_turn(paths):
            onnx_export.stream_to_onnx(loaded, path, bit_width=b, overwrite=overwrite)
