"""A stranger's description of a module, compared with the file of its weights before anything is allocated."""

import dis
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from encoders.storage.paths import check_regular


class ArtifactError(ValueError):
    """A folder that holds no encoder or head this version can read; the sentence names the file or key."""


@contextmanager
def described(path: Path, kind: str) -> Iterator[None]:
    """Whatever fails while a stranger's description is built is said to be of its file.

    Raises:
        ArtifactError: in place of any other error.
    """
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:
        why = sentence(error) or "nothing can be built from its values"
        raise ArtifactError(f"{path} does not describe a {kind}: {why}") from error


def sentence(error: Exception) -> str | None:
    """What an error says, where someone wrote it to be read; None for Python's or a compiled library's own words."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None or not isinstance(error, ValueError | RuntimeError | AssertionError | OSError):
        return None
    written = dis.opname[place.tb_frame.f_code.co_code[place.tb_lasti]] == "RAISE_VARARGS"  # a `raise` or an `assert`
    return str(error) or None if written else None


def check_architecture(build: Callable[[], nn.Module], path: Path) -> None:
    """Compare what is about to be built with the header of a safetensors file, before any of it is allocated.

    Args:
        build: makes the module; called on the meta device.
        path: the file; may hold more than the module has.

    Raises:
        ArtifactError: missing or damaged file, or weights of another architecture.
    """
    try:
        check_regular(path)
        with safetensors.safe_open(path, framework="pt") as tensors:
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
            found = {key: (tuple(part.get_shape()), str(part.get_dtype())) for key, part in slices.items()}
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: its JSON file is there, its weights are not") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    try:
        with torch.device("meta"), _at_most(4 * len(found) + 1000, path):
            module = build()
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            raise
        return  # a registered encoder that needs numbers while it is built
    problems = misfits(module, {key: shape for key, (shape, _) in found.items()})
    problems += [
        f"{key} is {found[key][1]}, not floating point"
        for key, value in module.state_dict().items()
        if value.is_floating_point() and key in found and not found[key][1].startswith(("F", "BF"))
    ]
    check_same_architecture(problems, path)


def misfits(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What a module's state needs that is missing among these shapes, or has another shape."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    return [f"missing {key}" for key in expected.keys() - shapes.keys()] + [
        f"{key} has shape {shapes[key]}, not {shape}"
        for key, shape in expected.items()
        if shapes.get(key, shape) != shape
    ]


def check_same_architecture(problems: list[str], path: Path) -> None:
    """Raise ArtifactError where there are problems with the weights in a file, and list the first of them."""
    if problems:
        raise ArtifactError(f"{path} holds weights of another architecture: {listed(problems, 5)}")


def listed(problems: Collection[str], most: int = 8) -> str:
    """The first of them in their order as words, and how many there are beside."""
    return "; ".join(sorted(problems)[:most]) + (f"; and {len(problems) - most} more" if len(problems) > most else "")


@contextmanager
def _at_most(parameters: int, path: Path) -> Iterator[None]:
    """Stop a description that asks for many more parameters than the file of weights could hold."""
    registered, thread = 0, threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal registered
        if threading.get_ident() == thread:  # the hook is every thread's
            registered += 1
            if registered > parameters:
                raise ArtifactError(f"{path} holds weights of another architecture: the description asks for more")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
