"""`ssql import`: published weights become an encoder folder."""

from typing import Literal

from encoders import check_folder_target, import_encoder, save_encoder
from ssql.terminal.console import say


def import_weights(
    weights: str,
    layout: Literal["step_audio_2", "whisper", "openai_whisper", "qwen2_audio"],
    output: str,
    heads: int | None = None,
    fill: bool | None = None,
    overwrite: bool = False,
) -> None:
    """Import the encoder of a published model from local safetensors files, every key accounted for.

    Nothing is downloaded. Keys that are missing or extra are listed and nothing is written. The encoder folder can be
    calibrated, exported, or trained on (`class_path: encoders.init_from`).
    Example: ssql import --weights whisper-large-v3/ --layout whisper --output runs/whisper/encoder

    Args:
        weights: a safetensors file, or a folder with one or with shards and their index; config.json beside it is
            compared where there is one.
        layout: step_audio_2 (encoder and adaptor), whisper (transformers' names), openai_whisper (OpenAI's names),
            qwen2_audio.
        output: folder of the encoder.
        heads: attention heads; config.json's, or width / 64, when null.
        fill: fill every clip with silence to the encoder's 30 s, as Whisper was trained and its decoder needs it;
            false lets a clip attend to itself alone, which costs less for short ones. When null, true for whisper and
            openai_whisper, false for the others.
        overwrite: replace an existing encoder folder; one that holds anything else is refused.
    """
    check_folder_target(output, overwrite)
    encoder, report = import_encoder(weights, layout, heads, fill)
    save_encoder(encoder, output, overwrite)
    sizes = ", ".join(f"{name} {value}" for name, value in encoder.arguments.items())
    count = sum(parameter.numel() for parameter in encoder.parameters())
    say(f"{report}\nencoder: {output} ({count:,} parameters; {sizes})")
