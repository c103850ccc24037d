"""What a frozen reader loses at each bit-width: word and character error rates, insertions, distance of features."""

import logging
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import quant
from encoders import Encoder, FrameEncoder, weights_sha256
from encoders.speech.log_mel import SAMPLE_RATE
from ssql.data import DataModule
from ssql.data.batch import collate
from ssql.evaluation.calibration import inputs_of
from ssql.evaluation.embeddings import ExportedFile, check_finite
from ssql.evaluation.error_rates import Edits, edits
from ssql.evaluation.evaluate import BIT_WIDTHS, OF_FILES, check_measurable
from ssql.evaluation.probes import resamples
from ssql.evaluation.quantizers import AS_SAVED, Quantizer, Row, float_weights_sha256, in_full_precision, quantized
from ssql.evaluation.reader import Reader
from ssql.terminal.progress import track

AT_ONCE = 8  # clips of 30 s that are encoded and read together

log = logging.getLogger(__name__)

# Waveforms and lengths in samples to features and the frames of each clip.
Encode = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


def read_at_bit_widths(
    encoders: Mapping[str, Encoder | ExportedFile],
    data: DataModule,
    reader: Reader,
    bit_widths: Sequence[str] = BIT_WIDTHS,
    calibration_batches: int = 8,
    quantizers: Mapping[str, Quantizer] | None = None,
) -> list[Row]:
    """Let a frozen reader read features at full precision and at each bit-width, of every split but `train`.

    Args:
        encoders: method name to encoder, or to an exported file, which is measured at its own bit-width.
        data: audio with texts.
        reader: trained on the features of full precision.
        bit_widths: `fp`, `w8a8`, ...
        calibration_batches: training batches that set the ranges of quantizers that calibrate.
        quantizers: name to how the encoders are quantized; as saved when None.

    Returns:
        rows as of `ssql.evaluation.evaluate`, of the task `text, <name of the reader>` and the metrics `wer` and `cer`
        (% of the words and characters that were said), `insertions` (words that nobody said, part of `wer`, in % of
        those said) and `distance` (mean squared error of the features over the variance of those of full precision,
        each dimension's mean taken off; over all frames). `low` and `high` are ends of 95 % by bootstrap over clips;
        `above_fp`, `above_fp_low` and `above_fp_high` are what a rate is above that of full precision on the same
        clips, a paired bootstrap. A file has these two where its encoder, or a file of that at `fp`, is among the
        encoders.

    Raises:
        ValueError: data without texts, a reader of another width or other frames than an encoder, an unknown bit-width.
        quant.NotCalibratedError: an encoder that cannot run at one of the bit-widths as it is.
    """
    quantizers = quantizers or {AS_SAVED: Quantizer()}
    for method, encoder in encoders.items():
        check_measurable(method, encoder, data, bit_widths, quantizers)
        if isinstance(encoder, Encoder) and not isinstance(encoder, FrameEncoder):
            raise ValueError(f"{method} is a {encoder.name} encoder: a reader needs features of frames")
    check_texts(data, reader)
    for method, encoder in encoders.items():
        if encoder.feature_dim != reader.width:
            raise ValueError(
                f"the reader takes features {reader.width} wide, those of {method} are {encoder.feature_dim} wide: "
                f"give the reader of {reader.fitting(encoder.feature_dim)}"
            )
    rows: list[Row] = []
    # At full precision, of each split, by the hash of what is read and by that of its float weights alone.
    known: dict[str, dict[str, Reading]] = {}
    for method, encoder in encoders.items():
        if not isinstance(encoder, Encoder):
            continue
        floating, float_sha256 = in_full_precision(encoder), float_weights_sha256(encoder)
        if float_sha256 not in known:
            known[float_sha256] = {split: read_split(floating, "fp", data, split, reader) for split in data.test_splits}
        full = known[weights_sha256(encoder)] = known[float_sha256]
        for variant, common in quantized(method, encoder, data, bit_widths, calibration_batches, quantizers):
            bit_width = common["bit_width"]
            for split, expected in full.items():
                found = expected if bit_width == "fp" else read_split(variant, bit_width, data, split, reader, expected)
                rows += [common | row for row in found.rows(reader, split, expected)]
    files = {method: file for method, file in encoders.items() if not isinstance(file, Encoder)}
    for method, file in sorted(files.items(), key=lambda item: item[1].bit_width != "fp"):
        common = {"method": method, "bit_width": file.bit_width, "quantizer": AS_SAVED, "calibration_clips": None}
        common |= {name: getattr(file, name) for name in OF_FILES}
        full = known.get(file.weights_sha256, {})
        readings = {
            split: read_split(file, file.bit_width, data, split, reader, full.get(split)) for split in data.test_splits
        }
        if file.bit_width == "fp":
            full = known.setdefault(file.weights_sha256, readings)
        for split, found in readings.items():
            rows += [common | row for row in found.rows(reader, split, full.get(split))]
    return rows


