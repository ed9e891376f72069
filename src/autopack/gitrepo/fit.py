"""Change a well-formed patch so that it applies to a head, if it has only one possible meaning.

There are two cases: a hunk that names line 1 and matches at exactly one other place, and a series
of changes whose first part is on the branch already. In both cases every hunk must match, or be
there already.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import Settings
from ..domain.changes import Repair, RepairKind
from .grammar import HUNK
from .head import HeadFiles
from .hunks import FileLines, HunkPlace, HunkStatus, images, place_hunks, split_lines
from .patch import ScannedFile, ScannedHunk, ScannedPatch
from .scan import scan_patch

Edits = dict[int, list[bytes]]


class _UnfitError(Exception):
    """A part of the patch neither applies nor is there already."""


def fit_to_head(scanned: ScannedPatch, head: HeadFiles, limits: Settings) -> ScannedPatch | None:
    """Return the patch without parts that are on the branch, and with corrected line numbers.

    None where a part neither applies nor is there, where nothing is left, and where nothing had to
    be changed. Linear in the size of the patch and the files that it names.
    """
    fit = _Fit(scanned, head)
    try:
        left = sum([fit.file(file) for file in scanned.files])
    except _UnfitError:
        return None
    if not left or not fit.edits:
        return None
    fitted = scan_patch(scanned.text.edited(fit.edits), limits)
    repairs = (*scanned.repairs, *fit.repairs)
    return replace(fitted, repairs=repairs, proofs=scanned.proofs)


class _Fit:
    """The changes to a patch; `edits` are arguments of `PatchText.edited`."""

    def __init__(self, scanned: ScannedPatch, head: HeadFiles) -> None:
        self._text = scanned.text
        self._head = head
        self.edits: Edits = {}
        self.repairs: list[Repair] = []

    def file(self, file: ScannedFile) -> int:
        """Return how many parts of a file's section are left. Raises _UnfitError."""
        if file.old_path is None:
            return self._new_file(file)
        if file.new_path is None:
            return self._deletion(file, file.old_path)
        if file.new_path != file.old_path:
            return self._move(file, file.old_path, file.new_path)
        if file.is_binary:
            return self._binary(file, file.old_path)
        return self._change(file, file.old_path)

    def _new_file(self, file: ScannedFile) -> int:
        assert file.new_path is not None  # noqa: S101 - the scanner gives one of the two
        if self._head.lookup(file.new_path) is None:
            return 1
        if file.is_binary:
            return self._binary(file, file.new_path)
        wanted = b"".join(line for hunk in file.hunks for line in images(hunk).new)
        if self._head.read(file.new_path) != wanted or not self._has_mode(file, file.new_path):
            raise _UnfitError
        return self._leave_out(file)

    def _deletion(self, file: ScannedFile, path: bytes) -> int:
        if self._head.lookup(path) is None:
            return self._leave_out(file)
        if file.is_binary:
            return self._binary(file, path)
        deleted = b"".join(line for hunk in file.hunks for line in images(hunk).old)
        if self._head.read(path) != deleted:
            raise _UnfitError
        return 1

    def _move(self, file: ScannedFile, old_path: bytes, new_path: bytes) -> int:
        """Check a rename or copy: it must be there as a whole, or not at all."""
        has_landed = self._head.has_file(new_path)
        if has_landed and not file.is_copy and self._head.has_file(old_path):
            raise _UnfitError
        statuses = self._statuses(file, new_path if has_landed else old_path)
        if has_landed and statuses <= {HunkStatus.ALREADY_APPLIED}:
            return self._leave_out(file)
        if not has_landed and statuses <= {HunkStatus.APPLIED}:
            return 1
        raise _UnfitError

    def _binary(self, file: ScannedFile, path: bytes) -> int:
        entry = self._head.lookup(path)
        oid = entry[1] if entry is not None else None
        if oid == file.index_new:
            return self._leave_out(file)
        if oid != file.index_old:
            raise _UnfitError
        return 1

    def _change(self, file: ScannedFile, path: bytes) -> int:
        statuses = self._statuses(file, path)
        if file.old_mode != file.new_mode:
            is_there = self._has_mode(file, path)
            statuses.add(HunkStatus.ALREADY_APPLIED if is_there else HunkStatus.APPLIED)
            if len(statuses) > 1:
                raise _UnfitError
        if statuses == {HunkStatus.ALREADY_APPLIED}:
            return self._leave_out(file)
        return 1

    def _statuses(self, file: ScannedFile, path: bytes) -> set[HunkStatus]:
        """Return the place of each hunk of a file, without hunks that are there already."""
        content = self._head.read(path)
        if content is None:
            raise _UnfitError
        now = FileLines(split_lines(content))
        landed: list[ScannedHunk] = []
        for hunk, place in zip(file.hunks, place_hunks(file.hunks, now), strict=True):
            if place.status is HunkStatus.ALREADY_APPLIED:
                _require_sure(hunk, place, now)
                landed.append(hunk)
            elif place.status is HunkStatus.REFUSED:
                self._move_hunk(hunk, now)
        if 0 < len(landed) < len(file.hunks):
            for hunk in landed:
                self._remove(hunk.at, hunk.at + 1 + len(hunk.body))
            self._note_landed(landed[0].line)
            return {HunkStatus.APPLIED, HunkStatus.ALREADY_APPLIED}
        return {HunkStatus.ALREADY_APPLIED} if landed else {HunkStatus.APPLIED}

    def _move_hunk(self, hunk: ScannedHunk, now: FileLines) -> None:
        """Set the only possible line of a hunk that names line 1 but has context before it."""
        image = images(hunk)
        start = now.only_place(image.old)
        if not (image.must_begin and image.leading) or start is None:
            raise _UnfitError
        if image.must_end and start + len(image.old) != len(now.lines):
            raise _UnfitError
        line = self._text.lines[hunk.at]
        header = HUNK.match(line)
        assert header is not None  # noqa: S101 - the scanner has read it
        counts = (start + 1, hunk.old_count, start + 1, hunk.new_count)
        self.edits[hunk.at] = [b"@@ -%d,%d +%d,%d @@" % counts + line[header.end() :]]
        detail = f"A hunk names line 1, but its lines are only at line {start + 1}: applied there."
        self.repairs.append(Repair(RepairKind.LINE_NUMBER, detail, hunk.line))

    def _has_mode(self, file: ScannedFile, path: bytes) -> bool:
        entry = self._head.lookup(path)
        return entry is not None and file.new_mode in (None, entry[0])

    def _leave_out(self, file: ScannedFile) -> int:
        self._remove(file.at, file.end)
        self._note_landed(file.line)
        return 0

    def _remove(self, start: int, end: int) -> None:
        self.edits.update((at, []) for at in range(start, end))

    def _note_landed(self, line: int) -> None:
        """Report it once: a series may have many parts."""
        if not any(repair.kind is RepairKind.LANDED_PART for repair in self.repairs):
            detail = "Parts of the patch are on the branch already; they were left out."
            self.repairs.append(Repair(RepairKind.LANDED_PART, detail, line))


def _require_sure(hunk: ScannedHunk, place: HunkPlace, now: FileLines) -> None:
    """Refuse a hunk whose new lines are at its place only by chance."""
    image = images(hunk)
    is_at_edge = (place.start == 0 or not image.must_begin) and (
        place.end == len(now.lines) or not image.must_end
    )
    if not is_at_edge or (image.new and now.only_place(image.new) != place.start):
        raise _UnfitError
