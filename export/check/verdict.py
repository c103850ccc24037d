"""What a verification found, and whether it passed."""

from dataclasses import asdict, dataclass, field
from typing import Any

from export.check.accuracy import Accuracy
from export.check.agreement import Agreement, WorstFrame
from export.runtime.fresh_process import EXACT


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
            exact computation that everything else here is about (`export.runtime.fresh_process.EXACT`): without VNNI it
            loses sums of w8a8, and it rounds the float inputs of w4a32 to 8 bits; None where both are the same.
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
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"error_over_variance": self.error_over_variance, "passed": self.passed}

    def __str__(self) -> str:
        where = self.first_difference or ""
        where = where if where.startswith("the ") else f"layer {where}"
        numbers = f"first difference in {where}" if self.first_difference else "integers equal"
        parts = [f"{numbers} ({self.layers} layers)"]
        parts += [] if self.lengths_equal else ["feature lengths differ"]
        parts += [] if self.padding_zero else ["features beyond a clip's length are not zero"]
        if (features := self.features) is not None:
            parts.append(
                f"error over variance {features.error_over_variance:.2g} over {features.frames} frames of {self.clips} "
                f"clips, worst frame {features.worst}, {features.frames_above} frames above {self.limit:g}"
            )
        if (roundings := self.roundings) is not None:
            parts.append(
                f"{roundings.at_edge} of {roundings.values} values at a rounding edge fell to its other side, and with "
                f"the file's roundings torch has {roundings.error_over_variance:.2g}, worst frame {roundings.worst}"
            )
        parts += [] if self.departure is None else [self.departure]
        parts += ["the head's outputs differ"] if self.head_equal is False else []
        parts += ["tokens are not those of the nearest codes"] if self.tokens_equal is False else []
        parts += [] if self.token_agreement is None else [f"{self.token_agreement:.2f} % of the tokens equal"]
        parts += [] if self.accuracy is None else [str(self.accuracy)]
        parts += self.notes
        if self.by_default is not None:
            exact = " and ".join(f"{name} {value}" for name, value in EXACT.items())
            parts.append(
                "but on this processor ONNX Runtime by default departs from that, error over variance "
                f"{self.by_default:.2g}: sessions with {exact} do not, and w7a8 does not where w8a8 does"
            )
        state = "verified" if self.passed else "FAILED"
        return f"{state} at {self.bit_width} on {self.inputs}: {', '.join(parts)}"
