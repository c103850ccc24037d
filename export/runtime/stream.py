"""A stream through a file of one step: features as soon as a chunk is whole."""

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime


class FileStream:
    """One stream through a file written by `stream_to_onnx`: features as soon as a chunk is whole.

    Args:
        session: of the file.
        run: gives the session's outputs for a piece of at most a chunk; the session does when None.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        run: Callable[[np.ndarray], Sequence[np.ndarray]] | None = None,
    ) -> None:
        self.names = [spec.name for spec in session.get_outputs()]
        self.run = run or (lambda piece: session.run(None, self.feeds(piece)))
        specs = {spec.name: spec for spec in session.get_inputs()}
        _, self.n_mels, self.chunk = specs["log_mel"].shape
        self.feature_dim = session.get_outputs()[0].shape[2]
        self.state = {
            name: np.zeros(
                [1 if isinstance(size, str) else size for size in specs[name].shape],
                np.int64 if name == "past" else np.float32,
            )
            for name in specs
            if name not in ("log_mel", "lengths")
        }
        self.waiting = np.zeros((self.n_mels, 0), np.float32)

    def push(self, log_mel: np.ndarray) -> np.ndarray:
        """The next frames, (n_mels, frames) at 100 Hz, to the features of whole chunks, (frames', feature_dim)."""
        frames = np.concatenate([self.waiting, log_mel], axis=1)
        whole = frames.shape[1] // self.chunk * self.chunk
        self.waiting = frames[:, whole:]
        features = [self._step(frames[:, start : start + self.chunk]) for start in range(0, whole, self.chunk)]
        return np.concatenate([np.zeros((0, self.feature_dim), np.float32), *features])

    def finish(self) -> np.ndarray:
        """The last features, as for a clip that ends here."""
        return self._step(self.waiting) if self.waiting.shape[1] else np.zeros((0, self.feature_dim), np.float32)

    def feeds(self, piece: np.ndarray) -> dict[str, np.ndarray]:
        """What the file takes: a piece, (n_mels, frames), of at most a chunk, and the state before it."""
        return self.state | {
            "log_mel": np.pad(piece, ((0, 0), (0, self.chunk - piece.shape[1])))[None],
            "lengths": np.array([piece.shape[1]], np.int64),
        }

    def _step(self, piece: np.ndarray) -> np.ndarray:
        outputs = dict(zip(self.names, self.run(piece), strict=False))
        self.state = {name: outputs[f"next_{name}"] for name in self.state}
        features: np.ndarray = outputs["features"][0, : int(outputs["feature_lengths"][0])]
        return features
