"""An encoder at a bit-width becomes an ONNX file, verified against torch, measured and described.

Names are imported when they are first used: `export.OnnxEncoder` runs where no torch is.
"""

import importlib
from typing import TYPE_CHECKING, Any

from export.group import named_group

__version__ = "0.1.0"

if TYPE_CHECKING:
    from export.card import describe, entries_to_keep, refuse_foreign_card, write_card
    from export.check.accuracy import Labelled
    from export.check.verdict import Verification
    from export.check.verify import verify
    from export.errors import VerificationError
    from export.graph.signature import SpeechInput
    from export.runtime.bench import measure_files
    from export.runtime.file_encoder import FileEncoder, file_window_encoder
    from export.runtime.onnx_encoder import OnnxEncoder
    from export.runtime.session import integer_operators
    from export.runtime.stream import FileStream
    from export.write import to_onnx
    from export.write_stream import stream_to_onnx

HOMES = {
    "FileEncoder": "runtime.file_encoder",
    "FileStream": "runtime.stream",
    "Labelled": "check.accuracy",
    "OnnxEncoder": "runtime.onnx_encoder",
    "SpeechInput": "graph.signature",
    "Verification": "check.verdict",
    "VerificationError": "errors",
    "describe": "card",
    "entries_to_keep": "card",
    "file_window_encoder": "runtime.file_encoder",
    "integer_operators": "runtime.session",
    "measure_files": "runtime.bench",
    "refuse_foreign_card": "card",
    "stream_to_onnx": "write_stream",
    "to_onnx": "write",
    "verify": "check.verify",
    "write_card": "card",
}
# For users; the rest is for the command line.
__all__ = [
    "FileStream",
    "OnnxEncoder",
    "Verification",
    "VerificationError",
    "measure_files",
    "stream_to_onnx",
    "to_onnx",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    with named_group():
        value = getattr(importlib.import_module(f"export.{HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
