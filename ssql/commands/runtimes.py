"""The option `--runtime` of the commands that run exported files: is it installed, and is there a file for it?"""

from collections.abc import Iterable

from export.runtime.runtimes import DEFAULT, Runtime
from ssql.terminal.groups import check_installed


def check_runtimes(*runtimes: Runtime) -> None:
    """Raise ModuleNotFoundError, before any work, where a runtime is not installed."""
    if any(runtime != DEFAULT for runtime in runtimes):
        check_installed("openvino")


def check_runtime_of(encoders: Iterable[str], runtime: Runtime) -> None:
    """The same for encoders of which files run in the runtime, and folders in torch.

    Raises:
        ModuleNotFoundError: the runtime is not installed.
        ValueError: a runtime was chosen, and none of the encoders is a file.
    """
    check_runtimes(runtime)
    if runtime != DEFAULT and not any(encoder.endswith(".onnx") for encoder in encoders):
        raise ValueError(
            f"--runtime {runtime} is for files that ssql export wrote (.onnx): the folder of an encoder runs in torch"
        )
