"""Manifests for probes.mk: what to hear in real recordings beside their words.

    python probe_labels.py PEOPLE PROMPTS SOUNDS OUTPUT

PEOPLE is speechocean762 with manifest.csv and transcripts.tsv, PROMPTS has a folder of recordings for each language,
SOUNDS is ESC-10 with a folder for each class. Needs numpy, soundfile and praat-parselmouth. Written are, with paths
below each folder:

| file | clips (train, test) | columns |
| --- | --- | --- |
| people.csv | 5 of each speaker of `train`, and of `test`: nobody is in both | gender, age, pitch, loudness, rate |
| speakers.csv | 7 and 3 of each speaker of `test` | speaker |
| languages.csv | 90 and 30 of each language | language, which is also a speaker: there is one each |
| sounds.csv | folds 1 and 2, and 3 | sound |

Pitch is the median of Praat's F0 over voiced frames (75 to 600 Hz) in semitones above 100 Hz, loudness the RMS in dB
below full scale, rate the letters of the transcript a second.
"""

import csv
import math
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import parselmouth
import soundfile

PEOPLE = ("gender", "age (years)", "pitch (semitones)", "loudness (dB)", "rate (letters/s)")


def heard(path: Path, text: str) -> list[str] | None:
    """Pitch, loudness and rate of a recording; None where no frame is voiced."""
    samples, rate = soundfile.read(path)
    voiced = parselmouth.Sound(samples, rate).to_pitch(pitch_floor=75, pitch_ceiling=600).selected_array["frequency"]
    voiced = voiced[voiced > 0]
    if not len(voiced):
        return None
    pitch = 12 * math.log2(float(np.median(voiced)) / 100)
    loudness = 10 * math.log10(float(np.mean(samples**2)))
    return [f"{pitch:.3f}", f"{loudness:.3f}", f"{sum(map(str.isalpha, text)) * rate / len(samples):.3f}"]


def write(file: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A manifest of rows path, split, labels."""
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([["path", "split", *columns], *rows])
    splits = [row[1] for row in rows]
    print(f"{file}: {splits.count('train')} for training, {splits.count('test')} for tests")


def main(people: Path, prompts: Path, sounds: Path, output: Path) -> None:
    """Write the four manifests."""
    output.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    texts = dict(line.split("\t") for line in (people / "transcripts.tsv").read_text(encoding="utf-8").splitlines())
    of_speakers = defaultdict(list)
    with (people / "manifest.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            of_speakers[row["split"], row["speaker"]].append(row)
    of_people, of_voices = [], []
    for (split, speaker), rows in of_speakers.items():
        draw.shuffle(rows)
        measured = [(row, heard(people / row["path"], texts[row["path"]])) for row in rows[:5]]
        of_people += [
            [row["path"], split, row["gender"], row["age (years)"], *values] for row, values in measured if values
        ]
        if split == "test":
            of_voices += [[row["path"], "train" if n < 7 else "test", speaker] for n, row in enumerate(rows[:10])]
    write(output / "people.csv", PEOPLE, of_people)
    write(output / "speakers.csv", ["speaker"], of_voices)
    of_languages, of_sounds = [], []
    for folder in sorted(path for path in prompts.iterdir() if path.is_dir()):
        clips = sorted(folder.glob("*.ogg"))
        draw.shuffle(clips)
        names = [clip.relative_to(prompts).as_posix() for clip in clips[:120]]
        of_languages += [[name, "train" if n < 90 else "test", folder.name] for n, name in enumerate(names)]
    for clip in sorted(sounds.glob("*/*.ogg")):
        split = "test" if clip.name[0] == "3" else "train"
        of_sounds.append([clip.relative_to(sounds).as_posix(), split, clip.parent.name])
    write(output / "languages.csv", ["language"], of_languages)
    write(output / "sounds.csv", ["sound"], of_sounds)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
