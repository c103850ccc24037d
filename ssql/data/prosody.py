"""Synthetic prosody with exact labels: three numerals at known F0, loudness and rate, tested on unheard voices."""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils.data import Dataset

from encoders.speech.log_mel import SAMPLE_RATE
from ssql.data.batch import Batch, LabelledTensors
from ssql.data.espeak import Utterance, fundamental_frequency, synthesize
from ssql.data.spoken_words import NUMERALS, SpokenWords
from ssql.terminal.progress import track

log = logging.getLogger(__name__)

# Gender is what eSpeak's own voice files say.
VOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {"female": ("f1", "f2", "f3", "Annie", "steph"), "male": ("m1", "m2", "m3", "m4", "m6")},
    "test": {"female": ("f4", "f5"), "male": ("m7", "m8")},
}
# Semitones of three words about their mean, in units of the movement.
CONTOURS = {
    "flat": (0.0, 0.0, 0.0),
    "rising": (-1.0, 0.0, 1.0),
    "falling": (1.0, 0.0, -1.0),
    "peak": (-2 / 3, 4 / 3, -2 / 3),
    "dip": (2 / 3, -4 / 3, 2 / 3),
}
MOVEMENT = (2.0, 4.0)  # semitones
ENERGY = (-40.0, -20.0)  # dB below full scale
WORDS_PER_MINUTE = (110, 300)
CENTRE = (30, 55)  # eSpeak's pitch, so that every contour stays within its table
PAUSE = 0.05  # seconds between words at 175 words a minute


class SpokenProsody(SpokenWords):
    """Three numerals a clip, each monotone at its own F0; made in memory from a seed, nothing is downloaded.

    Everything is drawn independently: words, voice, centre, contour, movement, loudness, rate. Test voices are
    never among the training voices. Tasks: `contour` (flat, rising, falling, peak, dip), `gender` of the voice.
    Targets: `pitch` (mean over the words, semitones above 100 Hz, see `fundamental_frequency`), `energy` (RMS of the
    clip, dB below full scale), `rate` (eSpeak's words per minute).

    Args:
        languages: of en-us, de, fr, es.
        train_size: training clips.
        test_size: test clips.
        common: see `DataModule`; the seed is that of the clips as well.
    """

    def __init__(
        self,
        languages: Sequence[str] = ("en-us", "de", "fr", "es"),
        train_size: int = 1500,
        test_size: int = 500,
        **common: Any,
    ) -> None:
        super().__init__(languages, train_size, test_size, **common)
        unknown = sorted(set(languages) - {"en-us", "de", "fr", "es"})
        if unknown:
            raise ValueError(f"languages {unknown}: F0 is known for en-us, de, fr, es only")
        self.probed_parts = 3  # a contour is a matter of order

    def load(self) -> dict[str, Dataset[Batch]]:
        """Speak all clips of both splits."""
        self.classes = {"contour": list(CONTOURS), "gender": list(VOICES["train"])}
        self.targets = {"pitch": "semitones", "energy": "dB", "rate": "words/min"}
        log.info("speaking %s clips", f"{sum(self.sizes.values()):,}")
        return {split: self._speak(split, size) for split, size in self.sizes.items()}

    def _speak(self, split: str, size: int) -> LabelledTensors:
        labels: dict[str, list[float]] = {task: [] for task in (*self.classes, *self.targets)}
        utterances: list[Utterance] = []
        for index in range(size):
            spoken, answers = draw_clip(random.Random(f"{self.seed} {split} {index}"), self.languages, VOICES[split])
            utterances += spoken
            for task, answer in answers.items():
                labels[task].append(answer)
        words = track(synthesize(utterances), f"speaking words of {split}", len(utterances))
        clips = []
        for first, energy in zip(utterances[::3], labels["energy"], strict=True):
            pause = torch.zeros(round(PAUSE * 175 / first.words_per_minute * SAMPLE_RATE))
            clip = torch.cat([next(words), pause, next(words), pause, next(words)])
            clips.append(clip * (10 ** (energy / 20) / clip.square().mean().sqrt()))
        return LabelledTensors(clips, labels)


def draw_clip(
    draw: random.Random, languages: Sequence[str], voices: Mapping[str, Sequence[str]]
) -> tuple[list[Utterance], dict[str, float]]:
    """Three monotone words, and the answers of all tasks: classes as indices, numbers in their units."""
    language, contour = draw.choice(languages), draw.choice(list(CONTOURS))
    gender = draw.choice(list(voices))
    voice = f"{language}+{draw.choice(voices[gender])}"
    movement, energy, rate = draw.uniform(*MOVEMENT), draw.uniform(*ENERGY), draw.randint(*WORDS_PER_MINUTE)
    tones = semitones(voice)
    centre = tones[draw.randint(*CENTRE)]
    pitches = [nearest(tones, centre + movement * step) for step in CONTOURS[contour]]
    words = draw.choices(NUMERALS[language].split(), k=3)
    spoken = [Utterance(word, voice, pitch, 0, rate) for word, pitch in zip(words, pitches, strict=True)]
    return spoken, {
        "contour": list(CONTOURS).index(contour),
        "gender": list(voices).index(gender),
        "pitch": sum(tones[pitch] for pitch in pitches) / 3,
        "energy": energy,
        "rate": float(rate),
    }


@cache
def semitones(voice: str) -> list[float]:
    """F0 of a monotone voice at eSpeak's pitch 0, 1, ... 80, in semitones above 100 Hz."""
    return [12 * math.log2(fundamental_frequency(voice, pitch) / 100) for pitch in range(81)]


def nearest(values: Sequence[float], wanted: float) -> int:
    """Index of the value that is nearest."""
    return min(range(len(values)), key=lambda index: abs(values[index] - wanted))
