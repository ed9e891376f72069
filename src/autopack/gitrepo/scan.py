"""Read a patch before git does: count it, and refuse what git would have to guess.

Accepted are the diffs that git and GNU diff write (with `diff --git`, or `---` and `+++` alone),
and what `git format-patch`, `git show` and `git log -p` print around them. Everything else between
the files is refused, although git would skip it: prose may contain a hunk whose header was lost,
and half of a change is worse than none. Repairs are made before (`repair.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from ..config import Settings
from ..domain.changes import DIFF_COMMAND
from .binary import BinaryProblemError, delta_result_size, find_hunk
from .errors import PatchMalformedError, PatchTooLargeError
from .grammar import (
    HUNK,
    LEFT_OUT,
    PREFACE,
    begins_file,
    begins_traditional,
    consume,
    count_to_end,
    extended_word,
    goes_on,
    is_signature,
)
from .names import NameProblemError, bare_name, common_name, show, side_name
from .patch import PatchText, ScannedFile, ScannedHunk, ScannedPatch

_INDEX = re.compile(rb"index ([0-9a-f]{4,64})\.\.([0-9a-f]{4,64})(?: \d{6})?$")
_MODE = re.compile(rb"(?:(?:old|new|new file|deleted file) mode |index \S+ )(\d+)$")
_SERVED_MODES = re.compile(rb"100[0-7]{3}|120000|160000")
# Lines of other tools between files, which only repeat the headers.
_IGNORED = re.compile(rb"Index: |={20,}$|diff -[A-Za-z]")
_FENCE = re.compile(rb"[ \t]*(?:```|~~~)[\w.+-]*[ \t]*\r?$")
_MAX_DIGITS = 9
_SIDES_OF_MODE = {
    b"old mode ": ("old",),
    b"deleted file mode ": ("old",),
    b"new mode ": ("new",),
    b"new file mode ": ("new",),
    b"index ": ("old", "new"),
}


def scan_patch(text: PatchText, limits: Settings) -> ScannedPatch:
    """Read a patch once, in time linear in its length, and check it against the limits.

    Raises PatchTooLargeError with the limit and the figure, PatchMalformedError with the line and
    what was expected there.
    """
    longest = max(map(len, text.lines), default=0)
    require_limit(limits, "max_patch_line_bytes", longest, "bytes in one line")
    scanner = _Scanner(text, limits)
    files = tuple(scanner.files())
    if not files:
        raise PatchMalformedError(
            "The patch has no line of a diff. A description or the text of a whole file cannot"
            f" be applied: send the output of `{DIFF_COMMAND}`.",
            line=text.numbers[0] if text.lines else 1,
        )
    _refuse_created_twice(files)
    return ScannedPatch(
        text=text,
        files=files,
        hunk_count=scanner.hunk_count,
        insertions=scanner.insertions,
        deletions=scanner.deletions,
    )


def _refuse_created_twice(files: Iterable[ScannedFile]) -> None:
    """Refuse a file that is created twice: git accepts that, and one of the two is lost."""
    created: set[bytes] = set()
    for file in files:
        if file.old_path not in (None, file.new_path) and not file.is_copy:
            created.discard(file.old_path)  # deleted, or renamed away
        if file.old_path is None and file.new_path is not None:
            if file.new_path in created:
                raise PatchMalformedError(
                    f"{show(file.new_path)} is created twice; a patch may create a file once.",
                    line=file.line,
                )
            created.add(file.new_path)


def require_limit(limits: Settings, name: str, figure: int, what: str) -> None:
    """Raise PatchTooLargeError where a figure of the patch passes a limit of the settings."""
    most: int = getattr(limits, name)
    if figure > most:
        raise PatchTooLargeError(
            f"The patch has {figure:,} {what}; at most {most:,} are accepted"
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


@dataclass(slots=True)
class _Header:
    """The lines before a file's hunks, by their first words."""

    said: dict[bytes, bytes] = field(default_factory=dict)
    names: list[bytes] = field(default_factory=list)
    modes: dict[str, int] = field(default_factory=dict)
    index: tuple[str | None, str | None] = (None, None)

    def path(self, side: bytes, absent: bytes, *moves: bytes) -> bytes | None:
        """Return a side's path, from the line that git gives precedence.

        Empty if the file is absent on that side, None if no line names it.
        """
        if side not in self.said and absent in self.said:
            return b""
        words = (side, *moves, b"diff --git ")
        return next((self.said[word] for word in words if word in self.said), None)

    def agrees(self, old: bytes, new: bytes) -> bool:
        """Return whether all lines of a `diff --git` header name these two paths."""
        said = self.said
        for kind in (b"rename", b"copy"):
            if kind + b" from " in said:
                return (said[kind + b" from "], said[kind + b" to "]) == (old, new)
        common = said.get(b"diff --git ")
        return common is None or {old, new} <= {common, b""}


