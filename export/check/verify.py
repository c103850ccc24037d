"""An ONNX file against torch at the same bit-width: integers bit for bit, features of real speech, head, tokens."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import onnx
import torch
from torch import Tensor

from encoders import Encoder, Head, Tokenizer
from encoders.speech.frames import frame_mask
from export.check.accuracy import Labelled, compare_accuracy
from export.check.agreement import Features, agreement
from export.check.following import follow, probe
from export.check.inputs import Batch, verification_inputs
from export.check.stored import first_difference
from export.check.verdict import InRuntime, Roundings, Verification
from export.external_data import weights_of
from export.graph.head import head_difference, stored_head
from export.graph.pipeline import Pipeline, run_in_torch
from export.graph.signature import frozen_copy
from export.graph.stored_floats import round_as_stored
from export.graph.tokenizer import are_nearest, equal_tokens, stored_tokenizer, tokenizer_difference
from export.metadata import VerificationError, check_data_file, check_metadata, fill_as, load_file
from export.runtime.ort_session import session_options
from export.runtime.runtimes import DEFAULT, Runtime
from export.runtime.session import open_session, run_session
from export.runtime.start import start
from quant import FULL_PRECISION, BitWidth, parse_bit_width, quant_activations
from quant.bits import FLOAT_BITS

log = logging.getLogger(__name__)

# Of a frame's error over variance. Float rounding leaves 1e-12 to 1e-8; a feature scaled by 0.1 % is above it.
LIMIT = 1e-6
# Of a file in float16 into whose weights a batch normalization was folded before they were rounded: 1e-7 has been seen.
HALF_LIMIT = 1e-5
# Of all frames together in another runtime, which rounds in other places. A distance of 0.02 costs Whisper base less
# than one word in a hundred. bfloat16 leaves 0.0005 there in float, 0.006 at w8a8 with a range for each token, and
# 0.015 with one for all. At few bits chance is larger: up to twice the amplitude of ONNX Runtime's is chance as well.
RUNTIME_LIMIT, CHANCE = 0.02, 4.0
HEAD_TOLERANCE = 1e-4  # of the largest output

T = TypeVar("T", Head, Tokenizer)


def verify(
    path: str | Path,
    encoder: Encoder,
    bit_width: str | BitWidth | None = None,
    clips: Sequence[Tensor] | None = None,
    head: Head | None = None,
    labelled: Labelled | None = None,
    tokenizer: Tokenizer | None = None,
    runtime: Runtime = DEFAULT,
) -> Verification:
    """Compare a file with the encoder it was exported from, which is left untouched.

    Args:
        path: file written by `to_onnx`.
        encoder: the same encoder, calibrated as it was then; silence follows its clips as the file says.
        bit_width: the same bit-width; what the file says when None.
        clips: to compare features on: (samples,) at 16,000 Hz, or images (channels, height, width) in [0, 1]. Real
            speech that comes with the package when None; generated images.
        head: the head it was exported with; for a file without one, a classification head for `labelled`. None
            takes the numbers in the file.
        labelled: test data of the head: what it says in ONNX Runtime against torch.
        tokenizer: the tokenizer it was exported with; None takes the numbers in the file.
        runtime: compare the features as another runtime than ONNX Runtime computes them, too: `in_runtime`.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: the runtime is not installed.
        VerificationError: not an ONNX file of ours, or one of another encoder or bit-width.
        ValueError: an encoder that is not prepared, for a quantized bit-width; labelled data without a head; clips that
            the file does not take.
        quant.NotCalibratedError: a layer whose activation range was never observed.

    Example:
        >>> import encoders, export
        >>> encoder = encoders.create_encoder("speech_transformer", width=16, depth=1, heads=2)
        >>> written = export.to_onnx(encoder, "encoder.onnx", check=False, overwrite=True)
        >>> export.verify("encoder.onnx", encoder).features.error_over_variance < 1e-9
        True
    """
    path = Path(path)
    proto, found = load_file(path)
    run, form = parse_bit_width(found["bit_width"] if bit_width is None else bit_width), found.get("input", "log_mel")
    if "state" in found:
        raise VerificationError(f"{path} is one step of a stream: ssql stream has verified it when it wrote it")
    check_data_file(path, found)
    folder = weights_of(path).parent
    encoder = frozen_copy(encoder)
    fill_as(found, encoder)
    check_metadata(found, path, encoder, run)
    layers = {} if run == FULL_PRECISION else quant_activations(encoder)
    difference = first_difference(proto, layers, run, folder)
    own_head, own_tokenizer = stored_head(proto, path), stored_tokenizer(proto, path)
    notes: list[str] = []
    difference = (
        difference
        or _difference_beside("head", own_head, head, head_difference, notes)
        or _difference_beside("tokenizer", own_tokenizer, tokenizer, tokenizer_difference, notes)
    )

    session = open_session(path)
    inputs = verification_inputs(encoder, form, clips, session.get_inputs()[0].shape[1:])
    log.info("comparing with torch at %s on %d clips of %s", run, inputs.clips, inputs.source)
    outputs = [run_session(session, batch.inputs) for batch in inputs.batches]
    del session  # before torch has more than the encoder's own weights: large ones are in memory twice as it is
    limit = HALF_LIMIT if round_as_stored(proto, encoder, run) else LIMIT
    reference = Pipeline(encoder, encoder.front_end if form == "waveform" else None, own_head, own_tokenizer)
    comparisons = [
        _compare(batch, found, run_in_torch(reference, run, batch.inputs), reference)
        for batch, found in zip(inputs.batches, outputs, strict=True)
    ]
    result = Verification(
        str(path), str(run), len(layers), difference,
        lengths_equal=all(comparison.lengths_equal for comparison in comparisons),
        padding_zero=all(comparison.padding_zero for comparison in comparisons),
        features=None, limit=limit, inputs=inputs.source, clips=inputs.clips, notes=notes,
        head_equal=None if own_head is None else all(comparison.head_equal for comparison in comparisons),
        tokens_equal=None if own_tokenizer is None else all(comparison.tokens_equal for comparison in comparisons),
    )  # fmt: skip
    if own_tokenizer is not None:
        equal, tokens = map(sum, zip(*(comparison.tokens for comparison in comparisons), strict=True))
        result.token_agreement = 100 * equal / tokens if tokens else math.nan
    if labelled is not None:
        head = own_head or head
        if head is None:
            raise ValueError(f"{path} has no head: labelled data needs one to compare accuracies")
        result.accuracy = compare_accuracy(open_session(path), reference, head, run, form, labelled)
    if all(comparison.features is not None for comparison in comparisons):
        rate = getattr(encoder, "frame_rate", None)
        result.features = agreement([clip for each in comparisons for clip in each.features or ()], limit, rate)
        if runtime != DEFAULT:
            result.in_runtime = _in_runtime(path, result, runtime, inputs.batches, comparisons, rate)
        if any(layer.bits_at(run).activation != FLOAT_BITS for layer in layers.values()):
            _follow(result, proto, folder, reference, run, inputs.batches, comparisons, rate)
        if run != FULL_PRECISION:
            result.by_default = _by_default(path, result, inputs.batches, comparisons, rate)
        if not result.features_agree and result.departure is None:
            probed = probe(proto, encoder, run, folder, floats=True)
            followed = (follow(probed, reference, run, batch.inputs, limit) for batch in inputs.batches)
            departures = (each.departure(form == "waveform", limit) for each in followed)
            result.departure = next(filter(None, departures), None)
    return result


def _difference_beside(
    kind: str, stored: T | None, given: T | None, difference: Callable[[T, T], str | None], notes: list[str]
) -> str | None:
    """What of a file's head or tokenizer is not the folder's; a note where only one side has it."""
    if stored is not None and given is not None:
        return difference(stored, given)
    if stored is not None:
        notes.append(f"no {kind} beside the encoder to compare the file's with")
    elif given is not None:
        notes.append(f"the file has no {kind}")
    return None


@dataclass
class _Comparison:
    """One batch: features of each clip, lengths, padding, the head's outputs, tokens.

    `features` are None where the shapes differ; `tokens` are those that are torch's, and all of them.
    """

    features: list[Features] | None
    lengths_equal: bool = False
    padding_zero: bool = True
    head_equal: bool = False
    tokens_equal: bool = False
    tokens: tuple[int, int] = (0, 0)


def _compare(batch: Batch, found: list[Tensor], expected: list[Tensor], reference: Pipeline) -> _Comparison:
    if found[0].shape != expected[0].shape:
        return _Comparison(None)
    (found, found_tokens), (expected, expected_tokens) = reference.parted(found), reference.parted(expected)
    head = reference.head
    features, *lengths = found if head is None else found[:-1]
    result = _Comparison(clip_features(batch.clips, features, expected))
    result.lengths_equal = all(torch.equal(a, b) for a, b in zip(lengths, expected[1:], strict=False))
    if lengths:
        beyond = ~frame_mask(expected[1], features.shape[1])
        result.padding_zero = not (features[beyond].any() or expected[0][beyond].any())
    result.head_equal = True
    if head is not None:
        outputs = head(features if head.task == "ctc" else reference.encoder.pool(features, *lengths))
        largest_output = float(outputs.abs().max())
        result.head_equal = torch.allclose(
            found[-1], outputs, rtol=HEAD_TOLERANCE, atol=HEAD_TOLERANCE * largest_output
        )
    result.tokens_equal = True
    if isinstance(reference.tokenizer, Tokenizer) and found_tokens is not None and expected_tokens is not None:
        result.tokens_equal = are_nearest(reference.tokenizer, features, lengths[0], found_tokens)
        result.tokens = equal_tokens(found_tokens, expected_tokens) if result.tokens_equal else (0, 0)
    return result


def clip_features(clips: Sequence[str], found: Tensor, expected: list[Tensor]) -> list[Features]:
    """Features of each clip without its padding, beside torch's; of an image one frame.

    Args:
        clips: names.
        found: (batch, frames, feature_dim), or (batch, feature_dim) of images.
        expected: torch's, and for speech the frames of each clip, (batch,).
    """
    if found.dim() == 2:
        return [Features(*pair) for pair in zip(clips, found.unsqueeze(1), expected[0].unsqueeze(1), strict=True)]
    lengths = expected[1].tolist()
    return [
        Features(clip, one[:length], other[:length])
        for clip, one, other, length in zip(clips, found, expected[0], lengths, strict=True)
    ]


def _follow(
    result: Verification, proto: onnx.ModelProto, folder: Path, reference: Pipeline, run: BitWidth,
    batches: Sequence[Batch], comparisons: Sequence[_Comparison], frame_rate: float | None,
) -> None:  # fmt: skip
    """Fill in `roundings` and `departure`: torch, given the file's roundings, against the file as it runs."""
    probed = probe(proto, reference.encoder, run, folder)
    features: list[Features] = []
    values = at_edge = 0
    for place, (batch, comparison) in enumerate(zip(batches, comparisons, strict=True), start=1):
        log.info("comparing once more, torch with the file's roundings: batch %d of %d", place, len(batches))
        followed = follow(probed, reference, run, batch.inputs, LIMIT)
        values, at_edge = values + followed.roundings, at_edge + followed.at_edge
        result.departure = result.departure or followed.departure(reference.front_end is not None)
        # Of the file itself, not of the probed one: reading its roundings must not have changed anything.
        given = clip_features(batch.clips, followed.expected[0], followed.expected)
        features += [
            Features(clip.clip, clip.found, other.expected)
            for clip, other in zip(comparison.features or (), given, strict=True)
        ]
    followed_features = agreement(features, LIMIT, frame_rate)
    result.roundings = Roundings(values, at_edge, followed_features.error_over_variance, followed_features.worst)


