"""The rows of quantized.mk as one table: what Whisper's decoder loses on each set and on all words.

    python quantized_table.py OUTPUT READING...

READING is the first part of the folders `READING-train-clean` and `READING-test-other`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from whisper_normalizer.english import EnglishTextNormalizer

SETS = ("train-clean", "test-other")
OF_SET = "WER, {}, % | above full precision, points"
HEADER = ["encoder", *map(OF_SET.format, SETS), "of all words, %", "distances"]


def words_of(texts: Path) -> int:
    """Normalized words of a set."""
    normalize = EnglishTextNormalizer()
    lines = texts.read_text(encoding="utf-8").splitlines()
    return sum(len(normalize(line.partition("\t")[2]).split()) for line in lines)


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Rows of a reading by metric, by method and bit-width."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in json.loads((folder / "accuracy.json").read_text(encoding="utf-8")):
        found.setdefault((row["method"], row["bit_width"]), {})[row["metric"]] = row
    return found


def line(name: str, of_sets: list[dict[str, dict[str, Any]]], words: list[int]) -> str:
    """One encoder at one bit-width."""
    rates = [metrics["wer"] for metrics in of_sets]
    cells = [name]
    for rate in rates:
        above = rate.get("above_fp")
        ends = "" if above is None else f"{above:.2f} ({rate['above_fp_low']:.1f} to {rate['above_fp_high']:.1f})"
        cells += [f"{rate['value']:.2f}", ends]
    cells.append(f"{sum(r['value'] * w for r, w in zip(rates, words, strict=True)) / sum(words):.2f}")
    cells.append(", ".join(f"{m['distance']['value']:.4f}" for m in of_sets if "distance" in m))
    return f"| {' | '.join(cells)} |"


def main(output: str, *readings: str) -> None:
    """Print the table."""
    words = [words_of(Path(output) / f"{name}.tsv") for name in SETS]
    header = " | ".join(HEADER)
    print(f"| {header} |\n|{' --- |' * (header.count('|') + 1)}")
    for reading in readings:
        sets = [rows_of(Path(output) / f"{reading}-{name}") for name in SETS]
        for method, bit_width in sets[0]:
            print(line(f"{reading}: {method}, {bit_width}", [found[method, bit_width] for found in sets], words))


if __name__ == "__main__":
    main(*sys.argv[1:])
