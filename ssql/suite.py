"""The speech suite: does the encoder still hear at few bits? Recognition beside pitch, loudness, rate and contour.

| part | data | tasks |
| --- | --- | --- |
| `words` | eSpeak NG, made on the spot | word, language, voice; word behind white noise and babble |
| `prosody` | eSpeak NG, exact labels, unheard test voices | contour, gender, pitch, energy, rate |
| `fsdd` | real digits, the folder `recordings` of FSDD | digit, speaker; digit behind white noise and babble |
| `prompts` | real telephone prompts in five languages | language |
"""

from collections.abc import Mapping
from pathlib import Path

from ssql.data import AudioFolder, DataModule, Noisy, SpokenProsody, SpokenWords

# Where the real recordings are expected, and how they come there: experiments/speech/suite.md.
RECORDINGS = {"fsdd": "data/fsdd/recordings", "prompts": "data/prompts"}


def speech_suite(recordings: Mapping[str, str] = RECORDINGS, seed: int = 0) -> tuple[dict[str, DataModule], list[str]]:
    """The parts of the suite by name, and which were left out.

    Args:
        recordings: part to folder, of `fsdd` and `prompts`.
        seed: of what is drawn: words, voices, prosody, noise.

    Returns:
        data modules, and a sentence for each part whose folder does not exist.

    Raises:
        ValueError: an unknown part.
    """
    unknown = sorted(set(recordings) - set(RECORDINGS))
    if unknown:
        raise ValueError(f"unknown recordings {unknown}: the suite has {', '.join(RECORDINGS)}")
    parts: dict[str, DataModule] = {
        "words": Noisy(SpokenWords(seed=seed), noisy_tasks=["word"], seed=seed),
        "prosody": SpokenProsody(seed=seed),
    }
    skipped = []
    for name, folder in recordings.items():
        if Path(folder).is_dir():
            parts[name] = _fsdd(folder, seed) if name == "fsdd" else _prompts(folder)
        else:
            skipped.append(f"{name} (real recordings) skipped: {folder} does not exist")
    return parts, skipped


def _fsdd(folder: str, seed: int) -> DataModule:
    labels = r"(?P<digit>\d)_(?P<speaker>[a-z]+)_"
    return Noisy(AudioFolder(folder, labels=labels, test_pattern=r"_[0-4]\.wav$"), noisy_tasks=["digit"], seed=seed)


def _prompts(folder: str) -> DataModule:
    # A folder a language, en/7.wav or en_US_f_Allison/digits/7.wav; every tenth file is a test file, long ones are cut.
    return AudioFolder(folder, labels=r"^(?P<language>[a-z]{2})[_/]", max_seconds=3.0)
