"""The paths of a run's files, and the rules for overwriting them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Lock

from ..domain.errors import InvalidError
from ..domain.identifiers import identifier_problem
from ..domain.naming import PULL_REQUEST, RECORD, STATEMENT, ruleset_name, strategy_name
from ..views.issues import BacklogEntryAnswer, IssueIndexAnswer
from ..views.runs import RunDetail
from . import documents, durability, incident, pages
from .coalescing import Coalescer
from .files import (
    NewFile,
    OpenFolder,
    exists,
    lock,
    locked_folder,
    open_folder,
    open_top,
    read_head,
    remove_leftovers,
    remove_older,
    replace_files,
    usable,
)

SUMMARY = "run_summary.md"
ISSUE_INDEX = "run_issue_index.json"
BACKLOG = "project_issue_backlog.json"
# Every file has its revision within the first lines.
_HEAD_BYTES = 1_024
_IGNORE_ALL = b"*\n"
# Ids whose folder would have the name of a file of the project.
_RESERVED = re.compile(r"project_(issue_backlog|ruleset_.*)\.json", re.IGNORECASE)
_OURS = re.compile(
    "|".join(map(re.escape, (SUMMARY, ISSUE_INDEX, RECORD, STATEMENT, PULL_REQUEST)))
    + rf"|incident\.(md|json)|{strategy_name(r'[0-9]+')}"
    + r"|tier_\d+_.+\.md|phase_\d+_.+\.md|phase_\d+_.+_issues\.json"
)
_DETAILS = re.compile(rf"(?!{re.escape(SUMMARY)})(?:{_OURS.pattern})")
# File times are less exact than the service's clock.
_CLOCK_TOLERANCE = timedelta(seconds=1)
_END_OF_TIME = datetime(9999, 1, 1, tzinfo=UTC)


class Mirror:
    """The runs directory. Many threads and processes may call every method at the same time."""

    def __init__(self, runs_dir: Path, beside: Path | None = None) -> None:
        """`beside`: a folder that is synced together with the runs directory."""
        self.runs_dir = runs_dir
        self._synced = (runs_dir,) if beside is None else (runs_dir, beside)
        self._backlogs: dict[str, Coalescer] = {}
        self._backlogs_guard = Lock()

    def prepare(self) -> None:
        """Create the runs directory, and hide it from `git status`. Raises MirrorUnusableError."""
        with usable(self.runs_dir):
            self.runs_dir.mkdir(parents=True, exist_ok=True)
            with open_top(self.runs_dir) as top:
                lock(top)
                remove_leftovers(top)
                if not exists(top, ".gitignore"):
                    replace_files(top, [NewFile(top, ".gitignore", _IGNORE_ALL)])
        self.check()

    def has_run(self, run_id: str) -> bool:
        """Return whether a run has its files, judged by the file that is written last."""
        return os.path.isfile(f"{self._address(run_id)}/{SUMMARY}")

    def has_backlog(self) -> bool:
        """Return whether the project has its files; if not, the directory was removed."""
        return (self.runs_dir / BACKLOG).is_file()

    def unsynced_since(self) -> int | None:
        """Return the event after which files may be damaged, as the machine has stopped since.

        None: it has not. Raises MirrorUnusableError.
        """
        mark = durability.read_mark(self.runs_dir)
        if mark is None or mark.boot == durability.boot_id() != "":
            return None
        return mark.event

    def synced_event(self) -> int | None:
        """Return the event of the mark; None without one. Raises MirrorUnusableError."""
        mark = durability.read_mark(self.runs_dir)
        return None if mark is None else mark.event

    def sync(self, event: int) -> None:
        """Sync all files, and record the last event that they show.

        Does nothing if that event is recorded already. Raises MirrorUnusableError.
        """
        mark = durability.SyncMark(event=event, boot=durability.boot_id())
        if durability.read_mark(self.runs_dir) != mark:
            durability.sync(self.runs_dir, self._synced, mark)

    def sync_unmarked(self) -> None:
        """Sync all files that were written without an event. Raises MirrorUnusableError."""
        durability.sync_all(self._synced)

    def check(self) -> None:
        """Check that a file can be written now. Raises MirrorUnusableError."""
        with usable(self.runs_dir), tempfile.TemporaryFile(dir=self.runs_dir) as probe:
            probe.write(_IGNORE_ALL)
            probe.flush()

    def folder(self, run_id: str) -> Path:
        """Return the run's folder. Raises InvalidError for an id that is not usable as a folder."""
        return Path(self._address(run_id))

    def _address(self, run_id: str) -> str:
        """Return the path of the run's folder, without a `Path`, which takes as long as a file."""
        problem = identifier_problem(run_id)
        if problem is None and _RESERVED.fullmatch(run_id):
            problem = f"'{run_id}' is the name of a file beside the runs: choose another run_id"
        if problem:
            raise InvalidError(problem)
        return f"{self.runs_dir}/{run_id}"

    def phase_issue_file(self, run_id: str, phase_index: int, phase_id: str) -> str:
        """Return the path of the phase's issue file."""
        return f"{self._address(run_id)}/issues/{pages.issues_name(phase_index, phase_id)}"

    def write_run(
        self,
        report: RunDetail,
        *,
        phases: Collection[str] | None = None,
        index: IssueIndexAnswer | None = None,
        documents: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write the files of changed phases and tiers, `run_summary.md` last.

        `phases` are the changed phases, whose reports must contain their attempts and issues; None
        writes every phase and tier. `documents` are further files of the run's folder, by name; the
        last one has precedence. Each file is compared separately: a file with a newer revision, or
        of a later run of the same id, is not overwritten. Raises MirrorUnusableError; a full disk
        leaves all files unchanged.
        """
        self.write_files(report, {**(documents or {}), **render_run(report, phases, index)})

    def write_files(self, report: RunDetail, files: Mapping[str, bytes]) -> None:
        """Write files of the run's folder, by name, in this order; else as `write_run`."""
        with self._locked(report.run_id) as top, usable(top.path):
            standing = pages.stamp_of(read_head(top, SUMMARY, _HEAD_BYTES))
            if standing is None or standing.created_at != report.created_at:
                if standing and standing.created_at > report.created_at:
                    return
                # Files older than the run belonged to another run of this id, in a database that
                # was removed.
                with _run_folders(top, _FOLDERS) as folders:
                    for folder in folders.values():
                        remove_older(folder, _OURS, report.created_at - _CLOCK_TOLERANCE)
            self._write_newer(top, report.revision, files)

    def write_summary_alone(self, report: RunDetail) -> None:
        """Write the summary of a run whose details were removed, and remove its other files.

        Raises MirrorUnusableError.
        """
        with (
            self._locked(report.run_id) as top,
            usable(top.path),
            _run_folders(top, _FOLDERS) as folders,
        ):
            self._write_newer(top, report.revision, {SUMMARY: pages.run_page(report)})
            for folder in folders.values():
                remove_older(folder, _DETAILS, _END_OF_TIME)

    def remove_files(self, run_id: str) -> None:
        """Remove the files that Autopack wrote for a run; an older state of it follows.

        Raises MirrorUnusableError.
        """
        with (
            self._locked(run_id) as top,
            usable(top.path),
            _run_folders(top, _FOLDERS) as folders,
        ):
            for folder in folders.values():
                remove_older(folder, _OURS, _END_OF_TIME)

    def _write_newer(self, top: OpenFolder, revision: int, files: Mapping[str, bytes]) -> None:
        """Write the files, except those that have a newer revision already."""
        needed = {path.rpartition("/")[0] for path in files} - {""}
        with _run_folders(top, needed) as folders:
            places = [(*_place(path, folders), content) for path, content in files.items()]
            replace_files(
                top,
                [
                    NewFile(folder, name, content)
                    for folder, name, content in places
                    if _revision(folder, name) <= revision
                ],
            )

    def write_backlog(
        self, project_id: str, read: Callable[[], Sequence[BacklogEntryAnswer]]
    ) -> None:
        """Return when the backlog's file has at least the state at the time of the call.

        `read` is called, if at all, in the caller's own thread, with the runs directory locked. It
        must read what is committed by then, so it needs a new transaction. It should use the
        caller's connection: many waiting callers that each take another one could exhaust the pool.
        Callers that arrive during a write share the next write, for which the `read` of one of them
        is called. Raises MirrorUnusableError, and the errors of `read`.
        """
        with self._backlogs_guard:
            coalescer = self._backlogs.setdefault(project_id, Coalescer())
        coalescer.run(partial(self._write_backlog, project_id, read))

    def _write_backlog(
        self, project_id: str, read: Callable[[], Sequence[BacklogEntryAnswer]]
    ) -> None:
        with self._locked_top() as top:
            content = documents.project_backlog(project_id, read())
            replace_files(top, [NewFile(top, BACKLOG, content)])

    def read_ruleset(self, project_id: str) -> bytes | None:
        """Return the bytes of the operator's ruleset file, or None without one.

        Raises MirrorUnusableError.
        """
        path = self.runs_dir / _checked_ruleset_name(project_id)
        with usable(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def write_ruleset(
        self, project_id: str, content: bytes, *, only_if_absent: bool = False
    ) -> bool:
        """Write the operator's ruleset; return whether it was. Raises MirrorUnusableError."""
        name = _checked_ruleset_name(project_id)
        with self._locked_top() as top:
            if only_if_absent and exists(top, name):
                return False
            # The operator wrote it, and Postgres may have only an older version.
            replace_files(top, [NewFile(top, name, content)], durably=True)
        return True

    @contextmanager
    def _locked_top(self) -> Iterator[OpenFolder]:
        with self._top() as top:
            with usable(self.runs_dir):
                lock(top)
            yield top

    @contextmanager
    def _locked(self, run_id: str) -> Iterator[OpenFolder]:
        """Lock the run's folder, and remove files that a crash left in it."""
        path = self._address(run_id)
        with self._top() as top, ExitStack() as opened:
            with usable(path):
                folder = opened.enter_context(locked_folder(top, run_id))
                remove_leftovers(folder)
            yield folder

    @contextmanager
    def _top(self) -> Iterator[OpenFolder]:
        """Open the runs directory; create it again if it was removed."""
        with ExitStack() as opened:
            with usable(self.runs_dir):
                try:
                    top = opened.enter_context(open_top(self.runs_dir))
                except FileNotFoundError:
                    self.prepare()
                    top = opened.enter_context(open_top(self.runs_dir))
            yield top


_FOLDERS = ("tiers", "phases", "issues")


@contextmanager
def _run_folders(run: OpenFolder, names: Iterable[str]) -> Iterator[dict[str, OpenFolder]]:
    """Open some of a run's folders by name; the empty name is its own folder."""
    with ExitStack() as opened:
        yield {"": run, **{name: opened.enter_context(open_folder(run, name)) for name in names}}


def _place(path: str, folders: Mapping[str, OpenFolder]) -> tuple[OpenFolder, str]:
    folder, _, name = path.rpartition("/")
    return folders[folder], name


def render_run(
    report: RunDetail, phases: Collection[str] | None, index: IssueIndexAnswer | None
) -> dict[str, bytes]:
    """Render the files of changed phases by name, the summary last; as `Mirror.write_run`."""
    files: dict[str, bytes] = {}
    for tier in report.tiers:
        chosen = [phase for phase in tier.phases if phases is None or phase.phase_id in phases]
        for phase in chosen:
            files[f"phases/{pages.phase_name(phase)}"] = pages.phase_page(report, tier, phase)
            if phases is None or index is not None:  # the index changes with every issue
                name = pages.issues_name(phase.phase_index, phase.phase_id)
                files[f"issues/{name}"] = documents.phase_issues(report, phase)
        if chosen or phases is None:
            files[f"tiers/{pages.tier_name(tier)}"] = pages.tier_page(report, tier)
    if index is not None:
        files[ISSUE_INDEX] = documents.run_issue_index(report, index)
    pack = incident.incident_pack(report) if phases is None else None
    if pack is not None:
        files[incident.JSON_NAME] = incident.incident_json(pack)
        files[incident.PAGE_NAME] = incident.incident_page(pack)
    files[SUMMARY] = pages.run_page(report)
    return files


def _revision(folder: OpenFolder, name: str) -> int:
    """Return the revision in a file; 0 if it has none that can be read."""
    head = read_head(folder, name, _HEAD_BYTES)
    if name.endswith(".json"):
        return documents.revision_of(head) or 0
    stamp = pages.stamp_of(head)
    return stamp.revision if stamp else 0


def _checked_ruleset_name(project_id: str) -> str:
    problem = identifier_problem(project_id)
    if problem:
        raise InvalidError(problem)
    return ruleset_name(project_id)
