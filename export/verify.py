"""An ONNX file against torch at the same bit-width: integers bit for bit, features at several lengths."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders import Encoder, Head, Tokenizer
from export.accuracy import Accuracy, Labelled, compare_accuracy
from export.departure import find_departure
from export.head import same_numbers, stored_head
from export.metadata import check_metadata, load_file
from export.model import Pipeline, run_file, run_in_torch
from export.runtime import open_session
from export.signature import frozen_copy, verification_inputs
from export.stored import first_difference
from export.tokenizer import are_nearest, equal_tokens, same_tokenizer, stored_tokenizer
from quant import FULL_PRECISION, BitWidth, parse_bit_width, quant_activations

SMALLEST_COSINE = 0.9999
SMALLEST_COSINE_OF_TIES = 0.99
HEAD_TOLERANCE = 1e-4  # of the largest output


@dataclass
class Verification:
    """What was compared and how far it agrees.

    Attributes:
        layers: quantized layers, and tensors of attention products, whose stored numbers were compared.
        first_difference: first layer whose integers, scales or zero point differ, `head` or `tokenizer`; None when none
            does.
        lengths_equal: every clip has as many features as in torch.
        smallest_cosine: over clips, of the features of ONNX Runtime and torch; NaN when any is.
        largest_difference: over all feature values.
        clips: clips or images compared.
        head_equal: the head gives torch's outputs on the file's features; None without a head.
        accuracy: of a head of classes or texts on labelled data; None without data.
        ties_only: only when the cosine is below 0.9999: whether it is because values near a rounding edge fell to
            its other side, as they may at few bits whoever computes them: torch, given the file's roundings, agrees.
        tokens_equal: the tokenizer gives the nearest codes of the file's features; None without a tokenizer.
        token_agreement: tokens that are torch's, in percent, from one end to the other: of two codes that are about
            equally near, float rounding chooses.
        departure: only when the cosine is below 0.9999 and ties do not explain it: between which layers it falls.
    """

    file: str
    bit_width: str
    layers: int
    first_difference: str | None
    lengths_equal: bool
    smallest_cosine: float
    largest_difference: float
    clips: int
    head_equal: bool | None = None
    accuracy: Accuracy | None = None
    ties_only: bool | None = None
    departure: str | None = None
    tokens_equal: bool | None = None
    token_agreement: float | None = None

    @property
    def passed(self) -> bool:
        """Integers, lengths and the head equal, the same answer for 99.5 % of labelled clips, features close enough.

        Close enough is a cosine of 0.9999 for every clip, or 0.99 where only ties differ.
        """
        smallest = SMALLEST_COSINE_OF_TIES if self.ties_only else SMALLEST_COSINE
        return (
            self.first_difference is None
            and self.lengths_equal
            and self.smallest_cosine >= smallest
            and self.head_equal is not False
            and self.tokens_equal is not False
            and (self.accuracy is None or self.accuracy.agrees)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        numbers = f"first difference in layer {self.first_difference}" if self.first_difference else "integers equal"
        parts = [
            f"{numbers} ({self.layers} layers)",
            "" if self.lengths_equal else "feature lengths differ",
            f"cosine to torch >= {self.smallest_cosine:.6f} over {self.clips} clips",
            "the head's outputs differ" if self.head_equal is False else "",
            "tokens are not those of the nearest codes" if self.tokens_equal is False else "",
            "" if self.token_agreement is None else f"{self.token_agreement:.2f} % of the tokens equal",
            str(self.accuracy or ""),
            self.departure or "",
            "equal but for values at a rounding edge" if self.ties_only else "",
        ]
        state = "verified" if self.passed else "FAILED"
        return f"{state} at {self.bit_width}: {', '.join(filter(None, parts))}"


def verify(
    path: str | Path,
    encoder: Encoder,
    bit_width: str | BitWidth | None = None,
    waveforms: Sequence[Tensor] | None = None,
    head: Head | None = None,
    labelled: Labelled | None = None,
    tokenizer: Tokenizer | None = None,
) -> Verification:
    """Compare a file with the encoder it was exported from, which is left untouched.

    Args:
        path: file written by `to_onnx`.
        encoder: the same encoder, calibrated as it was then.
        bit_width: the same bit-width; what the file says when None.
        waveforms: speech encoders only: clips (samples,) at 16,000 Hz; chirps in noise when None.
        head: the head it was exported with; for a file without one, a classification head for `labelled`. None
            takes the numbers in the file.
        labelled: test data of the head: what it says in ONNX Runtime against torch.
        tokenizer: the tokenizer it was exported with; None takes the numbers in the file.

    Raises:
        FileNotFoundError: no such file.
        VerificationError: not an ONNX file of ours, or one of another encoder or bit-width.
        ValueError: an encoder that is not prepared, for a quantized bit-width; labelled data without a head.
        quant.NotCalibratedError: a layer whose activation range was never observed.
    """
    path = Path(path)
    proto, found = load_file(path)
    run, form = parse_bit_width(bit_width or found["bit_width"]), found.get("input", "log_mel")
    check_metadata(found, path, encoder, run)
    encoder = frozen_copy(encoder)
    own_head, own_tokenizer = stored_head(proto), stored_tokenizer(proto)
    reference = Pipeline(encoder, encoder.front_end if form == "waveform" else None, own_head, own_tokenizer)
    layers = {} if run == FULL_PRECISION else quant_activations(encoder)
    difference = first_difference(proto, layers, run)
    if difference is None and own_head is not None and head is not None and not same_numbers(own_head, head):
        difference = "head"
    if difference is None and own_tokenizer is not None and tokenizer is not None:
        difference = None if same_tokenizer(own_tokenizer, tokenizer) else "tokenizer"

    session = open_session(path)
    batches = verification_inputs(encoder, form, waveforms, session.get_inputs()[0].shape[1:])
    comparisons = [
        _compare(run_file(session, inputs), run_in_torch(reference, run, inputs), reference) for inputs in batches
    ]
    result = Verification(
        str(path), str(run), len(layers), difference,
        lengths_equal=all(comparison.lengths_equal for comparison in comparisons),
        smallest_cosine=_worst([cosine for comparison in comparisons for cosine in comparison.cosines], min),
        largest_difference=_worst([comparison.difference for comparison in comparisons], max),
        clips=sum(len(comparison.cosines) for comparison in comparisons),
        head_equal=None if own_head is None else all(comparison.head_equal for comparison in comparisons),
        tokens_equal=None if own_tokenizer is None else all(comparison.tokens_equal for comparison in comparisons),
        token_agreement=None if own_tokenizer is None else _token_agreement(comparisons),
    )  # fmt: skip
    if not result.smallest_cosine >= SMALLEST_COSINE:
        departing = [
            tuple(tensor[clip : clip + 1] for tensor in inputs)
            for inputs, comparison in zip(batches, comparisons, strict=True)
            for clip, cosine in enumerate(comparison.cosines)
            if not cosine >= SMALLEST_COSINE
        ]
        departure = find_departure(proto, reference, run, departing, SMALLEST_COSINE)
        result.ties_only, result.departure = departure is None, str(departure or "") or None
    if labelled is not None:
        head = own_head or head
        if head is None:
            raise ValueError(f"{path} has no head: labelled data needs one to compare accuracies")
        result.accuracy = compare_accuracy(session, reference, head, run, form, labelled)
    return result


class _Comparison(NamedTuple):
    """One batch: cosine of each clip, largest difference of all values, lengths, the head's outputs, tokens.

    `tokens` are those that are torch's, and all of them.
    """

    cosines: list[float]
    difference: float
    lengths_equal: bool
    head_equal: bool
    tokens_equal: bool = True
    tokens: tuple[int, int] = (0, 0)


def _compare(found: list[Tensor], expected: list[Tensor], reference: Pipeline) -> _Comparison:
    """Frames beyond a clip's length are zero in torch; in the file they have to be, too, or the cosine falls."""
    if found[0].shape != expected[0].shape:
        return _Comparison([math.nan] * len(expected[0]), math.nan, False, False, False)
    (found, found_tokens), (expected, expected_tokens) = reference.parted(found), reference.parted(expected)
    largest = float((found[0] - expected[0]).abs().max()) if found[0].numel() else 0.0
    head = reference.head
    features, *lengths = found if head is None else found[:-1]
    lengths_equal = all(torch.equal(a, b) for a, b in zip(lengths, expected[1:], strict=False))
    head_equal = True
    if head is not None:
        outputs = head(features if head.task == "ctc" else reference.encoder.pool(features, *lengths))
        largest_output = float(outputs.abs().max())
        head_equal = torch.allclose(found[-1], outputs, rtol=HEAD_TOLERANCE, atol=HEAD_TOLERANCE * largest_output)
    tokens_equal, tokens = True, (0, 0)
    if isinstance(reference.tokenizer, Tokenizer) and found_tokens is not None and expected_tokens is not None:
        tokens_equal = are_nearest(reference.tokenizer, features, lengths[0], found_tokens)
        tokens = equal_tokens(found_tokens, expected_tokens) if tokens_equal else (0, 0)
    return _Comparison(_cosines(found[0], expected[0]), largest, lengths_equal, head_equal, tokens_equal, tokens)


def _token_agreement(comparisons: list[_Comparison]) -> float:
    equal, tokens = (sum(counts) for counts in zip(*(comparison.tokens for comparison in comparisons), strict=True))
    return 100 * equal / tokens if tokens else math.nan


def _cosines(features: Tensor, others: Tensor) -> list[float]:
    """Cosine of each clip; features of an empty clip are all zeros, and equal."""
    features, others = features.double().flatten(1), others.double().flatten(1)
    cosines = F.cosine_similarity(features, others)
    both_zero = (features == 0).all(1) & (others == 0).all(1)
    equal: list[float] = torch.where(both_zero, torch.ones_like(cosines), cosines).tolist()
    return equal


def _worst(values: list[float], pick: Any) -> float:
    """`min` and `max` skip a NaN when another value comes first; here one NaN is the worst."""
    return math.nan if any(math.isnan(value) for value in values) else float(pick(values))
