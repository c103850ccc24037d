"""ONNX Runtime's own quantizers on a float file: a yardstick, no part of the toolkit."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

Batch = dict[str, np.ndarray]


class Batches(CalibrationDataReader):
    """A list of feeds, one after the other."""

    def __init__(self, batches: list[Batch]) -> None:
        self.left: Iterator[Batch] = iter(batches)

    def get_next(self) -> Batch | None:
        """The next feed; None at the end."""
        return next(self.left, None)


def stock_files(path: Path, batches: list[Batch], folder: Path) -> list[Path]:
    """Dynamic int8, static QDQ int8 and 4-bit weights in blocks of 32, as ONNX Runtime's documentation has them.

    Args:
        path: the float file.
        batches: calibration data of the static form.
        folder: for stock-dynamic.onnx, stock-static.onnx and stock-4bit.onnx (only where there is a MatMul).
    """
    prepared = folder / "prepared.onnx"
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    dynamic, static, four_bits = (folder / f"stock-{name}.onnx" for name in ("dynamic", "static", "4bit"))
    has_products = any(node.op_type == "MatMul" for node in onnx.load(prepared).graph.node)
    quantize_dynamic(
        prepared, dynamic, per_channel=True, weight_type=QuantType.QInt8 if has_products else QuantType.QUInt8
    )
    quantize_static(
        prepared, static, Batches(batches), quant_format=QuantFormat.QDQ, per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"], activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    if not has_products:
        return [dynamic, static]
    quantizer = MatMulNBitsQuantizer(onnx.load(prepared), bits=4, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(four_bits))
    return [dynamic, static, four_bits]
