"""The repair ticket: what the author of a refused patch needs for the next try.

It describes the present head: for each hunk whether it applies, is there already or is refused and
why, which lines are at its place, and both sides of the conflict with their base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..domain.changes import MODE_ABSENT, MODE_SUBMODULE
from .hunks import (
    FileLines,
    HunkImages,
    HunkPlace,
    HunkStatus,
    images,
    place_hunks,
    split_lines,
    with_line_ends_of,
)
from .names import show
from .objects import MODE_FOLDER, Entry, path_text
from .patch import ScannedFile, ScannedHunk
from .quarantine import Quarantine
from .threeway import recent_commits, tree_of

# A model reads the ticket, so its whole length and each hunk's part of it are bounded.
_MAX_FILES = 200
_MAX_HUNKS = 500
_MAX_TEXT_BYTES = 300_000
_MAX_LINES_IN_HUNK = 200
_MAX_BYTES_IN_HUNK = 30_000
_LARGEST_FILE = 10_000_000
_CONTEXT = 3
_MAX_RENAMES_FOLLOWED = 10
_MAX_MERGES = 100  # each a process of git

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Ticket:
    files: list[Json]
    omitted_files: int
    is_already_applied: bool
    refused: list[str]


def write_ticket(quarantine: Quarantine, head: str, files: Sequence[ScannedFile]) -> Ticket:
    """Compare a patch with the head, file by file and hunk by hunk.

    A file has `path`, `old_path`, `new_path` as in the patch, `path_now` where its content is at
    the head, `status`, `reason`. A hunk has `line` (in the patch), its counts, `found_start` (in
    the file, from 1) and `moved_by`; a refused one also has `now`, the lines of the head from
    `now_start` on, and these lines with the hunk put in: `merged`, or `conflict` with markers for
    branch, base and patch. `is_truncated` where that would be too long. Bytes that are not
    UTF-8 are escaped.

    Takes one process of git for each of the first refused hunks, within the bounds above.
    """
    writer = _Writer(quarantine, head)
    verdicts = [writer.file(file) for file in files[:_MAX_FILES]]
    return Ticket(
        files=[verdict.as_json() for verdict in verdicts],
        omitted_files=max(len(files) - _MAX_FILES, 0),
        is_already_applied=len(files) <= _MAX_FILES
        and all(verdict.status is HunkStatus.ALREADY_APPLIED for verdict in verdicts),
        refused=[verdict.sentence() for verdict in verdicts if verdict.reason is not None],
    )


@dataclass(slots=True)
class _FileVerdict:
    """The result for one file; `path_now` is where its content is at the head."""

    old_path: bytes | None
    new_path: bytes | None
    path_now: bytes | None = None
    status: HunkStatus = HunkStatus.APPLIED
    reason: str | None = None
    hunks: list[Json] = field(default_factory=list)
    omitted_hunks: int = 0

    def refuse(self, reason: str) -> _FileVerdict:
        self.status = HunkStatus.REFUSED
        self.reason = self.reason or reason
        return self

    def already(self) -> _FileVerdict:
        self.status = HunkStatus.ALREADY_APPLIED
        return self

    def sentence(self) -> str:
        return f"{show(self.new_path or self.old_path or b'')}: {self.reason}"

    def as_json(self) -> Json:
        return {
            "path": _path(self.new_path or self.old_path),
            "old_path": _path(self.old_path),
            "new_path": _path(self.new_path),
            "path_now": _path(self.path_now),
            "status": self.status,
            "reason": self.reason,
            "hunks": self.hunks,
            "omitted_hunks": self.omitted_hunks,
        }


class _Writer:
    def __init__(self, quarantine: Quarantine, head: str) -> None:
        self._quarantine = quarantine
        self._head = head
        self._tree = quarantine.draft(tree_of(quarantine, head))
        self._text_left = _MAX_TEXT_BYTES
        self._hunks_left = _MAX_HUNKS
        self._renames_left = _MAX_RENAMES_FOLLOWED
        self._merges_left = _MAX_MERGES

    def file(self, file: ScannedFile) -> _FileVerdict:
        verdict = self._compare(file)
        if verdict.omitted_hunks and verdict.status is not HunkStatus.REFUSED:
            verdict.refuse("It has more hunks than were compared.")
        return verdict

    def _compare(self, file: ScannedFile) -> _FileVerdict:
        verdict = _FileVerdict(file.old_path, file.new_path)
        if file.old_path is None:
            assert file.new_path is not None  # noqa: S101 - the scanner gives one of the two
            return self._new_file(verdict, file, file.new_path)
        if file.new_path not in (None, file.old_path):
            assert file.new_path is not None  # noqa: S101 - just checked
            target = self._tree.lookup(file.new_path)
            if target is not None and (
                file.is_copy or self._tree.lookup(file.old_path) is not None
            ):
                verdict.path_now = file.old_path
                return verdict.refuse(f"{show(file.new_path)} exists already.")
            if target is not None:
                return self._present(verdict, file, file.new_path, target, is_moved=True)
        entry = self._tree.lookup(file.old_path)
        if entry is None:
            return self._missing(verdict, file, file.old_path)
        return self._present(verdict, file, file.old_path, entry)

    def _new_file(self, verdict: _FileVerdict, file: ScannedFile, path: bytes) -> _FileVerdict:
        entry = self._tree.lookup(path)
        if entry is None:
            blocking = self._tree.file_on_the_way(path)
            if blocking is not None:
                return verdict.refuse(_folder_wanted(blocking[0]))
            self._add_hunks(verdict, file, [HunkPlace(HunkStatus.APPLIED)] * len(file.hunks), None)
            return verdict
        verdict.path_now = path
        if not _is_file(entry):
            return verdict.refuse(_no_file(path, entry))
        if file.is_binary:
            same = entry[1] == file.index_new
            return verdict.already() if same else verdict.refuse(_binary_reason(entry))
        content = self._read(entry)
        wanted = b"".join(line for hunk in file.hunks for line in images(hunk).new)
        if content == wanted:
            places = [HunkPlace(HunkStatus.ALREADY_APPLIED)] * len(file.hunks)
            self._add_hunks(verdict, file, places, None)
            return verdict.already()
        reason = "The file exists already, with other content: patch it as it is."
        if content is not None:
            now = FileLines(split_lines(content))
            place = HunkPlace(HunkStatus.REFUSED, 0, len(now.lines), reason)
            self._add_hunks(verdict, file, [place] * len(file.hunks), now)
        return verdict.refuse(reason)

    def _missing(self, verdict: _FileVerdict, file: ScannedFile, path: bytes) -> _FileVerdict:
        blocking = self._tree.file_on_the_way(path)
        if blocking is not None:
            return verdict.refuse(_folder_wanted(blocking[0]))
        commit, moved = self._fate(path)
        entry = self._tree.lookup(moved) if moved is not None else None
        if moved is None or entry is None:
            if file.new_path is None:
                return verdict.already()
            gone = f"was deleted by commit {commit}" if commit else "is not on the branch"
            return verdict.refuse(f"The file {gone}.")
        self._present(verdict, file, moved, entry, is_moved=True)
        return verdict.refuse(f"The file is {show(moved)} since commit {commit}: patch that.")

    def _present(
        self,
        verdict: _FileVerdict,
        file: ScannedFile,
        path: bytes,
        entry: Entry,
        *,
        is_moved: bool = False,
    ) -> _FileVerdict:
        verdict.path_now = path
        if not _is_file(entry):
            return verdict.refuse(_no_file(path, entry))
        if file.is_binary:
            if entry[1] == file.index_new:
                return verdict.already()
            fits = entry[1] == file.index_old
            return verdict if fits else verdict.refuse(_binary_reason(entry))
        content = self._read(entry)
        if content is None:
            return verdict.refuse("The file is too large to be compared.")
        now = FileLines(split_lines(content))
        if file.new_path is None:
            return self._deletion(verdict, file, content, now)
        places = list(place_hunks(file.hunks[: self._hunks_left], now))
        self._add_hunks(verdict, file, places, now)
        statuses = {place.status for place in places}
        if HunkStatus.REFUSED in statuses:
            count = sum(place.status is HunkStatus.REFUSED for place in places)
            return verdict.refuse(f"{count} of {len(file.hunks)} hunks do not apply.")
        if file.new_path != file.old_path:
            statuses.add(HunkStatus.ALREADY_APPLIED if is_moved else HunkStatus.APPLIED)
        if file.old_mode != file.new_mode:
            has_mode = entry[0] == file.new_mode
            statuses.add(HunkStatus.ALREADY_APPLIED if has_mode else HunkStatus.APPLIED)
        if statuses == {HunkStatus.ALREADY_APPLIED}:
            return verdict.already()
        if HunkStatus.ALREADY_APPLIED in statuses:
            return verdict.refuse("A part of it is on the branch already: send only the rest.")
        return verdict

    def _deletion(
        self, verdict: _FileVerdict, file: ScannedFile, content: bytes, now: FileLines
    ) -> _FileVerdict:
        """Return the result for a deletion: a file is deleted as a whole or not at all."""
        if content == b"".join(line for hunk in file.hunks for line in images(hunk).old):
            places = [HunkPlace(HunkStatus.APPLIED, 0, len(now.lines))] * len(file.hunks)
            self._add_hunks(verdict, file, places, now)
            return verdict
        reason = "The file now has other lines than those that the patch deletes."
        place = HunkPlace(HunkStatus.REFUSED, 0, len(now.lines), reason)
        self._add_hunks(verdict, file, [place] * len(file.hunks), now)
        return verdict.refuse(reason)

    def _read(self, entry: Entry) -> bytes | None:
        content = self._quarantine.read(entry[1])[1]
        return content if len(content) <= _LARGEST_FILE else None

    def _fate(self, path: bytes) -> tuple[str | None, bytes | None]:
        """Return the commit that removed a path, and the new path if it was renamed."""
        commit, moved = None, path
        while self._renames_left > 0 and self._tree.lookup(moved) is None:
            self._renames_left -= 1
            revisions = recent_commits(self._quarantine, self._head)
            found = self._quarantine.git(
                *("--literal-pathspecs", "rev-list", "-1", "--first-parent", "--end-of-options"),
                *(*revisions, "--", path_text(moved)),
                allowed=(0, 128),
            ).stdout.decode()
            if not found:
                break
            commit = found.strip()
            renamed = dict(self._renames(commit))
            if moved not in renamed:
                return commit, None
            moved = renamed[moved]
        return commit, moved if moved != path else None

    def _renames(self, commit: str) -> Iterator[tuple[bytes, bytes]]:
        options = ("-r", "-z", "-M", "--name-status", "--diff-filter=R", "--end-of-options")
        output = self._quarantine.git(
            "diff-tree", *options, f"{commit}^1", commit, allowed=(0, 128)
        ).stdout
        words = iter(output.split(b"\0"))
        for _score, old, new in zip(words, words, words, strict=False):
            yield old, new

    # Hunks

    def _add_hunks(
        self,
        verdict: _FileVerdict,
        file: ScannedFile,
        places: Sequence[HunkPlace],
        now: FileLines | None,
    ) -> None:
        looked_into = file.hunks[: self._hunks_left]
        self._hunks_left -= len(looked_into)
        verdict.omitted_hunks = len(file.hunks) - len(looked_into)
        for hunk, place in zip(looked_into, places, strict=False):
            verdict.hunks.append(
                {
                    "line": hunk.line,
                    "status": place.status,
                    "reason": place.reason,
                    "old_start": hunk.old_start,
                    "old_count": hunk.old_count,
                    "new_start": hunk.new_start,
                    "new_count": hunk.new_count,
                    "found_start": None if place.start is None else place.start + 1,
                    "moved_by": _moved_by(hunk, place),
                    **self._lines_in_place(hunk, place, now),
                }
            )

    def _lines_in_place(self, hunk: ScannedHunk, place: HunkPlace, now: FileLines | None) -> Json:
        """Return the lines at the place of a refused hunk, and its merge with them."""
        if (
            now is None
            or place.start is None
            or place.end is None
            or place.status is not HunkStatus.REFUSED
        ):
            return {}
        first = max(place.start - _CONTEXT, 0)
        lines = now.lines[first : place.end + _CONTEXT]
        text = b"".join(lines)
        if len(lines) > _MAX_LINES_IN_HUNK or len(text) > min(_MAX_BYTES_IN_HUNK, self._text_left):
            return {"now_start": first + 1, "now": None, "is_truncated": True}
        self._text_left -= len(text)
        fields: Json = {"now_start": first + 1, "now": _text(text)}
        before, after = now.lines[first : place.start], now.lines[place.end : place.end + _CONTEXT]
        merged = self._merge(with_line_ends_of(images(hunk), lines), before, lines, after)
        if merged is None or len(merged[0]) > self._text_left:
            return {**fields, "is_truncated": True}
        self._text_left -= len(merged[0])
        return {**fields, "conflict" if merged[1] else "merged": _text(merged[0])}

    def _merge(
        self,
        image: HunkImages,
        before: Sequence[bytes],
        now: Sequence[bytes],
        after: Sequence[bytes],
    ) -> tuple[bytes, bool] | None:
        """Merge a hunk with the lines at its place; return the text, and whether it conflicts."""
        sides = {
            "branch": b"".join(now),
            "base": b"".join([*before, *image.old, *after]),
            "patch": b"".join([*before, *image.new, *after]),
        }
        if self._merges_left == 0 or any(b"\0" in content for content in sides.values()):
            return None  # git does not merge content that it takes for binary
        self._merges_left -= 1
        for name, content in sides.items():
            (self._quarantine.folder / name).write_bytes(content)
        result = self._quarantine.git(
            "merge-file",
            *("-p", "--diff3", "-L", "branch", "-L", "base", "-L", "patch"),
            *(str(self._quarantine.folder / name) for name in sides),
            allowed=range(128),
        )
        return result.stdout, result.status > 0


def _moved_by(hunk: ScannedHunk, place: HunkPlace) -> int | None:
    if place.start is None:
        return None
    started = hunk.new_start if place.status is HunkStatus.ALREADY_APPLIED else hunk.old_start
    return place.start - max(started - 1, 0)


def _is_file(entry: Entry) -> bool:
    return entry[0] not in (MODE_ABSENT, MODE_FOLDER, MODE_SUBMODULE)


def _no_file(path: bytes, entry: Entry) -> str:
    if entry[0] == MODE_SUBMODULE:
        return f"{show(path)} is a submodule on the branch, not a file."
    return (
        f"{show(path)} is a folder on the branch, and the patch has a file of that name:"
        " a conflict of file and folder."
    )


def _folder_wanted(path: bytes) -> str:
    return (
        f"{show(path)} is a file on the branch, and the patch has a folder of that name:"
        " a conflict of file and folder."
    )


def _binary_reason(entry: Entry) -> str:
    return f"The binary file is now {entry[1]}: make the patch from that."


def _path(path: bytes | None) -> str | None:
    return None if path is None else path.decode(errors="backslashreplace")


def _text(content: bytes) -> str:
    return content.decode(errors="backslashreplace")
