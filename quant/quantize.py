"""One call from a float model to one that runs at bit-widths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from torch import nn

from quant.bias_correction import check_correctable, correct_bias
from quant.bits import INTEGER_BITS, BitWidth, parse_bit_width
from quant.checks import check_choice
from quant.policy import ActivationRange, Policy
from quant.prepare import at, policy_of, prepare, quant_layers
from quant.ranges.calibration import calibrate
from quant.ranges.observers import Observer
from quant.rounding.walk import round_weights

Model = TypeVar("Model", bound=nn.Module)
Rounding = Literal["outputs", "nearest"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)


@dataclass(frozen=True)
class PostTrainingPolicy(Policy):
    """A policy that keeps most of a published encoder that nobody trained for few bits: experiments/whisper/.

    Args:
        activation_range: when None `per_token`, and `static` for inputs that are smoothed.
    """

    activation_range: ActivationRange | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.activation_range is None:
            object.__setattr__(self, "activation_range", "static" if self.smooth else "per_token")
        super().__post_init__()


POST_TRAINING = Policy(**PostTrainingPolicy().to_dict())


def quantize(
    model: Model,
    batches: Sequence[Any],
    *bit_widths: str | BitWidth,
    policy: Policy | None = None,
    forward: Callable[[Any], Any] | None = None,
    observer: str | Observer = "min_max",
    rounding: Rounding | None = None,
    blocks: Sequence[nn.Module] = (),
) -> Model:
    """Prepare a model, find its ranges on data and round its weights for that data, in place: no training.

    The parts are `prepare`, `calibrate` and `round_weights`. The weights stay as they are, with integers for each
    bit-width beside them: the model runs in full precision until `quant.at` runs it at a bit-width.

    Args:
        model: not prepared yet; its Conv1d, Conv2d and Linear layers become their quantized forms.
        batches: data that the ranges are found on, what `forward` takes each.
        bit_widths: those that it is to run at: `w8a8`, `w4a8`, ...
        policy: bits and grid of each layer; `POST_TRAINING`, a range for each token, when None.
        forward: runs the model on one batch; the model itself by default.
        observer: how a range is found: `min_max`, `moving_average`, `mse`.
        rounding: `outputs`, integers and biases chosen so that the outputs of each layer stay close; or `nearest`,
            the nearest integers, with biases chosen so that mean outputs stay what they are (`correct_bias`).
            `better_rounding` of each bit-width when None.
        blocks: modules that run one after another, for speed: see `round_weights`.

    Returns:
        the model.

    Raises:
        ValueError: no or unknown bit-widths, an unknown rounding, no batch, a model that is prepared already, or inputs
            that are NaN.

    Example:
        >>> import quant, torch
        >>> model = quant.quantize(torch.nn.Linear(4, 2), [torch.randn(8, 4)], "w4a8")
        >>> with quant.at(model, "w4a8"):
        ...     model(torch.randn(1, 4)).shape
        torch.Size([1, 2])
    """
    if not bit_widths:
        raise ValueError("give the bit-widths that the model is to run at, such as 'w4a8'")
    for bit_width in bit_widths:
        check_correctable(bit_width)
    if rounding is not None:
        check_choice("rounding", rounding, ROUNDINGS)
    calibrate(prepare(model, policy or POST_TRAINING), batches, forward, observer)
    for bit_width in bit_widths:
        if (rounding or better_rounding(model, bit_width)) == "outputs":
            list(round_weights(model, bit_width, batches, forward, blocks))
        else:
            correct_bias(model, bit_width, batches, forward)
        with at(model, bit_width):  # every layer can run so
            pass
    return model


def better_rounding(model: nn.Module, bit_width: str | BitWidth) -> Rounding:
    """The rounding that keeps more of a published encoder: experiments/whisper/quantized.md.

    With 8-bit weights and a range for each token hardly anything is lost, and integers chosen on few data lose more.

    Args:
        model: prepared.
        bit_width: `w8a8`, `w4a8`, ...: of the run; a layer's own bits count.
    """
    run = parse_bit_width(bit_width)
    finest = all(layer.bits_at(run).weight >= max(INTEGER_BITS) for layer in quant_layers(model).values())
    return "nearest" if finest and policy_of(model).activation_range == "per_token" else "outputs"
