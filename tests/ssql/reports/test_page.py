"""The report in a real browser: it needs no network, its pictures have a size, its filters work, light and dark."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from encoders import SpeechTransformer, save_encoder
from ssql.data import SpokenWords
from ssql.reports.page import report_page
from ssql.reports.run_contents import read_runs

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
]  # fmt: skip


def make_run(folder: Path, method: str, loss: float) -> Path:
    (folder / "logs" / "version_0").mkdir(parents=True)
    common = {"method": method, "clips": 100}
    rows = [
        {**common, "task": "words/word", "bit_width": bits, "metric": metric, "value": value, "low": value - 4,
         "high": value + 4, "size_bytes": size, "retained": value / 90, "retained_low": 0.7, "retained_high": 1.1}
        for metric in ("linear", "knn")
        for bits, value, size in (("fp", 90.0, 4e6), ("w8a8", 89.0, 1e6), ("w4a4", 80.0, 5e5))
    ]  # fmt: skip
    rows += [row | {"task": "prosody/pitch <F0>", "metric": "r2", "value": row["value"] / 100, "low": None}
             for row in rows if row["metric"] == "linear"]  # fmt: skip
    (folder / "suite.json").write_text(json.dumps(rows))
    curve = [f"0,{loss / step},{step}" for step in range(1, 20)]
    (folder / "logs" / "version_0" / "metrics.csv").write_text("\n".join(["epoch,loss,step", *curve]))
    (folder / "logs" / "version_0" / "config.yaml").write_text(f"seed: {loss}\nmodel:\n  name: <{method}>\n")
    torch.manual_seed(0)
    save_encoder(SpeechTransformer(width=32, depth=1, heads=2), folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    runs = read_runs([make_run(folder / "a", "SSQL", 2.0), make_run(folder / "b", "SimSiam", 3.0)])
    return report_page(runs, SpokenWords(train_size=16, test_size=1, batch_size=16))


def test_every_section_is_there_and_nothing_is_loaded(html):
    for title in ("Runs", "Accuracy against bits and size", "Comparison", "Sensitivity", "Ranges", "Training", "Conf"):
        assert f"<h2>{title}" in html
    assert "http://" not in html.replace("http://www.w3.org/", "")
    assert "https://" not in html
    assert "&lt;SSQL&gt;" in html and "<SSQL>" not in html
    assert "<td>90.0 (86.0 to 94.0)</td>" in html
    assert "<td>89 (70 to 110)</td>" in html
    assert "<td>seed</td><td>2.0</td><td>3.0</td>" in html


def test_runs_without_results_or_encoder_have_fewer_sections(tmp_path):
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    (tmp_path / "logs" / "version_0" / "metrics.csv").write_text("epoch,loss,step\n0,1.0,4\n0,0.5,9")
    html = report_page(read_runs([tmp_path]))
    assert html.count("<h2>") == 2
    assert "<td>0.5</td>" in html


@pytest.fixture(scope="module")
def page(html, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(html)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.requested, page.said = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(file.as_uri())
        yield page
        assert page.said == []


def test_only_the_file_itself_is_asked_for(page):
    page.wait_for_load_state("networkidle")
    assert page.requested == [page.url]
    assert page.title() == "SSQL report: a, b"


def test_every_picture_has_a_size_and_a_name_and_ids_are_unique(page):
    boxes = page.eval_on_selector_all(
        "svg", "all => all.map(svg => [svg.clientWidth, svg.clientHeight, svg.getAttribute('aria-label')])"
    )
    # Retained; two tasks, each against bits and size; sensitivities, weights and activations of two encoders; training.
    assert len(boxes) == 1 + 2 * 2 + 2 * 3 + 1
    assert all(width > 200 and height > 100 and label for width, height, label in boxes)
    assert "prosody/pitch <F0> against size" in [label for *_, label in boxes]
    ids = page.eval_on_selector_all("[id]", "all => all.map(element => element.id)")
    assert len(ids) == len(set(ids))
    lost = page.eval_on_selector_all(
        "use", "all => all.filter(use => !document.querySelector(use.getAttribute('xlink:href'))).length"
    )
    assert lost == 0


def test_numbers_stand_beside_the_pictures(page):
    block = page.locator("#accuracy .block").first
    assert not block.locator("table").is_visible()
    block.locator("summary").click()
    assert block.locator("tbody tr").first.inner_text().split("\t") == [
        "SSQL", "90.0 (86.0 to 94.0)", "89.0 (85.0 to 93.0)", "80.0 (76.0 to 84.0)",
    ]  # fmt: skip


def test_a_filter_leaves_one_task_or_metric(page):
    def shown(section):
        return page.locator(f"#{section} .block:visible h3").all_inner_texts()

    assert shown("accuracy") == ["words/word: accuracy, %", "prosody/pitch <F0>: R2"]
    page.select_option("#accuracy select", "prosody/pitch <F0>")
    assert shown("accuracy") == ["prosody/pitch <F0>: R2"]
    page.select_option("#accuracy select", "")
    assert len(shown("accuracy")) == 2
    page.select_option("#tables select", "R2")
    assert shown("tables") == ["R2"]


def test_text_is_readable_in_light_and_dark(page):
    text = "() => getComputedStyle(document.querySelector('svg text')).fill"
    background = "() => getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(text), page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(text), page.evaluate(background)
    assert brightness(light[0]) < 80 < 200 < brightness(light[1])
    assert brightness(dark[1]) < 80 < 200 < brightness(dark[0])


def test_a_narrow_window_scrolls_tables_not_the_page(page):
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def brightness(colour: str) -> float:
    """Mean of red, green and blue in `rgb(1, 2, 3)`."""
    return sum(map(int, colour[4:-1].split(","))) / 3
