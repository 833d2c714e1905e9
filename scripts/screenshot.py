"""Take the README's picture of a page from the built site.

Usage, after `make`: .venv/bin/python scripts/screenshot.py
"""

import functools
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PAGE, SECTION = "book/text_encoder.html", "why-a-cache-works"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def main() -> None:
    browsers = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, browsers)), None)
    if browser is None or not (ROOT / "_build/html" / PAGE).exists():
        sys.exit(
            "The picture needs Chromium and a built site; install "
            "chromium and run `make`."
        )
    serve = functools.partial(Quiet, directory=ROOT / "_build/html")
    server = ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox"]
        )
        page = chromium.new_page(viewport={"width": 1280, "height": 860})
        page.goto(f"http://127.0.0.1:{server.server_port}/{PAGE}")
        page.wait_for_selector("mjx-container")
        page.evaluate(
            f"document.getElementById('{SECTION}').scrollIntoView()"
        )
        page.wait_for_timeout(500)  # until the smooth scrolling has ended
        page.screenshot(path=ROOT / "screenshot.png")
        chromium.close()


if __name__ == "__main__":
    main()
