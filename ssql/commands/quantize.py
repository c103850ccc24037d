"""`ssql quantize`: an encoder for low bit-widths, without training."""

from typing import Literal

import quant
from encoders import check_folder_target, load_encoder, load_head, load_tokenizer, save_encoder
from quant.checks import check_at_least, check_choice
from quant.quantize import ROUNDINGS, PostTrainingPolicy, better_rounding
from quant.ranges.observers import parse_observer
from ssql.data import DataModule
from ssql.evaluation.calibration import prepare_anew
from ssql.evaluation.layer_progress import LayerProgress
from ssql.evaluation.post_training import calibrate_on_inputs, departure, encoder_inputs, features_at, round_on_inputs
from ssql.reports.tables import rounding_table, sensitivity_table
from ssql.terminal.checks import each_once, not_empty
from ssql.terminal.console import say
from ssql.terminal.inputs import check_inputs

MOST_BITS = 8


def quantize(
    encoder: str,
    data: DataModule,
    output: str,
    bit_width: list[str] | str = ["w8a8", "w4a8"],  # noqa: B006
    rounding: Literal["outputs", "nearest"] | None = None,
    policy: PostTrainingPolicy | None = None,
    observer: str = "min_max",
    average_bits: float | None = None,
    examples: int | None = None,
    overwrite: bool = False,
) -> None:
    """Make an encoder run at low bit-widths without training: ranges, integers and biases, chosen on data.

    For each bit-width and layer after layer, in passes of some clips, the weights' integers are chosen so that the
    layer's outputs stay close to those in full precision (GPTQ), behind the layers that were
    chosen before. The weights themselves stay: the encoder still runs in full precision, and at other bit-widths with
    weights rounded to the nearest. A head or tokenizer beside the encoder comes along.

    What is done is kept in OUTPUT.ssql-layers: after an interruption the same command goes on there.

    Example: ssql quantize --encoder runs/whisper/encoder --data AudioFolder --data.root recordings
    --bit_width '[w8a8, w4a8]' --output runs/whisper/quantized
    Example: ssql quantize --encoder runs/whisper/encoder --data AudioFolder --data.root recordings
    --bit_width w4a8 --policy.activation_range per_token --policy.granularity per_group_64
    --policy.layers '{"conv2": "/per_channel"}' --output runs/whisper/groups

    Args:
        encoder: encoder folder.
        data: data module whose training split is looked at; labels are not needed.
        output: folder of the new encoder.
        bit_width: one, or a list: w8a8, w4a8, w2a8, ...
        rounding: outputs, as above, or nearest: each weight to its nearest integer, and biases corrected so that each
            layer's mean output is that of full precision. When null nearest where weights have 8 bits and inputs a
            range for each token (it is the more exact there), and outputs elsewhere.
        policy: per-layer bit-widths and grids; when null the encoder's own, or for one that has none that of
            --policy.help, with a range for each token.
        observer: how static activation ranges are found: min_max, moving_average, mse.
        average_bits: gives each layer its own weight bits, by its sensitivity, within this average.
        examples: clips or images looked at, drawn from the training split; when null as many as make 8 minutes of
            audio, or 256 images.
        overwrite: replace an existing encoder folder, which may be the same; one that holds anything else is refused.
    """
    bit_widths = [bit_width] if isinstance(bit_width, str) else bit_width
    not_empty(bit_width=bit_widths)
    bit_widths = each_once(bit_widths)
    check_at_least(1, examples=examples)
    check_at_least(2, average_bits=average_bits)
    if average_bits is not None and average_bits > MOST_BITS:
        raise ValueError(f"average_bits must be {MOST_BITS} at most, got {average_bits:g}")
    if average_bits is not None and len(bit_widths) > 1:
        raise ValueError("with average_bits each layer has weight bits of its own: give one bit-width, such as w8a8")
    if rounding is not None:
        check_choice("rounding", rounding, ROUNDINGS)
    parse_observer(observer)
    for each in bit_widths:
        quant.check_correctable(each)
    check_inputs(data=data)
    loaded, head, tokenizer = load_encoder(encoder), load_head(encoder), load_tokenizer(encoder)
    if loaded.modality != data.modality:
        raise ValueError(f"{encoder} is an encoder for {loaded.modality}, the data is {data.modality}")
    check_folder_target(output, overwrite)
    given = None if policy is None else quant.Policy(**policy.to_dict())
    prepare_anew(loaded, given or (None if quant.is_prepared(loaded) else quant.POST_TRAINING))
    learned = quant.learned_bit_width(loaded)
    if learned is not None:
        raise ValueError(
            f"the steps of {encoder} were learned at {learned}, they are its ranges: give a policy to begin anew, such "
            "as --policy.first_layer w8a32"
        )
    inputs = encoder_inputs(loaded, data, examples)
    if average_bits is not None:
        rows = quant.sensitivities(loaded, inputs, lambda each: loaded.embed(*each))
        mixed = quant.policy_within(loaded, rows, average_bits)
        say(sensitivity_table(rows, mixed))
        prepare_anew(loaded, mixed)
    for run in map(quant.parse_bit_width, bit_widths):
        if all(layer.bits_at(run) == quant.FULL_PRECISION for layer in quant.quant_layers(loaded).values()):
            raise ValueError(f"the policy leaves every layer in float at {run}: there is nothing to quantize")
    calibrate_on_inputs(loaded, inputs, observer)
    chosen = [each for each in bit_widths if (rounding or better_rounding(loaded, each)) == "outputs"]
    with LayerProgress(output, loaded, inputs, chosen, overwrite) as progress:
        exact = features_at(loaded, inputs, "fp")
        for each in bit_widths:
            if each not in chosen:
                quant.correct_bias(loaded, each, inputs, lambda batch: loaded(*batch))
                say(f"{each}: each weight takes its nearest integer and biases are corrected, hence no table of layers")
            else:
                say(rounding_table(round_on_inputs(loaded, inputs, each, progress), each))
            error = departure(features_at(loaded, inputs, each), exact)
            say(f"{each}: on the examples looked at, features differ by {100 * error:.3g} % of their variance")
        save_encoder(loaded, output, overwrite, head, tokenizer)
    say(f"encoder: {output}")