class _Scanner:
    """One pass over the lines. `_at` is the next line to read."""

    def __init__(self, text: PatchText, limits: Settings) -> None:
        self._lines = text.lines
        self._numbers = text.numbers
        self._at = 0
        self._limits = limits
        self._binary_bytes = 0
        self.hunk_count = 0
        self.insertions = 0
        self.deletions = 0

    def files(self) -> Iterator[ScannedFile]:
        count = 0
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if begins_file(self._lines, self._at):
                count += 1
                require_limit(self._limits, "max_patch_files", count, "files")
                yield self._file()
            elif line == b"" or _IGNORED.match(line):
                self._at += 1
            elif is_signature(self._lines, self._at):
                self._at += 2  # the signature of `git format-patch`
            elif PREFACE.match(line):
                self._skip_preface()
            else:
                self._refuse_between(line, has_file=count > 0)

    # Between the files

    def _peek(self, ahead: int) -> bytes:
        at = self._at + ahead
        return self._lines[at] if at < len(self._lines) else b""

    def _skip_preface(self) -> None:
        """Skip a mail's head or a commit's message, up to the line where git would find a diff."""
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if line.startswith(b"@@ -") or begins_file(self._lines, self._at):
                return
            self._at += 1

    def _refuse_between(self, line: bytes, *, has_file: bool) -> NoReturn:
        shown = show(line)
        if _FENCE.match(line):
            detail = f"A Markdown fence ({shown}) is here: send one diff, and nothing else."
        elif line.startswith(b"@@ "):
            detail = (
                "A hunk is here without its file: `diff --git`, `---` and `+++` lines"
                " must come before it."
            )
        elif line.startswith((b"diff --cc ", b"diff --combined ")):
            detail = "This is the combined diff of a merge, which git cannot apply."
        elif line.startswith((b"--- ", b"+++ ")):
            detail = f"`{shown}` is one half of a header: `--- a/file`, then `+++ b/file`."
        else:
            detail = f"`{shown}` is not part of a diff: send only the diff, without text around it."
        if has_file and not line.startswith(b"@@ "):
            detail += " If it belongs to the file above, that file's hunk counts are wrong."
        self._refuse(detail)

    def _refuse(self, detail: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        raise PatchMalformedError(detail, line=self._number(at))

    def _number(self, at: int) -> int:
        return self._numbers[at] if at < len(self._numbers) else self._numbers[-1] + 1

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
            depth = name.count(b"/") + 1
            require_limit(self._limits, "max_path_bytes", len(name), "bytes in one path")
            require_limit(self._limits, "max_path_depth", depth, "levels in one path")
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
            at=start,
            end=self._at,
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
            word = extended_word(line)
            if word is None:
                return
            self._extended(header, word, line)
            self._at += 1

    def _extended(self, header: _Header, word: bytes, line: bytes) -> None:
        if line.endswith(b"\r"):
            _refuse_crlf(self._number(self._at))
        if word in header.said:
            self._refuse(f"`{show(word.strip())}` is given twice for one file.")
        value = line.removeprefix(word)
        if word.startswith((b"rename ", b"copy ")):
            value = bare_name(value)
            header.names.append(value)
        header.said[word] = value
        mode = _MODE.match(line)
        if mode is not None:
            if not _SERVED_MODES.fullmatch(mode.group(1)):
                self._refuse(
                    f"Mode {show(mode.group(1))} is not a mode of a file:"
                    " 100644, 100755 or 120000."
                )
            for side in _SIDES_OF_MODE[word]:
                header.modes[side] = int(mode.group(1), 8)
        elif b"mode " in word or (b" " in value and word == b"index "):
            self._refuse(f"`{show(line)}` has no mode, such as 100644.")
        index = _INDEX.match(line)
        if index is not None:
            header.index = (index.group(1).decode(), index.group(2).decode())

    def _sides(self, header: _Header, *, is_traditional: bool) -> None:
        if not begins_traditional(self._lines, self._at):
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
        """Return the old and the new path of a file; refuse headers that disagree.

        None for the side where the file is absent.
        """
        said = header.said
        kinds = (b"new file mode ", b"deleted file mode ", b"rename from ", b"copy from ")
        is_move_whole = (b"rename from " in said) == (b"rename to " in said) and (
            (b"copy from " in said) == (b"copy to " in said)
        )
        if sum(kind in said for kind in kinds) > 1 or not is_move_whole:
            self._refuse("The header lines of this file contradict each other.", start)
        old = header.path(b"--- ", b"new file mode ", b"rename from ", b"copy from ")
        new = header.path(b"+++ ", b"deleted file mode ", b"rename to ", b"copy to ")
        if old is None or new is None or not (old or new):
            self._refuse(
                f"`{show(self._lines[start])}` does not name a file clearly;"
                " a header is `diff --git a/file b/file`.",
                start,
            )
        is_new, is_deleted = b"new file mode " in said, b"deleted file mode " in said
        if is_git and (is_new != (not old) or is_deleted != (not new)):
            self._refuse(
                "Only a new file comes from /dev/null and only a deleted one goes there; say so"
                " by `new file mode 100644` or `deleted file mode 100644` after `diff --git`.",
                start,
            )
        if not (header.agrees(old, new) if is_git else old == new or not (old and new)):
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
            require_limit(self._limits, "max_patch_hunks", self.hunk_count, "hunks")
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
        match = HUNK.match(self._lines[start])
        if match is None:
            shown = show(self._lines[start])
            if LEFT_OUT.match(self._lines[start]):
                self._refuse_left_out(start)
            self._refuse(f"`{shown}` is not a hunk header; one is `@@ -1,3 +1,4 @@`.")
        if match.end() == len(self._lines[start]) - 1 and self._lines[start].endswith(b"\r"):
            _refuse_crlf(self._number(start))
        digits = [b"1" if number is None else number for number in match.groups()]
        if max(map(len, digits)) > _MAX_DIGITS:
            self._refuse(f"`{show(match.group())}` names lines that no file has.")
        old_start, old_count, new_start, new_count = map(int, digits)
        found = consume(self._lines, start + 1, old_count, new_count)
        if not found.is_whole or goes_on(self._lines, found.end):
            self._refuse_counts(start, old_count, new_count)
        if found.context == old_count == new_count:
            self._refuse("This hunk changes nothing: it has neither + nor - lines.")
        if not found.context and old_start > (1 if old_count else 0):
            # git would search such a hunk only at the file's end, and may apply it there by chance.
            self._refuse(
                "This hunk has no line of context, so its place cannot be checked:"
                f" make the diff with context (`{DIFF_COMMAND}`)."
            )
        self._at = found.end
        self.insertions += new_count - found.context
        self.deletions += old_count - found.context
        return ScannedHunk(
            old_start=old_start,
            old_count=old_count,
            new_start=new_start,
            new_count=new_count,
            at=start,
            line=self._number(start),
            body=tuple(self._lines[start + 1 : found.end]),
        )

    def _refuse_counts(self, start: int, old_count: int, new_count: int) -> NoReturn:
        """Refuse a hunk, with the number of lines up to its only possible end."""
        found = count_to_end(self._lines, start + 1)
        after = self._lines[found.end] if found.end < len(self._lines) else b""
        if LEFT_OUT.match(after):
            self._refuse_left_out(found.end)
        self._refuse(
            f"The hunk declares {old_count} old and {new_count} new lines, but {found.old} and"
            f" {found.new} follow. Old lines begin with a space or -, new ones with a space or +.",
            start,
        )

    def _refuse_left_out(self, at: int) -> NoReturn:
        self._refuse(
            f"`{show(self._lines[at])}` replaces lines that were left out; a diff has every line"
            f" of its hunks: send the whole output of `{DIFF_COMMAND}`.",
            at,
        )

    # Binary files

    def _binary(self, header: _Header) -> bool:
        line = self._peek(0)
        if line.startswith((b"Binary files ", b"Files ")) and line.endswith(b" differ"):
            self._refuse(
                "The patch says that a binary file differs, but not how:"
                f" make it with `{DIFF_COMMAND} --binary`."
            )
        if line != b"GIT binary patch":
            return False
        if not all(name and len(name) == 40 for name in header.index):
            self._refuse(
                "A binary patch needs the full object ids:"
                f" make it with `{DIFF_COMMAND} --binary --full-index`."
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
        held = self._binary_bytes
        require_limit(self._limits, "max_binary_bytes", held, "bytes of binary content")