def _by_default(
    path: Path, result: Verification, batches: Sequence[Batch], comparisons: Sequence[_Comparison],
    frame_rate: float | None,
) -> float | None:  # fmt: skip
    """Error over variance of the file as the runtime runs it by default here; None where that is exact."""
    session = open_session(path, session_options(0))
    features: list[Features] = []
    equal = True
    for batch, comparison in zip(batches, comparisons, strict=True):
        found = run_session(session, batch.inputs)[0]
        for place, exact in enumerate(comparison.features or ()):
            own = found[place, : len(exact.found)] if found.dim() == 3 else found[place : place + 1]
            equal &= torch.equal(own, exact.found)
            features.append(Features(exact.clip, own, exact.found))
    return None if equal else agreement(features, result.limit, frame_rate).error_over_variance


def _in_runtime(
    path: Path, result: Verification, runtime: Runtime, batches: Sequence[Batch], comparisons: Sequence[_Comparison],
    frame_rate: float | None,
) -> InRuntime:  # fmt: skip
    """The file in another runtime, on the same clips."""
    log.info("comparing features of %s with torch's", runtime)
    session = start(path, runtime)
    limit = max(RUNTIME_LIMIT, CHANCE * (result.error_over_variance or 0.0))
    features: list[Features] = []
    shaped = padding_zero = True
    for batch, comparison in zip(batches, comparisons, strict=True):
        found, *others = run_session(session, batch.inputs)
        expected = [clip.expected for clip in comparison.features or ()]
        if found.dim() == 2:
            found = found.unsqueeze(1)  # of images one frame
        else:
            shaped &= others[0].tolist() == list(map(len, expected))
        shaped &= len(found) == len(expected) and found.shape[1] >= max(map(len, expected), default=0)
        if not shaped:
            return InRuntime(runtime, session.precision, None, limit, lengths_equal=False, padding_zero=True)
        for own, torchs, clip in zip(found, expected, batch.clips, strict=True):
            padding_zero &= not own[len(torchs) :].any()
            features.append(Features(clip, own[: len(torchs)], torchs))
    agreed = agreement(features, limit, frame_rate)
    return InRuntime(runtime, session.precision, agreed, limit, lengths_equal=True, padding_zero=padding_zero)
