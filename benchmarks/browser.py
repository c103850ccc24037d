"""Exported files in a browser, side by side in the worker of `ssql demo`'s page, in headless Chromium.

Run: make bench-browser BROWSER='runs/whisper/web --seconds 10 30'

The folder is one that `ssql export --input waveform` wrote. Without it the files are fp32, int8 and int4 of Whisper
base's shape with random weights, which takes the same time, and with a margin of one second after a clip. Files take
turns in one page, on as many threads of WebAssembly as the page takes: one a processor, four at most. Speed-ups are of
the fastest runs, against the largest file. The last line is of the longest clip: `int8_speedup= int4_speedup=`. The
page (make web) and Chromium must be there.
"""

import argparse
import json
import logging
import math
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from exported import whisper
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

import export
from ssql.commands.demo import PAGE, open_server
from ssql.reports.result_files import save

FORMS = {"fp32": "fp", "int8": "w8a8", "int4": "w4a8"}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
# Asks the page's own worker, as the page does; noise, the same each time.
MEASURE = """async ([url, files, samples, repeats]) => {
    const worker = new Worker(url, { type: "module" });
    const ask = (request) => new Promise((resolve, reject) => {
        worker.onerror = (event) => reject(new Error(event.message));
        worker.onmessage = ({ data: { value, error } }) => (error ? reject(new Error(error)) : resolve(value));
        worker.postMessage({ id: 0, ...request });
    });
    const noise = new Float32Array(samples);
    for (let i = 0, state = 1; i < samples; i++) {
        state = (state * 48271) % 2147483647;
        noise[i] = 0.2 * (state / 2147483647 - 0.5);
    }
    const times = files.map(() => []);
    let threads = 0;
    for (const file of files) ({ threads } = await ask({ file }));
    for (let turn = -1; turn < repeats; turn++)
        for (const [place, file] of files.entries()) {
            const { milliseconds } = await ask({ file, waveform: noise });
            if (turn >= 0) times[place].push(milliseconds);
        }
    worker.terminate();
    return { threads, times };
}"""


def write_files(folder: Path) -> None:
    """Of random weights."""
    full, quantized = whisper(argparse.Namespace(weights=None, quantized=None, recordings=None))
    paths = [folder / f"encoder-{name}.onnx" for name in FORMS]
    for path, bit_width in zip(paths, FORMS.values(), strict=True):
        encoder = full if bit_width == "fp" else quantized
        encoder.fill(1.0)  # type: ignore[operator]
        export.to_onnx(encoder, path, bit_width=bit_width, input="waveform", check=False)
    export.write_card(export.describe(paths, full), folder)


@contextmanager
def opened(folder: Path) -> Iterator[Page]:
    """The page of `ssql demo` on a folder's files, in Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no Chromium: apt-get install chromium")
    with open_server(folder, clips=[]) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with playwright.chromium.launch(executable_path=chromium, args=FLAGS) as browser:
            page = browser.new_page()
            page.set_default_timeout(0)
            page.goto(f"http://127.0.0.1:{server.server_port}/files/config.json")  # nothing runs beside the worker
            yield page
        server.shutdown()


def rows_of(names: Sequence[str], found: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """A row for each file; the first is what the others are compared with."""
    rows = []
    for name, times in zip(names, found["times"], strict=True):
        low, high = np.percentile(times, [10, 90])
        rows.append(
            {
                "file": name, "seconds": seconds, "threads": found["threads"], "latency_ms": median(times),
                "spread_ms": float(high - low), "fastest_ms": min(times),
                "speedup": min(found["times"][0]) / min(times),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    """Measure all files at each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="?", type=Path, help="folder of ssql export --input waveform")
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 30.0])
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each file")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-browser"), help="folder for browser.json")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    worker = next((PAGE / "assets").glob("worker-*.js"), None) if PAGE.is_dir() else None
    if worker is None:
        raise SystemExit("the page is not built: make web (Node.js 20 or newer)")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.files or Path(made)
        if arguments.files is None:
            with torch.no_grad():
                write_files(folder)
        names = [entry["file"] for entry in json.loads((folder / "config.json").read_text(encoding="utf-8"))["files"]]
        with opened(folder) as page:
            for seconds in sorted(arguments.seconds):
                asked = [f"/assets/{worker.name}", names, int(16_000 * seconds), arguments.repeats]
                rows += rows_of(names, page.evaluate(MEASURE, asked), seconds)
    table = Table("file", "s", "threads", "ms", "spread", "fastest", "speed-up", title="Chromium, WebAssembly")
    for row in rows:
        table.add_row(
            row["file"], f"{row['seconds']:g}", str(row["threads"]), f"{row['latency_ms']:.0f}",
            f"{row['spread_ms']:.0f}", f"{row['fastest_ms']:.0f}", f"{row['speedup']:.2f}",
        )  # fmt: skip
    Console(width=120).print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    save({arguments.output / "browser.json": rows})
    longest = {row["file"]: row["speedup"] for row in rows[-len(names) :]}
    int8, int4 = (longest.get(f"encoder-{form}.onnx", math.nan) for form in ("int8", "int4"))
    sys.stdout.write(f"int8_speedup={int8:.2f} int4_speedup={int4:.2f}\n")


if __name__ == "__main__":
    main()
