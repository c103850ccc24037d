"""The embedded default data set: numerals spoken by eSpeak NG in several languages and voices."""

import logging
import random
import time
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from quant.checks import check_at_least
from ssql.data.batch import Batch, LabelledTensors
from ssql.data.espeak import Utterance, synthesize
from ssql.data.module import DataModule
from ssql.terminal.progress import track

log = logging.getLogger(__name__)

NUMERALS = {
    "en-us": "zero one two three four five six seven eight nine",
    "de": "null eins zwei drei vier fünf sechs sieben acht neun",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "it": "zero uno due tre quattro cinque sei sette otto nove",
    "pt": "zero um dois três quatro cinco seis sete oito nove",
    "nl": "nul een twee drie vier vijf zes zeven acht negen",
    "pl": "zero jeden dwa trzy cztery pięć sześć siedem osiem dziewięć",
}
VARIANTS = ("m1", "m2", "m3", "m7", "f1", "f2", "f3", "f4")


class SpokenWords(DataModule):
    """Spoken numerals, made in memory from a seed; nothing is downloaded.

    Tasks: `word` (language and numeral), `language`, `voice` (eSpeak variant), and the word as text. Pitch, pitch
    range and speed are drawn for each clip.

    Args:
        languages: of en-us, de, fr, es, it, pt, nl, pl.
        train_size: training clips.
        test_size: test clips.
        common: see `DataModule`; the seed is that of the clips as well.
    """

    modality = "audio"

    def __init__(
        self,
        languages: Sequence[str] = ("en-us", "de", "fr", "es"),
        train_size: int = 2000,
        test_size: int = 600,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        unknown = sorted(set(languages) - NUMERALS.keys())
        if unknown or not languages:
            raise ValueError(f"languages {unknown} have no numerals here; known are: {', '.join(NUMERALS)}")
        check_at_least(1, train_size=train_size, test_size=test_size)
        self.languages = list(languages)
        self.sizes = {"train": train_size, "test": test_size}

    def load(self) -> dict[str, Dataset[Batch]]:
        """Speak all clips of both splits."""
        self.words = [(language, word) for language in self.languages for word in NUMERALS[language].split()]
        self.classes = {
            "word": [f"{language}/{word}" for language, word in self.words],
            "language": self.languages,
            "voice": list(VARIANTS),
        }
        log.info("speaking %s words", f"{sum(self.sizes.values()):,}")
        started = time.perf_counter()
        splits: dict[str, Dataset[Batch]] = {name: self._speak(name, size) for name, size in self.sizes.items()}
        log.info("spoke %d words in %.1f s", sum(self.sizes.values()), time.perf_counter() - started)
        return splits

    def _speak(self, split: str, size: int) -> LabelledTensors:
        labels: dict[str, list[int]] = {"word": [], "language": [], "voice": []}
        utterances = []
        for index in range(size):
            draw = random.Random(f"{self.seed} {split} {index}")
            word = index % len(self.words)
            voice = draw.randrange(len(VARIANTS))
            language, text = self.words[word]
            utterances.append(
                Utterance(
                    text,
                    f"{language}+{VARIANTS[voice]}",
                    pitch=draw.randint(20, 80),
                    pitch_range=draw.randint(20, 80),
                    words_per_minute=draw.randint(120, 280),
                )
            )
            for task, label in (("word", word), ("language", self.languages.index(language)), ("voice", voice)):
                labels[task].append(label)
        clips = list(track(synthesize(utterances), f"speaking words of {split}", size))
        return LabelledTensors(clips, labels, [utterance.text for utterance in utterances])
