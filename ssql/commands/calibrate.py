"""`ssql calibrate`: other grids, bits and ranges for an encoder, without training."""

import quant
from encoders import check_folder_target, load_encoder, load_head, load_tokenizer, save_encoder
from quant.checks import check_at_least
from quant.ranges.observers import parse_observer
from ssql.data import DataModule
from ssql.evaluation.calibration import calibrate_on, correct_bias_on, prepare_anew, sensitivities_on
from ssql.reports.tables import sensitivity_table
from ssql.terminal.console import say


def calibrate(
    encoder: str,
    data: DataModule,
    output: str,
    observer: str = "min_max",
    policy: quant.Policy | None = None,
    average_bits: float | None = None,
    batches: int = 8,
    bias_correction: list[str] = [],  # noqa: B006
    overwrite: bool = False,
) -> None:
    """Choose anew how an encoder is quantized, without training: grids, bits of each layer, activation ranges.

    A head or tokenizer beside the encoder comes along.

    Example: ssql calibrate --encoder runs/a/encoder --data SpokenWords --output runs/a/encoder-mse
    --observer mse --policy.shift true --policy.weight_range mse --average_bits 4

    Args:
        encoder: encoder folder.
        data: data module whose training split is looked at; labels are not needed.
        output: folder of the new encoder.
        observer: how activation ranges are found: min_max, moving_average, mse.
        policy: per-layer bit-widths and grids; the encoder's own when null.
        average_bits: gives each layer its own weight bits, by its sensitivity, within this average.
        batches: training batches looked at.
        bias_correction: bit-widths at which the biases are corrected, so that each layer's mean output is that of full
            precision, as heads trained at full precision need it: '[w8a8, w4a8]'.
        overwrite: replace an existing encoder folder, which may be the same; one that holds anything else is refused.
    """
    check_folder_target(output, overwrite)
    check_at_least(1, batches=batches)
    check_at_least(2, average_bits=average_bits)
    parse_observer(observer)
    for bit_width in bias_correction:
        quant.check_correctable(bit_width)
    loaded = load_encoder(encoder)
    prepare_anew(loaded, policy)
    learned = quant.learned_bit_width(loaded)
    if learned is not None:
        raise ValueError(
            f"the steps of {encoder} were learned at {learned}, they are its ranges: give a policy to begin anew, such "
            "as --policy.first_layer w8a32"
        )
    if average_bits is not None:
        rows = sensitivities_on(loaded, data, batches)
        mixed = quant.policy_within(loaded, rows, average_bits)
        say(sensitivity_table(rows, mixed))
        prepare_anew(loaded, mixed)
    calibrate_on(loaded, data, batches, observer)
    for bit_width in bias_correction:
        correct_bias_on(loaded, data, batches, bit_width)
    save_encoder(loaded, output, overwrite, load_head(encoder), load_tokenizer(encoder))
    say(f"encoder: {output}")
