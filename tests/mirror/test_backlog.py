"""One file for all runs, asked for by many at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from autopack.mirror import Mirror
from autopack.views.issues import BacklogEntryAnswer

pytestmark = pytest.mark.integration

MIRROR_TESTS = Path(__file__).resolve().parent
SOURCE = MIRROR_TESTS.parents[1] / "src"
MakeEntry = Callable[..., BacklogEntryAnswer]


def keys_in(mirror: Mirror) -> set[str]:
    document = json.loads((mirror.runs_dir / "project_issue_backlog.json").read_text())
    return set(document["issues_by_key"])


def test_twenty_callers_at_once_share_few_writes_and_each_finds_its_own(
    mirror: Mirror, a_backlog_entry: MakeEntry
) -> None:
    committed: list[BacklogEntryAnswer] = []
    reads = 0
    all_here = threading.Barrier(20)

    def read() -> Sequence[BacklogEntryAnswer]:
        nonlocal reads
        reads += 1
        state = list(committed)
        threading.Event().wait(0.05)  # a query takes its time, and others arrive meanwhile
        return state

    def report(number: int) -> bool:
        all_here.wait()
        committed.append(a_backlog_entry(f"key-{number}"))
        mirror.write_backlog("Autopack", read)
        return f"key-{number}" in keys_in(mirror)

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(report, range(20)))
    assert reads <= 4


def test_a_failure_is_raised_to_one_caller_and_the_others_try_again(
    mirror: Mirror, a_backlog_entry: MakeEntry
) -> None:
    is_reading = threading.Event()
    may_fail = threading.Event()

    def fail() -> Sequence[BacklogEntryAnswer]:
        is_reading.set()
        may_fail.wait(60)
        raise LookupError("the database went away")

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(mirror.write_backlog, "Autopack", fail)
        assert is_reading.wait(60)
        others = [
            pool.submit(mirror.write_backlog, "Autopack", lambda: [a_backlog_entry("key")])
            for _ in range(3)
        ]
        may_fail.set()
        with pytest.raises(LookupError):
            first.result(10)
        for other in others:
            other.result(10)
    assert keys_in(mirror) == {"key"}


def test_processes_do_not_overwrite_each_others_state(mirror: Mirror, tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from conftest import make_backlog_entry
from autopack.mirror import Mirror
runs, database, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
mirror = Mirror(runs)
for number in range(25):
    (database / f"{name}-{number}").touch()
    mirror.write_backlog("Autopack", lambda: [make_backlog_entry(k) for k in os.listdir(database)])
    text = (runs / "project_issue_backlog.json").read_text()
    assert f'"{name}-{number}"' in text
"""
    database = tmp_path / "database"
    database.mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(mirror.runs_dir), str(database), name],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{SOURCE}:{MIRROR_TESTS}"},
        )
        for name in ("a", "b")
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert keys_in(mirror) == {f"{name}-{number}" for name in "ab" for number in range(25)}


def test_an_entry_holds_what_the_interface_answers(
    mirror: Mirror, a_backlog_entry: MakeEntry
) -> None:
    mirror.write_backlog("Autopack", lambda: [a_backlog_entry(age_in_runs=3)])
    document = json.loads((mirror.runs_dir / "project_issue_backlog.json").read_text())
    assert document["project_id"] == "Autopack"
    assert document["issues_by_key"]["flaky_login_test"] == {
        "category": "test_failure",
        "base_severity": "minor",
        "status": "open",
        "age_in_runs": 3,
        "age_in_tiers": 1,
        "total_occurrences": 1,
        "first_seen_run": "run-001",
        "last_seen_run": "run-001",
        "last_seen_at": "2025-03-01T12:00:00.000000Z",
        "tiers": ["T1"],
    }


def test_an_empty_backlog_is_a_document_too(mirror: Mirror) -> None:
    mirror.write_backlog("Autopack", list)
    assert keys_in(mirror) == set()
