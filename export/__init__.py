"""An encoder at a bit-width becomes an ONNX file, verified against torch, measured and described."""

from export.accuracy import Accuracy, Labelled
from export.bench import measure_files
from export.card import describe, entries_to_keep, refuse_foreign_card, write_card
from export.file_encoder import FileEncoder
from export.head import stored_head
from export.metadata import VerificationError, load_file
from export.onnx import to_onnx
from export.runtime import integer_operators
from export.signature import SpeechInput
from export.streaming import FileStream, stream_to_onnx, verify_stream
from export.verify import Verification, verify
from export.window_file import file_window_encoder

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
