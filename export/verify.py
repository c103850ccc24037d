"""An ONNX file against torch at the same bit-width: integers bit for bit, features at several lengths."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders import Encoder
from export.metadata import VerificationError, check_metadata
from export.runtime import open_session
from export.signature import frozen_copy, verification_inputs
from export.stored import first_difference
from quant import FULL_PRECISION, BitWidth, at, parse_bit_width, quant_activations

SMALLEST_COSINE = 0.999
NUDGE = 1e-6


@dataclass
class Verification:
    """What was compared and how far it agrees.

    Attributes:
        layers: quantized layers, and tensors of attention products, whose stored numbers were compared.
        first_difference: first layer whose integers, scales or zero point differ; None when none does.
        lengths_equal: every clip has as many features as in torch.
        smallest_cosine: over clips, of the features of ONNX Runtime and torch; NaN when any is.
        largest_difference: over all feature values.
        clips: clips or images compared.
        torch_own_cosine: only when the cosine is too small: torch's smallest cosine with itself after its inputs
            moved by 1e-6 (standard deviation). As small, it says that values near a rounding edge tip over at
            this bit-width whoever computes them; near 1, that the file is wrong.
    """

    file: str
    bit_width: str
    layers: int
    first_difference: str | None
    lengths_equal: bool
    smallest_cosine: float
    largest_difference: float
    clips: int
    torch_own_cosine: float | None = None

    @property
    def passed(self) -> bool:
        """All integers and lengths equal and every clip's cosine at least 0.999."""
        return self.first_difference is None and self.lengths_equal and self.smallest_cosine >= SMALLEST_COSINE

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        numbers = f"first difference in layer {self.first_difference}" if self.first_difference else "integers equal"
        lengths = "" if self.lengths_equal else "feature lengths differ, "
        own = f"; torch with itself: {self.torch_own_cosine:.6f}" if self.torch_own_cosine is not None else ""
        return (
            f"{'verified' if self.passed else 'FAILED'} at {self.bit_width}: {numbers} ({self.layers} layers), "
            f"{lengths}cosine to torch >= {self.smallest_cosine:.6f} over {self.clips} clips{own}"
        )


def verify(
    path: str | Path, encoder: Encoder, bit_width: str | BitWidth, waveforms: Sequence[Tensor] | None = None
) -> Verification:
    """Compare a file with the encoder it was exported from, which is left untouched.

    Args:
        path: file written by `to_onnx`.
        encoder: the same encoder, calibrated as it was then.
        bit_width: the same bit-width.
        waveforms: speech encoders only: clips (samples,) at 16,000 Hz; chirps in noise when None.

    Raises:
        FileNotFoundError: no such file.
        VerificationError: not an ONNX file of ours, or one of another encoder or bit-width.
        ValueError: an encoder that is not prepared, for a quantized bit-width.
        quant.NotCalibratedError: a layer whose activation range was never observed.
    """
    path, run = Path(path), parse_bit_width(bit_width)
    proto = _load(path)
    check_metadata(proto, path, encoder, run)
    encoder = frozen_copy(encoder)
    layers = {} if run == FULL_PRECISION else quant_activations(encoder)
    difference = first_difference(proto, layers, run)
    del proto
    session = open_session(path)
    batches = verification_inputs(encoder, waveforms, session.get_inputs()[0].shape[1:])
    cosines, differences, lengths_equal = _compare_features(session, encoder, run, batches)
    result = Verification(
        str(path), str(run), len(layers), difference, lengths_equal, _worst(cosines, min), _worst(differences, max),
        len(cosines),
    )  # fmt: skip
    if not result.smallest_cosine >= SMALLEST_COSINE:
        result.torch_own_cosine = _torch_own_cosine(encoder, run, batches)
    return result


def _load(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return onnx.load(str(path))
    except Exception as error:
        raise VerificationError(f"{path} is not an ONNX file: {error}") from error


def _compare_features(
    session: onnxruntime.InferenceSession, encoder: Encoder, run: BitWidth, batches: list[tuple[Tensor, ...]]
) -> tuple[list[float], list[float], bool]:
    """Cosine of each clip, largest difference of each batch, whether all lengths agree.

    Frames beyond a clip's length are zero in torch; in the file they have to be, too, or the cosine falls.
    """
    cosines: list[float] = []
    differences: list[float] = []
    lengths_equal = True
    for inputs in batches:
        feeds = {spec.name: value.numpy() for spec, value in zip(session.get_inputs(), inputs, strict=True)}
        found = [torch.from_numpy(value) for value in session.run(None, feeds)]
        expected = _features(encoder, run, inputs)
        lengths_equal &= len(found) == 1 or torch.equal(found[1], expected[1])
        if found[0].shape != expected[0].shape:
            return [math.nan], [math.nan], False
        cosines += _cosines(found[0], expected[0])
        differences.append(float((found[0] - expected[0]).abs().max()))
    return cosines, differences, lengths_equal


def _torch_own_cosine(encoder: Encoder, run: BitWidth, batches: list[tuple[Tensor, ...]]) -> float:
    generator = torch.Generator().manual_seed(0)
    cosines: list[float] = []
    for values, *lengths in batches:
        nudged = values + NUDGE * torch.randn(values.shape, generator=generator)
        cosines += _cosines(
            _features(encoder, run, (nudged, *lengths))[0], _features(encoder, run, (values, *lengths))[0]
        )
    return _worst(cosines, min)


def _cosines(features: Tensor, others: Tensor) -> list[float]:
    cosines: list[float] = F.cosine_similarity(features.double().flatten(1), others.double().flatten(1)).tolist()
    return cosines


@torch.no_grad()
def _features(encoder: Encoder, run: BitWidth, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if run == FULL_PRECISION:
        outputs = encoder(*inputs)
    else:
        with at(encoder, run):
            outputs = encoder(*inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _worst(values: list[float], pick: Any) -> float:
    """`min` and `max` skip a NaN when another value comes first; here one NaN is the worst."""
    return math.nan if any(math.isnan(value) for value in values) else float(pick(values))
