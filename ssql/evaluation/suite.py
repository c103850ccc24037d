"""The speech suite: does the encoder still hear at few bits? Recognition beside pitch, loudness, rate and contour.

| part | data | tasks |
| --- | --- | --- |
| `words` | eSpeak NG, made on the spot | word, language, voice; word behind white noise and babble |
| `prosody` | eSpeak NG, exact labels, unheard voices, probed by thirds | contour, gender, pitch, energy, rate |
| `fsdd` | real digits, the folder `recordings` of FSDD | digit, speaker; digit behind white noise and babble |
| `prompts` | real telephone prompts in five languages, 1,300 clips of at most 3 s | language |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ssql.data import AudioFolder, DataModule, Noisy, SpokenProsody, SpokenWords, Subset

PARTS = ("words", "prosody", "fsdd", "prompts")
# Where the real recordings are expected, and how they come there: experiments/speech/suite.md.
RECORDINGS = {"fsdd": "data/fsdd/recordings", "prompts": "data/prompts"}


def speech_suite(
    parts: Sequence[str] = PARTS, recordings: Mapping[str, str] = RECORDINGS, seed: int = 0
) -> tuple[dict[str, DataModule], list[str]]:
    """The parts of the suite by name, and which were left out.

    Args:
        parts: of `words`, `prosody`, `fsdd`, `prompts`.
        recordings: folders of `fsdd` and `prompts`.
        seed: of what is drawn: words, voices, prosody, noise.

    Returns:
        data modules, and a sentence for each part whose folder does not exist.

    Raises:
        ValueError: an unknown part.
    """
    unknown = sorted(set(parts) - set(PARTS)) + sorted(set(recordings) - set(RECORDINGS))
    if unknown:
        raise ValueError(f"unknown parts {unknown}: the suite has {', '.join(PARTS)}")
    folders = {**RECORDINGS, **recordings}
    found: dict[str, DataModule] = {}
    skipped = []
    for part in parts:
        if part in folders and not Path(folders[part]).is_dir():
            skipped.append(f"{part} (real recordings) skipped: {folders[part]} does not exist")
        elif part == "words":
            found[part] = Noisy(SpokenWords(seed=seed), noisy_tasks=["word"], seed=seed)
        elif part == "prosody":
            found[part] = SpokenProsody(seed=seed)
        elif part == "fsdd":
            labels = r"(?P<digit>\d)_(?P<speaker>[a-z]+)_"
            data = AudioFolder(folders[part], labels=labels, test_pattern=r"_[0-4]\.wav$")
            found[part] = Noisy(data, noisy_tasks=["digit"], seed=seed)
        else:
            # A folder a language, en/7.wav or en_US_f_Allison/digits/7.wav; every tenth file is a test file.
            data = AudioFolder(folders[part], labels=r"^(?P<language>[a-z]{2})[_/]", max_seconds=3.0)
            found[part] = Subset(data, train_size=1000, test_size=300, seed=seed)
    return found, skipped
