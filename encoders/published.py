"""Import an encoder from a published safetensors file or folder: every key accounted for."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from encoders.models.speech_transformer import SpeechTransformer, log_mel_front_end
from encoders.published_layouts import LAYOUTS, Layout
from encoders.storage.description import ArtifactError, listed, misfits
from encoders.storage.paths import check_regular, shown
from encoders.storage.strict_json import read_strict_json
from quant.checks import check_choice

INDEX = "model.safetensors.index.json"
HEAD_WIDTH = 64  # in every published encoder of this shape


@dataclass(frozen=True)
class Imported:
    """What an import took and what it left.

    Attributes:
        keys: of the encoder, all loaded.
        left_out: first parts of the keys of other parts of the model, and how many keys each has.
        heads_from: where the number of heads was read: shapes do not tell it.
    """

    keys: int
    left_out: Mapping[str, int]
    heads_from: str

    def __str__(self) -> str:
        left = ", ".join(f"{count} of {part}" for part, count in sorted(self.left_out.items())) or "none"
        return (
            f"{self.keys} keys imported, none missing; keys of other parts left out: {left}; heads: {self.heads_from}"
        )


def import_encoder(
    weights: str | Path, layout: str, heads: int | None = None, fill: bool | None = None
) -> tuple[SpeechTransformer, Imported]:
    """Build the encoder that a published file holds, in float32, with the front end it was trained with.

    Sizes are read from the shapes, and compared with a config.json beside the weights where there is one.

    Args:
        weights: a safetensors file, or a folder with model.safetensors or with shards and their index.
        layout: `step_audio_2` (with its adaptor), `whisper` (transformers), `openai_whisper`, `qwen2_audio`.
        heads: attention heads; config.json's, or width / 64, when None.
        fill: whether every clip is filled with silence to the encoder's 30 s and attends to it, which is how Whisper
            was trained and what its decoder reads. Without, a clip attends to itself: features of short clips are
            others, and cost less. None fills for Whisper's own layouts alone.

    Returns:
        the encoder in evaluation mode, not prepared; what was imported.

    Raises:
        ArtifactError: no such file, damaged, in another layout, or with keys missing or unexplained.
        ValueError: an unknown layout.
    """
    check_choice("layout", layout, LAYOUTS)
    files, folder = _files(Path(weights))
    published: dict[str, Path] = {}
    for file in files:
        for key in _keys(file):
            if key in published:
                raise ArtifactError(
                    f"{shown(file)} and {shown(published[key])} both have {key}: one of them is a stray"
                )
            published[key] = file
    ours = {key: LAYOUTS[layout].here(key) for key in published}
    left_out = [key for key, name in ours.items() if name is None]
    _check_explained(published.keys(), left_out, LAYOUTS[layout], weights, layout)
    state = {name: _read(published[key], key) for key, name in ours.items() if name is not None}
    log_mel: Any = "whisper_filled" if (LAYOUTS[layout].filled if fill is None else fill) else "whisper"
    arguments, heads_from = _sizes(state, LAYOUTS[layout], folder / "config.json", heads, weights)
    try:
        with torch.device("meta"):
            encoder = SpeechTransformer(**arguments, pooling=LAYOUTS[layout].pooling, log_mel=log_mel)
    except ValueError as error:
        raise ArtifactError(f"{weights} has sizes that no encoder in this layout has: {error}") from error
    front_end = log_mel_front_end(log_mel, arguments["n_mels"], arguments["positions"])
    _check_keys(encoder, state, weights)
    encoder.load_state_dict(state, assign=True)
    encoder.front_end = front_end  # its buffers are computed, not stored
    report = Imported(len(state), Counter(key.split(".")[0] for key in left_out), heads_from)
    return encoder.requires_grad_().eval(), report


def _files(weights: Path) -> tuple[list[Path], Path]:
    """The safetensors files, and the folder they are in."""
    if weights.is_file():
        return [weights], weights.parent
    if not weights.is_dir():
        raise ArtifactError(f"no weights at {weights}: no such file or folder")
    index = weights / INDEX
    if index.is_file():
        try:
            names = sorted(set(read_strict_json(index)["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ArtifactError(f"{index} is not an index of shards: {error!r}") from error
        strangers = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        if strangers or not names:
            raise ArtifactError(
                f"{index} must name files of its own folder, not {strangers[0]!r}"
                if strangers
                else f"{index} names no file"
            )
        missing = [name for name in names if not (weights / name).is_file()]
        if missing:
            raise ArtifactError(f"{index} names {', '.join(missing)}, which {weights} does not have")
        return [weights / name for name in names], weights
    files = sorted(weights.glob("*.safetensors"))
    if len(files) != 1:
        raise ArtifactError(f"{weights} must have one safetensors file, or {INDEX}; it has {len(files)} files")
    return files, weights


def _keys(file: Path) -> list[str]:
    try:
        check_regular(file)
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{file} is not a safetensors file: {error}") from error


def _read(file: Path, key: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        value: Tensor = tensors.get_tensor(key)
    if not value.is_floating_point():
        raise ArtifactError(f"{file}: {key} is {value.dtype}, not floating point: quantized weights cannot be imported")
    if not value.isfinite().all():
        raise ArtifactError(f"{file}: {key} is NaN or infinite")
    return value.float()


def _check_explained(
    keys: Collection[str], left_out: list[str], layout: Layout, weights: str | Path, name: str
) -> None:
    if len(left_out) == len(keys):
        raise ArtifactError(f"{weights} has no encoder in layout {name!r}; its keys are like {listed(left_out, 3)}")
    unexplained = [key for key in left_out if not layout.is_other(key)]
    if unexplained:
        raise ArtifactError(f"{weights} has keys that layout {name!r} does not know: {listed(unexplained)}")


def _sizes(
    state: Mapping[str, Tensor], layout: Layout, config: Path, heads: int | None, weights: str | Path
) -> tuple[dict[str, Any], str]:
    """Arguments of the encoder, and where the number of heads is from."""
    needed = ("conv1.weight", "positional_embedding.weight", *(["adaptor.linear2.weight"] if layout.adaptor else []))
    missing = [key for key in needed if key not in state]
    if missing:
        raise ArtifactError(f"{weights} has no encoder in this layout: missing {', '.join(missing)}")
    dimensions = {"conv1.weight": 3, "positional_embedding.weight": 2, "adaptor.linear2.weight": 2}
    for key in needed:
        shape = tuple(state[key].shape)
        if len(shape) != dimensions[key] or 0 in shape:
            raise ArtifactError(
                f"{weights}: {key} (as it is named here) has shape {shape}, not {dimensions[key]} sizes"
            )
    width, n_mels, _ = state["conv1.weight"].shape
    blocks = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    if blocks != set(map(str, range(len(blocks)))):
        raise ArtifactError(f"{weights} must have blocks 0 to {len(blocks) - 1}, it has {listed(blocks)}")
    found = {
        "n_mels": n_mels,
        "width": width,
        "depth": len(blocks),
        "positions": len(state["positional_embedding.weight"]),
    }
    if layout.adaptor:
        found["adaptor_dim"] = len(state["adaptor.linear2.weight"])
    stated = _stated(config, layout)
    for argument, value in found.items():
        if stated.get(argument, value) != value:
            raise ArtifactError(f"{config} says {argument} {stated[argument]}, the weights have {value}")
    if heads is not None:
        source = "as given"
    elif "heads" in stated:
        heads, source = stated["heads"], "config.json"
    else:
        heads, source = width // HEAD_WIDTH, f"width / {HEAD_WIDTH}, without a config.json"
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ArtifactError(f"{weights}: width {width} does not fit {heads} heads; give the number with heads")
    return found | {"heads": heads}, source


def _stated(config: Path, layout: Layout) -> dict[str, int]:
    """Our arguments as config.json states them; empty without the file."""
    if not config.is_file():
        return {}
    try:
        section = read_strict_json(config)
        for part in layout.config:
            section = section[part]
        if not isinstance(section, dict):
            raise TypeError(f"it is no object but {section!r:.40}")
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{config} has no section {'.'.join(layout.config) or 'at all'}: {error!r}") from error
    for key, value in layout.fixed.items():
        if section.get(key, value) != value:
            raise ArtifactError(f"{config} says {key} {section[key]!r}: this toolkit's encoder has {value!r}")
    return {argument: section[key] for argument, key in layout.sizes.items() if key in section}


def _check_keys(encoder: SpeechTransformer, state: Mapping[str, Tensor], weights: str | Path) -> None:
    problems = misfits(encoder, {key: tuple(value.shape) for key, value in state.items()})
    problems += [f"extra {key}" for key in state.keys() - encoder.state_dict().keys()]
    if problems:
        raise ArtifactError(f"{weights} does not fill the encoder (names as in this toolkit): {listed(problems)}")
