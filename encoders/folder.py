"""The files of a saved encoder, head or tokenizer: found, read with errors that name them, written whole or not."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor, nn

from encoders.arguments import check_arguments
from encoders.description import ArtifactError, check_architecture, described
from encoders.hub import PREFIX, downloaded
from encoders.paths import nearest_folder, shown
from encoders.strict_json import read_strict_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HEAD_CONFIG, HEAD_WEIGHTS = "head.json", "head.safetensors"
TOKENIZER_CONFIG, TOKENIZER_WEIGHTS = "tokenizer.json", "tokenizer.safetensors"
FILES = [CONFIG, WEIGHTS, HEAD_CONFIG, HEAD_WEIGHTS, TOKENIZER_CONFIG, TOKENIZER_WEIGHTS]

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
        raise ArtifactError(f"no encoder at {shown(path)}: it is a file, an encoder is a folder with {CONFIG}")
    hints = []
    near = nearest_folder(path)
    if near is not None:
        hints.append(f"; the nearest is {shown(near)}")
    if len(path.parts) == 2 and not path.is_absolute() and path.parts[0] not in (".", ".."):
        hints.append(f"; for the hub write {PREFIX}{shown(path)}")
    raise ArtifactError(f"no encoder at {shown(path)}: no such folder{''.join(hints)}")


def read_json(path: Path, keys: set[str], versions: tuple[int, ...]) -> dict[str, Any]:
    """A JSON object with these keys, of a readable `format_version`.

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
    version = config["format_version"]
    if type(version) is not int or version not in versions:
        readable = " and ".join(map(str, versions))
        raise ArtifactError(f"{path} has format_version {version!r:.40}; this version reads {readable}")
    return config


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write plain values, indented."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_weights(module: nn.Module, path: Path, one_range_ending: tuple[str, ...] = ()) -> None:
    """Load a safetensors file into a module, every key accounted for.

    Args:
        module: gets the weights.
        path: the file.
        one_range_ending: endings of keys that may be of shape () in the file, as format 1 had them.

    Raises:
        ArtifactError: missing or damaged file, or weights of another architecture.
    """
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: its JSON file is there, its weights are not") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = [f"missing {key}" for key in expected.keys() - found.keys()]
    problems += [f"unexpected {key}" for key in found.keys() - expected.keys()]
    problems += [
        f"{key} has shape {found[key]}, not {shape}"
        for key, shape in expected.items()
        if found.get(key, shape) != shape and not (key.endswith(one_range_ending) and found[key] == ())
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ArtifactError(f"{path} holds weights of another architecture: {shown}")
    module.load_state_dict(state)


def save_weights(module: nn.Module, path: Path, may_be_infinite: tuple[str, ...] = ()) -> None:
    """Write a module's state as safetensors.

    Args:
        module: whose state is written.
        path: the file.
        may_be_infinite: endings of keys that hold infinity until they are set.

    Raises:
        ValueError: another weight is NaN or infinite.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    for key, value in state.items():
        if not key.endswith(may_be_infinite) and not value.isfinite().all():
            raise ValueError(f"weight {key!r} is NaN or infinite: not worth keeping")
    safetensors.torch.save_file(state, path)


def save_beside(module: nn.Module, description: Mapping[str, Any], folder: Path, config: str, weights: str) -> None:
    """Write what goes with an encoder into its folder, each file to a temporary name that is renamed.

    Args:
        module: whose state is written.
        description: plain values of the JSON file.
        folder: of the encoder.
        config: name of the JSON file.
        weights: name of the safetensors file.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a weight is NaN or infinite.
    """
    staged_weights, staged_config = folder / f".{weights}.tmp", folder / f".{config}.tmp"
    save_weights(module, staged_weights)
    write_json(description, staged_config)
    os.replace(staged_weights, folder / weights)
    os.replace(staged_config, folder / config)


def load_beside(
    form: Callable[..., Part], folder: str | Path, config: str, weights: str, keys: set[str], versions: tuple[int, ...]
) -> Part | None:
    """What goes with an encoder, in evaluation mode; None when its JSON file is not there.

    Args:
        form: takes the values of the JSON file.
        folder: a local folder, or `hf-hub:owner/name` for a model on the Hugging Face hub.
        config: name of the JSON file.
        weights: name of the safetensors file.
        keys: of the JSON file.
        versions: that can be read.

    Raises:
        ArtifactError: no such folder, a damaged file, or weights of another form.
    """
    path = local_folder(folder) / config
    if not os.path.lexists(path):  # a link to nothing is a damaged file
        return None
    values = read_json(path, keys, versions)
    del values["format_version"]
    with described(path, path.stem):
        check_arguments(form, values, "")
        check_architecture(lambda: form(**values), path.with_name(weights))
        part = form(**values)
    load_weights(part, path.with_name(weights))
    return part.eval()


def replace_folder(staging: Path, folder: Path) -> None:
    """Rename a finished folder to its final name; one that was there is stepped aside, never half replaced."""
    if not folder.exists():
        os.rename(staging, folder)
        return
    # A folder that is not empty cannot be renamed over.
    aside = staging.with_name(staging.name + "-old")
    os.rename(folder, aside)
    os.rename(staging, folder)
    shutil.rmtree(aside)
