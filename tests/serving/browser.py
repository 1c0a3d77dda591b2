"""A headless Chromium, and what tests of the page do in it."""

import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "serving" / "server" / "page"
FLAGS = [  # no sandbox, as containers run it as root; and nothing that asks Google's hosts
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@contextlib.contextmanager
def chromium():
    """Yields a browser: $CHROMIUM, one of the system's, or Playwright's own; fails where there is none."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        pytest.fail("The tests marked `browser` need Playwright: pip install playwright")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        except Error as error:
            pytest.fail(f"The tests marked `browser` need Chromium: apt-get install chromium, or set CHROMIUM ({error}).")
        yield browser
        browser.close()


@contextlib.contextmanager
def serving(handler):
    """Runs an HTTP server of the standard library; yields its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line on standard error."""

    def log_message(self, *args):
        pass


def page_files():
    """Serves the page's folder as any web server does: without our server's API and headers."""
    return serving(functools.partial(Quiet, directory=PAGE))


def local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:", "data:"))


def fill(page, **values):
    page.wait_for_selector("#sampler option", state="attached")
    for name, value in values.items():
        field = page.locator(f"#form [name={name}]")
        field.select_option(value) if name in ("sampler", "size") else field.fill(value)


def make(page, **values):
    """Fills in, generates and waits for the end."""
    fill(page, **values)
    page.click("#generate")
    page.wait_for_selector("#progress-area", state="hidden")


def values(page) -> dict:
    names = ("prompt", "negative_prompt", "seed", "index", "num_steps", "guidance_scale", "sampler", "size")
    return {name: page.locator(f"#form [name={name}]").input_value() for name in names}


def shown(page) -> bytes:
    """Returns the bytes of the picture that the page shows."""
    with page.expect_download() as download:
        page.click("#download")
    return Path(download.value.path()).read_bytes()


def recipe(page) -> dict:
    return json.loads(page.locator("#json").text_content())


def shell_words(line: str) -> list[bytes]:
    return subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout.split(b"\0")


def wide(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth")


def step(page) -> str:
    """Goes on with the tabulator to what then has the focus, and shows it."""
    page.keyboard.press("Tab")
    has = page.evaluate("({id: document.activeElement.id, outline: getComputedStyle(document.activeElement).outlineWidth})")
    assert has["outline"] == "3px"
    return has["id"]