def check_texts(data: DataModule, reader: Reader) -> None:
    """Raise ValueError where clips to be read have no text, or one that is nothing to say: how many, and the first.

    It needs no encoder, and no audio of an `AudioFolder`: it can be asked before any work.
    """
    if data.modality != "audio":
        raise ValueError(f"a reader reads speech, the data is {data.modality}")
    for split, clips in data.said().items():
        silent = [name for name, text in clips if text is None]
        if silent:
            raise ValueError(
                f"{len(silent)} of {len(clips)} clips of the {split} split have no text, the first of them "
                f"{silent[0]}: a reader needs texts, as of --data AudioFolder --data.texts transcripts.tsv"
            )
        wordless = [(name, text) for name, text in clips if not any(map(str.isalnum, reader.normalized(text or "")))]
        if wordless:
            name, text = wordless[0]
            raise ValueError(
                f"the texts of {len(wordless)} of {len(clips)} clips of the {split} split leave no word to compare, "
                f"the first of them {text!r:.60} of {name}: leave these clips out"
            )


@dataclass
class Reading:
    """What was read of each clip of a split, and how far its features are from those of full precision.

    Attributes:
        words: edits of each clip.
        characters: the same.
        features: those of full precision, where these are.
        errors: squared error of each clip, summed over frames and dimensions; empty where there is nothing to compare.
        values: how many numbers the features of each clip are.
    """

    words: list[Edits] = field(default_factory=list)
    characters: list[Edits] = field(default_factory=list)
    features: "FeaturesOnDisk | None" = None
    errors: list[float] = field(default_factory=list)
    values: list[int] = field(default_factory=list)

    def rows(self, reader: Reader, split: str, full: "Reading | None") -> Iterator[Row]:
        """Scores, against those at full precision where they are known."""
        name = f"text, {type(reader).__name__}" + ("" if split == "test" else f", {split}")
        common = {"task": name, "clips": len(self.words)}
        for metric in ("wer", "cer", "insertions"):
            yield common | {"metric": metric, "unit": "%"} | self._rate(metric, full)
        if full is not None and full.features is not None:
            errors = self.errors or [0.0] * len(self.words)
            values = np.array(full.values, float) * full.features.variance
            yield common | {"metric": "distance", "unit": ""} | _ratio(np.array(errors), values)

    def _rate(self, metric: str, full: "Reading | None") -> Row:
        own = self._counts(metric)
        rate = {key: 100 * value for key, value in _ratio(*own).items()}
        if full is None:
            return rate
        theirs, even = full._counts(metric), np.full(len(self.words), 1 / len(self.words))
        above = [
            100 * ((weights @ own[0]) / (weights @ own[1]) - (weights @ theirs[0]) / (weights @ theirs[1]))
            for weights in (even, resamples(len(self.words)))
        ]
        low, high = np.percentile(above[1], [2.5, 97.5])
        return rate | {"above_fp": float(above[0]), "above_fp_low": float(low), "above_fp_high": float(high)}

    def _counts(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """What is counted of each clip, and out of how many."""
        of_clips = self.characters if metric == "cer" else self.words
        counted = [clip.inserted if metric == "insertions" else clip.wrong for clip in of_clips]
        return np.array(counted, float), np.array([clip.length for clip in of_clips], float)


class FeaturesOnDisk:
    """Features of clips in a file without a name, so that memory does not grow with their number.

    Attributes:
        variance: of all numbers so far, each dimension's mean taken off.
    """

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self.file.close)
        self.frames = 0
        self.sums: np.ndarray | float = 0.0
        self.squares = 0.0
        self.width = 1

    def add(self, features: np.ndarray) -> None:
        """One clip more: (frames, width), float32."""
        self.file.write(np.ascontiguousarray(features, np.float32).tobytes())
        exact = features.astype(np.float64)
        self.frames, self.width = self.frames + len(features), features.shape[1]
        self.sums = self.sums + exact.sum(axis=0)
        self.squares += float((exact**2).sum())

    @property
    def variance(self) -> float:
        """Mean squared distance of a number from its dimension's mean."""
        frames = max(self.frames, 1)
        return (self.squares - float((np.asarray(self.sums) ** 2).sum()) / frames) / (frames * self.width)

    def again(self) -> None:
        """Begin with the first clip."""
        self.file.seek(0)

    def next(self, frames: int) -> np.ndarray:
        """The next clip, (frames, width)."""
        return np.frombuffer(self.file.read(4 * frames * self.width), np.float32).reshape(-1, self.width)


