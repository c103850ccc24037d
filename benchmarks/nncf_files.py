"""What OpenVINO's own toolkit, NNCF, makes of a float file: a yardstick, no part of the toolkit. pip install nncf."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]


def is_installed() -> bool:
    """Whether there is anything to compare with."""
    return importlib.util.find_spec("nncf") is not None


def nncf_files(path: Path, batches: list[Batch], folder: Path) -> list[Path]:
    """Write nncf-int8.xml and nncf-int4.xml, in OpenVINO's own form, by the options that its documentation has.

    Args:
        path: the float file.
        batches: calibration data of the 8-bit form, one clip each.
        folder: for the files.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it would send word of it over the network
    import nncf
    import openvino

    int8, int4 = (folder / f"{name}.xml" for name in ("nncf-int8", "nncf-int4"))
    core = openvino.Core()
    quantized = nncf.quantize(
        core.read_model(path), nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches)
    )
    openvino.save_model(quantized, int8, compress_to_fp16=False)
    packed = nncf.compress_weights(
        core.read_model(path), mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64, all_layers=True
    )
    openvino.save_model(packed, int4, compress_to_fp16=False)
    return [int8, int4]


class IrSession:
    """A file in OpenVINO's own form, with the methods of a session that a benchmark needs.

    Args:
        path: of the .xml file; its weights lie beside it.
        threads: of the runtime.
    """

    runtime = "openvino"

    def __init__(self, path: Path, threads: int) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        model.reshape({value: [1, *list(value.partial_shape)[1:]] for value in model.inputs})
        compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads})
        self.path, self.precision = path, compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.request = compiled.create_infer_request()
        shapes = {value.any_name: [size if size.is_dynamic else size.get_length() for size in value.partial_shape]
                  for value in model.inputs}  # fmt: skip
        self.inputs = [SimpleNamespace(name=name, shape=shape) for name, shape in shapes.items()]

    def run(self, _: Any, feeds: Batch) -> list[np.ndarray]:
        """All outputs."""
        return list(self.request.infer(feeds).to_tuple())
