"""`ssql evaluate_tokenizer`: which tokens stay at a bit-width."""

from encoders import load_tokenizer
from quant.checks import check_at_least
from ssql.commands.results import load_encoders, reserved_results, save_results
from ssql.commands.unquantized import note_unquantized_of
from ssql.data import DataModule
from ssql.evaluation.evaluate import BIT_WIDTHS
from ssql.evaluation.quantizers import AS_SAVED, Quantizer
from ssql.evaluation.token_agreement import token_agreement
from ssql.reports.figures import accuracy_figure
from ssql.reports.tables import markdown_report
from ssql.terminal.checks import each_once, not_empty
from ssql.terminal.inputs import check_inputs


def evaluate_tokenizer(
    tokenizers: dict[str, str],
    data: DataModule,
    output: str,
    bit_widths: list[str] = list(BIT_WIDTHS),  # noqa: B006
    calibration_batches: int = 8,
    quantizers: dict[str, Quantizer] = {AS_SAVED: Quantizer()},  # noqa: B006, B008
    overwrite: bool = False,
) -> None:
    """How many tokens stay what they are in full precision, at bit-widths x quantizers: one table, one plot.

    Writes tokens.json and tokens.csv (rows as of `ssql evaluate`, with the metrics agreement, perplexity and use of the
    codes), tokens.md and tokens.png. `chance` is the agreement of tokens drawn in these frequencies; intervals of 95 %
    by bootstrap over clips.
    Example: ssql evaluate_tokenizer --tokenizers.SSQL runs/a/model --tokenizers.SimSiam runs/b/model
    --data SpokenWords --output runs/tokens

    Args:
        tokenizers: name in the table to a folder that ssql tokenizer wrote.
        data: data module; labels are not needed.
        output: folder for the results.
        bit_widths: fp, w8a8, w4a8, ...
        calibration_batches: training batches that set the ranges of quantizers that find new ones.
        quantizers: name to observer, policy and bias_correction, side by side, as in `ssql evaluate`.
        overwrite: replace earlier results.
    """
    not_empty(tokenizers=tokenizers, bit_widths=bit_widths, quantizers=quantizers)
    bit_widths = each_once(bit_widths)
    check_at_least(1, calibration_batches=calibration_batches)
    check_inputs(tokenizers.values(), data=data)
    heads = {name: load_tokenizer(folder) for name, folder in tokenizers.items()}
    missing = [folder for name, folder in tokenizers.items() if heads[name] is None]
    if missing:
        raise ValueError(f"no tokenizer in {', '.join(missing)}: give what ssql tokenizer wrote, OUTPUT/model")
    loaded = load_encoders(tokenizers)
    pairs = {name: (loaded[name], head) for name, head in heads.items() if head is not None}
    note_unquantized_of(loaded, bit_widths, quantizers)
    with reserved_results(output, "tokens", overwrite):
        rows = token_agreement(pairs, data, bit_widths, calibration_batches, quantizers)
        save_results(rows, output, "tokens", markdown_report(rows), accuracy_figure(rows, "agreement"))
