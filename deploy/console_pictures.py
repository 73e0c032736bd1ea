"""Takes the pictures of the console for the docs, from a running server that serves the digits of `make demo`.

    make serve & .venv/bin/python deploy/console_pictures.py [--url http://127.0.0.1:3000] [--out docs/images]

Needs Chromium (`apt-get install chromium`) and Playwright, which `make test` installs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PROJECT = Path(__file__).resolve().parents[1]
SIZE = {"width": 1120, "height": 780}
WATCH_SECONDS = 45
"""Time in which examples are sent while a second page shows the metrics, before its picture is taken."""


def main() -> int:
    """Opens the console in a headless browser, and writes one picture of each view."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--out", type=Path, default=PROJECT / "docs" / "images")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        parser.error("chromium: expected a program on PATH, found none; apt-get install chromium")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE)
        page.goto(f"{options.url}/#try/digits:1")
        page.get_by_role("button", name="Example: the letter B").click()
        page.locator("#verdict .word", has_text="I don’t know").wait_for()
        page.screenshot(path=options.out / "console-letter.png")
        watch = browser.new_page(viewport=SIZE)
        watch.goto(f"{options.url}/#watch/digits:1")
        watch.locator("#watch canvas").first.wait_for()
        send_examples(page, WATCH_SECONDS)
        watch.screenshot(path=options.out / "console-watch.png")
        browser.close()
    return 0


def send_examples(page: Page, seconds: float) -> None:
    """Clicks on the examples in turn, so that the metrics have something to show."""
    buttons = page.locator('button[aria-label^="Example"]')
    buttons.first.wait_for()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for index in range(buttons.count()):
            buttons.nth(index).click()
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
