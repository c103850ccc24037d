"""What Whisper's own decoder makes of short clips with less silence after them than the 30 s that it was trained with.

    python short_clips.py ENCODER QUANTIZED DECODER RECORDINGS TEXTS OUTPUT [--margins 30 5 0.5+ ...] [--longest 10]

ENCODER is the folder of Whisper's encoder in full precision, QUANTIZED that of the same one by `ssql quantize`, DECODER
the model as CTranslate2 has it. TEXTS has lines of a recording's path below RECORDINGS, a tab and what is said. Each
bit-width goes through one exported file that takes log-mels of any length. A margin is in seconds: 0 lets a clip attend
to itself alone (`ssql import --fill false`), 30 is the whole window. Behind 0.5+ the decoder gets 1,500 frames all the
same: those of a silent window follow, which were encoded once.

Columns: bit-width; margin; word error rate in %; what that is above the whole window at this bit-width, with ends of
95 % by paired bootstrap over clips; insertions in % of the words said; clips in which the reader repeats itself (up to
twelve words three times or more in a row, where nobody said so); the squared error of a clip's own frames over their
variance, against the whole window at full precision. What was read is kept in OUTPUT.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

import export
from encoders import FilledLogMel, LogMel, WhisperLogMel, load_encoder
from export.runtime.start import start
from ssql.evaluation.error_rates import edits
from ssql.evaluation.probes import resamples
from ssql.evaluation.whisper_decoder import WhisperDecoder

WHOLE = 30.0
REPEATED = re.compile(r"\b(\w+(?: \w+){0,11})(?: \1\b){2,}")


def clips(recordings: Path, texts: Path, longest: float) -> Iterator[tuple[str, Tensor]]:
    """What is said in each recording that is short enough, and its samples, (1, samples)."""
    for line in texts.read_text(encoding="utf-8").splitlines():
        name, said = line.split("\t")
        if not (recordings / name).is_file():
            continue
        samples, rate = soundfile.read(recordings / name, dtype="float32")
        if rate == 16_000 and len(samples) < longest * rate:
            yield said, torch.from_numpy(samples)[None]


def front_end(margin: float, n_mels: int) -> LogMel:
    """That follows a clip by so many seconds of silence."""
    if margin == 0:
        return WhisperLogMel(n_mels)
    return FilledLogMel(n_mels, margin=None if margin == WHOLE else margin)


def written(encoder: str, quantized: str, bit_width: str, unfilled: bool, folder: Path) -> Path:
    """The exported file of log-mels of any length: of clips with a margin, or of those that have two frames more."""
    path = folder / f"{'own' if unfilled else 'margin'}-{bit_width}.onnx"
    if not path.exists():
        loaded = load_encoder(encoder if bit_width == "fp" else quantized)
        if unfilled:
            loaded.arguments["log_mel"] = "whisper"
        loaded.fill(None if unfilled else 1.0)  # type: ignore[operator]
        export.to_onnx(loaded, path, bit_width=bit_width, input="log_mel", check=False)
    return path


def main() -> None:
    """Read everything; print a line for each bit-width and margin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("encoder", "quantized", "decoder", "recordings", "texts", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--margins", nargs="+", default=["30", "10", "5", "2", "1", "0.5", "0", "1+", "0.5+"])
    parser.add_argument("--bit_widths", nargs="+", default=["fp", "w8a8", "w4a8"])
    parser.add_argument("--longest", type=float, default=10.0, help="seconds of the longest clip")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    reader = WhisperDecoder(str(arguments.decoder), threads=1)
    n_mels = load_encoder(arguments.encoder).arguments["n_mels"]
    spoken = list(clips(arguments.recordings, arguments.texts, arguments.longest))
    said = [reader.normalized(text).split() for text, _ in spoken]
    words = np.array([len(text) for text in said])
    weights = resamples(len(spoken))
    sys.stdout.write(f"{len(spoken)} clips, {words.sum()} words, {sum(len(x[0]) for _, x in spoken) / 16_000:.0f} s\n")
    reference: list[np.ndarray] = []
    for bit_width in arguments.bit_widths:
        whole: np.ndarray | None = None
        for margin in arguments.margins:
            kept = arguments.output / f"{bit_width}-{margin}.npz"
            if not kept.exists():
                path = written(arguments.encoder, arguments.quantized, bit_width, margin == "0", arguments.output)
                texts, features = read(path, margin, n_mels, reader, [samples for _, samples in spoken])
                np.savez(kept, *features, texts=np.array(texts))
            arrays = np.load(kept)
            own = [arrays[f"arr_{place}"].astype(np.float32) for place in range(len(spoken))]
            reference = reference or own  # the whole window at full precision, which comes first
            heard = [reader.normalized(text) for text in arrays["texts"].tolist()]
            found = [edits(right, text.split()) for right, text in zip(said, heard, strict=True)]
            wrong = np.array([clip.wrong for clip in found])
            whole = wrong if whole is None else whole
            low, high = np.percentile(100 * (weights @ (wrong - whole)) / (weights @ words), [2.5, 97.5])
            repeats = sum(
                bool(REPEATED.search(text)) and not REPEATED.search(" ".join(right))
                for right, text in zip(said, heard, strict=True)
            )
            sys.stdout.write(
                f"| {bit_width} | {margin} | {100 * wrong.sum() / words.sum():.2f} | "
                f"{100 * (wrong - whole).sum() / words.sum():+.2f} ({low:.1f} to {high:.1f}) | "
                f"{100 * sum(clip.inserted for clip in found) / words.sum():.2f} | {repeats} | "
                f"{distance(own, reference):.4f} |\n"
            )
            sys.stdout.flush()


def read(
    path: Path, margin: str, n_mels: int, reader: WhisperDecoder, spoken: list[Tensor]
) -> tuple[list[str], list[np.ndarray]]:
    """What the decoder reads in each clip, and the features of the clip's own frames in half precision."""
    session = start(path, "onnxruntime", threads=1)

    def encoded(seconds: float, samples: Tensor) -> np.ndarray:
        log_mel, lengths = front_end(seconds, n_mels)(samples)
        features: np.ndarray = session.run(["features"], {"log_mel": log_mel.numpy(), "lengths": lengths.numpy()})[0]
        return features

    silence = encoded(WHOLE, torch.zeros(1, 16_000)) if margin.endswith("+") else None
    texts, own = [], []
    for samples in spoken:
        features = encoded(float(margin.rstrip("+")), samples)
        if silence is not None:
            features = np.concatenate([features, silence[:, features.shape[1] :]], axis=1)
        texts += reader.read(torch.from_numpy(features), torch.tensor([features.shape[1]]))
        own.append(features[0, : -(-samples.shape[1] // 320)].astype(np.float16))
    return texts, own


def distance(own: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """Squared error over variance, each dimension's mean taken off."""
    found, right = np.concatenate(own), np.concatenate(reference)
    return float(np.square(found - right).mean() / right.var(axis=0).mean())


if __name__ == "__main__":
    with torch.no_grad():
        main()
