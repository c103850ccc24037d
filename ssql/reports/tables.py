"""Rows as tables for the terminal and for a README."""

from collections.abc import Sequence

from rich import box
from rich.table import Column, Table

from quant import Policy, RoundedLayer, Sensitivity
from ssql.reports.rows import FP_HEADS, HEADLINES, Row, above_fp_rows, metric_name, other_runtimes, pivot, retained_rows


def terminal_table(
    rows: Sequence[Row],
    metrics: str | Sequence[str] = "linear",
    title: str = "test",
    intervals: bool = False,
) -> Table:
    """A line for each task and method, a column for each bit-width; several metrics have a column for their name."""
    heads, lines = _table(rows, metrics, intervals)
    table = Table(*heads, title=f"{title} {metric_name(metrics)}" if isinstance(metrics, str) else title)
    if intervals:
        table.caption = intervals_sentence([row for row in rows if row["metric"] == metrics])
    for line in lines:
        table.add_row(*line)
    return table


def markdown_table(rows: Sequence[Row], metrics: str | Sequence[str] = "linear") -> str:
    """The same table in Markdown, with intervals of 95 % where they are known."""
    heads, lines = _table(rows, metrics, intervals=True)
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (heads, *lines))
    first, *rest = (f"| {' | '.join(line)} |\n" for line in cells)
    return "".join([first, f"| {' | '.join(['---'] * len(heads))} |\n", *rest])


def markdown_report(rows: Sequence[Row]) -> str:
    """A table for each metric, and what is retained of full precision."""
    metrics = dict.fromkeys(row["metric"] for row in rows)
    tables = {metric_name(metric): markdown_table(rows, metric) for metric in metrics}
    above = above_fp_rows(rows)
    for metric in dict.fromkeys(row["metric"] for row in above):
        tables[metric_name(metric)] = markdown_table(above, metric)
    kept = retained_rows(rows)
    if any(row["bit_width"] != "fp" for row in kept):
        tables[metric_name("retained")] = markdown_table(kept, "retained")
    parts = [f"**{name}**\n\n{table}" for name, table in tables.items()]
    sentence = intervals_sentence(rows)
    return "\n".join([*parts, f"{sentence[0].upper()}{sentence[1:]}.\n"] if sentence else parts)


def intervals_sentence(rows: Sequence[Row]) -> str:
    """What the intervals of a table are of, with the number of clips or images that were measured."""
    counts = sorted({row["clips"] for row in rows if row.get("clips")})
    if not counts:
        return ""
    if counts[-1] == 1:
        return "measured on 1 clip alone: its interval says nothing"
    most = f"{counts[0]:,} to {counts[-1]:,}" if len(counts) > 1 else f"{counts[0]:,}"
    known = any(row.get("low") is not None for row in rows)
    return f"in brackets the interval of 95 %, over {most} clips" if known else f"over {most} clips"


def suite_report(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """What the suite found, in Markdown: each task by its own metric, and what is left of full precision.

    Args:
        rows: of the suite, and of whatever else was measured at these bit-widths.
        notes: sentences to begin with, such as what was left out.
    """
    at_bits, at_full = retained_rows(rows, HEADLINES), retained_rows(rows, FP_HEADS)
    parts = [f"{note}.\n" for note in notes]
    parts += ["**Each task, the head trained at the bit-width**\n", markdown_table(rows, HEADLINES)]
    for title, kept in (
        ("**Retained of full precision, %, the head trained at the bit-width**\n", at_bits),
        ("**Retained of full precision, %, the head trained at full precision**\n", at_full),
    ):
        parts += [title, markdown_table(kept, "retained")] if kept else []
    parts.append(
        "Intervals of 95 %: Wilson for accuracies, bootstrap over test clips for R2 and for what is retained. "
        "Retained: accuracy above that of the most frequent class, or R2, divided by the same at full precision on "
        "the same clips; worse than a constant answer is 0. A task without a line there was not above chance at full "
        "precision.\n"
    )
    return "\n".join(parts)


def _table(rows: Sequence[Row], metrics: str | Sequence[str], intervals: bool) -> tuple[list[str], list[list[str]]]:
    bit_widths, lines = pivot(rows, metrics)
    if isinstance(metrics, str):
        return ["task", "method", *bit_widths], [[line.task, line.method, *line.texts(intervals)] for line in lines]
    return ["task", "metric", "method", *bit_widths], [
        [line.task, metric_name(line.metric), line.method, *line.texts(intervals)] for line in lines
    ]


def latency_tables(rows: Sequence[Row]) -> tuple[Table, Table]:
    """Rows of `export.measure_files`: a line for each file, and one for each number of threads and clip length.

    Runtimes are named where there is another than ONNX Runtime.
    """
    named = other_runtimes(rows)
    file = Column("file, runtime" if named else "file", no_wrap=True)
    files = Table(file.copy(), "MB", "size", "start ms", "memory MB", box=box.SIMPLE)
    files.title = "Size, also against the first file; start and memory of a process that runs the longest clip"
    for row in {_file(row, named): row for row in rows}.values():
        memory = f"{row['peak_memory_bytes'] / 1e6:.0f}" if row["peak_memory_bytes"] else "-"
        size = f"{row['size_bytes'] / 1e6:.2f}", f"{row['size_ratio']:.3f}"
        files.add_row(_file(row, named), *size, f"{row['cold_start_ms']:.0f}", memory)
    latencies = Table(file.copy(), "threads", "clip s", "ms", "spread", "fastest", "speed-up", "RTF", box=box.SIMPLE)
    latencies.title = "Latency: median, 10th to 90th percentile; speed-up of the fastest runs; real-time factor"
    for row in rows:
        latencies.add_row(
            _file(row, named),
            str(row["threads"] or "default"),
            f"{row['seconds']:g}",
            f"{row['latency_ms']:.2f}",
            f"{row['spread_ms']:.2f}",
            f"{row['fastest_ms']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['real_time_factor']:.4f}" if row["real_time_factor"] else "-",
        )
    return files, latencies


def _file(row: Row, named: bool) -> str:
    """A file, and on a line of their own its runtime and precision where these are named."""
    return row["file"].removesuffix(".onnx") + (f"\n  {row['runtime']}, {row['precision']}" if named else "")


def rounding_table(rows: Sequence[RoundedLayer], bit_width: str) -> Table:
    """A line for each layer: what its weight's rounding costs its outputs."""
    table = Table("layer", "bits", "nearest integers", "chosen integers")
    table.title = f"{bit_width}: what a layer's weight on integers changes of its outputs, % of their variance"
    for row in rows:
        table.add_row(row.layer, str(row.bits), f"{100 * row.nearest:.3f}", f"{100 * row.error:.3f}")
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
