"""A real browser over a real service: Debian's Chromium, driven by Playwright.

`CHROMIUM` names the browser, if it is not `chromium` on the path. Without one these tests skip.
"""

from __future__ import annotations

import os
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import sync_playwright
from tests.conftest import ServedHere

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

SAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "sample_runs.py"
WIDTHS = (1280, 360)
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")


def _origin(package: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


# The package brings axe-core; its own functions have no types.
AXE = Path(_origin("axe_playwright_python")).with_name("axe.min.js")


def find_chromium() -> str | None:
    return os.environ.get("CHROMIUM") or shutil.which("chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_chromium()
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium, or name one in CHROMIUM")
    with sync_playwright() as playwright:
        # The tests run as root too, where Chromium's own sandbox refuses to start.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Reader:
    """A person with a browser; whatever the browser complains about is kept."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("request", self._see)
        self.page.on("dialog", lambda dialog: self.complaints.append("a dialog opened"))

    def _hear(self, message: Any) -> None:
        is_expected = "status of 404" in message.text or "status of 4" in message.text
        if message.type in ("error", "warning") and not is_expected:
            self.complaints.append(f"{message.type}: {message.text}")

    def _see(self, request: Any) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc:
            self.complaints.append(f"a request to {request.url}")

    def open(self, path: str = "") -> None:
        self.page.goto(f"{self.url}/dashboard{path}", wait_until="load")

    def check(self, what: str) -> None:
        """Expect no complaint, no sideways scrolling, and nothing that axe finds."""
        assert self.complaints == [], what
        wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{what} is {wide} pixels too wide"
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        told = [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found]
        assert told == [], what


@pytest.fixture
def sampled(served_here: ServedHere, git_repo: Any) -> ServedHere:
    """A service with runs of every kind."""
    runpy.run_path(str(SAMPLES))["fill"](served_here.url, git_repo.path)
    return served_here


def open_reader(
    browser: Browser, url: str, *, width: int = 1280, theme: Theme = "light", **options: Any
) -> tuple[BrowserContext, Reader]:
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=theme,
        reduced_motion="reduce",
        **options,
    )
    context.set_default_timeout(15_000)
    return context, Reader(context.new_page(), url)
