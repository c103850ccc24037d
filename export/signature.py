"""What an exported encoder takes and gives: names, dynamic axes, example inputs, clips to verify with."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from encoders import Encoder, Head, LogMel, Tokenizer
from encoders.log_mel import SAMPLE_RATE
from export.head import output_name
from export.tokenizer import OUTPUTS

SpeechInput = Literal["log_mel", "waveform"]
Module = TypeVar("Module", bound=nn.Module)
Axes = dict[str, tuple[str | None, ...]]


@dataclass(frozen=True)
class Signature:
    """Names of a file's inputs and outputs, and the names of their dynamic axes (None: fixed)."""

    inputs: Axes
    outputs: Axes


def input_form(encoder: Encoder, asked: SpeechInput | None) -> str:
    """What a file's first input is: `log_mel` or `waveform` (speech), `images`.

    Args:
        encoder: speech or vision.
        asked: None takes log_mel where the encoder does.

    Raises:
        ValueError: unknown, or an input that the encoder cannot have.
    """
    if asked not in (None, *get_args(SpeechInput)):
        raise ValueError(f"unknown input {asked!r}: write one of {', '.join(get_args(SpeechInput))}")
    if encoder.modality != "audio":
        possible = ["images"]
    elif isinstance(encoder.front_end, LogMel):
        possible = ["log_mel", "waveform"]
    else:
        possible = ["waveform"]
    form = asked or possible[0]
    if form not in possible:
        raise ValueError(f"a {encoder.name} encoder has no input {form!r}: it takes {' or '.join(possible)}")
    return form


def signature(form: str, head: Head | None = None, tokenizer: Tokenizer | None = None) -> Signature:
    """The signature of files whose first input is `log_mel`, `waveform` or `images`."""
    if form == "images":
        inputs: Axes = {"images": ("batch", None, None, None)}
        outputs: Axes = {"features": ("batch", None)}
    else:
        first: tuple[str | None, ...] = ("batch", "samples") if form == "waveform" else ("batch", None, "frames")
        inputs = {form: first, "lengths": ("batch",)}
        outputs = {"features": ("batch", "feature_frames", None), "feature_lengths": ("batch",)}
    if head is not None:
        axes: tuple[str | None, ...] = ("batch", "feature_frames", None) if head.task == "ctc" else ("batch", None)
        outputs[output_name(head)] = axes
    if tokenizer is not None:
        for name in OUTPUTS:
            outputs[name] = ("batch",) if name.endswith("lengths") else ("batch", name.replace("tokens", "frames"))
    return Signature(inputs, outputs)


def example_inputs(encoder: Encoder, form: str, image_size: int | tuple[int, int] | None = None) -> tuple[Tensor, ...]:
    """Small inputs for tracing. Batch 2: the tracer takes an axis of 0 or 1 for a constant.

    Args:
        encoder: speech or vision.
        form: `log_mel`, `waveform` or `images`.
        image_size: height and width in pixels, one number or two; the model's own when None.

    Returns:
        log_mel (2, n_mels, 64) or waveform (2, 8000), and lengths (2,); or images (2, channels, height, width).
    """
    if form == "waveform":
        return torch.randn(2, 8000), torch.tensor([8000, 6000])
    if form == "log_mel":
        return torch.randn(2, int(encoder.arguments["n_mels"]), 64), torch.tensor([64, 48])
    size = image_size or _image_size(encoder)
    height, width = (size, size) if isinstance(size, int) else size
    return (torch.randn(2, encoder.arguments["in_channels"], height, width),)


def verification_inputs(
    encoder: Encoder, form: str, waveforms: Sequence[Tensor] | None, image_shape: Sequence[int]
) -> list[tuple[Tensor, ...]]:
    """Speech: each clip alone, then all of them and an empty one in a padded batch. Vision: one image, then four.

    Args:
        encoder: on the CPU.
        form: `log_mel`, `waveform` or `images`.
        waveforms: clips (samples,) at 16,000 Hz; `synthetic_clips` when None or empty.
        image_shape: (channels, height, width) of the file's input; speech ignores it.
    """
    if form == "images":
        generator = torch.Generator().manual_seed(0)
        return [(torch.randn(count, *image_shape, generator=generator),) for count in (1, 4)]
    clips = list(waveforms or synthetic_clips())
    batches = [[clip] for clip in clips] + [[*clips, torch.zeros(0)]]
    return [
        file_inputs(encoder, form, pad_sequence(b, batch_first=True), torch.tensor([len(c) for c in b]))
        for b in batches
    ]


def file_inputs(encoder: Encoder, form: str, inputs: Tensor, lengths: Tensor | None) -> tuple[Tensor, ...]:
    """What a file takes, from waveforms and lengths in samples, or from pixels in [0, 1] and None."""
    if form == "images":
        return (encoder.front_end(inputs, lengths)[0],)
    if lengths is None:
        lengths = torch.full((len(inputs),), inputs.shape[1])
    return (inputs, lengths) if form == "waveform" else encoder.front_end(inputs, lengths)


def synthetic_clips(seconds: Sequence[float] = (0.3, 1.0, 2.5, 7.0)) -> list[Tensor]:
    """Rising chirps in noise, 16,000 Hz, of several lengths in seconds; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for duration in seconds:
        time = torch.arange(int(duration * SAMPLE_RATE)) / SAMPLE_RATE
        tone = 0.3 * torch.sin(2 * torch.pi * (200 + 900 * time / duration) * time)
        clips.append(tone + 0.02 * torch.randn(len(time), generator=generator))
    return clips


def frozen_copy(module: Module) -> Module:
    """A float32 copy on the CPU in evaluation mode, so that the module itself is left untouched.

    Weights that are float32 on the CPU already are shared, not copied: nothing in here writes to them.
    """
    weights = {
        id(weight): nn.Parameter(weight.detach().cpu().float(), requires_grad=False) for weight in module.parameters()
    }
    return copy.deepcopy(module, weights).cpu().float().eval().requires_grad_(False)


def _image_size(encoder: Encoder) -> tuple[int, int]:
    arguments = encoder.arguments
    size = arguments["model_arguments"].get("img_size") or (32 if arguments["small_images"] else None)
    if size is None:
        own = getattr(encoder.model, "pretrained_cfg", {}).get("input_size")
        size = own[1:] if own else 224
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
