"""What a verification found, and whether it passed."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from export.check.accuracy import Accuracy
from export.check.agreement import Agreement, WorstFrame
from export.runtime.ort_session import EXACT
from export.runtime.runtimes import Runtime


@dataclass
class Roundings:
    """Torch given the file's roundings: of two computations at few bits, what is left when chance is taken out.

    Attributes:
        values: that were rounded, padding left out.
        at_edge: of them, those so near a rounding edge that the file's fell to its other side.
        error_over_variance: of the features.
        worst: the frame with the largest error.
    """

    values: int
    at_edge: int
    error_over_variance: float
    worst: WorstFrame


@dataclass
class InRuntime:
    """Features as another runtime than ONNX Runtime computes them, beside torch's, each left to its own roundings.

    Attributes:
        runtime: which.
        precision: of what is not on integers: `bf16`, `f32`, `f16`.
        features: beside torch's; None where their shapes differ.
        limit: error over variance that all frames together may have (`export.check.verify.RUNTIME_LIMIT`, or as much as
            chance explains).
        lengths_equal: every clip has as many features as in torch.
        padding_zero: features beyond a clip's length are zero.
    """

    runtime: Runtime
    precision: str
    features: Agreement | None
    limit: float
    lengths_equal: bool
    padding_zero: bool

    @property
    def agrees(self) -> bool:
        """Within the limit, of the right lengths, and zero beyond them."""
        near = self.features is not None and self.features.error_over_variance <= self.limit
        return near and self.lengths_equal and self.padding_zero

    def __str__(self) -> str:
        place = f"in {self.runtime} at {self.precision}"
        if self.features is None or not self.lengths_equal:
            return f"{place}: features have another shape than torch's"
        if not self.padding_zero:
            return f"{place}: features beyond a clip's length are not zero"
        error = f"error over variance {self.features.error_over_variance:.2g} (at most {self.limit:g})"
        return f"{place}: {error}, worst frame {self.features.worst}"


@dataclass
class Verification:
    """What was compared and how far it agrees.

    Attributes:
        layers: quantized layers, and tensors of attention products, whose stored numbers were compared.
        first_difference: first layer whose integers, scales or zero point differ, or what of the head or the tokenizer
            does; None when nothing does.
        lengths_equal: every clip has as many features as in torch.
        padding_zero: features beyond a clip's length are zero in the file, and in torch.
        features: of the file beside torch's, each left to its own roundings.
        limit: error over variance that a frame may have: of `features` in a file without roundings, else of
            `roundings`.
        inputs: what was compared on: `shipped speech`, `given data` or `generated images`.
        clips: clips or images compared.
        roundings: of a file with quantized activations.
        by_default: error over variance of the file as ONNX Runtime runs it by default on this processor, against the
            exact computation that everything else here is about (`export.runtime.ort_session.EXACT`): without VNNI it
            loses sums of w8a8, and it rounds the float inputs of w4a32 to 8 bits; None where both are the same.
        in_runtime: the same file in another runtime, where one was asked for; None else.
        departure: where features depart; None when they do not.
        head_equal: the head gives torch's outputs on the file's features; None without a head.
        accuracy: of a head of classes or texts on labelled data; None without data.
        tokens_equal: the tokenizer gives the nearest codes of the file's features; None without a tokenizer.
        token_agreement: tokens that are torch's, in percent, from one end to the other: of two codes that are about
            equally near, float rounding chooses.
        notes: what was not compared, in sentences.
    """

    file: str
    bit_width: str
    layers: int
    first_difference: str | None
    lengths_equal: bool
    padding_zero: bool
    features: Agreement | None
    limit: float
    inputs: str
    clips: int
    roundings: Roundings | None = None
    by_default: float | None = None
    in_runtime: InRuntime | None = None
    departure: str | None = None
    head_equal: bool | None = None
    accuracy: Accuracy | None = None
    tokens_equal: bool | None = None
    token_agreement: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def error_over_variance(self) -> float | None:
        """Of the features, each left to its own roundings; None where their shapes differ."""
        return None if self.features is None else self.features.error_over_variance

    @property
    def features_agree(self) -> bool:
        """Every frame within the limit; where activations are quantized, once torch has the file's roundings."""
        judged = self.roundings or self.features
        return judged is not None and self.departure is None and judged.worst.error_over_variance <= self.limit

    @property
    def passed(self) -> bool:
        """Numbers, lengths, padding, features, head and tokens equal, and the answers for 99.5 % of labelled clips."""
        return (
            self.first_difference is None
            and self.lengths_equal
            and self.padding_zero
            and self.features_agree
            and self.head_equal is not False
            and self.tokens_equal is not False
            and (self.accuracy is None or self.accuracy.agrees)
            and (self.in_runtime is None or self.in_runtime.agrees)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"error_over_variance": self.error_over_variance, "passed": self.passed}

    @property
    def verdict(self) -> str:
        """Whether the file agrees, at which bit-width, on what: one short sentence."""
        state = "verified, the file agrees" if self.passed else "FAILED, the file does not agree"
        exact = "" if self.by_default is None else ", in sessions with exact arithmetic"
        other = "" if self.in_runtime is None else f", and in {self.in_runtime.runtime} at {self.in_runtime.precision}"
        return f"{state} with torch at {self.bit_width} on {self.inputs}{exact}{other}"

    @property
    def reasons(self) -> str:
        """What does not agree, for an error; empty where all does."""
        return "; ".join(text for agrees, text in self._details() if not agrees)

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(f"  {text}" for _, text in self._details())])

    def _details(self) -> Iterator[tuple[bool, str]]:
        """One thought each, and whether it agrees with torch."""
        if self.first_difference is None:
            yield True, f"numbers: integers equal in {self.layers} layers" if self.layers else "numbers: no integers"
        else:
            where = self.first_difference
            where = where if where.startswith("the ") else f"layer {where}"
            yield False, f"numbers: first difference in {where} ({self.layers} layers compared)"
        if not self.lengths_equal:
            yield False, "feature lengths differ"
        if not self.padding_zero:
            yield False, "features beyond a clip's length are not zero"
        yield from self._details_of_features()
        if self.departure is not None:
            yield False, self.departure
        if self.head_equal is not None:
            yield self.head_equal, "head: outputs equal" if self.head_equal else "the head's outputs differ"
        if self.tokens_equal is False:
            yield False, "tokens are not those of the nearest codes"
        if self.token_agreement is not None:
            yield True, f"tokens: {self.token_agreement:.2f} % equal"
        if self.accuracy is not None:
            yield self.accuracy.agrees, str(self.accuracy)
        if self.in_runtime is not None:
            yield self.in_runtime.agrees, str(self.in_runtime)
        for note in self.notes:
            yield True, f"not compared: {note}"
        if self.by_default is not None:
            exact = " and ".join(f"{name} {value}" for name, value in EXACT.items())
            departure = f"error over variance {self.by_default:.2g}"
            yield True, f"by default: ONNX Runtime on this processor departs from that, {departure}"
            yield True, f"without departure: sessions with {exact}, and w7a8 where w8a8 departs"

    def _details_of_features(self) -> Iterator[tuple[bool, str]]:
        """Of a file that rounds, what either side makes of its own roundings is told, and only the rest is judged."""
        judged = self.roundings or self.features
        agrees = judged is not None and judged.worst.error_over_variance <= self.limit
        limit = f"(at most {self.limit:g})"
        if (features := self.features) is not None:
            error = f"error over variance {features.error_over_variance:.2g}"
            compared = f"{error} over {features.frames} frames of {self.clips} clips"
            if self.roundings is None:
                yield agrees, f"features: {compared}"
                yield agrees, f"worst frame: {features.worst} {limit}"
                yield agrees, f"frames above {self.limit:g}: {features.frames_above} (none may be)"
            else:
                yield True, f"features, each side with its own roundings: {compared}"
                above = f"{features.frames_above} frames are above {self.limit:g}"
                yield True, f"worst frame there: {features.worst}; {above}"
        if (roundings := self.roundings) is not None:
            fell = f"{roundings.at_edge} of {roundings.values} values"
            yield True, f"roundings: {fell} at a rounding edge fell to its other side"
            yield True, "that is expected of quantized files, and explains the frames above: judged is what follows"
            given = "with the file's roundings in torch"
            yield agrees, f"features {given}: error over variance {roundings.error_over_variance:.2g}"
            yield agrees, f"worst frame {given}: {roundings.worst} {limit}"
