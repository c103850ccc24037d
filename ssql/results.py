"""The commands that measure encoders and show results, each a typed function that jsonargparse turns into one."""

import logging
from pathlib import Path

import torch
from matplotlib.figure import Figure

from encoders import Encoder, load_encoder, load_tokenizer
from export import FileEncoder
from quant.checks import check_at_least
from ssql.checks import not_empty
from ssql.console import say
from ssql.data import DataModule
from ssql.evaluate import AS_SAVED, BIT_WIDTHS, ExportedFile, Quantizer
from ssql.evaluate import evaluate as evaluate_encoders
from ssql.figures import accuracy_figure, retained_figure
from ssql.output import refuse_existing, reserved, save_csv, save_json, save_plot, save_text
from ssql.report import markdown_report, suite_report, terminal_table
from ssql.report_page import report_page
from ssql.rows import Row, load_rows, retained_rows
from ssql.runs import read_runs
from ssql.suite import PARTS, RECORDINGS, speech_suite
from ssql.token_agreement import token_agreement

log = logging.getLogger(__name__)


def evaluate(
    encoders: dict[str, str],
    data: DataModule,
    output: str,
    bit_widths: list[str] = list(BIT_WIDTHS),  # noqa: B006
    tasks: list[str] | None = None,
    calibration_batches: int | list[int] = 8,
    quantizers: dict[str, Quantizer] = {AS_SAVED: Quantizer()},  # noqa: B006, B008
    overwrite: bool = False,
) -> None:
    """Probe frozen encoders as they are saved at bit-widths, or exported files at their own: one table, one plot.

    What is measured is what `ssql export` writes: an encoder with its own ranges, learned steps and bias corrections,
    nothing recalibrated. Quantizers with an observer find new ranges instead, and leave the encoder as it is.
    Writes accuracy.json and accuracy.csv (rows of method, task, bit_width, metric, value, low, high, ...), accuracy.md
    and accuracy.png. Intervals (low, high) are of 95 %: Wilson for accuracies, bootstrap over clips for the rest.
    Example: ssql evaluate --encoders.SSQL runs/a/encoder --encoders.SimSiam runs/b/encoder
    --data SpokenWords --output runs/a
    Example: ssql evaluate --encoders.torch runs/a/encoder --encoders.file runs/a/encoder-int8.onnx
    --bit_widths '[fp, w8a8]' --data SpokenWords --output runs/a/shipped

    Args:
        encoders: name in the table to encoder folder, or to a file that ssql export wrote (.onnx).
        data: labelled data module.
        output: folder for the results.
        bit_widths: fp, w8a8, w4a8, ...
        tasks: label names; all of the data's by default.
        calibration_batches: training batches that set the ranges of quantizers that find new ones; of several, each is
            tried.
        quantizers: name to observer (as_saved, min_max, moving_average, percentile, mse) and policy, side by side:
            {as_saved: {observer: as_saved}, mse: {observer: mse, policy: {shift: true}}}. As saved by default.
        overwrite: replace earlier results.
    """
    not_empty(encoders=encoders, bit_widths=bit_widths, tasks=tasks, quantizers=quantizers)
    refuse_existing(_files(output, "accuracy"), overwrite)
    check_at_least(1, calibration_batches=calibration_batches)
    loaded = _measured(encoders)
    with reserved(Path(output) / "accuracy", _files(output, "accuracy"), overwrite):
        rows = evaluate_encoders(loaded, data, bit_widths, tasks, calibration_batches, quantizers)
        _save(rows, output, "accuracy", markdown_report(rows), accuracy_figure(rows))


