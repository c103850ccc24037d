"""The saved encoder: a folder with `config.json` and `model.safetensors`, in the Hugging Face manner."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from encoders import heads
from encoders.base import ENCODERS, Encoder
from encoders.heads import Head
from encoders.speech import tokenizer as tokenizers
from encoders.speech.tokenizer import Tokenizer
from encoders.storage.arguments import check_arguments
from encoders.storage.description import ArtifactError, check_architecture, described
from encoders.storage.files import staged_folder
from encoders.storage.folder import (
    CHECKSUM,
    CONFIG,
    HEAD_CONFIG,
    HEAD_WEIGHTS,
    TOKENIZER_CONFIG,
    TOKENIZER_WEIGHTS,
    WEIGHTS,
    check_folder_target,
    load_weights,
    local_folder,
    read_json,
    save_part,
)
from encoders.storage.unconverted import refuse_published
from quant import (
    BitWidth,
    Policy,
    QuantLayer,
    corrected_bit_widths,
    integer_range,
    is_prepared,
    learning_bit_widths,
    parse_bit_width,
    prepare,
    quant_layers,
    unprepare,
)
from quant.activation import RANGE_BUFFERS
from quant.bias_correction import add_corrections, add_roundings, rounded_bit_widths
from quant.learned_steps import add_steps

FORMAT_VERSION = 3


def save_encoder(
    encoder: Encoder,
    folder: str | Path,
    overwrite: bool = False,
    head: Head | None = None,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write an encoder, prepared or not, with all that quantization found; and its head and tokenizer.

    The folder appears whole or not at all: files are written beside it and renamed. Only an empty folder, or one that
    holds nothing but what this function wrote, is replaced; the encoder may have been loaded from it.

    Raises:
        FileExistsError: the folder exists and overwrite is False, or it holds anything else.
        ValueError: a weight is NaN or infinite, the tokenizer is another encoder's, or bit-widths are still learning.
        OSError: it cannot be written, the disk is full, or something else is writing it.

    Example:
        >>> import encoders
        >>> encoder = encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2)
        >>> encoders.save_encoder(encoder, "small", overwrite=True)  # small/config.json, small/model.safetensors
    """
    folder = Path(folder)
    if tokenizer is not None:
        tokenizer.check_encoder(encoder)
    config = {"format_version": FORMAT_VERSION, "encoder": encoder.name, "arguments": encoder.arguments}
    mode = next((module.mode for module in encoder.modules() if isinstance(module, QuantLayer)), None)
    if mode is not None:
        config["policy"] = mode.policy.to_dict()
    if mode is not None and learning_bit_widths(encoder):
        raise ValueError(
            "bit-widths are still learning scales of their own: call quant.settle_bit_widths(encoder) first"
        )
    for run in [] if mode is None else corrected_bit_widths(encoder):
        lacking = [name for name, layer in quant_layers(encoder).items() if run not in layer.corrected]
        if lacking:
            raise ValueError(f"{run} was not found for all layers: {lacking[0]} has no correction of its bias")
    if mode is not None and mode.learned is not None:
        config["learned_steps"] = str(mode.learned)
    if mode is not None and corrected_bit_widths(encoder):
        config["bias_corrections"] = [str(run) for run in corrected_bit_widths(encoder)]
    if mode is not None and rounded_bit_widths(encoder):
        config["rounded_weights"] = [str(run) for run in rounded_bit_widths(encoder)]

    with staged_folder(folder, partial(check_folder_target, overwrite=overwrite)) as staging:
        save_part(encoder, config, staging, CONFIG, WEIGHTS, RANGE_BUFFERS)
        for part, version, name, weights in (
            (head, heads.FORMAT_VERSION, HEAD_CONFIG, HEAD_WEIGHTS),
            (tokenizer, tokenizers.FORMAT_VERSION, TOKENIZER_CONFIG, TOKENIZER_WEIGHTS),
        ):
            if part is not None:
                save_part(part, {"format_version": version, **part.arguments}, staging, name, weights)


