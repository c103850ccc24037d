"""A file that `to_onnx` wrote as an encoder of waveforms or pixels, or of windows of long audio: what is shipped."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from encoders import WindowEncoder
from encoders.models.vision import PixelNormalization
from encoders.speech.log_mel import SAMPLE_RATE
from encoders.speech.windows import limits
from encoders.storage.folder import file_sha256
from export.errors import VerificationError
from export.external_data import size_of
from export.metadata import check_data_file, log_mel_of, longest_input
from export.runtime.runtimes import DEFAULT, Runtime
from export.runtime.start import start


class FileEncoder:
    """Features of a file in a runtime; ONNX Runtime computes them exactly on every processor: see `ort_session.EXACT`.

    Front ends that the file does not hold are those of torch.

    Args:
        path: written by `to_onnx`.
        threads: of the runtime; 0 takes its default.
        runtime: one of `export.runtime.runtimes.RUNTIMES`.

    Attributes:
        precision: of what is not on integers, as the runtime computes it: `f32`, `bf16`, `f16`.
        about: what the file says about itself.
        modality: `audio` or `image`.
        bit_width: that it was exported at.
        feature_dim: width of the features.
        weights_sha256: of the encoder that it was exported from: `encoders.weights_sha256`.
        size_bytes: of the file, with that of its weights where it has one.
        file_sha256: hash of the file; among what it says about itself is that of a file of weights.
        longest: samples that it takes at most; None for any number, and for images.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: the runtime is not installed.
        VerificationError: the runtime cannot read it, `to_onnx` did not write it, or the file of weights beside it is
            another than the one it was written with.
    """

    def __init__(self, path: str | Path, threads: int = 0, runtime: Runtime = DEFAULT) -> None:
        self.path, self.runtime = Path(path), runtime
        self.session = start(path, runtime, threads, exact=True)
        self.precision = self.session.precision
        self.size_bytes, self.file_sha256 = size_of(self.path), file_sha256(self.path)
        self.about: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.form = self.about.get("input")
        if self.form not in ("waveform", "log_mel", "images"):
            raise VerificationError(
                f"{path} takes {self.form or 'nothing that it says'}: give a file that ssql export wrote, with "
                "waveform, log_mel or images as its input"
            )
        check_data_file(self.path, self.about)  # the runtime takes any weights of the right size
        self.modality: Literal["audio", "image"] = "image" if self.form == "images" else "audio"
        try:
            self.bit_width, self.weights_sha256 = self.about["bit_width"], self.about["weights_sha256"]
            self.feature_dim = int(self.about["feature_dim"])
            self.front_end: nn.Module | None = None
            if self.form == "images":
                self.front_end = PixelNormalization(float(self.about["pixel_mean"]), float(self.about["pixel_std"]))
            if self.form == "log_mel":
                self.front_end = log_mel_of(self.about)
            self.longest = None if self.modality == "image" else longest_input(self.about)
            if self.feature_dim < 1 or (self.modality == "audio" and not 0 < self.frame_rate <= SAMPLE_RATE):
                raise ValueError(f"features {self.feature_dim} wide, {self.about.get('frame_rate_hz')} a second")
        except (KeyError, ValueError, TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
            raise VerificationError(f"{path} says of itself what no file of ssql export says: {error!r}") from error

    @property
    def frame_rate(self) -> float:
        """Features a second, in Hz; of a speech file."""
        return float(self.about["frame_rate_hz"])

    def __call__(self, inputs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features of a batch.

        Args:
            inputs: waveforms (batch, samples) at 16,000 Hz, or pixels in [0, 1] (batch, channels, height, width).
            lengths: samples of each clip, (batch,); all of them when None.

        Returns:
            features (batch, frames, feature_dim) and frames of each clip (batch,); of images (batch, feature_dim) and
            None.

        Raises:
            ValueError: inputs that the file does not take.
            VerificationError: the file cannot be computed.
        """
        if self.modality == "audio" and lengths is None:
            lengths = torch.full((len(inputs),), inputs.shape[1])
        if self.front_end is not None:
            inputs, lengths = self.front_end(inputs, lengths)
        feeds = {self.form: inputs.numpy()} | ({} if lengths is None else {"lengths": lengths.numpy()})
        names = ["features"] if lengths is None else ["features", "feature_lengths"]
        features, *feature_lengths = map(torch.from_numpy, self.session.run(names, feeds))
        return features, feature_lengths[0] if feature_lengths else None

    def embed_raw(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """One embedding a clip or image, shape (batch, feature_dim): the mean of a clip's frames."""
        features, feature_lengths = self(inputs, lengths)
        if feature_lengths is None:
            return features
        return features.sum(dim=1) / feature_lengths.clamp_min(1).unsqueeze(1)


def file_window_encoder(
    path: str | Path, threads: int = 0, runtime: Runtime = DEFAULT
) -> tuple[WindowEncoder, dict[str, str]]:
    """A file's encoder of windows, and what the file says about itself, with `runtime` and `precision`.

    Log-mels are made here where it takes them.

    Args:
        path: written by `to_onnx`, of a speech encoder.
        threads: of the runtime; 0 takes its default.
        runtime: one of `export.runtime.runtimes.RUNTIMES`.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: the runtime is not installed.
        VerificationError: the runtime cannot read it, `to_onnx` did not write it, or it takes neither waveforms nor
            log-mels, or says of itself what cannot be.
    """
    file = FileEncoder(path, threads, runtime)
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
    return WindowEncoder(encode, file.frame_rate, file.feature_dim, file.longest, step), file.about | {
        "runtime": runtime, "precision": file.precision,
    }  # fmt: skip
