"""CTranslate2's own encoder at int8, read by the same decoder in float32 as all others: rows as of `ssql evaluate`.

    python ctranslate2_int8.py ENCODER DECODER RECORDINGS TEXTS OUTPUT

ENCODER is the imported encoder, DECODER the same Whisper as ct2-transformers-converter writes it, TEXTS a table of file
name and text. Each row of the activations has its own range, as in every int8 model of CTranslate2.
"""

import sys
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from torch import Tensor

from encoders import Encoder, load_encoder, weights_sha256
from encoders.storage.folder import file_sha256
from ssql.data import AudioFolder
from ssql.evaluation.reading import read_at_bit_widths
from ssql.evaluation.whisper_decoder import WhisperDecoder
from ssql.reports.result_files import save
from ssql.reports.tables import markdown_report


class Int8Encoder:
    """Whisper's encoder in CTranslate2, called as a file of `ssql export` is.

    Args:
        folder: with CTranslate2's `model.bin`.
        encoder: the same in torch: its front end makes the log-mels.
    """

    modality: Any = "audio"
    bit_width = "w8a8"
    runtime, precision = "ctranslate2", "int8"

    def __init__(self, folder: str, encoder: Encoder) -> None:
        self.model = ctranslate2.models.Whisper(folder, compute_type="int8")
        self.front_end, self.feature_dim = encoder.front_end, encoder.feature_dim
        self.weights_sha256 = weights_sha256(encoder)
        weights = Path(folder) / "model.bin"
        self.file_sha256, self.size_bytes = file_sha256(weights), weights.stat().st_size

    def __call__(self, inputs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features (batch, frames, feature_dim) and frames of each clip."""
        log_mel, _ = self.front_end(inputs, lengths)
        found = self.model.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(log_mel.numpy())))
        features = torch.from_numpy(np.array(found).astype(np.float32))
        return features, torch.full((len(features),), features.shape[1])

    def embed_raw(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Mean of the frames, (batch, feature_dim)."""
        return self(inputs, lengths)[0].mean(dim=1)


def main(folder: str, decoder: str, recordings: str, texts: str, output: str) -> None:
    """Write accuracy.json and accuracy.md."""
    encoder = load_encoder(folder)
    data = AudioFolder(recordings, labels=None, texts=texts, test_pattern=".", max_seconds=40, batch_size=4)
    measured: dict[str, Any] = {"full precision": encoder, "CTranslate2 int8": Int8Encoder(decoder, encoder)}
    rows = read_at_bit_widths(measured, data, WhisperDecoder(decoder), ["fp"])
    Path(output).mkdir(parents=True, exist_ok=True)
    save({Path(output) / "accuracy.json": rows, Path(output) / "accuracy.md": markdown_report(rows)})
    print(markdown_report(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
