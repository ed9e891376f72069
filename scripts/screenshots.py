"""Takes pictures of the dashboard's pages, for the documentation and for looking at them.

    python scripts/screenshots.py http://localhost:8000 FOLDER [PAGE…]

A page is a path below /dashboard, such as runs/demo-001; without any, all pages of the runs of
sample_runs.py. Each is taken at 1,280 and at 360 pixels, light and dark. Needs Chromium: CHROMIUM
names it, if it is not `chromium` on the path.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PAGES = (
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


def main(url: str, folder: Path, pages: tuple[str, ...]) -> None:
    """Take each page in four ways."""
    folder.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            for width in (1280, 360):
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
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), Path(sys.argv[2]), tuple(sys.argv[3:]) or PAGES)
