"""Scales and biases of its own for each of several bit-widths, learned beside the one weight that all of them share."""

from collections.abc import Sequence

from torch import nn

from quant.bias_correction import check_correctable, drop_corrections
from quant.bits import BitWidth, parse_bit_width
from quant.learned_steps import learned_bit_width
from quant.prepare import quant_layers


def learn_bit_widths(
    model: nn.Module, bit_widths: Sequence[str | BitWidth], offsets: bool = False, freeze: bool = False
) -> None:
    """Give every layer scales and a bias of its own for each bit-width, as Parameters, in place.

    The weights stay one copy for all: a bit-width adds a number for each output channel (or group) and one for each
    bias, less than a thousandth of the weights of a speech encoder. At other bit-widths the model runs as before. Call
    it before the optimizer is built, and `settle_bit_widths` when the training is over.

    Any-Precision networks (Yu et al., AAAI 2021) do so with batch normalizations.

    Args:
        model: prepared. A bit-width whose integers `round_weights` chose begins with these, with their scales and
            correction, and they stay; otherwise the weights are rounded to the nearest, scales start where that costs
            the weights least, and corrections at zero.
        bit_widths: `w8a8`, `w4a8`, ...
        offsets: each bit-width also learns what is added to each weight before it is rounded: integers of its own.
            The weights in full precision can then stay what they were.
        freeze: they do: the model's other Parameters need no gradients from now on, and bit-widths that do not learn
            keep the integers and corrections that were found on data.

    Raises:
        ValueError: no bit-width, full precision, a model that is not prepared, or with learned steps.

    Example:
        >>> import quant, torch
        >>> model = quant.prepare(torch.nn.Linear(4, 2), quant.Policy(first_layer="w8a32"))
        >>> quant.learn_bit_widths(model, ["w4a8"])
        >>> sorted(name for name, _ in model.named_parameters())
        ['bias', 'learned.w4a8.change', 'learned.w4a8.growth', 'weight']
    """
    runs = [parse_bit_width(each) for each in bit_widths]
    if not runs:
        raise ValueError("give the bit-widths that are to learn scales of their own, such as 'w4a8'")
    layers = quant_layers(model)
    for run in runs:
        check_correctable(run)
    learned = learned_bit_width(model)
    if learned is not None:
        raise ValueError(f"the model has learned steps for {learned} already")
    for layer in layers.values():
        for run in runs:
            layer.learn_run(run, offsets)
    if not freeze:
        drop_corrections(model)
        return
    own = {id(each) for each in own_parameters(model)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in own)


def learning_bit_widths(model: nn.Module) -> list[BitWidth]:
    """The bit-widths that learn scales of their own.

    Raises:
        ValueError: a model that is not prepared.
    """
    return list(next(iter(quant_layers(model).values())).learning)


def own_parameters(model: nn.Module, run: BitWidth | None = None) -> list[nn.Parameter]:
    """Scales, corrections and offsets of the bit-widths that learn, or of one of them.

    Raises:
        ValueError: a model that is not prepared.
    """
    learned = [item for layer in quant_layers(model).values() for item in layer.learned.items()]
    return [each for name, own in learned if run is None or name == str(run) for each in own.parameters()]


def settle_bit_widths(model: nn.Module) -> list[BitWidth]:
    """Turn what bit-widths have learned into integers, scales and corrections, as `round_weights` leaves them.

    The model is then saved, evaluated and exported like any that was quantized after training.

    Returns:
        the bit-widths.

    Raises:
        ValueError: a model that is not prepared.
    """
    runs = learning_bit_widths(model)
    for layer in quant_layers(model).values():
        for run in runs:
            layer.settle_run(run)
    return runs
