import re
import xml.etree.ElementTree as ET

import numpy as np

import quant
from ssql.reports.figures import (
    Histogram,
    accuracy_figure,
    as_svg,
    histogram_figure,
    retained_figure,
    sensitivity_figure,
    size_figure,
    training_figure,
)
from ssql.reports.rows import retained_rows


def row(method, bit_width, value, task="word", **more):
    return {"method": method, "task": task, "bit_width": bit_width, "metric": "linear", "value": value, **more}


ROWS = [
    row("SSQL", "fp", 90.0, low=86.0, high=93.0, size_bytes=4e6, retained=1.0, retained_low=1.0, retained_high=1.0),
    row("SSQL", "w4a4", 85.0, low=80.0, high=89.0, size_bytes=6e5, retained=0.9, retained_low=0.8, retained_high=1.0),
    row("SimSiam", "fp", 91.0, size_bytes=4e6),
]


def drawn(axis):
    """Label to the points of each line of an errorbar plot."""
    return {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in axis.containers}


def test_accuracy_stands_against_bit_widths_with_its_interval():
    axis = accuracy_figure(ROWS).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["fp", "w4a4"]
    lines = drawn(axis)
    assert [y for _, y in lines["SSQL"]] == [90, 85]
    assert [y for _, y in lines["SimSiam"]] == [91]
    bars = axis.containers[0].lines[2][0].get_segments()
    assert [bar[:, 1].tolist() for bar in bars] == [[86, 93], [80, 89]]


def test_accuracy_stands_against_megabytes():
    assert drawn(size_figure(ROWS).axes[0])["SSQL"] == [[4, 90], [0.6, 85]]


def test_retained_and_sensitivity_are_cells_with_numbers():
    axis = retained_figure(retained_rows(ROWS)).axes[0]
    assert [text.get_text() for text in axis.texts] == ["100", "90"]
    other = row("SimSiam", "fp", 91.0, task="digit", retained=1.0, retained_low=1.0, retained_high=1.0)
    unknown = [axis.texts for axis in retained_figure(retained_rows([*ROWS, other])).axes][1]
    assert [(text.get_text(), text.get_color()) for text in unknown[:2]] == [("-", "#000000")] * 2
    rows = [quant.Sensitivity(layer, bits, error, 10.0) for layer, bits, error in (("a", 2, 0.5), ("a", 4, 0.0))]
    assert [text.get_text() for text in sensitivity_figure(rows).axes[0].texts] == ["50", "0"]


def test_nothing_to_show_is_an_empty_picture():
    assert len(retained_figure([]).axes[0].texts) == 0
    assert accuracy_figure([]).axes[0].containers == []


def test_histograms_and_curves_have_a_panel_each():
    spread = Histogram(np.array([1, 2]), np.array([0.0, 1.0, 2.0]), np.linspace(0, 2, 7))
    figure = histogram_figure({f"layer{index}": spread for index in range(5)})
    assert [axis.get_title() for axis in figure.axes if axis.get_title()] == [f"layer{index}" for index in range(5)]
    figure = training_figure({"loss": {"a": ([0, 1], [2, 1]), "b": ([0], [3])}, "lr": {"a": ([0], [1])}})
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[2, 1], [3]]


def test_svg_is_well_formed_takes_the_pages_colour_and_has_ids_of_its_own():
    svg = as_svg(accuracy_figure(ROWS), "one", 'task "word" & more')
    root = ET.fromstring(svg)
    assert root.get("aria-label") == 'task "word" & more'
    assert "currentColor" in svg and "#000000" not in svg
    assert "SSQL" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    assert all(name.startswith("one-") for name in ids)
    referred = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    assert referred and set(referred) <= ids
    assert svg == as_svg(accuracy_figure(ROWS), "one", 'task "word" & more')
