"""A file that `to_onnx` wrote as the encoder of `encoders.encode_windows`."""

import json
from pathlib import Path

import numpy as np
import torch

from encoders import LogMel, WhisperLogMel, WindowEncoder
from encoders.log_mel import HOP
from encoders.windows import limits
from export.fresh_process import session_options
from export.metadata import WHISPER_LOG_MEL, VerificationError
from export.runtime import EXACT_SUMS, open_session


def file_window_encoder(path: str | Path, threads: int = 0) -> tuple[WindowEncoder, dict[str, str]]:
    """A file's encoder of windows, and what the file says about itself; log-mels are made here where it takes them.

    Args:
        path: written by `to_onnx`, of a speech encoder.
        threads: of ONNX Runtime; 0 takes its default.

    Raises:
        FileNotFoundError: no such file.
        VerificationError: ONNX Runtime cannot read it, `to_onnx` did not write it, or it takes neither waveforms nor
            log-mels.
    """
    options = session_options(threads)
    options.add_session_config_entry(EXACT_SUMS, "1")
    session = open_session(path, options)
    about: dict[str, str] = session.get_modelmeta().custom_metadata_map
    form = about.get("input")
    if form not in ("waveform", "log_mel"):
        raise VerificationError(
            f"{path} takes {form or 'nothing that it says'}: long audio needs a speech file that ssql export wrote, "
            "with waveform or log_mel as its input"
        )
    whisper = about.get("log_mel") == WHISPER_LOG_MEL
    front_end = None
    if form == "log_mel":
        front_end = (WhisperLogMel if whisper else LogMel)(int(about["n_mels"]))

    def encode(waveforms: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if front_end is not None:
            log_mel, frames = front_end(torch.from_numpy(waveforms), torch.from_numpy(lengths))
            waveforms, lengths = log_mel.numpy(), frames.numpy()
        features, feature_lengths = session.run(["features", "feature_lengths"], {form: waveforms, "lengths": lengths})
        return features, feature_lengths

    frame_rate = float(about["frame_rate_hz"])
    longest, step = limits(json.loads(about["arguments"]), frame_rate)
    if longest is not None and whisper:
        longest -= WhisperLogMel.lookahead * HOP  # a file has no way to drop a frame of lookahead without a position
    feature_dim = int(about["feature_dim"])
    return WindowEncoder(encode, frame_rate, feature_dim, longest, step), about
