"""The saved encoder: a folder with `config.json` and `model.safetensors`, in the Hugging Face manner."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from huggingface_hub import snapshot_download
from torch import Tensor

from encoders.encoder import ENCODERS, Encoder
from quant import Policy, QuantLayer, parse_bit_width, prepare
from quant.activation import RANGE_BUFFERS
from quant.steps import add_steps

FORMAT_VERSION = 2
# Version 1 had one activation range for all bit-widths, shape ().
READABLE_VERSIONS = (1, 2)
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ArtifactError(ValueError):
    """A folder that holds no encoder this version can read; the sentence names the file or key."""


def save_encoder(encoder: Encoder, folder: str | Path, overwrite: bool = False) -> None:
    """Write an encoder, prepared or not, with its policy, activation ranges and learned steps.

    The folder appears whole or not at all: files are written beside it and renamed.

    Raises:
        FileExistsError: the folder exists and overwrite is False.
        ValueError: a weight is NaN or infinite.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists already: choose another folder, or overwrite")
    state = {key: value.detach().cpu().contiguous() for key, value in encoder.state_dict().items()}
    for key, value in state.items():
        if not key.endswith(RANGE_BUFFERS) and not value.isfinite().all():
            raise ValueError(f"weight {key!r} is NaN or infinite: this encoder is not worth keeping")
    config = {"format_version": FORMAT_VERSION, "encoder": encoder.name, "arguments": encoder.arguments}
    mode = next((module.mode for module in encoder.modules() if isinstance(module, QuantLayer)), None)
    if mode is not None:
        config["policy"] = mode.policy.to_dict()
    if mode is not None and mode.learned is not None:
        config["learned_steps"] = str(mode.learned)

    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        staging.chmod(0o755)
        (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        safetensors.torch.save_file(state, staging / WEIGHTS)
        _replace_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_encoder(folder: str | Path) -> Encoder:
    """Build the encoder an artifact describes and load its weights, every key accounted for.

    Args:
        folder: a local folder, or the name `owner/repository` of a model on the Hugging Face hub.

    Returns:
        the encoder in evaluation mode, prepared (with its ranges) if it was when saved.

    Raises:
        ArtifactError: missing or damaged file, unknown encoder, weights of another architecture.
    """
    folder = _local_folder(folder)
    config = _read_config(folder / CONFIG)
    name = config["encoder"]
    if name not in ENCODERS:
        raise ArtifactError(f"{folder / CONFIG} names encoder {name!r}; known are: {', '.join(sorted(ENCODERS))}")
    try:
        encoder = ENCODERS[name](**config["arguments"])
        if "policy" in config:
            prepare(encoder, Policy(**config["policy"]))
        if "learned_steps" in config:
            add_steps(encoder, parse_bit_width(config["learned_steps"]))
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / CONFIG} does not describe a {name} encoder: {error}") from error
    _load_weights(encoder, folder / WEIGHTS)
    return encoder.eval()


def _replace_folder(staging: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(staging, folder)
        return
    # A folder that is not empty cannot be renamed over: step the old one aside, so it is never half replaced.
    aside = staging.with_name(staging.name + "-old")
    os.rename(folder, aside)
    os.rename(staging, folder)
    shutil.rmtree(aside)


def _local_folder(folder: str | Path) -> Path:
    if Path(folder).is_dir():
        return Path(folder)
    if isinstance(folder, str) and folder.count("/") == 1 and not folder.startswith((".", "/", "~")):
        try:
            return Path(snapshot_download(folder, allow_patterns=[CONFIG, WEIGHTS]))
        except Exception as error:
            raise ArtifactError(f"no encoder at {folder!r}: no such folder, and not on the hub ({error})") from error
    raise ArtifactError(f"no encoder at {folder}: no such folder")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: an encoder is a folder with {CONFIG} and {WEIGHTS}") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or not {"format_version", "encoder", "arguments"} <= config.keys():
        raise ArtifactError(f"{path} must have the keys format_version, encoder and arguments")
    if config["format_version"] not in READABLE_VERSIONS:
        readable = " and ".join(map(str, READABLE_VERSIONS))
        raise ArtifactError(f"{path} has format_version {config['format_version']}; this version reads {readable}")
    return config


def _load_weights(encoder: Encoder, path: Path) -> None:
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: an encoder is a folder with {CONFIG} and {WEIGHTS}") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    expected = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = [f"missing {key}" for key in expected.keys() - found.keys()]
    problems += [f"unexpected {key}" for key in found.keys() - expected.keys()]
    problems += [
        f"{key} has shape {found[key]}, not {shape}"
        for key, shape in expected.items()
        if found.get(key, shape) != shape and not (key.endswith(RANGE_BUFFERS) and found[key] == ())
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ArtifactError(f"{path} holds weights of another architecture: {shown}")
    encoder.load_state_dict(state)
