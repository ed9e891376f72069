"""Read a patch before git does: count it, and refuse what git would guess about.

Accepted are the diffs that git and GNU diff write (with `diff --git`, or `---` and `+++` alone),
what `git format-patch`, `git show` and `git log -p` print around them, and one Markdown fence
around it all. Everything else between the files is refused, while git would skip it: prose may
hide a hunk whose header was lost, and a change half applied is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from ..config import Settings
from .binary import BinaryProblemError, delta_result_size, find_hunk
from .errors import PatchMalformedError, PatchTooLargeError
from .names import NameProblemError, bare_name, common_name, show, side_name

_HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_INDEX = re.compile(rb"index ([0-9a-f]{4,64})\.\.([0-9a-f]{4,64})(?: \d{6})?$")
_MODE = re.compile(rb"(?:(?:old|new|new file|deleted file) mode |index \S+ )(\d+)$")
_SERVED_MODES = re.compile(rb"100[0-7]{3}|120000|160000")
_PREFACE = re.compile(rb"(?:From|commit) [0-9a-f]{40}(?:[0-9a-f]{24})?(?: |$)")
_VERSION = re.compile(rb"\d+\.\d+[\w.() -]*$")
# Lines of other tools between files, which say nothing that the headers do not say too.
_IGNORED = re.compile(rb"Index: |={20,}$|diff -[A-Za-z]")
_FENCE = re.compile(rb"[ \t]*(?:```|~~~)[\w.+-]*[ \t]*\r?$")
_MOST_DIGITS = 9
_BOM = b"\xef\xbb\xbf"
_SIDES_OF_MODE = {
    b"old mode ": ("old",),
    b"deleted file mode ": ("old",),
    b"new mode ": ("new",),
    b"new file mode ": ("new",),
    b"index ": ("old", "new"),
}
_EXTENDED = (
    b"old mode ",
    b"new mode ",
    b"deleted file mode ",
    b"new file mode ",
    b"copy from ",
    b"copy to ",
    b"rename from ",
    b"rename to ",
    b"similarity index ",
    b"dissimilarity index ",
    b"index ",
)


@dataclass(frozen=True, slots=True)
class ScannedHunk:
    """One hunk. `body` holds its lines with their marks and without their newlines."""

    old_start: int
    old_count: int
    new_start: int
    new_count: int
    line: int
    body: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """What a patch says about one file.

    `paths` is every path that any header of it names: at least all that git would touch.
    `old_path` is None for a new file, `new_path` for a deleted one.
    """

    line: int
    paths: tuple[bytes, ...]
    old_path: bytes | None
    new_path: bytes | None
    old_mode: int | None
    new_mode: int | None
    index_old: str | None
    index_new: str | None
    is_copy: bool
    is_binary: bool
    hunks: tuple[ScannedHunk, ...]


@dataclass(frozen=True, slots=True)
class ScannedPatch:
    """A patch within the limits. `patch` is what git gets: fence off, last newline repaired."""

    patch: bytes
    files: tuple[ScannedFile, ...]
    hunk_count: int
    insertions: int
    deletions: int

    def paths(self) -> frozenset[bytes]:
        return frozenset(path for file in self.files for path in file.paths)


def scan_patch(patch: bytes, limits: Settings) -> ScannedPatch:
    """Read a patch once, in time linear in its length, and check it against the limits (05).

    Raises PatchTooLargeError naming the limit and the figure, PatchMalformedError naming the
    line and what was expected there.
    """
    _limit(limits, "max_patch_bytes", len(patch), "bytes")
    _limit(limits, "max_patch_lines", patch.count(b"\n"), "lines")
    lines, first_number = _diff_lines(patch)
    longest = max(map(len, lines), default=0)
    _limit(limits, "max_patch_line_bytes", longest, "bytes in one line")
    scanner = _Scanner(lines, first_number, limits)
    files = tuple(scanner.files())
    if not files:
        raise PatchMalformedError(
            "The patch holds no diff; it must have lines like `diff --git a/file b/file`,"
            " `--- a/file`, `+++ b/file` and `@@ -1,3 +1,4 @@`.",
            line=first_number,
        )
    _refuse_created_twice(files)
    return ScannedPatch(
        patch=b"".join([line + b"\n" for line in lines]),
        files=files,
        hunk_count=scanner.hunk_count,
        insertions=scanner.insertions,
        deletions=scanner.deletions,
    )


def _refuse_created_twice(files: Iterable[ScannedFile]) -> None:
    """Refuse a file that is made twice: git takes that, and one of the two is lost."""
    created: set[bytes] = set()
    for file in files:
        if file.old_path not in (None, file.new_path) and not file.is_copy:
            created.discard(file.old_path)  # deleted, or renamed away
        if file.old_path is None and file.new_path is not None:
            if file.new_path in created:
                raise PatchMalformedError(
                    f"{show(file.new_path)} is created twice; a patch makes a file once.",
                    line=file.line,
                )
            created.add(file.new_path)


def _limit(limits: Settings, name: str, figure: int, what: str) -> None:
    most: int = getattr(limits, name)
    if figure > most:
        raise PatchTooLargeError(
            f"The patch has {figure:,} {what}; at most {most:,} are taken"
            f" (AUTOPACK_{name.upper()}).",
            limit=name,
            most=most,
            figure=figure,
        )


def _refuse_crlf(number: int) -> NoReturn:
    raise PatchMalformedError(
        "The patch's own lines, headers included, end in CRLF: it was converted on its way."
        " Send it with LF; only the lines of files that have CRLF keep it.",
        line=number,
    )


def _diff_lines(patch: bytes) -> tuple[list[bytes], int]:
    """The diff's lines without their newlines, and the number of the first.

    Taken off is what means nothing: a byte order mark, one Markdown fence around it all. Put back
    is what was trimmed at the end: a newline, the blank line that ends binary content.
    """
    if patch.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PatchMalformedError("The patch is UTF-16; send it as UTF-8 or as raw bytes.", line=1)
    lines = patch.removeprefix(_BOM).split(b"\n")
    if not lines[-1]:
        lines.pop()
    if lines and all(line.endswith(b"\r") for line in lines):
        _refuse_crlf(1)
    first = 0
    filled = [at for at, line in enumerate(lines) if line.strip()]
    if filled and _FENCE.match(lines[filled[0]]):
        first, last = filled[0] + 1, filled[-1]
        if first > last or lines[last].strip() not in (b"```", b"~~~"):
            raise PatchMalformedError(
                "A Markdown fence opens here and does not close at the patch's end:"
                " send the diff alone, and all of it.",
                line=first,
            )
        lines = lines[first:last]
    if lines and lines[-1] and b"GIT binary patch" in lines:
        lines.append(b"")
    return lines, first + 1


@dataclass(slots=True)
class _Header:
    """What the lines before a file's hunks said, by the line's first words."""

    said: dict[bytes, bytes] = field(default_factory=dict)
    names: list[bytes] = field(default_factory=list)
    modes: dict[str, int] = field(default_factory=dict)
    index: tuple[str | None, str | None] = (None, None)


class _Scanner:
    """One pass over the lines. `_at` is the next line to read."""

    def __init__(self, lines: list[bytes], first_number: int, limits: Settings) -> None:
        self._lines = lines
        self._at = 0
        self._first_number = first_number
        self._limits = limits
        self._binary_bytes = 0
        self.hunk_count = 0
        self.insertions = 0
        self.deletions = 0

    def files(self) -> Iterator[ScannedFile]:
        count = 0
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.startswith(b"diff --git ") or self._is_traditional(self._at):
                count += 1
                _limit(self._limits, "max_patch_files", count, "files")
                yield self._file()
            elif line == b"" or _IGNORED.match(line):
                self._at += 1
            elif line in (b"-- ", b"--") and _VERSION.match(self._peek(1)):
                self._at += 2  # the signature of `git format-patch`
            elif _PREFACE.match(line):
                self._skip_preface()
            else:
                self._refuse_between(line, has_file=count > 0)

    # Between the files

    def _peek(self, ahead: int) -> bytes:
        at = self._at + ahead
        return self._lines[at] if at < len(self._lines) else b""

    def _is_traditional(self, at: int) -> bool:
        """Whether a pair of `---` and `+++` lines, which need no `diff --git`, begins here."""
        return (
            self._lines[at].startswith(b"--- ")
            and at + 1 < len(self._lines)
            and self._lines[at + 1].startswith(b"+++ ")
        )

    def _skip_preface(self) -> None:
        """Skip a mail's head or a commit's message, up to where git would see a diff begin."""
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.startswith((b"diff --git ", b"@@ -")) or self._is_traditional(self._at):
                return
            self._at += 1

    def _refuse_between(self, line: bytes, *, has_file: bool) -> NoReturn:
        shown = show(line)
        if _FENCE.match(line):
            detail = f"A Markdown fence ({shown}) stands here: send one diff, and nothing else."
        elif line.startswith(b"@@ "):
            detail = (
                "A hunk stands here without its file: `diff --git`, `---` and `+++` lines"
                " must come before it."
            )
        elif line.startswith((b"diff --cc ", b"diff --combined ")):
            detail = "This is the combined diff of a merge, which git cannot apply."
        elif line.startswith((b"--- ", b"+++ ")):
            detail = f"`{shown}` is one half of a header: `--- a/file`, then `+++ b/file`."
        else:
            detail = f"`{shown}` is no part of a diff: send the diff alone, without text around it."
        if has_file and not line.startswith(b"@@ "):
            detail += " If it belongs to the file above, that file's hunk counts are wrong."
        self._refuse(detail)

    def _refuse(self, detail: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        raise PatchMalformedError(detail, line=self._number(at))

    def _number(self, at: int) -> int:
        return self._first_number + at

    # One file

    def _file(self) -> ScannedFile:
        start = self._at
        is_git = self._lines[start].startswith(b"diff --git ")
        header = _Header()
        try:
            if is_git:
                self._git_header(header)
            if self._peek(0).startswith((b"--- ", b"+++ ")):
                self._sides(header, is_traditional=not is_git)
            old_path, new_path = self._resolve(start, header, is_git=is_git)
        except NameProblemError as problem:
            self._refuse(f"`{show(self._lines[self._at])}` {problem}.")
        for name in header.names:
            _limit(self._limits, "max_path_bytes", len(name), "bytes in one path")
            _limit(self._limits, "max_path_depth", name.count(b"/") + 1, "levels in one path")
        hunks = self._hunks(is_new=old_path is None, is_deleted=new_path is None)
        is_binary = False
        if not hunks:
            is_binary = is_git and self._binary(header)
            changes_metadata = old_path != new_path or header.modes.get("old") != header.modes.get(
                "new"
            )
            if not is_binary and not changes_metadata:
                self._refuse(
                    f"The patch names {show(header.names[0])} here and then no change to it:"
                    " a hunk (`@@ -1,3 +1,4 @@`) must follow.",
                    start,
                )
        return ScannedFile(
            line=self._number(start),
            paths=tuple(dict.fromkeys(header.names)),
            old_path=old_path,
            new_path=new_path,
            old_mode=header.modes.get("old"),
            new_mode=header.modes.get("new"),
            index_old=header.index[0],
            index_new=header.index[1],
            is_copy=b"copy from " in header.said,
            is_binary=is_binary,
            hunks=hunks,
        )

    def _git_header(self, header: _Header) -> None:
        line = self._lines[self._at]
        if line.endswith(b"\r"):
            _refuse_crlf(self._number(self._at))
        name = common_name(line.removeprefix(b"diff --git "))
        if name is not None:
            header.said[b"diff --git "] = name
            header.names.append(name)
        self._at += 1
        while self._at < len(self._lines):
            line = self._lines[self._at]
            word = next((word for word in _EXTENDED if line.startswith(word)), None)
            if word is None:
                return
            self._extended(header, word, line)
            self._at += 1

    def _extended(self, header: _Header, word: bytes, line: bytes) -> None:
        if line.endswith(b"\r"):
            _refuse_crlf(self._number(self._at))
        if word in header.said:
            self._refuse(f"`{show(word.strip())}` stands twice for one file.")
        value = line.removeprefix(word)
        if word.startswith((b"rename ", b"copy ")):
            value = bare_name(value)
            header.names.append(value)
        header.said[word] = value
        mode = _MODE.match(line)
        if mode is not None:
            if not _SERVED_MODES.fullmatch(mode.group(1)):
                self._refuse(
                    f"Mode {show(mode.group(1))} is none that a file may have:"
                    " 100644, 100755 or 120000."
                )
            for side in _SIDES_OF_MODE[word]:
                header.modes[side] = int(mode.group(1), 8)
        elif b"mode " in word or (b" " in value and word == b"index "):
            self._refuse(f"`{show(line)}` names no mode, such as 100644.")
        index = _INDEX.match(line)
        if index is not None:
            header.index = (index.group(1).decode(), index.group(2).decode())

    def _sides(self, header: _Header, *, is_traditional: bool) -> None:
        if not self._is_traditional(self._at):
            self._refuse("`--- a/file` and `+++ b/file` lines must come as a pair.")
        for word in (b"--- ", b"+++ "):
            line = self._lines[self._at]
            if line.endswith(b"\r"):
                _refuse_crlf(self._number(self._at))
            name = side_name(line.removeprefix(word), is_traditional=is_traditional)
            header.said[word] = b"" if name is None else name
            if name is not None:
                header.names.append(name)
            self._at += 1
        if is_traditional and not self._peek(0).startswith(b"@@ -"):
            self._refuse("After `---` and `+++` a hunk must follow: `@@ -1,3 +1,4 @@`.")

    def _resolve(
        self, start: int, header: _Header, *, is_git: bool
    ) -> tuple[bytes | None, bytes | None]:
        """Which path the file had and which it gets, refusing headers that disagree."""
        said = header.said
        common = said.get(b"diff --git ")
        moved_from = said.get(b"rename from ", said.get(b"copy from "))
        moved_to = said.get(b"rename to ", said.get(b"copy to "))
        is_new = b"new file mode " in said
        is_deleted = b"deleted file mode " in said
        kinds = (is_new, is_deleted, b"rename from " in said, b"copy from " in said)
        if sum(kinds) > 1 or (moved_from is None) != (moved_to is None):
            self._refuse("The header lines of this file contradict each other.", start)
        old = said.get(b"--- ", moved_from if moved_from is not None else common)
        new = said.get(b"+++ ", moved_to if moved_to is not None else common)
        if is_new and b"--- " not in said:
            old = b""
        if is_deleted and b"+++ " not in said:
            new = b""
        if old is None or new is None or (not old and not new):
            self._refuse(
                f"`{show(self._lines[start])}` names no file clearly;"
                " a header is `diff --git a/file b/file`.",
                start,
            )
        if is_git and (is_new != (not old) or is_deleted != (not new)):
            self._refuse(
                "Only a new file comes from /dev/null and only a deleted one goes there; say so"
                " by `new file mode 100644` or `deleted file mode 100644` after `diff --git`.",
                start,
            )
        agrees = (
            (moved_from is None or moved_from == old)
            and (moved_to is None or moved_to == new)
            and (common is None or moved_from is not None or {old, new} <= {common, b""})
        )
        if not is_git:
            agrees = old == new or not old or not new
        if not agrees:
            self._refuse(
                "The header lines of this file name different paths; a rename needs"
                " `diff --git`, `rename from` and `rename to` lines.",
                start,
            )
        return old or None, new or None

    # Hunks

    def _hunks(self, *, is_new: bool, is_deleted: bool) -> tuple[ScannedHunk, ...]:
        hunks: list[ScannedHunk] = []
        while self._at < len(self._lines) and self._lines[self._at].startswith(b"@@ "):
            self.hunk_count += 1
            _limit(self._limits, "max_patch_hunks", self.hunk_count, "hunks")
            start = self._at
            hunk = self._hunk()
            if is_new and hunk.old_count:
                self._refuse("The hunk of a new file cannot have old lines.", start)
            if is_deleted and hunk.new_count:
                self._refuse("The hunk of a deleted file cannot leave lines.", start)
            hunks.append(hunk)
        return tuple(hunks)

    def _hunk(self) -> ScannedHunk:
        start = self._at
        match = _HUNK.match(self._lines[start])
        if match is None:
            self._refuse(
                f"`{show(self._lines[start])}` is no hunk header; one is `@@ -1,3 +1,4 @@`."
            )
        if match.end() == len(self._lines[start]) - 1 and self._lines[start].endswith(b"\r"):
            _refuse_crlf(self._number(start))
        digits = [b"1" if number is None else number for number in match.groups()]
        if max(map(len, digits)) > _MOST_DIGITS:
            self._refuse(f"`{show(match.group())}` names lines that no file has.")
        old_start, old_count, new_start, new_count = map(int, digits)
        lines, at = self._lines, start + 1
        old_left, new_left, context = old_count, new_count, 0
        try:
            while old_left > 0 or new_left > 0:
                line = lines[at]
                mark = line[:1]
                if mark == b" " or not mark:
                    old_left -= 1
                    new_left -= 1
                    context += 1
                elif mark == b"+":
                    new_left -= 1
                elif mark == b"-":
                    old_left -= 1
                elif not (mark == b"\\" and _is_no_newline(line)):
                    break
                at += 1
        except IndexError:
            pass  # the patch ends inside the hunk
        if at < len(lines) and _is_no_newline(lines[at]):
            at += 1
        if old_left or new_left or self._goes_on(at):
            self._refuse_counts(start, old_count, new_count)
        if context == old_count == new_count:
            self._refuse("This hunk changes nothing: it has neither + nor - lines.")
        if not context and old_start > (1 if old_count else 0):
            # git would look for such a hunk at the file's end only, and may well fit it there.
            self._refuse(
                "This hunk has no line of context, so its place cannot be checked:"
                " make the diff with context (`git diff -U3`)."
            )
        self._at = at
        self.insertions += new_count - context
        self.deletions += old_count - context
        return ScannedHunk(
            old_start=old_start,
            old_count=old_count,
            new_start=new_start,
            new_count=new_count,
            line=self._number(start),
            body=tuple(lines[start + 1 : at]),
        )

    def _goes_on(self, at: int) -> bool:
        """Whether lines of a hunk follow, though its counts are used up.

        Blank lines alone are no sign of that: they end many a patch that went through a chat.
        """
        if at >= len(self._lines) or self._is_signature(at) or self._is_traditional(at):
            return False
        return self._lines[at][:1] in (b" ", b"+", b"-", b"\\")

    def _is_signature(self, at: int) -> bool:
        lines = self._lines
        return (
            lines[at] in (b"-- ", b"--")
            and at + 1 < len(lines)
            and _VERSION.match(lines[at + 1]) is not None
        )

    def _refuse_counts(self, start: int, old_count: int, new_count: int) -> NoReturn:
        """Refuse a hunk, saying how many lines there are up to where it can only end."""
        found = {b" ": 0, b"-": 0, b"+": 0, b"\\": 0}
        blank = 0
        for at in range(start + 1, len(self._lines)):
            mark = self._lines[at][:1]
            if not mark:
                blank += 1
                continue
            if mark not in found or self._is_signature(at) or self._is_traditional(at):
                break
            found[b" "] += blank
            blank = 0
            found[mark] += 1
        old, new = found[b" "] + found[b"-"], found[b" "] + found[b"+"]
        self._refuse(
            f"The hunk declares {old_count} old and {new_count} new lines, but {old} and {new}"
            " follow. Old lines begin with a space or -, new ones with a space or +.",
            start,
        )

    # Binary files

    def _binary(self, header: _Header) -> bool:
        line = self._peek(0)
        if line.startswith((b"Binary files ", b"Files ")) and line.endswith(b" differ"):
            self._refuse(
                "The patch says that a binary file differs and not how:"
                " make it with `git diff --binary`."
            )
        if line != b"GIT binary patch":
            return False
        if not all(name and len(name) == 40 for name in header.index):
            self._refuse(
                "A binary patch needs the full object ids: make it with `git diff --binary`."
            )
        self._at += 1
        try:
            if not self._binary_hunk():
                self._refuse("`literal` or `delta`, and a size, must follow `GIT binary patch`.")
            self._binary_hunk()  # the way back, which may be missing
        except BinaryProblemError as problem:
            self._refuse(str(problem), problem.at)
        return True

    def _binary_hunk(self) -> bool:
        hunk = find_hunk(self._lines, self._at)
        if hunk is None:
            return False
        self._count_binary(hunk.size)
        if hunk.is_delta:
            self._count_binary(delta_result_size(self._lines, hunk))
        self._at = hunk.end + 1
        return True

    def _count_binary(self, size: int) -> None:
        self._binary_bytes += size
        _limit(self._limits, "max_binary_bytes", self._binary_bytes, "bytes of binary content")


def _is_no_newline(line: bytes) -> bool:
    """Whether this is git's "no newline at end of file" line, in any language."""
    return line.startswith(b"\\ ") and len(line) >= 11
