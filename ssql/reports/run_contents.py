"""What the folder of a run holds for a report: results, training curves, configuration, encoder."""

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from encoders import Encoder, load_encoder
from encoders.storage.paths import shown
from encoders.storage.strict_json import read_strict_json
from ssql.reports.rows import Row, load_rows
from ssql.training.run_options import flattened

log = logging.getLogger(__name__)

# Quantity to (steps, values).
Curves = dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: short, different for each run of a report.
        rows: of every JSON file of results in the folder.
        curves: what was logged in training.
        configuration: of the training, as YAML; empty when there was none.
        encoder: None when there is none.
    """

    name: str
    rows: list[Row]
    curves: Curves
    configuration: str
    encoder: Encoder | None


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read the folders of runs: `*.json` of results, `logs/`, `encoder/`.

    A method that several runs measured is named after its run as well: `SSQL (runs-b)`.

    Raises:
        FileNotFoundError: a folder that does not exist.
        ValueError: a folder twice, one that holds none of this, or a file of it that is damaged.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if [other.resolve() for other in paths].count(path.resolve()) > 1:
            raise ValueError(f"run {path} is given twice: give each once")
    names = [path.name for path in paths]
    runs = [
        _read(path, name if names.count(name) == 1 else path.as_posix())
        for path, name in zip(paths, names, strict=True)
    ]
    methods = [method for run in runs for method in dict.fromkeys(row["method"] for row in run.rows)]
    for run in runs:
        for row in run.rows:
            if methods.count(row["method"]) > 1:
                row["method"] += f" ({run.name})"
    return runs


def differences(configurations: Mapping[str, str]) -> dict[str, list[str]]:
    """Settings that are not the same in all runs: dotted name to one value a run, `-` where it is not set.

    Args:
        configurations: run to YAML.
    """
    flat = [flattened(yaml.safe_load(text) or {}) for text in configurations.values()]
    names = dict.fromkeys(name for settings in flat for name in settings)
    table = {name: [settings.get(name, "-") for settings in flat] for name in names}
    return {name: values for name, values in table.items() if len(set(values)) > 1}


def _read(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise FileNotFoundError(f"run {folder} does not exist")
    # Parts of a suite that was stopped do not count beside those of a whole one.
    names = {file.name for file in folder.glob("*.json")}
    names -= {name.replace(".json", ".partial.json") for name in names}
    files = [file for file in map(folder.joinpath, sorted(names)) if _holds_rows(file)]
    rows = [row for file in files for row in load_rows(file)]
    logs = sorted(folder.glob("logs/version_*"), key=lambda path: int(re.sub(r"\D", "", path.name) or 0))
    curves = _curves([path / "metrics.csv" for path in logs])
    configurations = [path / "config.yaml" for path in logs if (path / "config.yaml").is_file()]
    encoder = load_encoder(folder / "encoder") if (folder / "encoder").is_dir() else None
    if not rows and not curves and encoder is None:
        raise ValueError(f"run {folder} holds no results (*.json), no logs/ and no encoder/: nothing to report")
    configuration = _configuration(configurations[-1]) if configurations else ""
    return Run(name, rows, curves, configuration, encoder)


def _configuration(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
        if not isinstance(yaml.safe_load(text), dict):
            raise ValueError("no mapping")
    except (ValueError, yaml.YAMLError):
        raise ValueError(
            f"{file} is not YAML of names and values: put it back as the run wrote it, or take it away"
        ) from None
    return text


def _holds_rows(file: Path) -> bool:
    """Whether a JSON file is a list of results: others (latency, verification) are for other readers."""
    content = read_strict_json(file)
    rows = content if isinstance(content, list) else []
    return any(isinstance(row, dict) and row.keys() & {"method", "metric"} for row in rows)


def _curves(files: Sequence[Path]) -> Curves:
    """All quantities of the logs of a run, one version after the other where it was resumed."""
    curves: Curves = {}
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        try:
            lines = list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise ValueError(f"{file} is not CSV ({error}): put it back as the run wrote it") from None
        for number, line in enumerate(lines, start=1):
            try:
                step, found = _logged(line)
            except (KeyError, TypeError, ValueError) as error:
                if number == len(lines) and not text.endswith("\n"):
                    log.warning("%s ends in the middle of its last row, which is left out", file)
                    continue
                raise ValueError(
                    f"{file}, row {number}: a row is a step and numbers, got {shown(str(line))[:80]}: put the file "
                    "back as the run wrote it"
                ) from error
            for quantity, value in found.items():
                steps, values = curves.setdefault(quantity, ([], []))
                steps.append(step)
                values.append(value)
    return curves


def _logged(line: Mapping[str, str | None]) -> tuple[float, dict[str, float]]:
    """The step and the numbers of a row; fails where it is cut off or damaged."""
    if None in line or None in line.values():
        raise ValueError("too many fields, or too few")
    numbers = {name: float(value) for name, value in line.items() if value}
    return numbers["step"], {name: value for name, value in numbers.items() if name not in ("step", "epoch")}
