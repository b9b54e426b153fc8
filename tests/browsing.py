"""Pages in a real browser, without a screen: Chromium, driven by playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
PATIENCE = 60_000
"""Milliseconds that a page has to show something, beside other tests on two cores."""


@contextmanager
def browser() -> Iterator:
    """A browser; `opened` gives pages of it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, width: int = 1400, height: int = 1000) -> Iterator:
    """An empty page so wide; fails in the end if a script on it has failed, or another host was asked for something."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE)
    failed = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("requestfailed", lambda request: "ABORTED" in (request.failure or "") or failed.append(request.url))
    page.on("request", lambda request: None if _near(request.url) else failed.append(request.url))
    yield page
    page.close()
    assert not failed


def seen(page, text: str, exact: bool = False):
    """The first visible part of the page that says so, once it is there."""
    found = page.get_by_text(text, exact=exact).filter(visible=True).first
    found.wait_for()
    return found


def _near(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:"))
