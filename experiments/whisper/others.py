"""The encoder's fp32 file quantized by others: NNCF at 8 bits and with 4-bit weights, ONNX Runtime dynamic and static.

    python others.py encoder-fp32.onnx calibration.npz FOLDER

In an environment with nncf, onnx and onnxruntime. `calibration.npz` has the encoder's inputs, one batch after another:
`log_mel_0`, `lengths_0`, `log_mel_1`, ... Every option is the tool's default where nothing else is said. The metadata
of the fp32 file comes along, so that `ssql evaluate` reads the files; they say `fp` for that reason.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import nncf
import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Clips(CalibrationDataReader):
    """Inputs one after another, as ONNX Runtime asks for them."""

    def __init__(self, inputs: list[dict[str, np.ndarray]]) -> None:
        self.rest: Iterator[dict[str, np.ndarray]] = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next inputs; None at the end."""
        return next(self.rest, None)


def main(source: Path, calibration: Path, folder: Path) -> None:
    """Write the files that are not there yet."""
    arrays, model = np.load(calibration), onnx.load(source)
    count = sum(name.startswith("log_mel") for name in arrays.files)
    names = [value.name for value in model.graph.input]
    inputs = [{name: arrays[f"{name}_{n}"] for name in names} for n in range(count)]

    def nncf_int8(path: Path) -> None:
        dataset = nncf.Dataset(inputs)
        onnx.save(nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=count), path)

    def nncf_int4(path: Path) -> None:
        # Convolutions stay in float: NNCF gives their scales a shape that neither runtime takes.
        convolutions = nncf.IgnoredScope(types=["Conv"])
        mode = nncf.CompressWeightsMode.INT4_SYM
        compressed = nncf.compress_weights(
            onnx.load(source), mode=mode, group_size=64, all_layers=True, ignored_scope=convolutions
        )
        onnx.save(compressed, path)

    # As ONNX Runtime's documentation has it; a static file that is made without does not start in version 1.32.
    prepared = folder / "prepared.onnx"
    quant_pre_process(source, prepared, skip_symbolic_shape=True)

    def dynamic(path: Path) -> None:
        quantize_dynamic(prepared, path, per_channel=True, weight_type=QuantType.QInt8)

    def static(path: Path) -> None:
        quantize_static(prepared, path, Clips(inputs), per_channel=True, weight_type=QuantType.QInt8)

    for name, write in {
        "nncf-int8": nncf_int8, "nncf-int4": nncf_int4, "dynamic": dynamic, "static": static,
    }.items():  # fmt: skip
        path = folder / f"{name}.onnx"
        if path.exists():
            continue
        write(path)
        written = onnx.load(path)
        del written.metadata_props[:]
        written.metadata_props.extend(model.metadata_props)
        onnx.save(written, path)
        print(path, f"{path.stat().st_size / 1e6:.1f} MB", flush=True)
    prepared.unlink()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
