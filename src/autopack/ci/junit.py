"""Count tests by the JUnit reports of a CI command. Hostile code may have written them."""

from __future__ import annotations

import os
import stat
import xml.parsers.expat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..domain.evidence import MAX_CHECK_NAME
from ..domain.evidence_rules import CaseState, worst
from ..domain.paths import matches
from ..domain.results import CheckCounts

MAX_REPORTS: Final = 200
MAX_REPORT_BYTES: Final = 20_000_000
MAX_FAILING: Final = 200
MAX_CASES: Final = 50_000
MAX_DEPTH: Final = 50
MAX_ENTRIES: Final = 200_000

Marks = Mapping[str, tuple[int, int, int]]


class ReportError(Exception):
    """A report cannot be read. The message is one line."""


@dataclass(slots=True)
class TestCounts:
    """The counts of all reports together."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failing: list[str] = field(default_factory=list)
    # By name; a name that occurs more than once has its worst state. More than MAX_CASES are cut.
    cases: dict[str, CaseState] = field(default_factory=dict)

    def add(self, name: str, state: CaseState) -> None:
        match state:
            case CaseState.FAILED:
                self.failed += 1
                if len(self.failing) < MAX_FAILING and name not in self.failing:
                    self.failing.append(name)
            case CaseState.PASSED:
                self.passed += 1
            case _:
                self.skipped += 1
        known = self.cases.get(name)
        if known is not None or len(self.cases) <= MAX_CASES:
            self.cases[name] = state if known is None else worst(known, state)

    def counts(self) -> CheckCounts:
        return CheckCounts(
            total=self.passed + self.failed + self.skipped,
            passed=self.passed,
            failed=self.failed,
            skipped=self.skipped,
        )


def mark_reports(tree: Path, pattern: str) -> Marks:
    """Return the reports that are in the commit itself: they are not results of this run."""
    return {path: _mark(entry) for path, entry in _reports(tree, pattern)}


def count_tests(tree: Path, pattern: str, before: Marks) -> TestCounts:
    """Count the tests of the reports that were written since `before`. Raises ReportError."""
    counts = TestCounts()
    written = [path for path, entry in _reports(tree, pattern) if before.get(path) != _mark(entry)]
    if len(written) > MAX_REPORTS:
        raise ReportError(f"{len(written)} JUnit reports match {pattern!r}, {MAX_REPORTS} allowed")
    for path in written:
        _count(tree / path, path, counts)
    return counts


def _reports(tree: Path, pattern: str) -> Iterator[tuple[str, os.stat_result]]:
    """Return the matching regular files, without following links."""
    folders = [""]
    seen = 0
    while folders:
        folder = folders.pop()
        with suppress(OSError), os.scandir(tree / folder) as entries:
            for entry in entries:
                seen += 1
                if seen > MAX_ENTRIES:
                    raise ReportError(f"the work tree has more than {MAX_ENTRIES} files")
                path = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if path != ".git":
                        folders.append(path)
                elif entry.is_file(follow_symlinks=False) and matches(path, pattern):
                    yield path, entry.stat(follow_symlinks=False)


def _mark(entry: os.stat_result) -> tuple[int, int, int]:
    return entry.st_ino, entry.st_mtime_ns, entry.st_size


def _count(file: Path, shown: str, counts: TestCounts) -> None:
    # All processes have ended, so the file cannot be replaced; a link is still not followed.
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ReportError(f"{shown!a}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ReportError(f"{shown!a} is not a file")
        if status.st_size > MAX_REPORT_BYTES:
            raise ReportError(f"{shown!a} is larger than {MAX_REPORT_BYTES} bytes")
        try:
            _Reader(counts).read(stream.read(MAX_REPORT_BYTES))
        except (xml.parsers.expat.ExpatError, ValueError, LookupError) as error:
            raise ReportError(f"{shown!a} is not a JUnit report: {error}") from error


class _Reader:
    """Reads one report as a stream, without building a tree."""

    def __init__(self, counts: TestCounts) -> None:
        self._counts = counts
        self._depth = 0
        self._case: str | None = None
        self._state = CaseState.PASSED

    def read(self, content: bytes) -> None:
        parser = xml.parsers.expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.Parse(content, True)

    def _refuse(self, *_: object) -> None:
        raise ValueError("it has a DOCTYPE")

    def _start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if tag == "testcase":
            parts = (attributes.get("classname", ""), attributes.get("name", ""))
            name = ".".join(part for part in parts if part)
            printable = "".join(sign if sign.isprintable() else "?" for sign in name)
            self._case = printable[-MAX_CHECK_NAME:] or "unnamed"
            self._state = CaseState.PASSED
        elif self._case is not None and tag in ("failure", "error"):
            self._state = CaseState.FAILED
        elif self._case is not None and tag == "skipped" and self._state is CaseState.PASSED:
            is_xfail = "xfail" in attributes.get("type", "")  # pytest.xfail
            self._state = CaseState.XFAILED if is_xfail else CaseState.SKIPPED

    def _end(self, tag: str) -> None:
        self._depth -= 1
        if tag == "testcase" and self._case is not None:
            self._counts.add(self._case, self._state)
            self._case = None
