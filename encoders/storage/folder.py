"""The files of a saved encoder, head or tokenizer: found, read with errors that name them, written whole or not."""

import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from encoders.storage.arguments import check_arguments
from encoders.storage.description import ArtifactError, check_architecture, check_same_architecture, described, misfits
from encoders.storage.files import LOCK, OLD, STAGING, beside, check_writable, plain, utf8
from encoders.storage.hub import PREFIX, downloaded
from encoders.storage.ownership import ENCODER, written_kind
from encoders.storage.paths import nearest_folder, shown
from encoders.storage.strict_json import read_strict_json
from encoders.storage.unconverted import refuse_file

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HEAD_CONFIG, HEAD_WEIGHTS = "head.json", "head.safetensors"
TOKENIZER_CONFIG, TOKENIZER_WEIGHTS = "tokenizer.json", "tokenizer.safetensors"
FILES = [CONFIG, WEIGHTS, HEAD_CONFIG, HEAD_WEIGHTS, TOKENIZER_CONFIG, TOKENIZER_WEIGHTS]
# The key of each JSON file that has the SHA-256 of the weights file beside it, byte by byte. Not to be confused with
# `weights_sha256` of exported files, a hash of an encoder's tensors.
CHECKSUM = "weights_file_sha256"
# The same of the encoder's weights, in the JSON file of what was trained on its features.
OF_ENCODER = "encoder_file_sha256"
PORTION = 2**26  # bytes of a file of weights that are read at a time

Part = TypeVar("Part", bound=nn.Module)


def local_folder(folder: str | Path) -> Path:
    """A folder as it is, or the local copy of `hf-hub:owner/name` on the Hugging Face hub.

    Raises:
        ArtifactError: neither; the sentence names the nearest folder there is.
    """
    if isinstance(folder, str) and folder.startswith(PREFIX):
        try:
            return downloaded(folder, FILES)
        except ValueError as error:
            raise ArtifactError(str(error)) from error
    path = Path(folder)
    if path.is_dir():
        return path
    if path.is_file():
        refuse_file(path)
    hints = []
    near = nearest_folder(path)
    if near is not None:
        hints.append(f"; the nearest is {shown(near)}")
    if len(path.parts) == 2 and not path.is_absolute() and path.parts[0] not in (".", ".."):
        hints.append(f"; for the hub write {PREFIX}{shown(path)}")
    old = beside(folder, OLD)
    if old.is_dir():
        hints.append(f", but {old} is what stood there when a command that replaced it was killed: rename it")
    raise ArtifactError(f"no encoder at {shown(path)}: no such folder{''.join(hints)}")


def check_folder_target(folder: str | Path, overwrite: bool) -> None:
    """Check, before the work, that `save_encoder` may write a folder: it is not there, or empty, or an encoder's.

    Args:
        folder: to be written.
        overwrite: whether an encoder's folder may be replaced; it must hold nothing else.

    Raises:
        FileExistsError: it may not.
        OSError: nothing can be written there.
    """
    folder = plain(folder)
    if not Path(os.path.abspath(folder)).name:
        raise FileExistsError(f"{folder} cannot be replaced: choose a folder in it")
    check_writable(folder)
    if folder.is_symlink():
        raise FileExistsError(f"{folder} is a symbolic link: give the folder that it points to, or another one")
    if not folder.exists() and beside(folder, OLD).exists():
        folder = beside(folder, OLD)  # a write was interrupted, and the next one puts this back
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: a folder is to be written there, choose another name")
    found = sorted(os.listdir(folder))
    foreign = [name for name in found if name not in FILES and not name.endswith((STAGING, LOCK))]
    if foreign:
        names = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise FileExistsError(f"{folder} holds what is not of an encoder ({names}): choose another folder")
    if found and written_kind(folder / CONFIG) != ENCODER:
        raise FileExistsError(f"{folder} has no {CONFIG} of an encoder that ssql saved: choose another folder")
    if found and not overwrite:
        raise FileExistsError(f"{folder} exists already: choose another folder, or overwrite it (--overwrite true)")


def read_json(path: Path, keys: set[str], version: int | None = None) -> dict[str, Any]:
    """A JSON object with these keys, of a `format_version` (any when None), with the checksum of the weights beside it.

    Raises:
        ArtifactError: missing, damaged, without a key, or of another version.
    """
    try:
        config = read_strict_json(path)
    except FileNotFoundError:
        inside = sorted(path.parent.glob(f"*/{path.name}"))
        hint = f"; {shown(inside[0].parent)} is one" if inside else ""
        raise ArtifactError(
            f"{shown(path)} is missing: an encoder is a folder with {CONFIG} and {WEIGHTS}{hint}"
        ) from None
    except ValueError as error:
        raise ArtifactError(str(error)) from error
    except OSError as error:
        raise ArtifactError(f"{shown(path)} cannot be read: {error.strerror or error}") from error
    keys = keys | {"format_version"}
    if not isinstance(config, dict) or not keys <= config.keys():
        raise ArtifactError(f"{path} must be an object with the keys {', '.join(sorted(keys))}")
    found = config["format_version"]
    if version is not None and (type(found) is not int or found != version):
        raise ArtifactError(f"{path} has format_version {found!r:.40}; this version reads {version}")
    if CHECKSUM not in config:
        raise ArtifactError(f"{path} must have the key {CHECKSUM}")
    return config


