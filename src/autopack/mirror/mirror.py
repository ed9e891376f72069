"""Where each file of a run stands, and who may overwrite it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from fcntl import LOCK_EX, flock
from functools import partial
from os import listdir, stat, unlink
from pathlib import Path
from threading import Lock

from ..domain.errors import InvalidError
from ..domain.identifiers import identifier_problem
from ..domain.reports import BacklogReportEntry, RunIndex, RunReport
from . import documents
from .coalescing import Coalescer
from .files import (
    NewFile,
    locked_folder,
    open_folder,
    read_file,
    remove_leftovers,
    replace_files,
    usable,
)
from .pages import phase_name, phase_page, run_page, stamp_of, tier_name, tier_page

SUMMARY = "run_summary.md"
ISSUE_INDEX = "run_issue_index.json"
BACKLOG = "project_issue_backlog.json"
_IGNORE_ALL = b"*\n"
# The revision stands within the first lines of every file.
_HEAD_BYTES = 1_024
_RESERVED = re.compile(r"(?i)project_(issue_backlog|ruleset_.*)\.json\Z")
_OURS = re.compile(
    r"run_summary\.md|run_issue_index\.json|run\.json|incident\.(md|json)"
    r"|project_implementation_strategy_v\d+\.json"
    r"|tier_\d+_.+\.md|phase_\d+_.+\.md|phase_\d+_.+_issues\.json"
)
# A file system's clock ticks more coarsely than ours.
_CLOCK_TOLERANCE = timedelta(seconds=1)


class Mirror:
    """The runs directory. All methods may be called from any thread and any process at once."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self._backlogs: dict[str, Coalescer] = {}
        self._backlogs_guard = Lock()

    def prepare(self) -> None:
        """Make the runs directory, and keep it out of `git status`. Raises MirrorUnusableError."""
        with usable(self.runs_dir):
            self.runs_dir.mkdir(parents=True, exist_ok=True)
            with open_folder(self.runs_dir) as top:
                if read_file(top, ".gitignore", 1) is None:
                    ignore = NewFile(top, ".gitignore", _IGNORE_ALL)
                    flock(top, LOCK_EX)
                    replace_files(top, self.runs_dir, [ignore])
        self.check()

    def check(self) -> None:
        """Find out whether a file can be written now. Raises MirrorUnusableError."""
        with usable(self.runs_dir), tempfile.TemporaryFile(dir=self.runs_dir) as probe:
            probe.write(_IGNORE_ALL)
            probe.flush()

    def folder(self, run_id: str) -> Path:
        """Return the run's folder. Raises InvalidError for an id that cannot be a folder's name."""
        problem = identifier_problem(run_id)
        if problem:
            raise InvalidError(problem)
        if _RESERVED.match(run_id):
            raise InvalidError(f"{run_id!r} cannot be a run's id: a file of the project has it")
        return self.runs_dir / run_id

    def phase_issue_file(self, run_id: str, phase_index: int, phase_id: str) -> Path:
        """Return the phase's issue file, relative to the runs directory."""
        return Path(run_id, "issues", _issues_name(phase_index, phase_id))

    def write_run(
        self,
        report: RunReport,
        *,
        phases: Collection[str] | None = None,
        index: RunIndex | None = None,
    ) -> None:
        """Write the files of what changed, `run_summary.md` last.

        `phases` names the phases that changed; None writes every file. The phases that are written
        must carry their attempts and issues. A file of a newer revision stays as it is. Raises
        MirrorUnusableError, and then the files are as they were.
        """
        folder = self.folder(report.run_id)
        with self._locked(report.run_id) as run, usable(folder), ExitStack() as opened:
            below = {
                name: opened.enter_context(open_folder(name, run))
                for name in ("tiers", "phases", "issues")
            }
            standing = stamp_of(read_file(run, SUMMARY, _HEAD_BYTES) or b"")
            if standing is None or standing.created_at != report.created_at:
                if standing is not None and standing.created_at > report.created_at:
                    return
                _clear_earlier_life((run, *below.values()), report.created_at)
            replace_files(
                run,
                folder,
                [
                    NewFile(place, name, render())
                    for place, name, render in _files(report, phases, index, run, below)
                    if (_revision(place, name) or 0) <= report.revision
                ],
            )

    def write_document(self, run_id: str, name: str, content: str | bytes) -> None:
        """Write another file into the run's folder, such as `incident.md`. Last come wins.

        Raises MirrorUnusableError.
        """
        problem = identifier_problem(name)
        if problem or name in (SUMMARY, ISSUE_INDEX):
            raise ValueError(problem or f"{name} is written by write_run alone")
        data = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        with self._locked(run_id) as run:
            replace_files(run, self.folder(run_id), [NewFile(run, name, data)])

    def write_backlog(
        self, project_id: str, read: Callable[[], Sequence[BacklogReportEntry]]
    ) -> None:
        """Return once the backlog's file holds at least the state that stood at the call.

        `read` is called with the runs directory locked and must look at committed data anew, in a
        transaction of its own. Callers that come while another one writes share the next write, and
        then it is one of them whose `read` is called. Raises MirrorUnusableError and what `read`
        raises.
        """
        with self._backlogs_guard:
            coalescer = self._backlogs.setdefault(project_id, Coalescer())
        coalescer.run(lambda: self._write_backlog(project_id, read))

    def _write_backlog(
        self, project_id: str, read: Callable[[], Sequence[BacklogReportEntry]]
    ) -> None:
        with self._locked_top() as top:
            content = documents.project_backlog(project_id, read())
            replace_files(top, self.runs_dir, [NewFile(top, BACKLOG, content)])

    def read_ruleset(self, project_id: str) -> bytes | None:
        """Return the operator's ruleset as it stands in its file, or None."""
        path = self._ruleset(project_id)
        with usable(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def write_ruleset(
        self, project_id: str, content: bytes, *, only_if_absent: bool = False
    ) -> bool:
        """Write the ruleset's file, and say whether it was written. Raises MirrorUnusableError."""
        path = self._ruleset(project_id)
        with self._locked_top() as top:
            if only_if_absent and _exists(top, path.name):
                return False
            replace_files(top, self.runs_dir, [NewFile(top, path.name, content)])
        return True

    def _ruleset(self, project_id: str) -> Path:
        problem = identifier_problem(project_id)
        if problem:
            raise InvalidError(problem)
        return self.runs_dir / f"project_ruleset_{project_id}.json"

    @contextmanager
    def _top(self) -> Iterator[int]:
        """Open the runs directory; make it again if somebody removed it."""
        with ExitStack() as opened:
            with usable(self.runs_dir):
                try:
                    top = opened.enter_context(open_folder(self.runs_dir))
                except FileNotFoundError:
                    self.prepare()
                    top = opened.enter_context(open_folder(self.runs_dir))
            yield top

    @contextmanager
    def _locked_top(self) -> Iterator[int]:
        with self._top() as top:
            with usable(self.runs_dir):
                flock(top, LOCK_EX)
            yield top

    @contextmanager
    def _locked(self, run_id: str) -> Iterator[int]:
        """Hold the lock of the run's folder, swept of what a crash left behind."""
        folder = self.folder(run_id)
        with ExitStack() as opened:
            with self._top() as top, usable(folder):
                run = opened.enter_context(locked_folder(run_id, top))
                remove_leftovers(run)
            yield run


def _files(
    report: RunReport,
    phases: Collection[str] | None,
    index: RunIndex | None,
    run: int,
    below: Mapping[str, int],
) -> Iterator[tuple[int, str, Callable[[], bytes]]]:
    """Yield folder, name and content of each file to write; the summary vouches for the others."""
    for tier in report.tiers:
        chosen = [phase for phase in tier.phases if phases is None or phase.phase_id in phases]
        for phase in chosen:
            yield below["phases"], phase_name(phase), partial(phase_page, report, tier, phase)
            name = _issues_name(phase.phase_index, phase.phase_id)
            # No file says "no issues" as well, until there was one.
            if phase.issues or _exists(below["issues"], name):
                yield below["issues"], name, partial(documents.phase_issues, report, phase)
        if chosen or phases is None:
            yield below["tiers"], tier_name(tier), partial(tier_page, report, tier)
    if index is not None:
        yield run, ISSUE_INDEX, partial(documents.run_issue_index, report, index)
    yield run, SUMMARY, partial(run_page, report)


def _revision(place: int, name: str) -> int | None:
    head = read_file(place, name, _HEAD_BYTES)
    if head is None:
        return None
    if name.endswith(".json"):
        return documents.revision_of(head)
    stamp = stamp_of(head)
    return stamp.revision if stamp else None


def _clear_earlier_life(folders: Iterable[int], created_at: datetime) -> None:
    """Remove the files of an earlier run of this id, whose database is gone."""
    born = (created_at - _CLOCK_TOLERANCE).timestamp()
    for folder in folders:
        for name in listdir(folder):
            if _OURS.fullmatch(name):
                with suppress(FileNotFoundError):
                    if stat(name, dir_fd=folder, follow_symlinks=False).st_mtime < born:
                        unlink(name, dir_fd=folder)


def _exists(folder: int, name: str) -> bool:
    try:
        stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _issues_name(phase_index: int, phase_id: str) -> str:
    return f"phase_{phase_index}_{phase_id}_issues.json"
