"""An encoder at a bit-width becomes an ONNX file, verified against torch, measured and described."""

from typing import TYPE_CHECKING

from export.group import named_group

with named_group():
    from export.card import describe, entries_to_keep, refuse_foreign_card, write_card
    from export.check.accuracy import Accuracy, Labelled
    from export.check.stream import verify_stream
    from export.check.verify import Verification, verify
    from export.graph.head import stored_head
    from export.graph.signature import SpeechInput
    from export.metadata import VerificationError, load_file
    from export.runtime.bench import measure_files
    from export.runtime.file_encoder import FileEncoder
    from export.runtime.session import integer_operators
    from export.runtime.stream import FileStream
    from export.runtime.window_file import file_window_encoder
    from export.write import to_onnx
    from export.write_stream import stream_to_onnx

__all__ = [
    "Accuracy",
    "FileEncoder",
    "FileStream",
    "Labelled",
    "SpeechInput",
    "Verification",
    "VerificationError",
    "describe",
    "entries_to_keep",
    "file_window_encoder",
    "integer_operators",
    "load_file",
    "measure_files",
    "refuse_foreign_card",
    "stored_head",
    "stream_to_onnx",
    "to_onnx",
    "verify",
    "verify_stream",
    "write_card",
]

__version__: str  # of the distribution

if not TYPE_CHECKING:  # for whom every name would be a string

    def __getattr__(name: str) -> str:
        # Looked up when it is asked for: an import costs nothing, and works where nothing is installed.
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("ssql-toolkit")
