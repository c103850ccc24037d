"""Measures pitch and loudness of FSDD's recordings: data/fsdd/prosody.csv, a manifest of `ssql.data.AudioFolder`.

python experiments/speech/fsdd_prosody.py [data/fsdd]
"""

import csv
import math
import re
import sys
from pathlib import Path

import torch
import torchaudio.functional as AF

from encoders.speech.audio_file import read_audio
from encoders.speech.log_mel import SAMPLE_RATE

NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)\.wav")


def pitch(waveform) -> float:
    """Median F0 in semitones above 100 Hz, of the louder half of the frames (normalized cross-correlation)."""
    frequencies = AF.detect_pitch_frequency(waveform[None], SAMPLE_RATE, win_length=5, freq_low=60, freq_high=400)[0]
    loudness = waveform.unfold(0, 400, 160).square().mean(dim=1)[: len(frequencies)]
    voiced = frequencies[: len(loudness)][loudness >= loudness.median()]
    return 12 * math.log2(voiced.median().item() / 100)


def energy(waveform) -> float:
    """RMS in dB below full scale."""
    return 10 * math.log10(waveform.square().mean().item())


def main(folder: str = "data/fsdd") -> None:
    """Write the manifest; clips of index 0 to 4 are the test split, as in the other FSDD recipes."""
    rows = []
    for path in sorted((Path(folder) / "recordings").glob("*.wav")):
        match = NAME.fullmatch(path.name)
        waveform = torch.from_numpy(read_audio(path))
        split = "test" if int(match["index"]) < 5 else "train"
        row = [path.name, split, match["digit"], match["speaker"], f"{pitch(waveform):.3f}", f"{energy(waveform):.3f}"]
        rows.append(row)
    manifest = Path(folder) / "prosody.csv"
    with manifest.open("w", newline="") as file:
        head = ["path", "split", "digit", "speaker", "pitch (semitones)", "energy (dB)"]
        csv.writer(file).writerows([head, *rows])
    print(f"{len(rows)} recordings: {manifest}")


if __name__ == "__main__":
    main(*sys.argv[1:])
