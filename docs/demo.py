"""Make docs/demo.png: the page of `ssql demo` on one of its words, all files compared.

    .venv/bin/python docs/demo.py runs/demo

The argument is a folder that `ssql export --input waveform` wrote. Needs the built page (make web) and Chromium.
"""

import shutil
import sys
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

from ssql.commands.demo import open_server


def main(files: str) -> None:
    """Open the page, click, wait, save."""
    with open_server(files) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1040, "height": 800}, color_scheme="light")
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        ready = page.locator("body[aria-busy=false]")
        for button in ("drei", "Compare all on this clip"):
            ready.wait_for()
            page.get_by_role("button", name=button).click()
        ready.wait_for()
        page.screenshot(path=Path(__file__).with_suffix(".png"), full_page=True)
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
