"""An exported speech encoder as a deployer holds it: samples in, features out; a runtime and NumPy only."""

import json
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import VerificationError
from export.group import named_group
from export.runtime.runtimes import DEFAULT, Runtime
from export.runtime.start import start
from export.runtime.unfit import CUT, longest_seconds

SAMPLE_RATE = 16_000
LOUDEST = 16.0  # decoders of lossy files overshoot 1 a little; integers that were not divided exceed it by far


class OnnxEncoder:
    """A file that `to_onnx` wrote with `input="waveform"`, on the CPU.

    `import export` and this class need no torch, and no other runtime than the one that is named.

    Args:
        path: the file.
        threads: of the runtime; 0 takes its default.
        exact: let ONNX Runtime compute what the file says on every processor. Without, products of 8-bit weights lose
            sums where a processor has no VNNI, and are faster there.
        runtime: `onnxruntime`; `openvino`, at the precision that is fastest on this processor; or `openvino_f32`.
        cache: folder in which OpenVINO keeps what it compiles, so that the next start is quicker. It is read back
            without a check: others must not be able to write there. None keeps nothing.

    Attributes:
        precision: of what the file does not compute on integers: `f32`, or in OpenVINO also `bf16` or `f16`.
        bit_width: that the file was exported at, such as `w8a8`.
        frame_rate: features a second, in Hz.
        feature_dim: width of the features.
        head: None, or what the file's head is: task, classes, units, label.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: the runtime is not installed.
        ValueError: not a file of a speech encoder that takes samples; a cache for ONNX Runtime, which has none.

    Example:
        >>> import encoders, export, numpy
        >>> encoder = encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2)
        >>> verified = export.to_onnx(encoder, "small.onnx", input="waveform")
        >>> in_onnx = export.OnnxEncoder("small.onnx")
        >>> in_onnx(numpy.zeros(44_100), 44_100).shape  # one second, at 50 Hz
        (50, 16)
    """

    def __init__(
        self, path: str | Path, *, threads: int = 0, exact: bool = True, runtime: Runtime = DEFAULT,
        cache: str | Path | None = None,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"{path} is a folder: give an .onnx file that ssql export wrote")
        try:
            self.session = start(path, runtime, threads, exact=exact, batch=1, cache=cache)
        except VerificationError as error:
            raise ValueError(str(error)) from error
        about: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        if about.get("input") != "waveform":
            raise ValueError(
                f"{path} takes {about.get('input', 'nothing that it says')}, not samples: export a speech encoder with "
                "--input waveform"
            )
        self.precision = self.session.precision
        self.bit_width, self.feature_dim = about["bit_width"], int(about["feature_dim"])
        self.frame_rate = float(about["frame_rate_hz"])
        self.head: dict[str, Any] | None = json.loads(about.get("head", "null"))

    def __call__(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """Features of one clip, float32 (frames, feature_dim): see `outputs`."""
        return self.outputs(samples, sample_rate)["features"]

    def outputs(self, samples: np.ndarray, sample_rate: int) -> dict[str, np.ndarray]:
        """All outputs of the file for one clip, by name, without the batch's axis.

        Args:
            samples: mono, shape (samples,): floats from -1 to 1, or 16-bit integers.
            sample_rate: in Hz; other rates than 16,000 are resampled, by SciPy.

        Returns:
            `features` float32 (frames, feature_dim); with a head `logits` (classes,), `values` (targets,), or for
            recognition `logits` (frames, 1 + characters); with a tokenizer its tokens.

        Raises:
            ValueError: samples of another shape, or that are NaN, infinite or far beyond 1, or a clip that the file
                does not take.
            ModuleNotFoundError: another rate than 16,000 Hz, and SciPy is not installed.
        """
        if isinstance(samples, (str, Path)):
            raise ValueError(
                f"samples are numbers, and {samples} is a path: read the file first, as with soundfile.read"
            )
        samples = np.asarray(samples)
        if samples.ndim != 1:
            raise ValueError(f"samples must be mono, of shape (samples,), got {samples.shape}: average the channels")
        if not len(samples):
            raise ValueError("samples are empty: a clip has one sample or more")
        if samples.dtype.kind in "iu" and samples.dtype != np.int16:
            raise ValueError(f"samples must be floats from -1 to 1, or int16, got {samples.dtype}")
        samples = samples / 32768 if samples.dtype == np.int16 else samples
        if not np.isfinite(samples).all():
            raise ValueError("samples are NaN or infinite")
        loudest = float(np.abs(samples).max(initial=0.0))
        if loudest > LOUDEST:
            raise ValueError(f"samples must be from -1 to 1, got {loudest:g}: divide those of 16-bit integers by 32768")
        waveform = np.asarray(_resampled(samples, sample_rate), np.float32)
        feeds: dict[str, np.ndarray] = {
            "waveform": waveform[np.newaxis],
            "lengths": np.array([len(waveform)], np.int64),
        }
        try:
            values = self.session.run(None, feeds)
        except Exception as error:
            found = len(waveform) / SAMPLE_RATE
            longest = longest_seconds(self.session.get_modelmeta().custom_metadata_map)
            too_long = longest is not None and found > longest
            hint = f"{longest:g} s at most, {CUT}" if too_long else "see its model card"
            raise ValueError(f"{self.path} does not take a clip of {found:.2f} s: {hint}") from error
        return {spec.name: value[0] for spec, value in zip(self.session.get_outputs(), values, strict=True)}


def _resampled(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    if sample_rate == SAMPLE_RATE:
        return samples
    if sample_rate < 1:
        raise ValueError(f"sample_rate must be a positive number of Hz, got {sample_rate}")
    with named_group():
        from scipy.signal import resample_poly  # not needed at 16 kHz
    shared = gcd(SAMPLE_RATE, int(sample_rate))
    resampled: np.ndarray = resample_poly(samples, SAMPLE_RATE // shared, int(sample_rate) // shared)
    return resampled
