"""The optional groups of dependencies that this package needs, named where one is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

GROUPS = {
    "export": ("onnx", "onnxscript", "onnx_ir", "onnxruntime", "jinja2", "scipy"),
    "openvino": ("openvino",),
}


@contextmanager
def named_group() -> Iterator[None]:
    """Around imports: a module of these groups that is missing is told with the command that installs it.

    Raises:
        ModuleNotFoundError: in one sentence.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        group = next((group for group, modules in GROUPS.items() if error.name in modules), None)
        if group is None:
            raise
        raise ModuleNotFoundError(
            f"{error.name} is not installed, which belongs to the group {group}: pip install 'ssql-toolkit[{group}]'",
            name=error.name,
        ) from error
