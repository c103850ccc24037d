"""`ssql import`: published weights become an encoder folder."""

from pathlib import Path
from typing import Literal

from encoders import check_folder_target, import_encoder, save_encoder
from ssql.terminal.console import say


def import_weights(
    weights: str,
    output: str,
    layout: Literal[
        "auto", "step_audio_2", "whisper", "openai_whisper", "qwen2_audio", "wav2vec2", "hubert", "wavlm"
    ] = "auto",
    heads: int | None = None,
    fill: bool | None = None,
    margin: float | None = None,
    overwrite: bool = False,
) -> None:
    """Import the encoder of a published model from local files, every key accounted for.

    Nothing is downloaded. Keys that are missing or extra are listed and nothing is written. The encoder folder can be
    calibrated, exported, or trained on (`class_path: encoders.init_from`).
    Example: ssql import --weights whisper-large-v3/ --output runs/whisper/encoder

    Args:
        weights: a folder as it was downloaded, or one of its files: safetensors, an index of shards, PyTorch's .bin or
            .pt, of which tensors alone are read. In a folder, model.safetensors is taken before all others.
        output: folder of the encoder.
        layout: auto takes config.json's model_type. step_audio_2 (encoder and adaptor), whisper (transformers' names,
            distil-whisper as well), openai_whisper (OpenAI's names), qwen2_audio, wav2vec2, hubert, wavlm
            (transformers' names).
        heads: attention heads; config.json's, or in Whisper's shape width / 64, when null.
        fill: fill every clip with silence to the encoder's 30 s, as Whisper was trained and its decoder needs it;
            false lets a clip attend to itself alone, which costs less for short ones. When null, true for whisper and
            openai_whisper, false for the others.
        margin: fill each clip with so many seconds of silence alone, instead of all that is left of the 30 s: a clip of
            3 s then costs a fraction. Whisper's decoder may repeat itself then: see docs/quantize.md.
        overwrite: replace an existing encoder folder; one that holds anything else is refused.
    """
    if Path(weights).exists():  # what is mistyped is said first, and nothing large is read for an output that cannot be
        check_folder_target(output, overwrite)
    encoder, report = import_encoder(weights, layout, heads, fill, margin)
    save_encoder(encoder, output, overwrite)
    sizes = ", ".join(f"{name} {value}" for name, value in encoder.arguments.items())
    count = sum(parameter.numel() for parameter in encoder.parameters())
    say(f"{report}\nencoder: {output} ({encoder.name}: {count:,} parameters; {sizes})")
