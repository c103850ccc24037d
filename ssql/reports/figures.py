"""The pictures of reports, with matplotlib; as PNG files, or as SVG that takes its colours from the page around it."""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quant import Sensitivity
from ssql.reports.rows import HEADLINES, Line, Row, metric_name, other_runtimes, pivot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4


class Histogram(NamedTuple):
    """How the values of one tensor are spread.

    Attributes:
        counts: shape (bins,).
        edges: shape (bins + 1,).
        percentiles: at 0, 0.1, 1, 50, 99, 99.9 and 100 %.
    """

    counts: np.ndarray
    edges: np.ndarray
    percentiles: np.ndarray


def accuracy_figure(rows: Sequence[Row], metrics: str | Sequence[str] = HEADLINES) -> "Figure":
    """A metric against bit-width: a panel for each task and metric, a line for each method, with its intervals."""
    bit_widths, lines = pivot(rows, metrics)
    methods = list(dict.fromkeys(line.method for line in lines))

    def places(line: Line) -> list[float]:
        # Side by side, so that no error bar hides another.
        offset = 0.06 * (methods.index(line.method) - (len(methods) - 1) / 2)
        return [place + offset for place in range(len(bit_widths))]

    figure, axes = _lines_figure(lines, methods, places, "-")
    for axis in axes:
        axis.set_xticks(range(len(bit_widths)), bit_widths)
        axis.set_xlabel("bit-width")
    return figure


def size_figure(rows: Sequence[Row], metrics: str | Sequence[str] = HEADLINES) -> "Figure":
    """The same metrics against the size of the weights; rows without `size_bytes` are left out."""
    rows = [row for row in rows if row.get("size_bytes")]
    bit_widths, lines = pivot(rows, metrics)
    methods = list(dict.fromkeys(line.method for line in lines))
    sizes = {(row["method"], row["bit_width"]): row["size_bytes"] / 1e6 for row in rows}

    def places(line: Line) -> list[float]:
        return [sizes.get((line.method, bits), float("nan")) for bits in bit_widths]

    figure, axes = _lines_figure(lines, methods, places, "")
    for axis in axes:
        axis.set(xscale="log", xlabel="size, MB")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
    return figure


def sensitivity_figure(sensitivities: Sequence[Sensitivity]) -> "Figure":
    """Error of the embeddings against the weight bits of one layer alone: a line of cells a layer, log scale."""
    layers = list(dict.fromkeys(row.layer for row in sensitivities))
    bits = sorted({row.bits for row in sensitivities})
    errors = np.full((len(layers), len(bits)), np.nan)
    for row in sensitivities:
        errors[layers.index(row.layer), bits.index(row.bits)] = 100 * row.error
    figure = _figure(7.5, 1.2 + 0.26 * len(layers))
    axis = figure.subplots()
    numbers = [[f"{error:.2g}" for error in line] for line in errors]
    _cells(axis, np.log10(errors.clip(1e-6)), numbers, layers, [f"w{b}" for b in bits])
    axis.set_title("squared error of the embeddings, % of their variance")
    return figure


def retained_figure(rows: Sequence[Row]) -> "Figure":
    """What is retained of full precision, in percent: a panel for each method, a line of cells for each task.

    Args:
        rows: of `retained_rows`.
    """
    bit_widths, lines = pivot(rows, "retained")
    methods = list(dict.fromkeys(line.method for line in lines))
    tasks = list(dict.fromkeys(line.task for line in lines))
    figure = _figure(2.2 + (0.5 + 0.62 * len(bit_widths)) * len(methods), 1.0 + 0.26 * len(tasks))
    axes = figure.subplots(1, max(len(methods), 1), squeeze=False, sharey=True)[0]
    for axis, method in zip(axes, methods, strict=False):
        shares = np.full((len(tasks), len(bit_widths)), np.nan)
        for line in lines:
            if line.method == method:
                shares[tasks.index(line.task)] = [np.nan if cell is None else cell.mean for cell in line.cells]
        numbers = [["-" if np.isnan(share) else f"{share:.0f}" for share in line] for line in shares]
        _cells(axis, shares.clip(0, 100), numbers, tasks, bit_widths, ends=(0, 100))
        axis.set_title(method)
    figure.suptitle("retained of full precision, %")
    return figure


