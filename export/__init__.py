"""An encoder at a bit-width becomes an ONNX file, verified against torch and measured."""

from export.bench import measure_files
from export.metadata import VerificationError
from export.onnx import to_onnx
from export.runtime import integer_operators
from export.verify import Verification, verify

__all__ = ["Verification", "VerificationError", "integer_operators", "measure_files", "to_onnx", "verify"]
