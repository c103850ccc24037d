"""`ssql suite`: speech at bit-widths."""

import logging
from pathlib import Path

from export.runtime.runtimes import DEFAULT, Runtime
from quant.checks import check_at_least
from ssql.commands.results import load_measured, reserved_results, save_results
from ssql.commands.runtimes import check_runtime_of
from ssql.commands.unquantized import note_unquantized_of
from ssql.evaluation.evaluate import evaluate as evaluate_encoders
from ssql.evaluation.quantizers import AS_SAVED, Quantizer
from ssql.evaluation.suite import PARTS, RECORDINGS, speech_suite
from ssql.reports.figures import retained_figure
from ssql.reports.result_files import refuse_existing, save
from ssql.reports.rows import load_different, retained_rows
from ssql.reports.tables import suite_report, terminal_table
from ssql.terminal.checks import each_once, not_empty
from ssql.terminal.console import say
from ssql.terminal.inputs import check_inputs

log = logging.getLogger(__name__)


def suite(
    encoders: dict[str, str],
    output: str,
    parts: list[str] = list(PARTS),  # noqa: B006
    recordings: dict[str, str] = dict(RECORDINGS),  # noqa: B006
    bit_widths: list[str] = ["fp", "w8a8", "w4a8", "w4a4", "w3a3", "w2a4"],  # noqa: B006
    calibration_batches: int = 8,
    quantizers: dict[str, Quantizer] = {AS_SAVED: Quantizer()},  # noqa: B006, B008
    rows: list[str] = [],  # noqa: B006
    seed: int = 0,
    runtime: Runtime = DEFAULT,
    overwrite: bool = False,
) -> None:
    """Speech suite: does the encoder still hear at few bits? Words and voices beside pitch, loudness, rate and contour.

    Writes suite.json and suite.csv (rows as of `ssql evaluate`), suite.md (each task, and what is retained of full
    precision) and suite.png. Parts: words and prosody (eSpeak NG, made on the spot), fsdd and prompts (recordings).
    suite.partial.json grows part by part: a stopped suite goes on with --parts of what is missing and --rows of it.
    Example: ssql suite --encoders '{"SSQL": "runs/a/encoder", "SimSiam": "runs/b/encoder"}' --output runs/suite

    Args:
        encoders: name in the tables to encoder folder, or to a file that ssql export wrote (.onnx).
        output: folder for the results.
        parts: to measure; none only writes the tables of `rows`.
        recordings: folders of real recordings, fsdd and prompts; a part whose folder is not there is left out.
        bit_widths: fp, w8a8, w4a8, ...
        calibration_batches: training batches of each part that set the ranges of quantizers that find new ones.
        quantizers: name to observer and policy, side by side, as in `ssql evaluate`.
        rows: JSON files of other results at these bit-widths, to stand in the tables: word error rates of a recognizer,
            or parts that were measured before.
        seed: of words, voices, prosody and noise.
        runtime: of .onnx files, as in `ssql evaluate`.
        overwrite: replace earlier results.
    """
    not_empty(encoders=encoders if parts else None, bit_widths=bit_widths, quantizers=quantizers)
    bit_widths = each_once(bit_widths)
    check_runtime_of(encoders.values(), runtime)
    check_inputs(encoders.values() if parts else (), rows)
    partial = Path(output) / "suite.partial.json"
    refuse_existing([partial], overwrite or str(partial) in map(str, map(Path, rows)))
    check_at_least(1, calibration_batches=calibration_batches)
    modules, skipped = speech_suite(parts, recordings, seed)
    for sentence in skipped:
        log.warning("%s", sentence)
    if not modules and not rows:
        raise ValueError(f"nothing to measure: {'; '.join(skipped) or 'choose parts'}")
    with reserved_results(output, "suite", overwrite):
        loaded = load_measured(encoders, runtime)
        note_unquantized_of(loaded, bit_widths, quantizers)
        for data in modules.values():
            data.setup()  # what cannot be read is said before anything is measured
        found = load_different(rows)
        for name, data in modules.items():
            log.info("suite: %s", name)
            measured = evaluate_encoders(loaded, data, bit_widths, None, calibration_batches, quantizers)
            found += [row | {"task": f"{name}/{row['task']}"} for row in measured]
            save({partial: found})  # what is measured is kept, beside the results of an earlier suite
        kept = retained_rows(found)
        save_results(found, output, "suite", suite_report(found, skipped), retained_figure(kept))
        partial.unlink(missing_ok=True)
    say(terminal_table(kept, "retained", title="suite:"))
