"""`ssql evaluate`: probes or a frozen reader of encoders and exported files at bit-widths."""

import logging

from export.runtime.runtimes import DEFAULT, Runtime
from quant.checks import check_at_least
from ssql.commands.results import add_to_cards, load_measured, reserved_results, result_files, save_results
from ssql.commands.runtimes import check_runtime_of
from ssql.commands.unquantized import note_unquantized_of
from ssql.data import AudioFolder, DataModule
from ssql.data.entries import is_manifest
from ssql.evaluation.evaluate import BIT_WIDTHS
from ssql.evaluation.evaluate import evaluate as evaluate_encoders
from ssql.evaluation.quantizers import AS_SAVED, Quantizer
from ssql.evaluation.reader import Reader
from ssql.evaluation.reading import check_texts, read_at_bit_widths
from ssql.evaluation.whisper_decoder import WhisperDecoder  # noqa: F401  known by its name to --reader
from ssql.reports.figures import accuracy_figure
from ssql.reports.result_files import refuse_existing
from ssql.reports.tables import markdown_report
from ssql.terminal.checks import each_once, not_empty
from ssql.terminal.inputs import check_inputs

log = logging.getLogger(__name__)


def evaluate(
    encoders: dict[str, str],
    data: DataModule,
    output: str,
    bit_widths: list[str] = list(BIT_WIDTHS),  # noqa: B006
    tasks: list[str] | None = None,
    calibration_batches: int = 8,
    quantizers: dict[str, Quantizer] = {AS_SAVED: Quantizer()},  # noqa: B006, B008
    reader: Reader | None = None,
    runtime: Runtime = DEFAULT,
    overwrite: bool = False,
) -> None:
    """Measure frozen encoders as they are saved at bit-widths, or exported files at their own: one table, one plot.

    Linear probes are trained on the features, or with a reader, which was trained at full precision and stays as it is,
    texts are read from them: word and character error rates, insertions (words that nobody said) and the distance of
    the features from full precision. What is measured of an exported file is added to the model card beside it.

    What is measured is what `ssql export` writes: an encoder with its own ranges, learned steps and bias corrections,
    nothing recalibrated. Quantizers with an observer find new ranges instead, and leave the encoder as it is.
    Writes accuracy.json and accuracy.csv (rows of method, task, bit_width, metric, value, low, high, ...), accuracy.md
    and accuracy.png. Intervals (low, high) are of 95 %: Wilson for accuracies, bootstrap over clips for the rest.
    Example: ssql evaluate --encoders.SSQL runs/a/encoder --encoders.SimSiam runs/b/encoder
    --data SpokenWords --output runs/a
    Example: ssql evaluate --encoders.torch runs/a/encoder --encoders.file runs/a/encoder-int8.onnx
    --bit_widths '[fp, w8a8]' --data SpokenWords --output runs/a/shipped
    Example: ssql evaluate --encoders.whisper runs/whisper/quantized --output runs/whisper --bit_widths '[fp, w8a8]'
    --reader WhisperDecoder --reader.folder whisper-base-ct2 --data AudioFolder --data.root recordings
    --data.texts transcripts.tsv --data.max_seconds 30

    Args:
        encoders: name in the table to encoder folder, or to a file that ssql export wrote (.onnx).
        data: labelled data module.
        output: folder for the results.
        bit_widths: fp, w8a8, w4a8, ...
        tasks: label names; all of the data's by default.
        calibration_batches: training batches that set the ranges of quantizers that find new ones.
        quantizers: name to observer (as_saved, min_max, moving_average, mse) and policy, side by side:
            {as_saved: {observer: as_saved}, mse: {observer: mse, policy: {shift: true}}}. As saved by default.
        reader: a frozen reader of the features instead of probes: WhisperDecoder (--reader.folder: of CTranslate2), or
            a class of your own, as ssql.evaluation.reader says. The data need texts.
        runtime: of .onnx files: onnxruntime; openvino, at the precision that is fastest here; or openvino_f32. Folders
            are measured in torch. Another than onnxruntime stands beside the file's name in the table.
        overwrite: replace earlier results.
    """
    not_empty(encoders=encoders, bit_widths=bit_widths, tasks=tasks, quantizers=quantizers)
    bit_widths = each_once(bit_widths)
    check_runtime_of(encoders.values(), runtime)
    check_at_least(1, calibration_batches=calibration_batches)
    if reader is not None and tasks is not None:
        raise ValueError("a reader reads texts, and no tasks: give --reader or --tasks")
    check_inputs(encoders.values(), data=data)
    if reader is not None:
        check_texts(data, reader)
        _say_tenth(data)
    loaded = load_measured(encoders, runtime)
    if reader is not None:
        reader.check(next(iter(loaded.values())).feature_dim)
    refuse_existing(result_files(output, "accuracy"), overwrite)
    note_unquantized_of(loaded, bit_widths, quantizers)
    with reserved_results(output, "accuracy", overwrite):
        if reader is None:
            rows = evaluate_encoders(loaded, data, bit_widths, tasks, calibration_batches, quantizers)
        else:
            rows = read_at_bit_widths(loaded, data, reader, bit_widths, calibration_batches, quantizers)
        save_results(rows, output, "accuracy", markdown_report(rows), accuracy_figure(rows))
    add_to_cards(encoders, rows)


def _say_tenth(data: DataModule) -> None:
    """Of a folder of recordings only every tenth is read, where nothing says which: few, for whoever does not know."""
    if isinstance(data, AudioFolder) and data.test_pattern is None and not is_manifest(data.labels):
        count = len(data.said()["test"])
        if count:  # without any, the error says the same
            log.info("reading every tenth recording, %d in all: --data.test_pattern . reads all of them", count)