def file_sha256(path: Path) -> str:
    """Hash of a file, byte by byte."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(module: nn.Module, path: Path, sha256: str) -> None:
    """Load a safetensors file into a module, every byte and key accounted for.

    Args:
        module: gets the weights.
        path: the file.
        sha256: of the file, as the JSON file beside it has it.

    Raises:
        ArtifactError: missing or damaged file, or weights of another architecture.
    """
    try:
        file_number = path.stat().st_ino
        if file_sha256(path) != sha256:
            raise ArtifactError(f"{path} is damaged: its content is not that of which its JSON file has the checksum")
        shapes = _shapes(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: its JSON file is there, its weights are not") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    problems = misfits(module, shapes)
    state = module.state_dict()
    problems += [f"unexpected {key}" for key in shapes.keys() - state.keys()]
    check_same_architecture(problems, path)
    for keys in _portions(state):
        # What was read of an open file counts as memory until it is closed.
        with safetensors.safe_open(path, framework="pt") as tensors, torch.no_grad():
            for key in keys:
                state[key].copy_(tensors.get_tensor(key))
    if path.stat().st_ino != file_number:
        raise ArtifactError(f"{path} was replaced while it was read: load it again")


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safetensors.safe_open(path, framework="pt") as tensors:
        return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118


def _portions(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Keys of tensors that have up to `PORTION` bytes together, or of one that has more."""
    portions: list[list[str]] = [[]]
    size = 0
    for key, value in state.items():
        size += value.nbytes
        if size > PORTION:
            portions.append([])
            size = value.nbytes
        portions[-1].append(key)
    return portions


def check_finite_weights(module: nn.Module, may_be_infinite: tuple[str, ...] = (), prefix: str = "") -> None:
    """Raise ValueError where a weight is NaN or infinite, unless its key ends so; `prefix` stands before its name."""
    for key, value in module.state_dict().items():
        if not key.endswith(may_be_infinite) and not value.isfinite().all():
            raise ValueError(f"weight {prefix + key!r} is NaN or infinite: not worth keeping")


def save_part(
    module: nn.Module, description: Mapping[str, Any], folder: Path, config: str, weights: str,
    may_be_infinite: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Write an encoder, or what goes with it, into a folder that does not have its name yet.

    Args:
        module: whose state is written.
        description: plain values of the JSON file.
        folder: to write into.
        config: name of the JSON file. Another than the encoder's says which encoder, written before, it belongs to.
        weights: name of the safetensors file.
        may_be_infinite: endings of keys that hold infinity until they are set.

    Raises:
        ValueError: another weight is NaN or infinite, or a plain value, which JSON has not.
        OSError: the disk is full.
    """
    check_finite_weights(module, may_be_infinite)
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    path = folder / weights
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(state, path)
    except safetensors.SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else None, str(error)) from error
    path.chmod(mode)  # safetensors leaves a file that nobody else may read
    values = {**description, CHECKSUM: file_sha256(path)}
    if config != CONFIG:
        values[OF_ENCODER] = read_json(folder / CONFIG, set())[CHECKSUM]
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / config).write_bytes(utf8(text + "\n"))


def load_beside(form: Callable[..., Part], folder: str | Path, config: str, weights: str, version: int) -> Part | None:
    """What goes with an encoder, in evaluation mode; None when its JSON file is not there.

    Args:
        form: takes the values of the JSON file, all of them by name.
        folder: a local folder, or `hf-hub:owner/name` for a model on the Hugging Face hub.
        config: name of the JSON file.
        weights: name of the safetensors file.
        version: of the JSON file.

    Raises:
        ArtifactError: no such folder, a damaged file, weights of another form, or the part of another encoder.
    """
    path = local_folder(folder) / config
    if not os.path.lexists(path):  # a link to nothing is a damaged file
        if os.path.lexists(path.with_name(weights)):
            raise ArtifactError(f"{shown(path)} is missing: {weights} beside it cannot be read without it")
        return None
    values = read_json(path, {*inspect.signature(form).parameters, OF_ENCODER}, version)
    del values["format_version"]
    sha256, of_encoder = values.pop(CHECKSUM), values.pop(OF_ENCODER)
    if of_encoder != read_json(path.with_name(CONFIG), set())[CHECKSUM]:
        raise ArtifactError(f"{shown(path)} belongs to another encoder than the one in its folder: put it back to that")
    with described(path, path.stem):
        check_arguments(form, values, "")
        check_architecture(lambda: form(**values), path.with_name(weights))
        part = form(**values)
    load_weights(part, path.with_name(weights), sha256)
    return part.eval()
