"""The optional group of dependencies that this package needs, named where it is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

MODULES = ("onnx", "onnxscript", "onnx_ir", "onnxruntime", "jinja2", "scipy")


@contextmanager
def named_group() -> Iterator[None]:
    """Around imports: a module of the group `export` that is missing is told with the command that installs it.

    Raises:
        ModuleNotFoundError: in one sentence.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in MODULES:
            raise
        raise ModuleNotFoundError(
            f"{error.name} is not installed, which belongs to the group export: pip install 'ssql-toolkit[export]'",
            name=error.name,
        ) from error
