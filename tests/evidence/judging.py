"""Judge the cases of the corpus by the rules: on trees that are run now, or were recorded."""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from autopack.ci import CheckRunner, Job
from autopack.config import Settings
from autopack.domain import gate_proof
from autopack.domain.evidence import Evidence
from autopack.domain.evidence_rules import (
    CaseState,
    Measured,
    judge_base_tests,
    judge_fails_before,
    judge_seeded_faults,
)
from autopack.domain.faults import SourceFile, seed_faults
from autopack.domain.paths import globs, names_of
from autopack.domain.ruleset import DEFAULT_TEST_PATHS
from autopack.domain.terms import EvidenceResult, Verdict

from .corpus import Case, Change, Files

RECORDED: Final = Path(__file__).parent / "outcomes.json"
FAULTS: Final = 3
COMMIT: Final = "c" * 40

Run = Callable[[Files, str, str | None], Measured]


def is_test(path: str) -> bool:
    return globs(DEFAULT_TEST_PATHS).match(names_of(path))


def changed(files: Files, change: Change) -> dict[str, str]:
    """Return files after a change; None removes one."""
    return {path: text for path, text in {**files, **change}.items() if text is not None}


def key(files: Files, command: str, junit: str | None) -> str:
    document = json.dumps([sorted(files.items()), command, junit])
    return hashlib.sha256(document.encode()).hexdigest()[:16]


def run_now(files: Files, command: str, junit: str | None) -> Measured:
    """Run a command on a tree, without a sandbox."""
    with tempfile.TemporaryDirectory(prefix="autopack-corpus-") as folder:
        tree = Path(folder)
        for path, text in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
        settings = Settings(
            _env_file=None,
            repo_path=tree,
            ci_sandbox="none",
            ci_readable_paths=(Path(sys.prefix),),
        )
        job = Job(
            tree=tree,
            objects=tree,
            command=command,
            timeout_seconds=120,
            environment={},
            junit=junit,
        )
        outcome = CheckRunner(settings).run(job, lambda: False)
    return Measured(
        tree=key(files, command, junit),
        verdict=outcome.verdict,
        reason=outcome.reason,
        exit_status=outcome.exit_status,
        cases=outcome.cases,
    )


class Recorded:
    """Outcomes of earlier runs; a tree that was not run fails the test that needs it."""

    def __init__(self) -> None:
        self._kept: dict[str, list[Any]] = json.loads(RECORDED.read_text())

    def __call__(self, files: Files, command: str, junit: str | None) -> Measured:
        name = key(files, command, junit)
        if name not in self._kept:
            raise AssertionError("run `python benchmarks/evidence.py`, and commit what it writes")
        verdict, status, cases = self._kept[name]
        return Measured(
            tree=name,
            verdict=Verdict(verdict),
            reason=f"exit {status}",
            exit_status=status,
            cases=cases and {test: CaseState(state) for test, state in cases.items()},
        )


def judge(case: Case, run: Run) -> dict[str, tuple[str, str]]:
    """Return what was found: the result and its reason by what found it."""
    return _of_setup(case, run) if case.is_setup else _of_change(case, run)


def _of_setup(case: Case, run: Run) -> dict[str, tuple[str, str]]:
    """As `autopack gate prove` asks; a report that tells the truth anyway is not looked for."""
    command, files = case.command or "", case.project.files
    tests = {path: text for path, text in files.items() if is_test(path)}
    failing = {
        path: made.decode()
        for path, text in tests.items()
        if (made := gate_proof.with_failing_test(path, text.encode())) is not None
    }
    # The shell's own test format is known to no one, so its code is broken instead.
    broken = changed(files, failing or case.project.broken)
    base = run(files, command, None)
    proofs = [
        gate_proof.judge_base(base.verdict, base.reason),
        gate_proof.judge_failing_test(run(broken, command, None).verdict, "a failing test"),
        gate_proof.judge_no_tests(
            run(changed(files, dict.fromkeys(tests)), command, None).verdict, len(tests)
        ),
        gate_proof.judge_no_program(
            run(files, gate_proof.without_programs(command), None).verdict, command
        ),
    ]
    return {f"gate prove: {each.step}": (each.result, each.detail) for each in proofs}


def _of_change(case: Case, run: Run) -> dict[str, tuple[str, str]]:
    project = case.project
    old, new = project.files, changed(project.files, case.change)

    def on(files: Files) -> Measured:
        return run(files, project.command, project.junit)

    base, head = on(old), on(new)
    found = {"command": ("passed" if head.verdict is Verdict.GREEN else "failed", head.reason)}
    if head.verdict is not Verdict.GREEN:
        return found
    entries: list[Evidence] = []
    touched = [path for path in {**old, **new} if old.get(path) != new.get(path)]
    tests = [path for path in touched if is_test(path)]
    restored = [path for path in tests if path in old]
    is_any = restored or any(path.endswith("conftest.py") for path in tests)
    outcome = on(changed(new, {path: old.get(path) for path in tests})) if is_any else None
    entries.append(
        judge_base_tests(base, head, outcome, restored=restored, expected=(), command="")
    )
    code = {path: old.get(path) for path in touched if not is_test(path)}
    before = on(changed(new, code)) if tests else None
    entries.append(judge_fails_before(before, head, is_required=False, command=""))
    sources = [
        SourceFile(path=path, content=new[path].encode(), lines=_lines(old.get(path), new[path]))
        for path in touched
        if path in new
    ]
    faults = seed_faults(sources, commit=COMMIT, count=FAULTS, is_test=is_test)
    outcomes = [on({**new, each.path: each.content.decode()}) for each in faults]
    entries.append(judge_seeded_faults(faults, outcomes, head, is_red=False, command=""))
    return found | {str(each.kind): (each.result, each.reason) for each in entries}


def _lines(old: str | None, new: str) -> list[int] | None:
    if old is None:
        return None
    matcher = difflib.SequenceMatcher(None, old.split("\n"), new.split("\n"), autojunk=False)
    changes = (each for each in matcher.get_opcodes() if each[0] != "equal")
    return [line + 1 for _, _, _, start, end in changes for line in range(start, end)]


def seen_by(found: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return what speaks against a case: by a red verdict or by a warning."""
    against = (EvidenceResult.FAILED, EvidenceResult.WARNED)
    return [name for name, (result, _) in found.items() if result in against]


def refused_by(found: Mapping[str, tuple[str, str]]) -> list[str]:
    return [name for name, (result, _) in found.items() if result == EvidenceResult.FAILED]
