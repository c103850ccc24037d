"""Turn the scales of one bit-width into learned steps: fine-tuning at a fixed bit-width with LSQ."""

from torch import nn

from quant.bias_correction import drop_corrections
from quant.bits import FULL_PRECISION, BitWidth, parse_bit_width
from quant.prepare import check_calibrated, modes_of, quant_activations


def learn_steps(model: nn.Module, bit_width: str | BitWidth) -> None:
    """Make Parameters of the scales at a bit-width, in place, starting from the calibrated ranges.

    Weights get `weight_step`, inputs `activation_step`; zero points stay as calibrated. The model then runs at this
    bit-width and in full precision only; bias corrections and chosen integers are dropped. Call it before the optimizer
    is built.

    Args:
        model: prepared and calibrated.
        bit_width: `w4a4`, ...; where it or the policy leaves a side in float, nothing is learned.

    Raises:
        ValueError: full precision, a model that is not prepared, or whose steps are learned already.
        NotCalibratedError: a layer whose range was never observed.

    Example:
        >>> import quant, torch
        >>> model = quant.quantize(torch.nn.Linear(4, 2), [torch.randn(8, 4)], "w4a4")
        >>> quant.learn_steps(model, "w4a4")
        >>> sorted(name for name, _ in model.named_parameters())
        ['bias', 'weight', 'weight_step']
    """
    run = parse_bit_width(bit_width)
    check_calibrated(quant_activations(model), run)
    drop_corrections(model)
    add_steps(model, run)


def add_steps(model: nn.Module, run: BitWidth) -> None:
    """The same without looking at the ranges, for a state dict that has the steps to fill in.

    Raises:
        ValueError: as `learn_steps`.
    """
    activations = quant_activations(model)
    learned = learned_bit_width(model)
    if learned is not None:
        raise ValueError(f"{type(model).__name__} has learned steps for {learned} already")
    if run == FULL_PRECISION:
        raise ValueError("full precision has no steps to learn: choose a bit-width such as w4a4")
    for activation in activations.values():
        activation.add_steps(activation.bits_at(run))
    for mode in modes_of(activations):
        mode.learned = run


def learned_bit_width(model: nn.Module) -> BitWidth | None:
    """The bit-width whose steps are learned; None when none are.

    Raises:
        ValueError: a model that is not prepared.
    """
    return next((mode.learned for mode in modes_of(quant_activations(model)) if mode.learned is not None), None)
