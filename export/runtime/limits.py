"""Which inputs a file takes: its shortest one is tried, its longest follows from the encoder's positions."""

from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from encoders.speech.log_mel import HOP, SAMPLE_RATE
from export.metadata import longest_input
from export.runtime.ort_session import session_options
from export.runtime.session import open_session

LONGEST_TRIED = SAMPLE_RATE  # samples; every encoder takes a second


def limits_of(path: Path) -> dict[str, Any]:
    """Of speech: channels, and shortest and longest (None: any) in samples of a waveform or frames of a log-mel.

    Of images: channels, height, width. `shortest` is the fewest that give a feature.
    """
    session = open_session(path, session_options(0))
    about: dict[str, str] = session.get_modelmeta().custom_metadata_map
    first = session.get_inputs()[0]
    if first.name == "images":
        _, channels, height, width = first.shape
        return {"channels": channels, "height": height, "width": width}
    if isinstance(first.shape[-1], int):  # log-mels of filled clips
        return {"channels": 1, "shortest": first.shape[-1], "longest": first.shape[-1]}
    longest, step = longest_input(about), 1 if first.name == "waveform" else HOP
    # The fewest that give a feature.
    shortest = bisect_left(range(LONGEST_TRIED // step), True, 1, key=lambda size: _gives_a_feature(session, size))
    return {"channels": 1, "shortest": shortest, "longest": None if longest is None else longest // step}


def _gives_a_feature(session: onnxruntime.InferenceSession, size: int) -> bool:
    first = session.get_inputs()[0]
    shape = [1 if axis == "batch" else axis if isinstance(axis, int) else size for axis in first.shape]
    feeds = {first.name: np.zeros(shape, np.float32), "lengths": np.array([size])}
    try:
        return bool(session.run(["feature_lengths"], feeds)[0][0] > 0)
    except Exception:
        return False
