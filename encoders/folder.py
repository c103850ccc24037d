"""The files of a saved encoder, head or tokenizer: found, read with errors that name them, written whole or not."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HEAD_CONFIG, HEAD_WEIGHTS = "head.json", "head.safetensors"
TOKENIZER_CONFIG, TOKENIZER_WEIGHTS = "tokenizer.json", "tokenizer.safetensors"
FILES = [CONFIG, WEIGHTS, HEAD_CONFIG, HEAD_WEIGHTS, TOKENIZER_CONFIG, TOKENIZER_WEIGHTS]


Part = TypeVar("Part", bound=nn.Module)


class ArtifactError(ValueError):
    """A folder that holds no encoder or head this version can read; the sentence names the file or key."""


def local_folder(folder: str | Path) -> Path:
    """A folder as it is, or the local copy of `owner/repository` on the Hugging Face hub.

    Raises:
        ArtifactError: neither.
    """
    if Path(folder).is_dir():
        return Path(folder)
    if isinstance(folder, str) and folder.count("/") == 1 and not folder.startswith((".", "/", "~")):
        try:
            return Path(snapshot_download(folder, allow_patterns=FILES))
        except Exception as error:
            raise ArtifactError(f"no encoder at {folder!r}: no such folder, and not on the hub ({error})") from error
    raise ArtifactError(f"no encoder at {folder}: no such folder")


def read_json(path: Path, keys: set[str], versions: tuple[int, ...]) -> dict[str, Any]:
    """A JSON object with these keys, of a readable `format_version`.

    Raises:
        ArtifactError: missing, damaged, without a key, or of another version.
    """
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: an encoder is a folder with {CONFIG} and {WEIGHTS}") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from error
    keys = keys | {"format_version"}
    if not isinstance(config, dict) or not keys <= config.keys():
        raise ArtifactError(f"{path} must have the keys {', '.join(sorted(keys))}")
    if config["format_version"] not in versions:
        readable = " and ".join(map(str, versions))
        raise ArtifactError(f"{path} has format_version {config['format_version']}; this version reads {readable}")
    return config


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write plain values, indented."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


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
        folder: a local folder, or the name `owner/repository` of a model on the Hugging Face hub.
        config: name of the JSON file.
        weights: name of the safetensors file.
        keys: of the JSON file.
        versions: that can be read.

    Raises:
        ArtifactError: no such folder, a damaged file, or weights of another form.
    """
    path = local_folder(folder) / config
    if not path.exists():
        return None
    values = read_json(path, keys, versions)
    del values["format_version"]
    try:
        part = form(**values)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{path} does not describe a {path.stem}: {error}") from error
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
