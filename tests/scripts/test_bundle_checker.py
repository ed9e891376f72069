"""The offline checker is what its modules make, and a copy that is not is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "scripts/check_promotion.py"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and the scripts, in a folder where a test may change them."""
    for room in ("domain", "checker"):
        shutil.copytree(ROOT / "src" / "autopack" / room, tmp_path / "src" / "autopack" / room)
    (tmp_path / "scripts").mkdir()
    for name in ("bundle_checker.py", "check_promotion.py"):
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts" / name)
    return tmp_path


def bundle(root: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-I", "-S", str(root / "scripts" / "bundle_checker.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_checker_is_what_its_modules_make() -> None:
    assert bundle(ROOT, "--check") == (0, "")


def test_making_it_twice_makes_the_same(copy: Path) -> None:
    before = (copy / SCRIPT).read_bytes()
    assert bundle(copy) == (0, "")
    assert (copy / SCRIPT).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (
            "src/autopack/domain/states.py",
            "PhaseStatus.EXECUTING, PhaseStatus.SKIPPED",
            "PhaseStatus.SKIPPED",
        ),
        ("src/autopack/domain/promotion.py", "rolled back by hand", "rolled back"),
        ("src/autopack/checker/branch.py", "MAX_REASONS: Final = 100", "MAX_REASONS: Final = 99"),
        (SCRIPT, "MAX_REASONS: Final = 100", "MAX_REASONS: Final = 99"),
    ],
)
def test_a_copy_that_is_stale_or_edited_is_refused_until_it_is_made_again(
    copy: Path, name: str, old: str, new: str
) -> None:
    edit(copy / name, old, new)
    code, said = bundle(copy, "--check")
    assert code == 1
    assert said == (
        f"{SCRIPT} is not what its modules make: run `python scripts/bundle_checker.py`\n"
    )
    assert bundle(copy) == (0, "")
    assert bundle(copy, "--check") == (0, "")


def test_a_checker_that_is_missing_is_refused(copy: Path) -> None:
    (copy / SCRIPT).unlink()
    assert bundle(copy, "--check")[0] == 1


def a_name_twice(copy: Path) -> None:
    edit(
        copy / "src/autopack/domain/money.py",
        "\ndef usd(",
        "\ndef seal() -> None: ...\n\n\ndef usd(",
    )


def a_library(copy: Path) -> None:
    edit(copy / "src/autopack/domain/terms.py", "from enum", "import pydantic\nfrom enum")


def a_module_of_the_service(copy: Path) -> None:
    (copy / "src/autopack/domain/values.py").write_text('"""Values."""\n\nimport pydantic\n')
    edit(
        copy / "src/autopack/domain/terms.py", "from enum", "from .values import Closed\nfrom enum"
    )


def another_name(copy: Path) -> None:
    edit(copy / "src/autopack/domain/terms.py", "import StrEnum", "import StrEnum as Words")


def a_whole_module(copy: Path) -> None:
    edit(copy / "src/autopack/domain/evolve.py", "from .money", "from . import money\nfrom .money")


def a_circle(copy: Path) -> None:
    edit(copy / "src/autopack/domain/terms.py", "from enum", "from .run import Role\nfrom enum")


def a_late_import(copy: Path) -> None:
    late = "def late() -> None:\n    import json\n\n\nclass Severity"
    edit(copy / "src/autopack/domain/terms.py", "class Severity", late)


def no_docstring(copy: Path) -> None:
    (copy / "src/autopack/domain/terms.py").write_text("WORD = 1\n")


REFUSED: dict[Callable[[Path], None], str] = {
    a_name_twice: "'seal' is a name of autopack/domain/money.py and of autopack/domain/events.py",
    a_library: "imports pydantic, which is not of the standard library",
    a_module_of_the_service: "values.py:3 imports pydantic, which is not of the standard library",
    another_name: "imports under another name",
    a_whole_module: "imports a module: import its names instead",
    a_circle: "imports itself, by way of others",
    a_late_import: "imports below the top",
    no_docstring: "has no docstring",
}


@pytest.mark.parametrize("change", REFUSED)
def test_modules_that_cannot_stand_in_one_file_are_refused(
    copy: Path, change: Callable[[Path], None]
) -> None:
    before = (copy / SCRIPT).read_bytes()
    change(copy)
    code, said = bundle(copy)
    assert code == 1
    assert said.startswith(f"{SCRIPT} cannot be made: ")
    assert REFUSED[change] in said
    assert (copy / SCRIPT).read_bytes() == before
