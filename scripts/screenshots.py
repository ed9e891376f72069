"""Takes pictures of the dashboard's pages, for the documentation and for looking at them.

    python scripts/screenshots.py http://localhost:8000 FOLDER [PAGE…]
    python scripts/screenshots.py http://localhost:8000 docs/dashboard.png

A page is a path below /dashboard, such as runs/demo-001; without any, all pages of the runs of
sample_runs.py. Each is taken at 1,280 and at 360 pixels, light and dark. A name that ends with
`.png` is the one picture of the documentation. Needs Chromium: CHROMIUM names it, if it is not
`chromium` on the path.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from playwright.sync_api import Browser, sync_playwright

PAGES: Final = (
    "",
    "runs",
    "runs/checkout-rounding",
    "runs/search-index",
    "runs/cart-ttl",
    "runs/invoice-mails",
    "runs/long-plan",
    "issues",
    "figures",
    "ruleset",
    "keys",
    "runs/checkout-runding",
    "start",
    "login",
)
PICTURE: Final = "runs/checkout-rounding"
THEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
WIDTHS: Final = (1280, 360)


@contextmanager
def browsing() -> Iterator[Browser]:
    """Open the browser while the `with` block runs."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def take_all(url: str, folder: Path, pages: tuple[str, ...]) -> None:
    """Take each page in four ways, and print what the browser complains about."""
    folder.mkdir(parents=True, exist_ok=True)
    with browsing() as browser:
        for theme in THEMES:
            for width in WIDTHS:
                page = browser.new_page(
                    viewport={"width": width, "height": 800}, color_scheme=theme
                )
                page.on("console", lambda message: print(f"console: {message.text}"))
                page.on("pageerror", lambda error: print(f"error: {error}"))
                for path in pages:
                    page.goto(f"{url}/dashboard/{path}".rstrip("/"), wait_until="load")
                    name = re.sub(r"\W+", "-", path) or "home"
                    page.screenshot(path=folder / f"{name}-{width}-{theme}.png", full_page=True)
                page.close()


def take_picture(url: str, file: Path) -> None:
    """Take the top of a run's page, as a window shows it."""
    with browsing() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 760}, color_scheme="light")
        page.goto(f"{url}/dashboard/{PICTURE}", wait_until="load")
        page.screenshot(path=file)


if __name__ == "__main__":
    address, target = sys.argv[1].rstrip("/"), Path(sys.argv[2])
    if target.suffix == ".png":
        take_picture(address, target)
    else:
        take_all(address, target, tuple(sys.argv[3:]) or PAGES)
