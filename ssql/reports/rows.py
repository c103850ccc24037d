"""Rows of results: method, task, bit_width, metric, value and whatever else is known; read, merged, in lines.

Where rows have `low` and `high`, these are an interval of 95 %.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from encoders.storage.folder import file_sha256
from encoders.storage.ownership import ROW_KEYS
from encoders.storage.strict_json import read_strict_json
from quant.bits import parse_bit_width

Row = dict[str, Any]

# Keys of a row that hold a number, or null where there is none.
WORDS = frozenset(("method", "task", "bit_width", "metric", "unit", "quantizer", "runtime", "precision"))
HASHES = frozenset(("weights_sha256", "head_sha256", "file_sha256"))
NUMBERS = frozenset(
    (
        "value",
        "low",
        "high",
        "retained",
        "retained_low",
        "retained_high",
        "above_fp",
        "above_fp_low",
        "above_fp_high",
        "chance",
        "clips",
        "size_bytes",
        "tokens",
    )
)
# What each metric measures, and the decimals it is shown with. The first six stand for a task in an overview.
METRICS = {
    "linear": ("accuracy, %", 1),
    "accuracy": ("accuracy, %", 1),
    "r2": ("R2", 2),
    "wer": ("WER, %", 1),
    "cer": ("CER, %", 1),
    "agreement": ("tokens as in full precision, %", 1),
    "linear_fp_head": ("accuracy, %, head of full precision", 1),
    "knn": ("accuracy, %, nearest neighbours", 1),
    "r2_fp_head": ("R2, head of full precision", 2),
    "mae": ("mean absolute error", 2),
    "mae_fp_head": ("mean absolute error, head of full precision", 2),
    "perplexity": ("perplexity of the codes", 1),
    "use": ("codes in use, %", 1),
    "retained": ("retained of full precision, %", 0),
    "insertions": ("words that nobody said, %", 1),
    "distance": ("distance of features", 4),
    "wer_above_fp": ("WER above full precision, points", 1),
    "cer_above_fp": ("CER above full precision, points", 1),
    "insertions_above_fp": ("words that nobody said above full precision, points", 1),
}
HEADLINES = tuple(METRICS)[:6]
ON_CARDS = (*HEADLINES, "insertions", "distance")
FP_HEADS = ("linear_fp_head", "r2_fp_head")
ERROR_RATES = ("wer", "cer")
ACCURACIES = ("linear", "linear_fp_head", "accuracy", "knn", "agreement")


def other_runtimes(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether something was measured in another runtime than ONNX Runtime, which rows without one are of."""
    return any(row.get("runtime", "onnxruntime") != "onnxruntime" for row in rows)


def metric_name(metric: str) -> str:
    """What a metric measures, for people."""
    return METRICS.get(metric, (metric, 1))[0]


class Cell(NamedTuple):
    """Mean of the merged runs; their deviation when there are several, else the interval of the one run, if known."""

    mean: float
    deviation: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def arms(self) -> tuple[float, float]:
        """How far the deviation or the interval reaches below the mean, and above; 0 where neither is known."""
        if self.deviation is not None or self.low is None or self.high is None:
            return self.deviation or 0.0, self.deviation or 0.0
        return max(self.mean - self.low, 0.0), max(self.high - self.mean, 0.0)

    def text(self, decimals: int = 1, interval: bool = True) -> str:
        """`78.3`, `78.3 ± 1.2` (sample standard deviation of runs), or `78.3 (75.0 to 81.2)`."""
        if self.deviation is not None:
            return f"{self.mean:.{decimals}f} ± {self.deviation:.{decimals}f}"
        if interval and self.low is not None and self.high is not None:
            return f"{self.mean:.{decimals}f} ({self.low:.{decimals}f} to {self.high:.{decimals}f})"
        return f"{self.mean:.{decimals}f}"


class Line(NamedTuple):
    """One line of a table: a cell at each bit-width, None where nothing was measured."""

    task: str
    metric: str
    method: str
    cells: list[Cell | None]
    runs: int

    def texts(self, intervals: bool = True) -> list[str]:
        """Every cell as text."""
        decimals = METRICS.get(self.metric, ("", 1))[1]
        return ["-" if cell is None else cell.text(decimals, intervals) for cell in self.cells]


