"""A session of a file in one of the runtimes: no other is imported, and no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from export.group import named_group
from export.runtime.runtimes import DEFAULT, RUNTIMES, Runtime

if TYPE_CHECKING:
    from export.runtime.openvino_session import OpenVinoSession
    from export.runtime.ort_session import Session

    AnySession: TypeAlias = Session | OpenVinoSession

# The module of ours that has the sessions of each.
MODULES: dict[Runtime, str] = {
    "onnxruntime": "export.runtime.ort_session",
    "openvino": "export.runtime.openvino_session",
    "openvino_f32": "export.runtime.openvino_session",
}


def start(
    path: str | Path, runtime: Runtime = DEFAULT, threads: int = 0, *, exact: bool = False, batch: int | None = None,
    cache: str | Path | None = None,
) -> "AnySession":  # fmt: skip
    """A session on the CPU.

    Args:
        path: of the file.
        runtime: one of `export.runtime.runtimes.RUNTIMES`.
        threads: 0 takes the runtime's default.
        exact: let ONNX Runtime compute what the file says, on every processor, at the cost of speed.
        batch: clips or images that every run will have. OpenVINO compiles for this number alone, and is a few percent
            faster; ONNX Runtime takes any. Any number when None.
        cache: folder for what OpenVINO compiles, so that the next start is quicker; None writes nothing.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: the runtime is not installed.
        ValueError: an unknown runtime, or a cache for ONNX Runtime, which has none.
        VerificationError: the runtime cannot read the file.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"unknown runtime {runtime!r}: take one of {', '.join(RUNTIMES)}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if runtime == "onnxruntime":
        if cache is not None:
            raise ValueError(f"cache={str(cache)!r} is for OpenVINO: ONNX Runtime keeps nothing of what it compiles")
        with named_group():
            from export.runtime.ort_session import Session, session_options
        return Session(path, session_options(threads, exact))
    from export.runtime.openvino_session import OpenVinoSession

    return OpenVinoSession(path, threads, float32=runtime == "openvino_f32", batch=batch, cache=cache)
