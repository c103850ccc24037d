"""A file that `to_onnx` wrote as the encoder of `encoders.encode_windows`."""

import json
from pathlib import Path

import numpy as np
import torch

from encoders import LogMel, WhisperLogMel, WindowEncoder
from encoders.log_mel import HOP, SAMPLE_RATE
from encoders.windows import limits
from export.fresh_process import session_options
from export.metadata import WHISPER_LOG_MEL, VerificationError
from export.runtime import open_session


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
    session = open_session(path, session_options(threads))
    about: dict[str, str] = session.get_modelmeta().custom_metadata_map
    form = about.get("input")
    if form not in ("waveform", "log_mel"):
        raise VerificationError(
            f"{path} takes {form or 'nothing that it says'}: long audio needs a speech file that ssql export wrote, "
            "with waveform or log_mel as its input"
        )
    whisper = about.get("log_mel") == WHISPER_LOG_MEL
    front_end = None
    try:
        if form == "log_mel":
            front_end = (WhisperLogMel if whisper else LogMel)(int(about["n_mels"]))
        frame_rate, feature_dim = float(about["frame_rate_hz"]), int(about["feature_dim"])
        longest, step = limits(json.loads(about["arguments"]), frame_rate)
        if not 0 < frame_rate <= SAMPLE_RATE or feature_dim < 1 or "bit_width" not in about:
            raise ValueError(f"{frame_rate} features a second, {feature_dim} wide, at {about.get('bit_width')}")
    except (KeyError, ValueError, TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise VerificationError(f"{path} says of itself what no file of ssql export says: {error!r}") from error

    def encode(waveforms: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if front_end is not None:
            log_mel, frames = front_end(torch.from_numpy(waveforms), torch.from_numpy(lengths))
            waveforms, lengths = log_mel.numpy(), frames.numpy()
        features, feature_lengths = session.run(["features", "feature_lengths"], {form: waveforms, "lengths": lengths})
        return features, feature_lengths

    if longest is not None and whisper:
        longest -= WhisperLogMel.lookahead * HOP  # a file has no way to drop a frame of lookahead without a position
    return WindowEncoder(encode, frame_rate, feature_dim, longest, step), about