def pivot(rows: Sequence[Row], metrics: str | Sequence[str]) -> tuple[list[str], list[Line]]:
    """Bit-widths, and a line for each task, metric and method, all in the order the rows came.

    Rows of the same task, metric, method and bit-width are runs (seeds, folds) of one experiment.

    Raises:
        ValueError: a method whose measured bit-widths do not have the same number of runs.
    """
    metrics = [metrics] if isinstance(metrics, str) else metrics
    rows = [row for row in rows if row["metric"] in metrics]
    found: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for row in rows:
        by_bits = found.setdefault((row["task"], row["metric"], row["method"]), {})
        by_bits.setdefault(row["bit_width"], []).append(row)
    keys = ("bit_width", "task", "metric", "method")
    bit_widths, *orders = (list(dict.fromkeys(row[key] for row in rows)) for key in keys)
    lines = []
    for task, metric, method in product(*orders):
        if (task, metric, method) not in found:
            continue
        by_bits = found[task, metric, method]
        runs = {len(measured) for measured in by_bits.values()}
        if len(runs) != 1:
            raise ValueError(f"{method} on {task} was not measured equally often at {', '.join(by_bits)}")
        cells = [_cell(by_bits[bits]) if bits in by_bits else None for bits in bit_widths]
        lines.append(Line(task, metric, method, cells, runs.pop()))
    return bit_widths, lines


def retained_rows(rows: Sequence[Row], metrics: Sequence[str] = HEADLINES) -> list[Row]:
    """Rows of the metric `retained`, in percent of the same run's full precision.

    Probes bring theirs (`ssql.evaluation.probes`), with an interval. Of an error rate it is the share of words or
    characters that are still right, and a row that says how far it is above full precision has none. Worse than a
    constant answer is 0. Where full precision had no skill, no row is given.
    """
    full: dict[tuple[str, str, str], list[float]] = {}
    seen: Counter[tuple[str, str, str, str]] = Counter()
    for row in rows:
        if row["bit_width"] == "fp":
            full.setdefault((row["method"], row["task"], row["metric"]), []).append(row["value"])
    kept = []
    for row in rows:
        name = (row["method"], row["task"], row["metric"])
        if row["metric"] not in metrics or row.get("above_fp") is not None:
            continue
        run = seen[*name, row["bit_width"]]  # runs of the same name come in the same order at each bit-width
        seen[*name, row["bit_width"]] += 1
        if row.get("retained") is not None:
            ends = (("value", "retained"), ("low", "retained_low"), ("high", "retained_high"))
            share = {key: max(0.0, 100 * row[retained]) for key, retained in ends}
        elif row["metric"] in ERROR_RATES and run < len(full.get(name, [])) and full[name][run] < 100:
            share = {"value": 100 * (100 - row["value"]) / (100 - full[name][run]), "low": None, "high": None}
        else:
            continue
        kept.append(row | share | {"metric": "retained", "unit": "%"})
    return kept


def above_fp_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows of what error rates are above those of full precision on the same clips, of the rows that say so."""
    ends = (("value", "above_fp"), ("low", "above_fp_low"), ("high", "above_fp_high"))
    return [
        row | {key: row[above] for key, above in ends} | {"metric": f"{row['metric']}_above_fp", "unit": "points"}
        for row in rows
        if row.get("above_fp") is not None and row["bit_width"] != "fp"
    ]


def load_rows(path: Path) -> list[Row]:
    """Rows that `ssql evaluate`, `ssql suite` or `ssql finetune` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or not rows of results.
    """
    rows = read_strict_json(path)
    whole = isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= ROW_KEYS for row in rows)
    if not rows or not whole:
        raise ValueError(f"{path} does not hold rows of {', '.join(sorted(ROW_KEYS))}: give what ssql evaluate wrote")
    for number, row in enumerate(rows, start=1):
        _check_row(row, f"{path}, row {number}")
    # JSON has no NaN: a value that is not a number was written as null.
    return [row | {"value": float("nan")} if row["value"] is None else row for row in rows]


def load_different(files: Iterable[str | Path]) -> list[Row]:
    """The rows of several files, each measurement once: twice, it would become a mean and a deviation of 0.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not rows of results, or the same measurement twice.
    """
    places: dict[str, str] = {}
    merged = []
    for file in files:
        for number, row in enumerate(load_rows(Path(file)), start=1):
            place = f"{file}, row {number}"
            written = json.dumps(row, sort_keys=True)
            if written in places:
                raise ValueError(f"{place} is the same measurement as {places[written]}: give each once")
            places[written] = place
            merged.append(row)
    return merged


def _check_row(row: Row, place: str) -> None:
    """Raise ValueError where a row's words are no words, or its numbers no numbers."""
    for key in (WORDS | HASHES) & row.keys():
        if not isinstance(row[key], str) and not (key in HASHES and row[key] is None):
            raise ValueError(f"{place}: {key} must be text, not {row[key]!r:.40}")
    for key in NUMBERS & row.keys():
        if row[key] is not None and (isinstance(row[key], bool) or not isinstance(row[key], int | float)):
            raise ValueError(f"{place}: {key} must be a number or null, not {row[key]!r:.40}")
    try:
        parse_bit_width(row["bit_width"])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    for key in ("clips", "size_bytes", "tokens"):
        if (row.get(key) or 0) < 0:
            raise ValueError(f"{place}: {key} must be 0 or more, not {row[key]}")
        if isinstance(row.get(key), float) and not row[key].is_integer():
            raise ValueError(f"{place}: {key} is counted: a whole number, not {row[key]}")
    for key in ("value", "low", "high", "chance"):
        if (row["metric"] in ACCURACIES or key == "chance") and not 0 <= (row.get(key) or 0) <= 100:
            raise ValueError(f"{place}: {'an accuracy' if key == 'value' else key} is from 0 to 100 %, not {row[key]}")
        if row["metric"] in (*ERROR_RATES, "insertions", "distance", "mae") and (row.get(key) or 0) < 0:
            raise ValueError(f"{place}: {row['metric']} is 0 or more, not {row[key]} ({key})")
    low, high = row.get("low"), row.get("high")
    if low is not None and high is not None and low > high:
        raise ValueError(f"{place}: its interval goes from low to high, not from {low} to {high}")
    if row.get("retained") is not None and (row.get("retained_low") is None or row.get("retained_high") is None):
        raise ValueError(f"{place} has retained without retained_low and retained_high")


