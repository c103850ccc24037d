"""Features of recordings of any length, from windows of an encoder into files."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from encoders import WindowEncoder, encode_windows, read_blocks
from encoders.speech.audio_file import expected_length
from encoders.speech.log_mel import SAMPLE_RATE
from encoders.speech.windows import Windows, plan
from encoders.storage.paths import shown
from ssql.feature_files.writer import feature_file
from ssql.terminal.progress import track

SUFFIX = ".safetensors"


@dataclass
class Written:
    """What one recording became.

    Attributes:
        path: of the features.
        frames: features.
        audio_seconds: of the recording.
        seconds: it took.
        seams: differences of two windows' features where they meet: see `encoders.Piece`.
    """

    path: Path
    frames: int
    audio_seconds: float
    seconds: float
    seams: list[float]

    def __str__(self) -> str:
        speed = self.audio_seconds / self.seconds
        meet = f"windows differ by {max(self.seams):.2g} at most where they meet" if self.seams else "one window"
        features = f"{self.frames} features of {self.audio_seconds:.2f} s"
        return f"{shown(self.path)}: {features}, {speed:.0f} times real time, {meet}"


def feature_paths(files: Sequence[str], output: str) -> dict[Path, Path]:
    """Where the features of each recording go: `<output>/<name>.safetensors`, or, of one recording, `output` itself.

    Raises:
        ValueError: no file at all, or two that would share a name.
    """
    recordings = [Path(file) for file in files]
    if not recordings:
        raise ValueError("no audio file: write --files talk.wav")
    if output.endswith(SUFFIX):
        if len(recordings) > 1:
            raise ValueError(f"{len(recordings)} audio files do not go into one file: give a folder as --output")
        return {recordings[0]: Path(output)}
    paths: dict[Path, Path] = {}
    for recording in recordings:
        path = Path(output) / f"{recording.stem}{SUFFIX}"
        if path in paths.values():
            raise ValueError(
                f"{shown(recording)} and another audio file would both go to {shown(path)}: give them apart"
            )
        paths[recording] = path
    return paths


def write_features(
    encoder: WindowEncoder,
    recording: Path,
    path: Path,
    metadata: dict[str, str],
    window: float | None,
    overlap: float,
    batch_size: int,
) -> Written:
    """Features of one recording in a file, whole or not at all, saying how far it is.

    Args:
        encoder: windows go through it.
        recording: audio file.
        path: of the features.
        metadata: of the file's header, to which rates, windows and seams are added.
        window: as in `encoders.encode_windows`, as the others.
        overlap: of a window with the next, in seconds.
        batch_size: windows encoded at once.

    Raises:
        ValueError: audio that cannot be read or is too short, windows that the encoder cannot take, or features that
            are NaN or infinite.
    """
    started, samples = time.perf_counter(), 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal samples
        for block in read_blocks(recording):
            samples += len(block)
            yield block

    windows = plan(encoder, window, overlap)
    metadata = metadata | {
        "frame_rate_hz": f"{encoder.frame_rate:g}",
        "window_s": f"{windows.length / SAMPLE_RATE:g}",
        "overlap_s": f"{(windows.length - windows.hop) / SAMPLE_RATE:g}",
    }
    seams: list[float] = []
    with feature_file(path, encoder.feature_dim, encoder.frame_rate, metadata) as file:
        pieces = encode_windows(encoder, counted(), window, overlap, batch_size)
        for piece in track(pieces, f"{shown(recording.name)}: windows", _expected(recording, windows)):
            check_features(piece.features, recording, file.frames / encoder.frame_rate, encoder.frame_rate)
            file.append(piece.features)
            seams += [] if piece.seam is None else [piece.seam]
        if not file.frames:
            raise ValueError(f"{shown(recording)} of {1e3 * samples / SAMPLE_RATE:.0f} ms is too short for one feature")
        if seams:
            metadata["largest_seam"] = f"{max(seams):.3g}"
    return Written(path, file.frames, samples / SAMPLE_RATE, time.perf_counter() - started, seams)


def check_features(features: np.ndarray, recording: Path, start: float, frame_rate: float) -> None:
    """Raise ValueError where a frame is NaN or infinite.

    Args:
        features: shape (frames, feature_dim).
        recording: for the message.
        start: of the first frame, in seconds.
        frame_rate: in Hz.
    """
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"{recording}: the features are NaN or infinite at {start + wrong[0] / frame_rate:.2f} s, nothing was "
            "written: look at the encoder's weights and at the recording there"
        )


def _expected(recording: Path, windows: Windows) -> int | None:
    """How many windows there will be as the file's header has it, for the progress alone."""
    samples = expected_length(recording)
    return None if samples is None else 1 + max(0, math.ceil((samples - windows.length) / windows.hop))
