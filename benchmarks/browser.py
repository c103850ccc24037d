"""The files in a browser: fp32, int8 and int4 side by side in the worker of `ssql demo`'s page, in headless Chromium.

Run: make bench-browser BROWSER='--weights whisper-base --quantized runs/whisper/static'

Whisper base's shape: clips of 30 s, which fill the window, and of 10 s, which silence follows for a second (`ssql
export --margin 1`). All files take turns in one page, on as many threads of WebAssembly as the page takes: one a
processor, four at most. Without --weights the weights are random, which takes the same time. The last line is of 30 s,
against fp32 in the same page (fastest runs): `int8_speedup= int4_speedup=`. It needs the page (make web) and Chromium.
"""

import argparse
import copy
import logging
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
from exported import FILLED, whisper
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

import export
from encoders import Encoder
from ssql.commands.demo import PAGE, open_server
from ssql.reports.result_files import save

SHORT, MARGIN = 10.0, 1.0  # seconds
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


def write_files(full: Encoder, quantized: Encoder, folder: Path, margin: float | None) -> list[str]:
    """Names of the files in a folder, which gets a card."""
    paths = [folder / f"encoder-{name}.onnx" for name in FORMS]
    for path, bit_width in zip(paths, FORMS.values(), strict=True):
        encoder = copy.deepcopy(full if bit_width == "fp" else quantized)
        encoder.fill(margin)  # type: ignore[operator]
        export.to_onnx(encoder, path, bit_width=bit_width, input="waveform", check=False)
    export.write_card(export.describe(paths, encoder), folder)
    return [path.name for path in paths]


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
    """Measure both lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="openai/whisper-base as downloaded; random weights of its shape without")
    parser.add_argument("--quantized", help="encoder of ssql quantize --bit_width '[w8a8, w4a8]' --policy.smooth true")
    parser.add_argument("--recordings", help="folder to calibrate random weights on; speech of the package without")
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each file")
    parser.add_argument("--output", type=Path, default=Path("runs/bench-browser"), help="folder for browser.json")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    worker = next((PAGE / "assets").glob("worker-*.js"), None) if PAGE.is_dir() else None
    if worker is None:
        raise SystemExit("the page is not built: make web (Node.js 20 or newer)")
    arguments.output.mkdir(parents=True, exist_ok=True)
    full, quantized = whisper(arguments)
    rows: list[dict[str, Any]] = []
    for seconds, margin in ((SHORT, MARGIN), (FILLED, None)):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            names = write_files(full, quantized, Path(folder), margin)
            with opened(Path(folder)) as page:
                asked = [f"/assets/{worker.name}", names, int(16_000 * seconds), arguments.repeats]
                rows += rows_of(names, page.evaluate(MEASURE, asked), seconds)
    table = Table("file", "s", "threads", "ms", "spread", "fastest", "speed-up", title="in Chromium, WebAssembly")
    for row in rows:
        table.add_row(
            row["file"], f"{row['seconds']:g}", str(row["threads"]), f"{row['latency_ms']:.0f}",
            f"{row['spread_ms']:.0f}", f"{row['fastest_ms']:.0f}", f"{row['speedup']:.2f}",
        )  # fmt: skip
    Console(width=120).print(table)
    save({arguments.output / "browser.json": rows})
    _, int8, int4 = rows[-len(FORMS) :]
    sys.stdout.write(f"int8_speedup={int8['speedup']:.2f} int4_speedup={int4['speedup']:.2f}\n")


if __name__ == "__main__":
    main()
