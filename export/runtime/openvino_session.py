"""OpenVINO sessions on the CPU with the surface of ONNX Runtime's; neither that nor torch is imported."""

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from export.errors import VerificationError
from export.external_data import missing_data
from export.group import named_group
from export.runtime.runtimes import Runtime
from export.runtime.unfit import too_long, unfit

TELEMETRY = "openvino_telemetry"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Around the import of OpenVINO, which else sends word of it over the network and writes into the home folder.

    It does without that package where it is not installed; whoever needs it finds it afterwards.
    """
    there = TELEMETRY in sys.modules
    loaded = sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
        if there:
            sys.modules[TELEMETRY] = loaded  # type: ignore[assignment]


with named_group(), _without_telemetry():
    import openvino
    from openvino.frontend import FrontEndManager

# One for the process. On processors with AMX it gives signals a stack, which goes with it: of two that go in the order
# in which they came, the second puts back the stack of the first, and any signal is then a segmentation fault.
CORE = openvino.Core()
# Of OpenVINO's names for the types of inputs and outputs.
TYPES = {"f32": "tensor(float)", "i64": "tensor(int64)"}


class OpenVinoSession:
    """A file in OpenVINO: the methods of ONNX Runtime's sessions that files of ours need.

    Args:
        path: of the file.
        threads: 0 takes the runtime's default.
        float32: compute what is not on integers in float32, and round no inputs of weights that are; else OpenVINO
            takes what is fastest on this processor, such as bfloat16.
        batch: clips or images that every run will have; None for any number.
        cache: folder for what is compiled, so that the next start is quicker; None writes nothing.

    Attributes:
        precision: that it really computes in, of what is not on integers: `bf16`, `f32`, `f16`.

    Raises:
        VerificationError: OpenVINO cannot read or run the file.
    """

    def __init__(
        self, path: str | Path, threads: int = 0, *, float32: bool = False, batch: int | None = None,
        cache: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self.runtime: Runtime = "openvino_f32" if float32 else "openvino"
        # Weights that stand alone have their float inputs rounded to 8 bits, in groups, unless a group has size 0.
        exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0} if float32 else {}
        some = {"INFERENCE_NUM_THREADS": threads} if threads > 0 else {}
        kept = {"CACHE_DIR": str(cache)} if cache is not None else {}
        try:
            model = _read(path)
            if batch is not None:
                model.reshape({value: [batch, *list(value.partial_shape)[1:]] for value in model.inputs})
            self.compiled = CORE.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"} | exact | some | kept)
        except Exception as error:
            raise VerificationError(
                missing_data(path)
                or f"{path} does not start in OpenVINO {openvino.__version__.split('-')[0]}, which takes an .onnx file "
                f"that ssql export wrote: {_reason_of(error)}"
            ) from error
        self.precision: str = self.compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self._about = _metadata(model)
        self._inputs, self._outputs = [list(map(_spec, values)) for values in (model.inputs, model.outputs)]
        self._request = self.compiled.create_infer_request()
        self._lock = threading.Lock()  # one run at a time, with all threads: a request holds its inputs and outputs

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Outputs by name, all of them when None.

        Raises:
            ValueError: inputs that the file does not take.
            VerificationError: the file cannot be computed.
        """
        wrong = unfit(self._inputs, input_feed)  # it would convert types, and take earlier inputs for missing ones
        if wrong is not None:
            raise ValueError(f"{self.path} {wrong}")
        try:
            with self._lock:
                # On one thread `infer` keeps errors to itself and gives the outputs of the run before.
                self._request.start_async(dict(input_feed))
                self._request.wait()
                found = self._request.results.to_tuple()
        except Exception as error:
            wrong = too_long(self._about, input_feed)
            if wrong is not None:
                raise ValueError(f"{self.path} {wrong}") from error
            raise VerificationError(f"{self.path} fails in OpenVINO: {_reason_of(error)}") from error
        outputs = {spec.name: value for spec, value in zip(self._outputs, found, strict=True)}
        return [outputs[name] for name in output_names or outputs]

    def get_inputs(self) -> list[Any]:
        """`name`, `shape` (`any` where any size is taken) and `type` of each, as ONNX Runtime calls it."""
        return self._inputs

    def get_outputs(self) -> list[Any]:
        """The same of the outputs, in the file's order."""
        return self._outputs

    def get_modelmeta(self) -> Any:
        """`custom_metadata_map`: what the file says about itself."""
        return SimpleNamespace(custom_metadata_map=dict(self._about))


def _read(path: str | Path) -> Any:
    """The file as ONNX, and as nothing else: OpenVINO alone would guess among the formats that it knows."""
    front_end = FrontEndManager().load_by_framework("onnx")
    return front_end.convert(front_end.load(str(path)))


def _metadata(model: Any) -> dict[str, str]:
    """The file's `metadata_props`, which OpenVINO keeps among what it knows of a model's origin."""
    return dict(model.get_rt_info("framework").value) if model.has_rt_info("framework") else {}


def _spec(value: Any) -> Any:
    kind = value.element_type.get_type_name()
    shape = ["any" if size.is_dynamic else size.get_length() for size in value.partial_shape]
    return SimpleNamespace(name=value.any_name, shape=shape, type=TYPES.get(kind, kind))


def _reason_of(error: Exception) -> str:
    """The last line that the runtime says: those before it tell the places in its source."""
    return str(error).strip().split("\n")[-1]
