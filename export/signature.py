"""What an exported encoder takes and gives: names, dynamic axes, example inputs, clips to verify with."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders import Encoder
from encoders.log_mel import SAMPLE_RATE


@dataclass(frozen=True)
class Signature:
    """Names of a file's inputs and outputs, and the names of their dynamic axes (None: fixed)."""

    inputs: dict[str, tuple[str | None, ...]]
    outputs: dict[str, tuple[str | None, ...]]


SPEECH = Signature(
    {"log_mel": ("batch", None, "frames"), "lengths": ("batch",)},
    {"features": ("batch", "feature_frames", None), "feature_lengths": ("batch",)},
)
VISION = Signature({"images": ("batch", None, None, None)}, {"features": ("batch", None)})


def signature(encoder: Encoder) -> Signature:
    """The signature of an encoder's files."""
    return SPEECH if encoder.modality == "audio" else VISION


def example_inputs(encoder: Encoder, image_size: int | None = None) -> tuple[Tensor, ...]:
    """Small inputs for tracing. Batch 2: the tracer takes an axis of 0 or 1 for a constant.

    Args:
        encoder: speech or vision.
        image_size: height and width in pixels; the model's own when None.

    Returns:
        speech: log_mel (2, n_mels, 64) and lengths (2,); vision: images (2, channels, height, width).
    """
    if encoder.modality == "audio":
        return torch.randn(2, int(encoder.arguments["n_mels"]), 64), torch.tensor([64, 48])
    height, width = (image_size, image_size) if image_size else _image_size(encoder)
    return (torch.randn(2, encoder.arguments["in_channels"], height, width),)


def verification_inputs(
    encoder: Encoder, waveforms: Sequence[Tensor] | None, image_shape: Sequence[int]
) -> list[tuple[Tensor, ...]]:
    """Speech: each clip alone, then all of them in one padded batch. Vision: one image, then four.

    Args:
        encoder: on the CPU.
        waveforms: clips (samples,) at 16,000 Hz; `synthetic_clips` when None or empty.
        image_shape: (channels, height, width) of the file's input; speech ignores it.
    """
    if encoder.modality != "audio":
        generator = torch.Generator().manual_seed(0)
        return [(torch.randn(count, *image_shape, generator=generator),) for count in (1, 4)]
    clips = list(waveforms or synthetic_clips())
    alone = [encoder.front_end(clip.unsqueeze(0)) for clip in clips]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return [*alone, encoder.front_end(padded, torch.tensor([len(clip) for clip in clips]))]


def synthetic_clips(seconds: Sequence[float] = (0.3, 1.0, 2.5, 7.0)) -> list[Tensor]:
    """Rising chirps in noise, 16,000 Hz, of several lengths in seconds; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for duration in seconds:
        time = torch.arange(int(duration * SAMPLE_RATE)) / SAMPLE_RATE
        tone = 0.3 * torch.sin(2 * torch.pi * (200 + 900 * time / duration) * time)
        clips.append(tone + 0.02 * torch.randn(len(time), generator=generator))
    return clips


def frozen_copy(encoder: Encoder) -> Encoder:
    """A float32 copy on the CPU in evaluation mode, so that the encoder itself is left untouched."""
    return copy.deepcopy(encoder).cpu().float().eval().requires_grad_(False)


def _image_size(encoder: Encoder) -> tuple[int, int]:
    arguments = encoder.arguments
    size = arguments["model_arguments"].get("img_size") or (32 if arguments["small_images"] else None)
    if size is None:
        own = getattr(encoder.model, "pretrained_cfg", {}).get("input_size")
        size = own[1:] if own else 224
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