def evaluate_tokenizer(
    tokenizers: dict[str, str],
    data: DataModule,
    output: str,
    bit_widths: list[str] = list(BIT_WIDTHS),  # noqa: B006
    calibration_batches: int | list[int] = 8,
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
        calibration_batches: training batches that set the ranges of quantizers that find new ones; of several, each is
            tried.
        quantizers: name to observer, policy and bias_correction, side by side, as in `ssql evaluate`.
        overwrite: replace earlier results.
    """
    not_empty(tokenizers=tokenizers, bit_widths=bit_widths, quantizers=quantizers)
    refuse_existing(_files(output, "tokens"), overwrite)
    check_at_least(1, calibration_batches=calibration_batches)
    heads = {name: load_tokenizer(folder) for name, folder in tokenizers.items()}
    missing = [folder for name, folder in tokenizers.items() if heads[name] is None]
    if missing:
        raise ValueError(f"no tokenizer in {', '.join(missing)}: give what ssql tokenizer wrote, OUTPUT/model")
    loaded = _loaded(tokenizers)
    pairs = {name: (loaded[name], head) for name, head in heads.items() if head is not None}
    with reserved(Path(output) / "tokens", _files(output, "tokens"), overwrite):
        rows = token_agreement(pairs, data, bit_widths, calibration_batches, quantizers)
        _save(rows, output, "tokens", markdown_report(rows), accuracy_figure(rows, "agreement"))


def compare(rows: list[str], output: str, overwrite: bool = False) -> None:
    """Merge results of several `ssql evaluate` runs: other encoders side by side, seeds and folds as mean ± deviation.

    Writes accuracy.json, .csv, .md and .png, as `ssql evaluate` does.
    Example: ssql compare --rows '[runs/seed-0/accuracy.json, runs/seed-1/accuracy.json]' --output runs/both

    Args:
        rows: accuracy.json files; rows of the same method, task and bit-width become one line of the table.
        output: folder for the results.
        overwrite: replace earlier results.
    """
    refuse_existing(_files(output, "accuracy"), overwrite)
    not_empty(rows=rows)
    merged = [row for file in rows for row in load_rows(Path(file))]
    with reserved(Path(output) / "accuracy", _files(output, "accuracy"), overwrite):
        _save(merged, output, "accuracy", markdown_report(merged), accuracy_figure(merged))


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
        overwrite: replace earlier results.
    """
    not_empty(encoders=encoders if parts else None, bit_widths=bit_widths, quantizers=quantizers)
    partial = Path(output) / "suite.partial.json"
    refuse_existing(_files(output, "suite"), overwrite)
    refuse_existing([partial], overwrite or str(partial) in map(str, map(Path, rows)))
    check_at_least(1, calibration_batches=calibration_batches)
    modules, skipped = speech_suite(parts, recordings, seed)
    for sentence in skipped:
        log.warning("%s", sentence)
    if not modules and not rows:
        raise ValueError(f"nothing to measure: {'; '.join(skipped) or 'choose parts'}")
    loaded = _measured(encoders)
    for data in modules.values():
        data.setup()  # what cannot be read is said before anything is measured
    found = [row for file in rows for row in load_rows(Path(file))]
    with reserved(Path(output) / "suite", _files(output, "suite"), overwrite):
        for name, data in modules.items():
            log.info("suite: %s", name)
            measured = evaluate_encoders(loaded, data, bit_widths, None, calibration_batches, quantizers)
            found += [row | {"task": f"{name}/{row['task']}"} for row in measured]
            save_json(found, partial)  # what is measured is kept, beside the results of an earlier suite
        kept = retained_rows(found)
        _save(found, output, "suite", suite_report(found, skipped), retained_figure(kept))
        partial.unlink(missing_ok=True)
    say(terminal_table(kept, "retained", title="suite:"))


def report(
    runs: list[str], output: str, data: DataModule | None = None, batches: int = 1, overwrite: bool = False
) -> None:
    """One self-contained HTML page about runs: accuracy against bits and size, layers, training, configuration.

    A run's folder holds results (*.json of evaluate, suite, compare, finetune), logs/ and encoder/, or some of these.
    Example: ssql report --runs '[runs/a, runs/b]' --data SpokenWords --output report.html

    Args:
        runs: folders.
        output: HTML file.
        data: data module on whose first training batches sensitivities and activations are measured; without it the
            page has no such parts.
        batches: how many.
        overwrite: replace an existing file.
    """
    not_empty(runs=runs)
    check_at_least(1, batches=batches)
    if not output.endswith(".html"):
        raise ValueError(f"the report is a page: --output {output} should end in .html")
    refuse_existing([Path(output)], overwrite)
    save_text(report_page(read_runs(runs), data, batches), Path(output))
    say(f"report: {output}")


def _loaded(encoders: dict[str, str]) -> dict[str, Encoder]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: load_encoder(folder).to(device) for name, folder in encoders.items()}


def _measured(encoders: dict[str, str]) -> dict[str, Encoder | ExportedFile]:
    """Folders of encoders in torch, and exported files in ONNX Runtime, in the order that they were given."""
    files = {name: path for name, path in encoders.items() if path.endswith(".onnx")}
    found: dict[str, Encoder | ExportedFile] = {name: FileEncoder(path) for name, path in files.items()}
    found |= _loaded({name: folder for name, folder in encoders.items() if name not in files})
    return {name: found[name] for name in encoders}


def _files(output: str, name: str) -> list[Path]:
    return [Path(output) / f"{name}.{ending}" for ending in ("json", "csv", "md", "png")]


def _save(rows: list[Row], output: str, name: str, markdown: str, figure: Figure) -> None:
    json_file, csv_file, markdown_file, plot_file = _files(output, name)
    save_json(rows, json_file)
    save_csv(rows, csv_file)
    save_text(markdown, markdown_file)
    for metric in dict.fromkeys(row["metric"] for row in rows):
        say(terminal_table(rows, metric))
    save_plot(figure, plot_file)
    say(f"rows: {json_file}\ntable: {markdown_file}\nplot: {plot_file}")