def results_of(path: Path, weights_sha256: str, head_sha256: str | None, encoder: str) -> dict[str, dict[str, float]]:
    """What a file of results says of an encoder as it is saved: bit-width to the result of each task, by its name.

    Rows carry the hash of what was measured, so results of other encoders, other ranges (a quantizer that is not
    `as_saved`) and exported files may stand beside them; they are left out.

    Args:
        path: that `ssql evaluate`, `ssql suite` or `ssql finetune` wrote.
        weights_sha256: of the encoder: `encoders.weights_sha256`.
        head_sha256: of the head beside it, if there is one: `encoders.state_sha256`.
        encoder: its folder, for errors.

    Raises:
        ValueError: rows that do not say what they measured, none of this very encoder and head, or two results of one
            name.
    """
    rows = [row for row in load_rows(path) if "file_sha256" not in row]
    again = f"measure it again as it is saved (ssql evaluate --encoders.mine {encoder} ...) and give that file"
    if not any(row.get("weights_sha256") for row in rows):
        raise ValueError(f"{path} does not say which weights its results are of: {again}")
    of_weights = [row for row in rows if row.get("weights_sha256") == weights_sha256]
    if not of_weights:
        others = sorted({str(row["weights_sha256"])[:8] for row in rows if row.get("weights_sha256")})
        raise ValueError(
            f"{path} holds results of other weights or other ranges ({', '.join(others)}) than those of {encoder} "
            f"({weights_sha256[:8]}): {again}"
        )
    measured = [row for row in of_weights if row.get("head_sha256") in (None, head_sha256)]
    if not measured:
        other = of_weights[0]["head_sha256"][:8]
        own = "no head" if head_sha256 is None else f"the head {head_sha256[:8]}"
        raise ValueError(f"{path} holds results of the head {other}, {encoder} has {own}: test that head again")
    results: dict[str, dict[str, float]] = {}
    for row in measured:
        if row["metric"] in ON_CARDS:
            by_name, name = results.setdefault(row["bit_width"], {}), _result_name(row)
            if by_name.setdefault(name, row["value"]) != row["value"]:
                raise ValueError(f"{path} has two results of {name} at {row['bit_width']}: give a file with one")
    return results


def results_of_file(rows: Sequence[Row], path: Path) -> dict[str, float]:
    """What rows say of one exported file, by its hash: the result of each task, by its name."""
    sha256 = file_sha256(path)
    of_file = [row for row in rows if row.get("file_sha256") == sha256 and row["metric"] in ON_CARDS]
    return {_result_name(row): row["value"] for row in of_file}


def _result_name(row: Row) -> str:
    """`word, %, n = 300`, `digit, %, linear probe, n = 300` (clips); of another runtime `word, %, openvino at bf16`."""
    measure = "%" if row["metric"] in ("linear", "accuracy") else metric_name(row["metric"])
    probe = ", linear probe" if row["metric"] in ("linear", "r2") and "head_sha256" not in row else ""
    place = f", {row['runtime']} at {row['precision']}" if other_runtimes([row]) else ""
    count = f", n = {row['clips']}" if row.get("clips") else ""
    return f"{row['task']}, {measure}{probe}{place}{count}"


def _cell(measured: list[Row]) -> Cell:
    values = [row["value"] for row in measured]
    if len(values) > 1:
        return Cell(mean(values), stdev(values))
    return Cell(values[0], None, measured[0].get("low"), measured[0].get("high"))
