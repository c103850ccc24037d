"""What the commands that measure share: the encoders they load and the files they leave."""

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from matplotlib.figure import Figure  # here, so that a command without it ends before it measures

from encoders import Encoder, load_encoder
from export.runtime.runtimes import DEFAULT, Runtime
from ssql.evaluation.embeddings import ExportedFile
from ssql.reports.result_files import reserved, save
from ssql.reports.rows import Row, results_of_file
from ssql.reports.tables import terminal_table
from ssql.terminal.console import say


def load_encoders(encoders: dict[str, str]) -> dict[str, Encoder]:
    """Folders of encoders, on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: load_encoder(folder).to(device) for name, folder in encoders.items()}


def load_measured(encoders: dict[str, str], runtime: Runtime = DEFAULT) -> dict[str, Encoder | ExportedFile]:
    """Folders of encoders in torch, and exported files in a runtime, in the order that they were given.

    A file in another runtime than ONNX Runtime is a method of its own, `int8, openvino at bf16`: results of several
    runtimes can be merged.
    """
    files = {name: path for name, path in encoders.items() if path.endswith(".onnx")}
    found: dict[str, Encoder | ExportedFile] = {}
    if files:
        from export import FileEncoder  # encoders in torch are measured without ONNX

        found |= {name: FileEncoder(path, runtime=runtime) for name, path in files.items()}
    found |= load_encoders({name: folder for name, folder in encoders.items() if name not in files})
    return {_method(name, found[name]): found[name] for name in encoders}


def _method(name: str, encoder: Encoder | ExportedFile) -> str:
    if isinstance(encoder, Encoder) or encoder.runtime == DEFAULT:
        return name
    return f"{name}, {encoder.runtime} at {encoder.precision}"


def result_files(output: str, name: str) -> list[Path]:
    """The files that `save_results` writes."""
    return [Path(output) / f"{name}.{ending}" for ending in ("json", "csv", "md", "png")]


def reserved_results(output: str, name: str, overwrite: bool) -> AbstractContextManager[None]:
    """Be their only writer: see `reserved`."""
    return reserved(Path(output) / name, result_files(output, name), overwrite)


def save_results(rows: list[Row], output: str, name: str, markdown: str, figure: Figure) -> None:
    """Write rows as JSON and CSV, a table and a plot of them, and show them."""
    json_file, csv_file, markdown_file, plot_file = result_files(output, name)
    for metric in dict.fromkeys(row["metric"] for row in rows):
        say(terminal_table(rows, metric, intervals=True))
    save({json_file: rows, csv_file: rows, markdown_file: markdown, plot_file: figure})
    say(f"rows: {json_file}\ntable: {markdown_file}\nplot: {plot_file}")


def add_to_cards(encoders: dict[str, str], rows: list[Row]) -> None:
    """What was measured of exported files goes to the model cards that describe them."""
    for path in dict.fromkeys(path for path in encoders.values() if path.endswith(".onnx")):
        from export.card import add_results

        card = add_results(Path(path), results_of_file(rows, Path(path)))
        if card is not None:
            say(f"model card: {card}")