@torch.no_grad()
def read_split(
    encoder: Encoder | ExportedFile,
    bit_width: str,
    data: DataModule,
    split: str,
    reader: Reader,
    full: Reading | None = None,
) -> Reading:
    """What a reader makes of a whole split.

    Args:
        encoder: prepared, or an exported file.
        bit_width: that it runs at; a file's own.
        data: with texts.
        split: of the data.
        reader: of the features.
        full: the same at full precision; None where it is not known. Features of full precision are kept.

    Raises:
        ValueError: features that are NaN or infinite, or of another number of frames than the reader takes.
    """
    found = Reading()
    found.features = FeaturesOnDisk() if bit_width == "fp" and full is None else None
    kept = None if full is None else full.features
    if kept is not None:
        kept.again()
    dataset = data.dataset(split)
    loader = DataLoader(dataset, min(data.batch_size, AT_ONCE), num_workers=data.num_workers, collate_fn=collate)
    clips = len(dataset)  # type: ignore[arg-type]
    samples = 0
    batches = track(loader, f"reading {split} at {bit_width}: clips", clips, lambda batch: len(batch["texts"]))
    for batch, features, frames in _encoded(encoder, bit_width, batches):
        check_finite(features, f"features at {bit_width} in a batch of the split {split}")
        if reader.frames is not None and features.shape[1] != reader.frames:
            raise ValueError(
                f"the reader takes {reader.frames:,} frames of every clip, the encoder gives {features.shape[1]:,}: "
                "import it so that it fills clips with silence (ssql import --fill true)"
            )
        samples += int(batch["lengths"].sum())
        for text, said in zip(reader.read(features, frames), batch["texts"], strict=True):
            read, right = reader.normalized(text), reader.normalized(said)
            found.words.append(edits(right.split(), read.split()))
            found.characters.append(edits(right, read))
        for clip, count in zip(features.numpy(), frames.tolist(), strict=True):
            own = clip[:count]
            if found.features is not None:
                found.features.add(own)
                found.values.append(own.size)
            elif kept is not None:
                found.errors.append(float(((own.astype(np.float64) - kept.next(count)) ** 2).sum()))
    words = sum(clip.length for clip in found.words)
    log.info("read %s at %s: %d clips, %.0f s, %d words", split, bit_width, clips, samples / SAMPLE_RATE, words)
    return found


def _encoded(
    encoder: Encoder | ExportedFile, bit_width: str, batches: Iterator[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
    """Each batch with its features, on the CPU, and the frames of its clips."""
    if not isinstance(encoder, Encoder):
        for batch in batches:
            features, frames = encoder(batch["inputs"], batch["lengths"])
            assert frames is not None
            yield batch, features, frames
        return
    device = next(encoder.parameters()).device
    encoder.eval()
    with quant.at(encoder, bit_width, reuse_weights=True):
        for batch in batches:
            features, frames = encoder(*encoder.front_end(*inputs_of(batch, device)))
            yield batch, features.float().cpu(), frames.cpu()


def _ratio(counted: np.ndarray, out_of: np.ndarray) -> Row:
    """Sums of both over clips, one over the other, and its ends of 95 % over clips drawn with replacement."""
    weights = resamples(len(counted))
    low, high = np.percentile((weights @ counted) / (weights @ out_of), [2.5, 97.5])
    return {"value": float(counted.sum() / out_of.sum()), "low": float(low), "high": float(high)}
