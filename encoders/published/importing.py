"""Import an encoder from the files of a published model: every key accounted for."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders.base import ENCODERS, Encoder
from encoders.models.speech_transformer import log_mel_front_end
from encoders.published.configuration import CONFIG, read_configuration, stated_arguments
from encoders.published.files import Published, open_published
from encoders.published.layouts import LAYOUTS
from encoders.published.sizes import speech_transformer_arguments, wav2vec2_arguments
from encoders.storage.description import ArtifactError, listed, misfits
from encoders.storage.paths import shown
from quant.checks import check_choice

AUTO = "auto"
_POSITIONS = "transformer.pos_conv_embed.conv."
# Weight norm as torch stores it, in its older form and in its newer: size, direction.
_WEIGHT_NORMS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


@dataclass(frozen=True)
class Imported:
    """What an import took and what it left.

    Attributes:
        keys: of the encoder, all loaded.
        left_out: first parts of the keys of other parts of the model, and how many keys each has.
        heads_from: where the number of heads was read: shapes do not tell it.
        layout: of the file.
        recognized_by: what told the layout; None where it was given.
        converted: types of numbers that became float32, and how many of the keys had each.
        pickles: names of files that are pickles.
    """

    keys: int
    left_out: Mapping[str, int]
    heads_from: str
    layout: str
    recognized_by: str | None = None
    converted: Mapping[str, int] = field(default_factory=dict)
    pickles: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.keys} tensors imported, none missing; attention heads read from {self.heads_from}"]
        if self.left_out:
            left = ", ".join(f"{count} named {part}.*" for part, count in sorted(self.left_out.items()))
            lines.append(f"left out, since they are not the encoder's: {left}")
        if self.recognized_by:
            lines.insert(0, f"layout {self.layout}, by {self.recognized_by}")
        if self.converted:
            changes = ", ".join(f"{count} of {name}" for name, count in sorted(self.converted.items()))
            lines.append(f"tensors that became float32: {changes}")
        if self.pickles:
            lines.append(
                f"warning: {', '.join(self.pickles)} is a pickle; only tensors were read from it and none of its code "
                "was run (torch.load, weights_only=True), but take safetensors where the model has them"
            )
        return "\n".join(lines)


def import_encoder(
    weights: str | Path, layout: str = AUTO, heads: int | None = None, fill: bool | None = None,
    margin: float | None = None,
) -> tuple[Encoder, Imported]:  # fmt: skip
    """Build the encoder that a published model holds, in float32, with the front end it was trained with.

    Sizes are read from the shapes, and compared with a config.json beside the weights where there is one; layouts of
    wav2vec 2.0 need it, and preprocessor_config.json.

    Args:
        weights: a safetensors file, PyTorch's .bin or .pt (tensors alone are read from it), an index of shards, or a
            folder with one of these: `model.safetensors` is taken before all others.
        layout: `step_audio_2` (with its adaptor), `whisper` (transformers), `openai_whisper`, `qwen2_audio`,
            `wav2vec2`, `hubert`, `wavlm` (transformers); `auto` takes config.json's `model_type`.
        heads: attention heads; config.json's, or in Whisper's shape width / 64, when None.
        fill: whether every clip is filled with silence to the encoder's 30 s and attends to it, which is how Whisper
            was trained and what its decoder reads. Without, a clip attends to itself: features of short clips are
            others, and cost less. None fills for Whisper's own layouts alone.
        margin: seconds of silence that fill follows each clip with, in place of all that is left of the 30 s: short
            clips cost less then.

    Returns:
        the encoder in evaluation mode, not prepared; what was imported.

    Raises:
        ArtifactError: no such file, several that may be meant, damaged, in another layout, an adapter that is not
            merged, or with keys missing or unexplained.
        ValueError: an unknown layout, clips to fill for an encoder that takes any length, or a margin for clips that
            are not filled or that is no multiple of 20 ms.
    """
    check_choice("layout", layout, (AUTO, *LAYOUTS))
    published = open_published(Path(weights))
    where = shown(weights)
    configuration = published.dims
    if configuration is None:
        configuration = read_configuration(published.folder / CONFIG)
        model_type = (configuration or {}).get("model_type", "")
        if not isinstance(model_type, str):
            config = shown(published.folder / CONFIG)
            raise ArtifactError(f"{config} says model_type {model_type!r:.60}, which cannot be: it must be text")
    recognized_by = None
    if layout == AUTO:
        layout, recognized_by = _recognized(published, configuration)
    form = LAYOUTS[layout]
    if fill and form.encoder != "speech_transformer":
        raise ValueError(f"layout {layout} takes clips of any length: leave fill out, or false")
    fill = form.filled if fill is None else fill
    if margin is not None and not fill:
        raise ValueError(f"layout {layout} fills no clips here: leave margin out, or let it fill (fill true)")
    ours = {key: form.here(key) for key in published.files}
    left_out = [key for key, name in ours.items() if name is None]
    _check_explained(list(ours), left_out, layout, where)
    stated = stated_arguments(published, configuration, form)
    state: dict[str, Tensor] = {}
    converted: Counter[str] = Counter()
    for key, name in ours.items():
        if name is not None:
            value = published.tensor(key)
            state[name] = value.float()
            if value.dtype != torch.float32:
                converted[str(value.dtype).removeprefix("torch.")] += 1
    count = len(state)
    if form.encoder == "speech_transformer":
        arguments, heads_from = speech_transformer_arguments(state, form, stated, heads, where)
        arguments["log_mel"] = "whisper_filled" if fill else "whisper"
    else:
        _fold_weight_norm(state, where)
        arguments, heads_from = wav2vec2_arguments(state, stated, heads, published.folder, where)
    encoder = _filled(form.encoder, arguments, state, where)
    if margin is not None:
        encoder.fill(margin)  # type: ignore[operator]
    report = Imported(
        count,
        Counter(form.part(key) for key in left_out),
        heads_from,
        layout,
        recognized_by,
        converted,
        tuple(shown(file.name) for file in published.loaded),
    )
    return encoder.requires_grad_().eval(), report


def _recognized(published: Published, configuration: Mapping[str, Any] | None) -> tuple[str, str]:
    """The layout, and what told it."""
    if published.dims is not None:
        return "openai_whisper", "its dims, which OpenAI's files have"
    config = published.folder / CONFIG
    if configuration is None or "model_type" not in configuration:
        if configuration is not None and "encoder" in configuration:
            raise ArtifactError(f"{shown(published.folder)} is an encoder that ssql saved: nothing is left to import")
        lack = "is missing" if configuration is None else "has no model_type"
        raise ArtifactError(
            f"{shown(config)} {lack}, so the layout is not known: give it with --layout, one of {', '.join(LAYOUTS)}"
        )
    model_type: str = configuration["model_type"]
    if model_type not in LAYOUTS:
        raise ArtifactError(
            f"{shown(config)} says model_type {model_type!r:.60}, which cannot be imported; "
            f"known are {', '.join(LAYOUTS)}"
        )
    return model_type, f"{CONFIG}'s model_type"


def _check_explained(keys: list[str], left_out: list[str], layout: str, where: str) -> None:
    if len(left_out) == len(keys):
        raise ArtifactError(f"{where} has no encoder in layout {layout!r}; its keys are like {listed(left_out, 3)}")
    unexplained = [key for key in left_out if not LAYOUTS[layout].is_other(key)]
    if unexplained:
        raise ArtifactError(f"{where} has keys that layout {layout!r} does not know: {listed(unexplained)}")


def _fold_weight_norm(state: dict[str, Tensor], where: str) -> None:
    """Make one weight of the two that weight norm keeps for the convolution of positions, in place."""
    for names in _WEIGHT_NORMS:
        keys = [_POSITIONS + name for name in names]
        if not any(key in state for key in keys):
            continue
        if not all(key in state for key in keys) or _POSITIONS + "weight" in state:
            raise ArtifactError(f"{where} must have {' and '.join(keys)} (as they are named here), or the weight alone")
        size, direction = (state.pop(key) for key in keys)
        if direction.dim() != 3 or size.shape != (1, 1, direction.shape[2]):
            raise ArtifactError(
                f"{where}: {keys[0]} (as it is named here) has shape {tuple(size.shape)}, which does not fit "
                f"the {tuple(direction.shape)} of {keys[1]}"
            )
        # One norm for each place of the kernel, as in the published code.
        weight = direction * (size / direction.square().sum(dim=(0, 1), keepdim=True).sqrt())
        if not weight.isfinite().all():
            raise ArtifactError(f"{where}: {keys[1]} (as it is named here) is zero at a place of its kernel")
        state[_POSITIONS + "weight"] = weight


def _filled(name: str, arguments: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> Encoder:
    """The encoder of these arguments, with these weights and no others."""
    try:
        with torch.device("meta"):
            encoder = ENCODERS[name](**arguments)
    except ValueError as error:
        raise ArtifactError(f"{where} has sizes that no encoder in this layout has: {error}") from error
    problems = misfits(encoder, {key: tuple(value.shape) for key, value in state.items()})
    problems += [f"extra {key}" for key in state.keys() - encoder.state_dict().keys()]
    if problems:
        raise ArtifactError(f"{where} does not fill the encoder (names as in this toolkit): {listed(problems)}")
    encoder.load_state_dict(state, assign=True)
    if name == "speech_transformer":
        encoder.front_end = log_mel_front_end(encoder.arguments)  # its buffers are computed, not stored
    return encoder
