"""The pages: what they point to exists, and what code says about them is true."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RULES = (ROOT / "docs" / "rules.md").read_text()
SECTIONS = set(re.findall(r"^#+ (§[\d.]+) ", RULES, re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Return what may stand behind `#`, by GitHub's way of making it from a heading."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_file_of_the_code_that_a_page_names_exists(page: Path) -> None:
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]*\.(?:py|sh|toml))`", page.read_text()):
        places = (ROOT / name, ROOT / "src" / "autopack" / name)
        assert any(place.exists() for place in places), name


def test_a_section_of_the_rules_has_one_number_and_they_ascend() -> None:
    numbers = re.findall(r"^## §(\d+) ", RULES, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]


def test_a_section_of_the_rules_that_is_named_exists() -> None:
    listed = subprocess.run(
        ["git", "grep", "--no-color", "-hoE", r"[Rr]ules(\.md)?\)? §[0-9]+(\.[0-9]+)?"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    named = {f"§{line.rpartition('§')[2]}" for line in listed.stdout.splitlines()}
    assert named
    assert named <= SECTIONS
