"""One self-contained HTML page about one or more runs: `ssql report`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup

import quant
from encoders import Encoder
from ssql.data import DataModule
from ssql.evaluation.calibration import prepare_anew, sensitivities_on
from ssql.reports import figures
from ssql.reports.inspection import PERCENTILES, activation_histograms, range_table, weight_histograms
from ssql.reports.rows import FP_HEADS, HEADLINES, Row, metric_name, pivot, retained_rows
from ssql.reports.run_contents import Run, differences

TEMPLATE = Path(__file__).with_name("page.html")
BIT_WIDTHS = ("fp", "w8a8", "w4a8", "w2a8")


@dataclass
class Block:
    """A part of a section: pictures, and beside them their numbers as a table.

    Attributes:
        title: of the block.
        pictures: `<svg>` elements.
        heads: of the table's columns; no table when empty.
        lines: of the table.
        choice: what the section's filter shows this block for; always shown when empty.
        text: preformatted.
    """

    title: str
    pictures: list[Markup] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    lines: list[list[str]] = field(default_factory=list)
    choice: str = ""
    text: str = ""


@dataclass
class Section:
    """A section of the page.

    Attributes:
        name: its anchor.
        title: its heading.
        blocks: in order.
        note: what the reader must know.
        filter: what the choices of the blocks are; no filter when empty.
    """

    name: str
    title: str
    blocks: list[Block]
    note: str = ""
    filter: str = ""


def report_page(runs: Sequence[Run], data: DataModule | None = None, batches: int = 1) -> str:
    """The page as HTML: it needs no other file and no network.

    Args:
        runs: at least one.
        data: for what only data can show: sensitivities and activations, on its first training batches.
        batches: how many of them.
    """
    rows = [row for run in runs for row in run.rows]
    sections = [_overview(runs)]
    if any(row["metric"] in HEADLINES for row in rows):
        sections += [_retained(rows), _accuracy(rows), _tables(rows)]
    encoders = {run.name: run.encoder for run in runs if run.encoder is not None}
    for encoder in encoders.values():
        prepare_anew(encoder, None)
    if data is not None and encoders:
        sections.append(_sensitivity(encoders, data, batches))
    if encoders:
        sections.append(_ranges(encoders, data, batches))
    if any(run.curves for run in runs):
        sections.append(_training(runs))
    if any(run.configuration for run in runs):
        sections.append(_configuration(runs))
    sections = [section for section in sections if section.blocks]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    title = f"SSQL report: {', '.join(run.name for run in runs)}"
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(title=title, sections=sections)


def _overview(runs: Sequence[Run]) -> Section:
    lines = []
    for run in runs:
        sizes = ["-"] * (1 + len(BIT_WIDTHS))
        if run.encoder is not None:
            prepare_anew(run.encoder, None)
            megabytes = [quant.model_bytes(run.encoder, bits) / 1e6 for bits in BIT_WIDTHS]
            parameters = sum(parameter.numel() for parameter in run.encoder.parameters())
            sizes = [f"{parameters / 1e6:.2f}", *(f"{size:.2f}" for size in megabytes)]
        name = run.encoder.name if run.encoder is not None else "-"
        steps = max((steps[-1] for steps, _ in run.curves.values()), default=None)
        tasks = len({row["task"] for row in run.rows})
        lines.append([run.name, name, *sizes, "-" if steps is None else f"{steps + 1:.0f}", str(tasks)])
    heads = ["run", "encoder", "million parameters", *(f"MB at {bits}" for bits in BIT_WIDTHS), "steps", "tasks"]
    note = "Sizes are of the weights: packed integers and their scales at the bit-width, all else float32."
    return Section("overview", "Runs", [Block("", heads=heads, lines=lines)], note)


def _retained(rows: Sequence[Row]) -> Section:
    blocks: list[Block] = []
    for title, metrics in (("the head trained at the bit-width", HEADLINES), ("the head trained at fp", FP_HEADS)):
        kept = retained_rows(rows, metrics)
        if any(row["bit_width"] != "fp" for row in kept):
            picture = _svg(figures.retained_figure(kept), f"retained{len(blocks)}", f"retained, {title}")
            blocks.append(_results(title, kept, "retained", title, [picture]))
    note = (
        "Accuracy above that of the most frequent class, R2, or words still right, divided by the same at full "
        "precision; worse than a constant answer is 0."
    )
    return Section("retained", "What is retained of full precision", blocks, note, "probe")


def _accuracy(rows: Sequence[Row]) -> Section:
    blocks = []
    panels = dict.fromkeys((row["task"], row["metric"]) for row in rows if row["metric"] in HEADLINES)
    for number, (task, metric) in enumerate(panels):
        chosen = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
        pictures = [_svg(figures.accuracy_figure(chosen), f"bits{number}", f"{task} against bit-width")]
        if any(row.get("size_bytes") for row in chosen):
            pictures.append(_svg(figures.size_figure(chosen), f"size{number}", f"{task} against size"))
        bit_widths, lines = pivot(chosen, metric)
        table = [[line.method, *line.texts()] for line in lines]
        blocks.append(Block(f"{task}: {metric_name(metric)}", pictures, ["method", *bit_widths], table, task))
    note = "Bars and brackets: 95 % over test clips, or the deviation of several runs (±)."
    return Section("accuracy", "Accuracy against bits and size", blocks, note, "task")


def _tables(rows: Sequence[Row]) -> Section:
    names = {metric: metric_name(metric) for metric in dict.fromkeys(row["metric"] for row in rows)}
    blocks = [_results(name, rows, metric, name) for metric, name in names.items()]
    return Section("tables", "Comparison: all tasks and metrics", blocks, filter="metric")


def _results(title: str, rows: Sequence[Row], metric: str, choice: str, pictures: Sequence[Markup] = ()) -> Block:
    bit_widths, lines = pivot(rows, metric)
    table = [[line.task, line.method, *line.texts()] for line in lines]
    return Block(title, list(pictures), ["task", "method", *bit_widths], table, choice)


def _sensitivity(encoders: Mapping[str, Encoder], data: DataModule, batches: int) -> Section:
    blocks = []
    for number, (name, encoder) in enumerate(encoders.items()):
        rows = sensitivities_on(encoder, data, batches)
        bits = sorted({row.bits for row in rows})
        errors = {(row.layer, row.bits): 100 * row.error for row in rows}
        table = [
            [layer, *(f"{errors[layer, b]:.3g}" for b in bits)] for layer in dict.fromkeys(row.layer for row in rows)
        ]
        picture = _svg(figures.sensitivity_figure(rows), f"sensitivity{number}", f"sensitivity of the layers of {name}")
        blocks.append(Block(name, [picture], ["layer", *(f"w{b}" for b in bits)], table, name))
    note = (
        "One layer's weight alone at few bits, everything else at full precision: squared error of the embeddings, in "
        "percent of their variance."
    )
    return Section("sensitivity", "Sensitivity of each layer", blocks, note, "run")


def _ranges(encoders: Mapping[str, Encoder], data: DataModule | None, batches: int) -> Section:
    blocks = []
    heads = ["layer", *("min" if p == 0 else "max" if p == 100 else f"{p:g} %" for p in PERCENTILES)]
    for number, (name, encoder) in enumerate(encoders.items()):
        spreads = {"weights": weight_histograms(encoder)}
        if data is not None:
            spreads["activations"] = activation_histograms(encoder, data, batches)
        for what, spread in spreads.items():
            label = f"{what} of {name}"
            picture = _svg(figures.histogram_figure(spread), f"{what}{number}", label)
            blocks.append(Block(label, [picture], heads, range_table(spread), name))
    note = "Counts on a logarithmic scale; 99.8 % of the values lie between the dashed lines."
    return Section("ranges", "Ranges of weights and activations", blocks, note, "run")


def _training(runs: Sequence[Run]) -> Section:
    quantities = dict.fromkeys(quantity for run in runs for quantity in run.curves)
    curves = {q: {run.name: run.curves[q] for run in runs if q in run.curves} for q in quantities}
    picture = _svg(figures.training_figure(curves), "training", "training curves")
    table = [
        [quantity, name, f"{values[0]:.4g}", f"{values[-1]:.4g}", f"{min(values):.4g}", f"{max(values):.4g}"]
        for quantity, lines in curves.items()
        for name, (_, values) in lines.items()
    ]
    heads = ["quantity", "run", "first", "last", "least", "most"]
    return Section("training", "Training", [Block("", [picture], heads, table)])


def _configuration(runs: Sequence[Run]) -> Section:
    configurations = {run.name: run.configuration for run in runs if run.configuration}
    blocks = []
    if len(configurations) > 1:
        lines = [[name, *values] for name, values in differences(configurations).items()]
        blocks.append(Block("Where the runs differ", heads=["setting", *configurations], lines=lines))
    blocks += [Block(name, text=text) for name, text in configurations.items()]
    return Section("configuration", "Configuration", blocks)


def _svg(figure: "figures.Figure", name: str, label: str) -> Markup:
    return Markup(figures.as_svg(figure, name, label))
