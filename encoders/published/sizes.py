"""Arguments of an encoder, from the shapes of its weights and from what its configuration says."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from encoders.published.configuration import Stated, normalizes_waveforms
from encoders.published.layouts import Layout
from encoders.storage.description import ArtifactError, listed

State = Mapping[str, Tensor]
HEAD_WIDTH = 64  # in every published encoder of Whisper's shape
EPSILON = 1e-7  # beside a clip's variance, in transformers' feature extractor


def speech_transformer_arguments(
    state: State, layout: Layout, stated: Stated, heads: int | None, where: str
) -> tuple[dict[str, Any], str]:
    """Arguments of `SpeechTransformer`, and where the number of heads is from.

    Args:
        state: weights by their names here.
        layout: of the file.
        stated: what the configuration states.
        heads: attention heads; the configuration's, or width / 64, when None.
        where: the weights, for errors.

    Raises:
        ArtifactError: weights that no encoder has, or other sizes than stated.
    """
    dimensions = {"conv1.weight": 3, "positional_embedding.weight": 2}
    if layout.adaptor:
        dimensions["adaptor.linear2.weight"] = 2
    _check_shapes(state, dimensions, where)
    width, n_mels, _ = state["conv1.weight"].shape
    found: dict[str, Any] = {
        "n_mels": n_mels,
        "width": width,
        "depth": _depth(state, "blocks.", where),
        "positions": len(state["positional_embedding.weight"]),
    }
    if layout.adaptor:
        found["adaptor_dim"] = len(state["adaptor.linear2.weight"])
    _check_stated(found, stated)
    if heads is not None:
        source = "as given"
    elif "heads" in stated.arguments:
        heads, source = stated.arguments["heads"], stated.name
    else:
        heads, source = width // HEAD_WIDTH, f"width / {HEAD_WIDTH}, without a {stated.name}"
    _check_heads(heads, width, where)
    return found | {"heads": heads, "pooling": layout.pooling}, source


def wav2vec2_arguments(
    state: State, stated: Stated, heads: int | None, folder: Path, where: str
) -> tuple[dict[str, Any], str]:
    """Arguments of `Wav2Vec2` and its kin, and where the number of heads is from.

    Args:
        state: weights by their names here.
        stated: what the configuration states.
        heads: attention heads; the configuration's when None.
        folder: has the settings of the feature extractor.
        where: the weights, for errors.

    Raises:
        ArtifactError: weights that no encoder has, other sizes than stated, or a file that is missing.
    """
    first, second = ("feature_extractor.conv_layers.0.conv", "feature_extractor.conv_layers.1.layer_norm.weight")
    projection, positions = "feature_projection.projection.weight", "transformer.pos_conv_embed.conv.weight"
    _check_shapes(state, {f"{first}.weight": 3, projection: 2, positions: 3}, where)
    width, extractor_width = state[projection].shape
    found: dict[str, Any] = {
        "width": width,
        "depth": _depth(state, "transformer.layers.", where),
        "extractor_width": extractor_width,
        "position_kernel": state[positions].shape[2],
        "position_groups": width // state[positions].shape[1],
        "extractor_norm": "layer" if second in state else "group",
        "extractor_bias": f"{first}.bias" in state,
    }
    widths = stated.arguments.get("extractor_width")
    if isinstance(widths, list) and widths and all(width == widths[0] for width in widths):
        stated = replace(stated, arguments={**stated.arguments, "extractor_width": widths[0]})
    _check_stated(found, stated)
    norm_first = stated.arguments.get("norm_first")
    source = stated.name if heads is None else "as given"
    heads = stated.arguments.get("heads") if heads is None else heads
    if heads is None or not isinstance(norm_first, bool):
        lacks = "num_attention_heads" if heads is None else "do_stable_layer_norm (true or false)"
        raise ArtifactError(f"{stated.source} must be the model's own, with {lacks}: the weights do not tell it")
    _check_heads(heads, width, where)
    epsilon = EPSILON if normalizes_waveforms(folder) else None
    return found | {"heads": heads, "norm_first": norm_first, "normalize_epsilon": epsilon}, source


def _check_shapes(state: State, dimensions: Mapping[str, int], where: str) -> None:
    missing = [key for key in dimensions if key not in state]
    if missing:
        raise ArtifactError(f"{where} has no encoder in this layout: missing {', '.join(missing)}")
    for key, count in dimensions.items():
        shape = tuple(state[key].shape)
        if len(shape) != count or 0 in shape:
            raise ArtifactError(f"{where}: {key} (as it is named here) has shape {shape}, not {count} sizes")


def _depth(state: State, prefix: str, where: str) -> int:
    blocks = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
    if blocks != set(map(str, range(len(blocks)))):
        raise ArtifactError(f"{where} must have blocks 0 to {len(blocks) - 1}, it has {listed(blocks)}")
    return len(blocks)


def _check_stated(found: Mapping[str, Any], stated: Stated) -> None:
    for argument, value in found.items():
        said = stated.arguments.get(argument, value)
        if said != value:
            raise ArtifactError(f"{stated.source} says {argument} {said!r:.60}, the weights have {value!r}")


def _check_heads(heads: object, width: int, where: str) -> None:
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or width % heads:
        raise ArtifactError(f"{where}: width {width} does not fit {heads} heads; give the number with heads")
