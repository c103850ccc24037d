"""Embeddings of whole splits, by an encoder at a bit-width or by an exported file."""

import logging
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import quant
from encoders.base import Encoder
from encoders.speech.frames import FrameEncoder
from encoders.speech.log_mel import SAMPLE_RATE
from ssql.data import DataModule
from ssql.evaluation.calibration import inputs_of
from ssql.terminal.progress import track

log = logging.getLogger(__name__)
ITEMS = {"audio": "clips", "image": "images"}


class ExportedFile(Protocol):
    """An exported file, as the command line hands one in (`export.FileEncoder`): it runs at one bit-width, as it is.

    Called with waveforms or pixels and lengths, it gives features (batch, frames, feature_dim) and the frames of each
    clip; of images, pooled features and None.
    """

    modality: Any
    bit_width: str
    feature_dim: int
    weights_sha256: str
    file_sha256: str
    size_bytes: int
    runtime: Any
    precision: str

    @property
    def frame_rate(self) -> float:
        """Features a second, in Hz; of a speech file."""

    def __call__(self, inputs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features, and frames of each clip."""

    def embed_raw(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One embedding a clip or image, shape (batch, feature_dim)."""


class Features(NamedTuple):
    """Embeddings (clips, feature_dim) of a split at one bit-width, and its answers (clips,) by task."""

    embeddings: np.ndarray
    answers: dict[str, np.ndarray]


def embed_splits(encoder: Encoder | ExportedFile, data: DataModule, bit_width: str) -> dict[str, Features]:
    """Embeddings and answers of the training split and all test splits: see `embed_split`."""
    return {split: embed_split(encoder, data, split, bit_width) for split in ("train", *data.test_splits)}


@torch.no_grad()
def embed_split(encoder: Encoder | ExportedFile, data: DataModule, split: str, bit_width: str) -> Features:
    """Embeddings and labels of a whole split at a bit-width; of a file, at its own.

    Embeddings are (clips, feature_dim), or (clips, parts * feature_dim) where the data ask for several parts of a clip.
    They are means of the clip's own frames: where an encoder fills clips with silence, that of the silence is left out.

    Raises:
        ValueError: embeddings that are NaN or infinite.
    """
    embeddings: list[Tensor] = []
    labels: dict[str, list[Tensor]] = {}
    samples = 0
    loader = data.evaluation_dataloader(split)
    device = next(encoder.eval().parameters()).device if isinstance(encoder, Encoder) else torch.device("cpu")
    with quant.at(encoder, bit_width, reuse_weights=True) if isinstance(encoder, Encoder) else nullcontext():
        for batch in track(loader, f"encoding {split} at {bit_width}: batches", len(loader)):
            samples += 0 if batch["lengths"] is None else int(batch["lengths"].sum())
            embeddings.append(_embed(encoder, *inputs_of(batch, device), data.probed_parts).float().cpu())
            for task, values in batch["labels"].items():
                labels.setdefault(task, []).append(values)
    found = torch.cat(embeddings)
    length = f", {samples / SAMPLE_RATE:.0f} s" if data.modality == "audio" else ""
    log.info("encoded %s at %s: %d %s%s", split, bit_width, len(found), ITEMS[data.modality], length)
    check_finite(found, f"embeddings at {bit_width} of the split {split}")
    return Features(found.numpy(), {task: torch.cat(values).numpy() for task, values in labels.items()})


def _embed(encoder: Encoder | ExportedFile, inputs: Tensor, lengths: Tensor | None, parts: int) -> Tensor:
    """One embedding of each clip, or of as many parts of it, side by side; of an image, its own."""
    if lengths is None:
        return encoder.embed_raw(inputs)
    if isinstance(encoder, Encoder):
        assert isinstance(encoder, FrameEncoder)
        features, counts = encoder(*encoder.front_end(inputs, lengths))
    else:
        features, counts = encoder(inputs, lengths)
    assert counts is not None
    own = -(-lengths // round(SAMPLE_RATE / encoder.frame_rate))  # as encoders.speech.windows keeps them
    return part_means(features, counts.minimum(own), parts)


def check_finite(values: Tensor, what: str) -> None:
    """Raise ValueError where one of the values of clips or images, (count, ...), is NaN or infinite.

    Args:
        values: of a whole split, in its order.
        what: what they are, for the message: `embeddings at w4a4 of the split test`.
    """
    wrong = (~values.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{what} are NaN or infinite for {len(wrong)} of {len(values)} items, the first of them item {wrong[0]}: "
            "look at the encoder's weights and at that item"
        )


def part_means(features: Tensor, lengths: Tensor, parts: int) -> Tensor:
    """Means of the frames of equal parts of each clip, side by side.

    Args:
        features: shape (batch, frames, feature_dim).
        lengths: frames of each clip, shape (batch,).
        parts: that each clip is cut into.

    Returns:
        shape (batch, parts * feature_dim).
    """
    position = torch.arange(features.shape[1], device=features.device)
    part = (position * parts // lengths.clamp_min(1)[:, None]).clamp_max(parts)  # `parts` itself is padding
    member = F.one_hot(part, parts + 1)[..., :parts].to(features.dtype)  # (batch, frames, parts)
    sums = member.transpose(1, 2) @ features
    return (sums / member.sum(dim=1).clamp_min(1)[..., None]).flatten(1)