def latency_figure(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Rows of `export.measure_files`: latency of each file, a panel for each clip length and number of threads.

    Runtimes are named where there is another than ONNX Runtime.
    """
    named = other_runtimes(rows)
    panels = list(dict.fromkeys((row["seconds"], row["threads"]) for row in rows))
    figure, axes = _panels(len(panels), 4.8, 3.2)
    for axis, (seconds, threads) in zip(axes, panels, strict=True):
        shown = [row for row in rows if (row["seconds"], row["threads"]) == (seconds, threads)][::-1]
        names = [f"{row['file'].removesuffix('.onnx')}, {row['size_bytes'] / 1e6:.1f} MB" for row in shown]
        if named:
            names = [f"{name}\n{row['runtime']} {row['precision']}" for name, row in zip(names, shown, strict=True)]
        axis.barh(names, [row["latency_ms"] for row in shown], color="C0", alpha=0.4, label="median")
        axis.barh(names, [row["fastest_ms"] for row in shown], color="C0", label="fastest")
        for row, name in zip(shown, names, strict=True):
            axis.annotate(f" {row['speedup']:.2f}×", (row["latency_ms"], name), va="center")
        what = f"{seconds:g} s clip" if seconds else "one image"
        axis.set(title=f"{what}, {threads or 'default'} thread{'s' * (threads != 1)}", xlabel="ms")
        axis.margins(x=0.3)
    _legend(figure, axes, ["fastest", "median"])
    return figure


def histogram_figure(histograms: Mapping[str, Histogram]) -> "Figure":
    """A panel for each tensor: counts on a log scale, and the middle 99.8 % between lines."""
    figure, axes = _panels(len(histograms), 3.2, 2.1)
    for axis, (name, histogram) in zip(axes, histograms.items(), strict=True):
        axis.stairs(histogram.counts, histogram.edges, fill=True, color="C0")
        for end in histogram.percentiles[[1, 5]]:
            axis.axvline(end, color="C1", linewidth=1, linestyle="--")
        axis.set_yscale("symlog", linthresh=1)
        axis.set_yticks([])
        axis.set_title(name, fontsize=9)
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(labelsize=8)
    return figure


def training_figure(curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]) -> "Figure":
    """A panel for each logged quantity, a line for each run.

    Args:
        curves: quantity to run to (steps, values).
    """
    runs = list(dict.fromkeys(run for lines in curves.values() for run in lines))
    figure, axes = _panels(len(curves), 4.2, 2.8)
    for axis, (quantity, lines) in zip(axes, curves.items(), strict=True):
        for run, (steps, values) in lines.items():
            axis.plot(steps, values, color=f"C{runs.index(run)}", label=run, linewidth=1.2)
        axis.set(title=quantity, xlabel="step")
    _legend(figure, axes, runs)
    return figure


def as_svg(figure: "Figure", name: str, label: str) -> str:
    """The figure as an `<svg>` element for an HTML page: text as text, black as the page's colour, no background.

    Args:
        figure: drawn by this module.
        name: prefix of all ids inside, different for each figure of a page.
        label: read by screen readers.
    """
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'( id="|"#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("#000000", "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def _figure(width: float, height: float) -> "Figure":
    # Not pyplot: no display, no global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _panels(count: int, width: float, height: float) -> tuple["Figure", list["Axes"]]:
    columns = min(max(count, 1), COLUMNS)
    lines = max(-(-count // columns), 1)
    figure = _figure(width * columns, height * lines + 0.3)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    for axis in axes[:count]:
        axis.grid(alpha=0.3)
    return figure, axes[:count]


def _cells(
    axis: "Axes",
    levels: np.ndarray,
    numbers: Sequence[Sequence[str]],
    names: Sequence[str],
    heads: Sequence[str],
    ends: tuple[float, float] | None = None,
) -> None:
    """Cells with numbers, (names, heads), coloured but where NaN; `ends` are the levels of the darkest and lightest."""
    darkest, lightest = ends or (levels.min(), levels.max())
    columns, rows = np.arange(len(heads) + 1) - 0.5, np.arange(len(names) + 1) - 0.5
    # A mesh and not an image, which SVG would hold as a bitmap.
    axis.pcolormesh(columns, rows, levels, cmap="viridis", vmin=darkest, vmax=lightest)
    for (line, column), level in np.ndenumerate(levels):
        # Dark numbers on light cells and the other way round; black becomes the page's own colour.
        colour = "#111111" if level > darkest + 0.6 * (lightest - darkest) else "#f8f8f8"
        colour = "#000000" if np.isnan(level) else colour
        axis.text(column, line, numbers[line][column], ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(heads)), heads)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)


def _lines_figure(
    lines: Sequence[Line], methods: Sequence[str], places: Callable[[Line], list[float]], linestyle: str
) -> tuple["Figure", list["Axes"]]:
    """A panel for each task and metric, a colour for each method, one legend."""
    panels = list(dict.fromkeys((line.task, line.metric) for line in lines))
    figure, axes = _panels(len(panels), 4.2, 3.6)
    for axis, (task, metric) in zip(axes, panels, strict=True):
        for line in lines:
            if (line.task, line.metric) == (task, metric):
                drawn = [(x, cell) for x, cell in zip(places(line), line.cells, strict=True) if cell is not None]
                axis.errorbar(
                    [x for x, _ in drawn], [cell.mean for _, cell in drawn],
                    np.array([cell.arms for _, cell in drawn]).reshape(-1, 2).T, marker="o", markersize=4, capsize=2,
                    color=f"C{methods.index(line.method)}", linestyle=linestyle, elinewidth=1, label=line.method,
                )  # fmt: skip
        axis.set(title=task, ylabel=metric_name(metric))
    _legend(figure, axes, methods)
    return figure, axes


def _legend(figure: "Figure", axes: Sequence["Axes"], names: Sequence[str]) -> None:
    """One legend for all panels, below them."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    shown = [name for name in names if name in handles]
    if not shown:  # matplotlib refuses an empty legend
        return
    drawn = [handles[name] for name in shown]
    figure.legend(handles=drawn, labels=shown, loc="outside lower center", ncols=min(4, len(shown)), frameon=False)
