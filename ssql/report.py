"""Accuracy rows as a table for the terminal, a table for a README, a JSON file and a plot."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from rich.table import Table

from quant import Policy, Sensitivity

Row = dict[str, Any]


class Line(NamedTuple):
    """One line of a table: mean and deviation at each bit-width over the runs that were merged."""

    task: str
    method: str
    means: list[float]
    deviations: list[float]
    runs: int

    def cells(self) -> list[str]:
        """`78.3`, or `78.3 ± 1.2` (sample standard deviation) when there are several runs."""
        if self.runs == 1:
            return [f"{mean:.1f}" for mean in self.means]
        return [f"{mean:.1f} ± {spread:.1f}" for mean, spread in zip(self.means, self.deviations, strict=True)]


def pivot(rows: Sequence[Row], metric: str) -> tuple[list[str], list[Line]]:
    """Bit-widths in the order the rows came, and a line for each task and method.

    Rows of the same task, method and bit-width are runs (seeds, folds) of one experiment.

    Raises:
        ValueError: a method whose bit-widths do not have the same number of runs.
    """
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    rows = [row for row in rows if row["metric"] == metric]
    for row in rows:
        by_bits = values.setdefault((row["task"], row["method"]), {})
        by_bits.setdefault(row["bit_width"], []).append(row["value"])
    bit_widths = list(dict.fromkeys(row["bit_width"] for row in rows))
    lines = []
    for (task, method), by_bits in sorted(values.items()):
        runs = {len(by_bits.get(bit_width, [])) for bit_width in bit_widths}
        if len(runs) != 1:
            raise ValueError(f"{method} on {task} was not measured equally often at {', '.join(bit_widths)}")
        means = [mean(by_bits[bit_width]) for bit_width in bit_widths]
        several = runs != {1}
        deviations = [stdev(by_bits[bit_width]) if several else 0.0 for bit_width in bit_widths]
        lines.append(Line(task, method, means, deviations, runs.pop()))
    return bit_widths, lines


def terminal_table(rows: Sequence[Row], metric: str = "linear") -> Table:
    """Accuracy in percent, a line for each task and method, a column for each bit-width."""
    bit_widths, lines = pivot(rows, metric)
    table = Table("task", "method", *bit_widths, title=f"test accuracy, % ({metric})")
    for line in lines:
        table.add_row(line.task, line.method, *line.cells())
    return table


def markdown_table(rows: Sequence[Row], metric: str = "linear") -> str:
    """The same table in Markdown."""
    bit_widths, lines = pivot(rows, metric)
    head = f"| task | method | {' | '.join(bit_widths)} |\n|{' --- |' * (len(bit_widths) + 2)}\n"
    return head + "".join(f"| {line.task} | {line.method} | {' | '.join(line.cells())} |\n" for line in lines)


def latency_table(rows: Sequence[Row]) -> Table:
    """Rows of `export.measure_files`: a line for each file and clip length."""
    table = Table("file", "MB", "size", "start ms", "clip s", "latency ms", "speed-up", "real-time factor")
    table.title = "ONNX Runtime on this machine; size and speed-up against the first file"
    for row in rows:
        table.add_row(
            row["file"].removesuffix(".onnx"),
            f"{row['size_bytes'] / 1e6:.2f}",
            f"{row['size_ratio']:.3f}",
            f"{row['cold_start_ms']:.0f}",
            f"{row['seconds']:g}",
            f"{row['latency_ms']:.2f} ± {row['spread_ms'] / 2:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['real_time_factor']:.5f}" if row["real_time_factor"] else "-",
        )
    return table


def sensitivity_table(rows: Sequence[Sensitivity], policy: Policy) -> Table:
    """A line for each layer: error of the embeddings at each bit-width, size, and what the policy chose."""
    errors = {(row.layer, row.bits): row.error for row in rows}
    weights = {row.layer: row.size for row in rows if row.bits == max(r.bits for r in rows)}
    bits = sorted({row.bits for row in rows})
    table = Table("layer", *(f"w{b}" for b in bits), "kB at most", "chosen")
    table.title = "squared error of the embeddings, % of their variance, with this layer alone quantized"
    for layer, size in weights.items():
        shares = (f"{100 * errors[layer, b]:.3f}" for b in bits)
        table.add_row(layer, *shares, f"{size / 1000:.1f}", policy.layers[layer])
    return table


def load_rows(path: Path) -> list[Row]:
    """Rows that `ssql evaluate` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or not rows of accuracy.
    """
    try:
        rows = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    keys = {"method", "task", "bit_width", "metric", "value"}
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and keys <= row.keys() for row in rows):
        raise ValueError(f"{path} does not hold rows of {', '.join(sorted(keys))}: give what ssql evaluate wrote")
    return rows


def save_json(value: Any, path: Path) -> None:
    """Write JSON to a temporary name, then rename."""
    save_text(json.dumps(value, indent=1) + "\n", path)


def save_text(text: str, path: Path) -> None:
    """Write text to a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.tmp")
    staging.write_text(text)
    os.replace(staging, path)


def save_plot(rows: Sequence[Row], path: Path, metric: str = "linear") -> None:
    """Accuracy against bit-width, a panel for each task, a line for each method, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bit_widths, lines = pivot(rows, metric)
    tasks = list(dict.fromkeys(line.task for line in lines))
    methods = list(dict.fromkeys(line.method for line in lines))
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.9), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        for line in lines:
            if line.task == task:
                # Side by side, so that no error bar hides another.
                offset = 0.06 * (methods.index(line.method) - (len(methods) - 1) / 2)
                axis.errorbar(
                    [place + offset for place in range(len(bit_widths))], line.means,
                    line.deviations if line.runs > 1 else None, marker="o", markersize=4, capsize=3,
                    color=f"C{methods.index(line.method)}", label=line.method,
                )  # fmt: skip
        axis.set_xticks(range(len(bit_widths)), bit_widths)
        axis.set(title=task, xlabel="bit-width", ylabel=f"test accuracy, % ({metric})")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(methods)))
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.tmp")
    figure.savefig(staging, dpi=120, format="png")
    pyplot.close(figure)
    os.replace(staging, path)