def load_encoder(
    folder: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Encoder:
    """Build the encoder an artifact describes and load its weights, every key accounted for.

    Args:
        folder: a local folder, or `hf-hub:owner/name` for a model on the Hugging Face hub.
        device: to load it to; the CPU when None.
        dtype: of its floats; as saved when None.

    Returns:
        the encoder in evaluation mode, prepared (with its ranges) if it was when saved.

    Raises:
        ArtifactError: missing or damaged file, unknown encoder, weights of another architecture.

    Example:
        >>> import encoders, torch
        >>> encoders.save_encoder(encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2), "small")
        >>> encoder = encoders.load_encoder("small", device="cpu")
        >>> features, lengths = encoder(*encoder.front_end(torch.zeros(1, 16_000)))  # one second at 16 kHz
        >>> features.shape  # (batch, frames at 50 Hz, width)
        torch.Size([1, 50, 16])
    """
    folder, config = _found(folder)
    name, arguments = config["encoder"], config["arguments"]
    with described(folder / CONFIG, f"{name} encoder"):
        check_arguments(ENCODERS[name], arguments, "arguments")
        ENCODERS[name].check_description(arguments)
        check_arguments(Policy, config.get("policy", {}), "policy")
        corrections, roundings = (_bit_widths(config, key) for key in ("bias_corrections", "rounded_weights"))
        steps = _bit_width(config["learned_steps"], "learned_steps") if "learned_steps" in config else None
        check_architecture(lambda: ENCODERS[name](**arguments), folder / WEIGHTS)
        encoder = ENCODERS[name](**arguments)
        if "policy" in config:
            prepare(encoder, Policy(**config["policy"]))
        if steps is not None:
            add_steps(encoder, steps)
        for bit_width in corrections:
            add_corrections(encoder, bit_width)
        for bit_width in roundings:
            add_roundings(encoder, bit_width)
    load_weights(encoder, folder / WEIGHTS, config[CHECKSUM])
    _check_integers(encoder, folder / WEIGHTS)
    return encoder.eval().to(device=device, dtype=dtype)


def check_encoder_folder(folder: str | Path) -> None:
    """Look, before any work, whether a folder holds an encoder: its description is read, its weights are not.

    Args:
        folder: as in `load_encoder`.

    Raises:
        ArtifactError: no such folder, a published model that has to be imported first, or an unknown encoder.
    """
    _found(folder)


def _found(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """The local folder of an encoder, and its description."""
    path = local_folder(folder)
    refuse_published(path, folder)
    config = read_json(path / CONFIG, {"encoder", "arguments"}, FORMAT_VERSION)
    name = config["encoder"]
    if not isinstance(name, str) or name not in ENCODERS:
        raise ArtifactError(f"{path / CONFIG} names encoder {name!r:.60}; known are: {', '.join(sorted(ENCODERS))}")
    return path, config


def _check_integers(encoder: Encoder, path: Path) -> None:
    """Raise ArtifactError where integers of a stranger's are none of their bit-width."""
    for name, layer in quant_layers(encoder).items() if is_prepared(encoder) else ():
        for run in layer.rounded:
            low, high = integer_range(layer.bits_at(run).weight, signed=True)
            found = layer.weight_integers(run)[0].aminmax()
            if found.min < low or found.max > high:
                raise ArtifactError(f"{path} is damaged: integers of layer {name} at {run} are not {low} to {high}")


def _bit_widths(config: dict[str, Any], key: str) -> list[BitWidth]:
    texts = config.get(key, [])
    if not isinstance(texts, list):
        raise ValueError(f"{key} must be a list of bit-widths, not {texts!r:.60}")
    return [_bit_width(text, key) for text in texts]


def _bit_width(text: object, key: str) -> BitWidth:
    if not isinstance(text, str):
        raise ValueError(f"{key} must be a bit-width such as 'w4a8', not {text!r:.60}")
    return parse_bit_width(text)


def init_from(folder: str, quantized: bool = False) -> Encoder:
    """The weights of an artifact as the start of a training run: float, trainable, without policy and ranges.

    In a recipe: `encoder: {class_path: encoders.init_from, init_args: {folder: runs/imported/encoder}}`.

    Args:
        folder: as in `load_encoder`.
        quantized: keep what `ssql quantize` found, policy, ranges and integers, for bit-widths to start from.

    Raises:
        ArtifactError: as `load_encoder`.
        ValueError: an encoder that is to be quantized, and is not.

    Example:
        >>> import encoders
        >>> encoder = encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2)
        >>> encoders.save_encoder(encoder, "small", overwrite=True)
        >>> encoders.init_from("small").training
        True
    """
    encoder = load_encoder(folder)
    if quantized and not is_prepared(encoder):
        raise ValueError(f"{folder} has no bit-widths yet: ssql quantize makes an encoder that has")
    if is_prepared(encoder) and not quantized:
        unprepare(encoder)
    return encoder.train()
