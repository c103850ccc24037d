"""Features of one recording as safetensors, written while they come: in memory there are only the next ones."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from encoders.storage.files import staged_file

# Bytes for the header, which is known last: spaces after its JSON are part of the format.
HEADER = 4096
TIMES_AT_ONCE = 2**16


class FeatureFile:
    """The file while it is written.

    Attributes:
        frames: written until now.
    """

    def __init__(self, path: Path, feature_dim: int) -> None:
        self.file = path.open("wb")
        self.feature_dim, self.frames = feature_dim, 0
        self.file.seek(8 + HEADER)

    def append(self, features: np.ndarray) -> None:
        """The next features, shape (frames, feature_dim)."""
        self.file.write(np.ascontiguousarray(features, "<f4").data)
        self.frames += len(features)

    def close(self, frame_rate: float, metadata: Mapping[str, str]) -> None:
        """Write the times and the header."""
        for start in range(0, self.frames, TIMES_AT_ONCE):
            frames = np.arange(start, min(start + TIMES_AT_ONCE, self.frames))
            self.file.write((frames / frame_rate).astype("<f4").data)
        after = 4 * self.frames * self.feature_dim
        header = {
            "__metadata__": dict(metadata),
            "features": {"dtype": "F32", "shape": [self.frames, self.feature_dim], "data_offsets": [0, after]},
            "times": {"dtype": "F32", "shape": [self.frames], "data_offsets": [after, after + 4 * self.frames]},
        }
        text = json.dumps(header).encode()
        if len(text) > HEADER:
            raise ValueError(f"metadata of {len(text)} bytes does not fit the {HEADER} bytes of a header")
        self.file.seek(0)
        self.file.write(HEADER.to_bytes(8, "little") + text.ljust(HEADER))
        self.file.close()


@contextmanager
def feature_file(path: Path, feature_dim: int, frame_rate: float, metadata: dict[str, str]) -> Iterator[FeatureFile]:
    """A file to append features to; it appears whole when the block ends well, or not at all.

    It holds `features`, float32 (frames, feature_dim), and `times`, float32 (frames,), in seconds: frame n begins at n
    / frame_rate.

    Args:
        path: the file; its folder is made.
        feature_dim: width of the features.
        frame_rate: in Hz.
        metadata: of the file's header; may be added to until the block ends.
    """
    with staged_file(path) as staging:
        writing = FeatureFile(staging, feature_dim)
        try:
            yield writing
            writing.close(frame_rate, metadata)
        finally:
            writing.file.close()
