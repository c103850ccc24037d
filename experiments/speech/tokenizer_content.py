"""What full-precision tokens of FSDD tell: mutual information with digit, speaker and place in the clip, in bits.

python experiments/speech/tokenizer_content.py runs/tokenizer/shift-0/model runs/tokenizer/simsiam-0/model
"""

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import entropy

from encoders import load_encoder, load_tokenizer
from ssql.data import AudioFolder
from ssql.evaluation.calibration import prepare_anew
from ssql.evaluation.token_agreement import tokenize_split

SHUFFLES = 20


def entropy_of(values: Sequence[Any]) -> float:
    """Entropy of the frequencies of values, in bits."""
    return float(entropy(list(Counter(values).values()), base=2))


def information(tokens: list[int], labels: list[int]) -> float:
    """Mutual information in bits, less that of tokens in a random order: few tokens seem to tell more than they do."""
    generator = np.random.default_rng(0)

    def joint(shown: Sequence[int]) -> float:
        return entropy_of(list(zip(shown, labels, strict=True)))

    return float(np.mean([joint(generator.permutation(tokens).tolist()) for _ in range(SHUFFLES)])) - joint(tokens)


def main() -> None:
    """One line for each folder and stream."""
    data = AudioFolder(
        "data/fsdd/recordings", labels=r"(?P<digit>\d)_(?P<speaker>[a-z]+)_", test_pattern=r"_[0-4]\.wav$"
    )
    data.setup()
    clips = data.dataset("test").labels  # type: ignore[attr-defined]
    print("| folder | stream | tokens | entropy | digit | speaker | place in the clip |\n" + "| --- " * 7 + "|")
    for folder in sys.argv[1:]:
        encoder, tokenizer = load_encoder(folder), load_tokenizer(folder)
        assert tokenizer is not None
        prepare_anew(encoder, None)
        for name, streams in tokenize_split(encoder, tokenizer, data, "test", "fp").items():
            tokens = [int(token) for clip in streams for token in clip]
            places = [place for clip in streams for place in range(len(clip))]
            told = [information(tokens, places)]
            for label in ("speaker", "digit"):
                labels = [clips[label][index] for index, clip in enumerate(streams) for _ in clip]
                told.insert(0, information(tokens, labels))
            numbers = " | ".join(f"{value:.2f}" for value in (entropy_of(tokens), *told))
            print(f"| {folder} | {name} | {len(tokens)} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
