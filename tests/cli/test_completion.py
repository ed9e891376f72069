"""What the shell completes, as it asks: ids of runs, phases and issues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from autopack.cli import completion
from autopack.cli.app import main
from autopack.client import Autopack

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Terminal

pytestmark = pytest.mark.integration

PLAN = """
run: {run_id: run-001}
tiers: [{tier_id: T1, tier_index: 0, name: First}]
phases:
  - {phase_id: P1, phase_index: 0, tier_id: T1, name: One, task_category: docs}
  - {phase_id: Q1, phase_index: 1, tier_id: T1, name: Two, task_category: docs}
"""


@pytest.fixture
def _service(autopack: Autopack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let completion ask the application in this process."""

    class Asked:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Autopack:
            return autopack

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(completion, "Autopack", Asked)


def complete(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    monkeypatch.setenv("_AUTOPACK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([])
    return capsys.readouterr().out.split()


@pytest.mark.usefixtures("_service")
def test_ids_are_completed(
    terminal: Terminal,
    autopack: Autopack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    terminal.run("run", "start", tmp_path / "plan.yaml")
    autopack.record_issue(
        "run-001", "P1", {"issue_key": "ci__x", "source": "test", "category": "ci"}
    )
    for line, expected in (
        ("autopack run show r", ["run-001"]),
        ("autopack run show x", []),
        ("autopack promote ", ["run-001"]),
        ("autopack verify run", ["run-001"]),
        ("autopack run diff run-001 --phase ", ["P1", "Q1"]),
        ("autopack run rollback run-001 --to Q", ["Q1"]),
        ("autopack run retry gone --phase ", []),
        ("autopack issues show ", ["ci__x"]),
        ("autopack issues list --run ", ["run-001"]),
    ):
        assert complete(line, monkeypatch, capsys) == expected, line


def test_without_a_service_completion_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("API_URL", "http://127.0.0.1:9")
    assert complete("autopack run show r", monkeypatch, capsys) == []
    assert capsys.readouterr().err == ""
