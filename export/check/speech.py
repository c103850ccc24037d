"""Real speech that comes with the package: files are verified on it where no other clips are given.

`speech.ogg` (11 s, 16 kHz, mono, Ogg Opus) is from President Kennedy's inaugural address of 20 January 1961, a work of
the United States government in the public domain; Whisper's repository tests with the same recording.
"""

from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from encoders.speech.log_mel import SAMPLE_RATE

RECORDING = Path(__file__).with_name("speech.ogg")
# Where a cut starts and how long it is, in seconds.
CUTS = ((5.5, 0.3), (3.3, 1.0), (8.0, 2.5), (0.0, 7.0), (0.0, 11.0))


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
