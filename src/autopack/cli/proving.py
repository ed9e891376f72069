"""The trials of `autopack gate prove` and `doctor`: may the CI command be believed? (docs/ci.md)"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from ..config import Settings
from ..domain.faults import Fault, SourceFile, seed_faults
from ..domain.gate_proof import (
    MAX_TEST_FILES,
    Proof,
    ProofStep,
    judge_base,
    judge_failing_test,
    judge_no_program,
    judge_no_tests,
    no_maker,
    skipped,
    with_failing_test,
    without_programs,
)
from ..domain.paths import globs, names_of
from ..domain.ruleset import CiRules
from ..domain.terms import CiProfile, Verdict
from ..gitrepo.repository import Base, Repository
from ..gitrepo.workspace import TreeEntry
from .trial import Edit, Edits, Trial, laid_out, try_commit

_FILE_MODES: Final = ("100644", "100755")
_MAX_SOURCES: Final = 200  # files that are read to seed faults, where no test can be added


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """The base commit's test files, those that can have a failing test, and faults of its code."""

    tests: tuple[str, ...]
    failing: dict[str, Edit]
    faults: tuple[tuple[Fault, Edit], ...]


@dataclass(frozen=True)
class Prover:
    """Tries one profile's command on the base commit, and on trees that are made of it."""

    settings: Settings
    repository: Repository
    base: Base
    rules: CiRules
    profile: CiProfile

    def try_base(self, edits: Edits | None = None, *, is_without_programs: bool = False) -> Trial:
        """Run the command on the base commit, or on one with other files."""
        rules = self.rules.command_for(self.profile)
        if is_without_programs:
            rules = rules.model_copy(update={"command": without_programs(rules.command or "")})
        return try_commit(
            self.settings,
            self.repository,
            branch=self.base.branch,
            commit=self.base.commit,
            profile=self.profile,
            rules=rules,
            edits=edits,
        )

    def proofs(self, base: Trial) -> Iterator[Proof]:
        """Ask every question; where the base is not green, only the first.

        Raises AutopackError, WorkspaceError, OSError.
        """
        yield judge_base(base.outcome.verdict, base.outcome.reason)
        if base.outcome.verdict is not Verdict.GREEN:
            return
        yield self._failing_test()
        yield self._no_tests()
        trial = self.try_base(is_without_programs=True)
        yield judge_no_program(trial.outcome.verdict, base.command)

    def _failing_test(self) -> Proof:
        files = self._files
        if files.failing:
            count = len(files.failing)
            where = "a test file" if count == 1 else f"each of {count} test files"
            verdict = self.try_base(files.failing).outcome.verdict
            return judge_failing_test(verdict, f"a failing test in {where}")
        if not files.faults:
            why = "no test file by ci.test_paths, and no code, that can be broken"
            return skipped(ProofStep.FAILING_TEST, why)
        why = no_maker(files.tests)
        verdict = Verdict.GREEN
        for fault, edit in files.faults:
            verdict = self.try_base({fault.path: edit}).outcome.verdict
            if verdict is Verdict.RED:
                return judge_failing_test(verdict, f"a fault in the code: {fault.name}", why)
        where = f"any of {len(files.faults)} faults in the code"
        return judge_failing_test(verdict, where, why)

    def _no_tests(self) -> Proof:
        tests = self._files.tests
        if not tests:
            return skipped(ProofStep.NO_TESTS, "no test file by ci.test_paths")
        verdict = self.try_base(dict.fromkeys(tests)).outcome.verdict
        return judge_no_tests(verdict, len(tests))

    @cached_property
    def _files(self) -> _Files:
        with laid_out(
            self.settings, self.repository, self.base.branch, self.base.commit
        ) as checkout:
            workspace = checkout.workspace
            entries = workspace.files()
            tests = {path: each for path, each in entries.items() if self._is_test(path)}
            failing: dict[str, Edit] = {}
            for path, entry in _regular(tests):
                content = with_failing_test(path, workspace.read(entry))
                if content is not None:
                    failing[path] = Edit(content, entry.mode)
                if len(failing) == MAX_TEST_FILES:
                    break
            faults: tuple[Fault, ...] = ()
            if not failing:
                code = {path: each for path, each in entries.items() if path not in tests}
                faults = seed_faults(
                    [
                        SourceFile(path=path, content=workspace.read(entry))
                        for path, entry in _regular(code)[:_MAX_SOURCES]
                    ],
                    commit=self.base.commit,
                    is_test=self._is_test,
                )
        edits = [(each, Edit(each.content, entries[each.path].mode)) for each in faults]
        return _Files(tests=tuple(tests), failing=failing, faults=tuple(edits))

    def _is_test(self, path: str) -> bool:
        return globs(self.rules.test_paths).match(names_of(path))


def _regular(entries: dict[str, TreeEntry]) -> list[tuple[str, TreeEntry]]:
    return [(path, entry) for path, entry in entries.items() if entry.mode in _FILE_MODES]
