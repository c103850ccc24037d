"""Accuracy rows as a table for the terminal, a table for a README, a JSON file and a plot."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

Row = dict[str, Any]


def pivot(rows: Sequence[Row], metric: str) -> tuple[list[str], list[tuple[str, str, list[float]]]]:
    """Bit-widths, and (task, method, value at each bit-width) in the order the rows came."""
    rows = [row for row in rows if row["metric"] == metric]
    bit_widths = list(dict.fromkeys(row["bit_width"] for row in rows))
    values = {(row["task"], row["method"], row["bit_width"]): row["value"] for row in rows}
    pairs = dict.fromkeys((row["task"], row["method"]) for row in rows)
    lines = [(task, method, [values[task, method, b] for b in bit_widths]) for task, method in sorted(pairs)]
    return bit_widths, lines


def terminal_table(rows: Sequence[Row], metric: str = "linear") -> Table:
    """Accuracy in percent, a line for each task and method, a column for each bit-width."""
    bit_widths, lines = pivot(rows, metric)
    table = Table("task", "method", *bit_widths, title=f"test accuracy, % ({metric})")
    for task, method, values in lines:
        table.add_row(task, method, *(f"{value:.1f}" for value in values))
    return table


def markdown_table(rows: Sequence[Row], metric: str = "linear") -> str:
    """The same table in Markdown."""
    bit_widths, lines = pivot(rows, metric)
    head = f"| task | method | {' | '.join(bit_widths)} |\n|{' --- |' * (len(bit_widths) + 2)}\n"
    body = (f"| {task} | {method} | {' | '.join(f'{v:.1f}' for v in values)} |" for task, method, values in lines)
    return head + "\n".join(body) + "\n"


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


def save_json(value: Any, path: Path) -> None:
    """Write JSON to a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.tmp")
    staging.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(staging, path)


def save_plot(rows: Sequence[Row], path: Path, metric: str = "linear") -> None:
    """Accuracy against bit-width, a panel for each task, a line for each method, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bit_widths, lines = pivot(rows, metric)
    tasks = list(dict.fromkeys(task for task, _, _ in lines))
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        for name, method, values in lines:
            if name == task:
                axis.plot(bit_widths, values, marker="o", label=method)
        axis.set(title=task, xlabel="bit-width", ylabel=f"test accuracy, % ({metric})")
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.tmp")
    figure.savefig(staging, dpi=120, format="png")
    pyplot.close(figure)
    os.replace(staging, path)
