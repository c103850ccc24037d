"""A file that `to_onnx` wrote as the encoder of `encoders.encode_windows`."""

import json
from pathlib import Path

import numpy as np
import torch

from encoders import WindowEncoder
from encoders.speech.windows import limits
from export.metadata import VerificationError
from export.runtime.file_encoder import FileEncoder


def file_window_encoder(path: str | Path, threads: int = 0) -> tuple[WindowEncoder, dict[str, str]]:
    """A file's encoder of windows, and what the file says about itself; log-mels are made here where it takes them.

    Args:
        path: written by `to_onnx`, of a speech encoder.
        threads: of ONNX Runtime; 0 takes its default.

    Raises:
        FileNotFoundError: no such file.
        VerificationError: ONNX Runtime cannot read it, `to_onnx` did not write it, or it takes neither waveforms nor
            log-mels, or says of itself what cannot be.
    """
    file = FileEncoder(path, threads)
    if file.modality != "audio":
        raise VerificationError(
            f"{path} takes {file.form}: long audio needs a speech file that ssql export wrote, with waveform or "
            "log_mel as its input"
        )

    def encode(waveforms: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, feature_lengths = file(torch.from_numpy(waveforms), torch.from_numpy(lengths))
        assert feature_lengths is not None
        return features.numpy(), feature_lengths.numpy()

    _, step = limits(json.loads(file.about["arguments"]), file.frame_rate)
    return WindowEncoder(encode, file.frame_rate, file.feature_dim, file.longest, step), file.about
