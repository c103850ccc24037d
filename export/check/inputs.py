"""What a file is verified with: real speech or the caller's clips, each alone and padded beside an empty one.

`speech.ogg` (11 s, 16 kHz, mono, Ogg Opus) is from President Kennedy's inaugural address of 20 January 1961, a work of
the United States government in the public domain; Whisper's repository tests with the same recording.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from encoders import Encoder
from encoders.speech.log_mel import SAMPLE_RATE
from encoders.speech.windows import limits

SHIPPED, GIVEN, GENERATED = "shipped speech", "given data", "generated images"
SILENCE = 0.5  # seconds
TOGETHER = 8  # clips of a padded batch
# A recording of 30 s beside short ones would only be padding.
LONGEST_TOGETHER = 7 * SAMPLE_RATE
IMAGES = 4
RECORDING = Path(__file__).with_name("speech.ogg")
# Where a cut starts and how long it is, in seconds.
CUTS = ((5.5, 0.3), (3.3, 1.0), (8.0, 2.5), (0.0, 7.0), (0.0, 11.0))


@dataclass(frozen=True)
class Batch:
    """Inputs of a file, and a name for each clip or image among them."""

    clips: list[str]
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Inputs:
    """What a file is verified with.

    Attributes:
        source: `shipped speech`, `given data` or `generated images`.
        batches: of the file's inputs.
    """

    source: str
    batches: list[Batch]

    @property
    def clips(self) -> int:
        """Clips or images in all batches; one that is in two counts twice."""
        return sum(len(batch.clips) for batch in self.batches)


def verification_inputs(
    encoder: Encoder,
    form: str,
    given: Sequence[Tensor] | None,
    image_shape: Sequence[int],
) -> Inputs:
    """Speech: each clip alone, then padded beside an empty one, as many as 8 at once. Images: one, then four or more.

    Args:
        encoder: on the CPU.
        form: `log_mel`, `waveform` or `images`.
        given: clips (samples,) at 16,000 Hz, or images (channels, height, width) in [0, 1]. When None or empty, speech
            takes cuts of the recording that comes with the package and half a second of silence, vision clouds.
        image_shape: (channels, height, width) of the file's input; speech ignores it.
    """
    names = [f"given clip {place}" for place in range(len(given or ()))]
    if form == "images":
        if not given:
            names = [f"image {place}" for place in range(IMAGES + 1)]
        images = torch.stack(list(given)) if given else clouds(IMAGES + 1, image_shape)
        groups = [slice(1), *(slice(start, start + TOGETHER) for start in range(1, len(images), TOGETHER))]
        batches = [Batch(names[group], file_inputs(encoder, form, images[group], None)) for group in groups]
        return Inputs(GIVEN if given else GENERATED, batches)
    clips = dict(zip(names, given, strict=True)) if given else shipped_clips(encoder)
    return Inputs(GIVEN if given else SHIPPED, speech_batches(encoder, form, clips))


def speech_cuts(cuts: Sequence[tuple[float, float]] = CUTS) -> dict[str, Tensor]:
    """Cuts of the recording by name, each float32 (samples,) at 16,000 Hz.

    Args:
        cuts: where each starts and how long it is, in seconds, within the recording's 11.
    """
    samples, rate = soundfile.read(RECORDING, dtype="float32")
    assert rate == SAMPLE_RATE
    speech = torch.from_numpy(samples)
    return {
        f"speech from {start:g} to {start + seconds:g} s": speech[
            round(start * SAMPLE_RATE) : round((start + seconds) * SAMPLE_RATE)
        ]
        for start, seconds in cuts
    }


def shipped_clips(encoder: Encoder) -> dict[str, Tensor]:
    """Cuts of the recording, no longer than an encoder takes, and silence, by name."""
    clips = speech_cuts() | {f"{SILENCE:g} s of silence": torch.zeros(round(SILENCE * SAMPLE_RATE))}
    longest, _ = limits(encoder.arguments, encoder.frame_rate)  # type: ignore[arg-type]
    return clips if longest is None else {name: clip[:longest] for name, clip in clips.items()}


def speech_batches(encoder: Encoder, form: str, clips: Mapping[str, Tensor]) -> list[Batch]:
    """Each clip alone; then those of a moderate length in padded batches, the first with an empty clip."""
    alone = [[pair] for pair in clips.items()]
    together = [(name, clip) for name, clip in clips.items() if len(clip) <= LONGEST_TOGETHER] or list(clips.items())
    padded = [together[start : start + TOGETHER] for start in range(0, len(together), TOGETHER)]
    padded[0].append(("an empty clip", torch.zeros(0)))
    return [
        Batch(
            [name if len(batch) == 1 else f"{name}, padded" for name, _ in batch],
            file_inputs(
                encoder,
                form,
                pad_sequence([clip for _, clip in batch], batch_first=True),
                torch.tensor([len(clip) for _, clip in batch]),
            ),
        )
        for batch in alone + padded
    ]


def file_inputs(encoder: Encoder, form: str, inputs: Tensor, lengths: Tensor | None) -> tuple[Tensor, ...]:
    """What a file takes, from waveforms and lengths in samples, or from pixels in [0, 1] and None."""
    if form == "images":
        return (encoder.front_end(inputs, lengths)[0],)
    if lengths is None:
        lengths = torch.full((len(inputs),), inputs.shape[1])
    return (inputs, lengths) if form == "waveform" else encoder.front_end(inputs, lengths)


def clouds(count: int, shape: Sequence[int]) -> Tensor:
    """Images in [0, 1] whose detail is the fainter the finer it is, as in photographs; the same at every call.

    Args:
        count: of images.
        shape: (channels, height, width).
    """
    generator = torch.Generator().manual_seed(0)
    channels, height, width = shape
    images, size = torch.zeros(count, channels, height, width), 2
    while size < 2 * max(height, width):
        noise = torch.randn(count, channels, min(size, height), min(size, width), generator=generator)
        images += F.interpolate(noise, (height, width), mode="bilinear", align_corners=False) / size**0.5
        size *= 2
    return (0.5 + 0.25 * images).clamp(0, 1)
