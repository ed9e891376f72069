"""Repair the headers and hunks of a patch's files, where they have only one possible meaning.

One pass over the text, linear in its length. The strict scanner still checks the result, and so
does git: old lines that are not in the file are refused as without repair.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..domain.changes import DIFF_COMMAND, MODE_FILE, Repair, RepairKind
from .errors import PatchMalformedError
from .grammar import (
    HUNK,
    PREFACE,
    Consumed,
    begins_file,
    begins_traditional,
    consume,
    count_to_end,
    extended_word,
    goes_on,
)
from .head import HeadFiles
from .names import (
    NameProblemError,
    checked_path,
    has_prefix,
    quoted,
    show,
    unquote,
    written_name,
    written_names,
)
from .patch import PatchText, Proof

# Lines between files that --stat, --numstat, --raw, --name-status, --summary and --oneline print.
_PREAMBLE = re.compile(
    rb" \S.* \| +(?:\d+(?: [+-]+)?|Bin.*)$"
    rb"| \d+ files? changed(?:, \d+ (?:insertion|deletion)s?\([+-]\)){0,2}$"
    rb"|:\d{6} \d{6} [0-9a-f.]+ [0-9a-f.]+ [A-Z]\d*\t"
    rb"|(?:\d+|-)\t(?:\d+|-)\t"
    rb"|[ACDMRT]\d*\t"
    rb"| (?:create|delete) mode \d{6} | mode change \d{6} => \d{6} | (?:rename|copy) .* \(\d+%\)$"
    rb"|---$"
)
_ONE_LINE = re.compile(rb"[0-9a-f]{7,40} \S")
_INDEX_IDS = re.compile(rb"index [0-9a-f]{7,}\.\.[0-9a-f]{7,}(?: |$)")
_MODE_OF_INDEX = re.compile(rb" (100644|100755|120000)$")
_NO_OLD = re.compile(rb"@@ -[01],0 ")
_NO_NEW = re.compile(rb"@@ -\d+(?:,\d+)? \+[01],0 @@")
_DOTS = re.compile(rb"^(?:\./)+")
_MAX_DIGITS = 9
_USUAL_CONTEXT = 3  # git's default number of context lines


@dataclass(slots=True)
class _Header:
    """The positions of a file's header lines; `end` is after them."""

    start: int
    is_git: bool
    words: dict[bytes, int] = field(default_factory=dict)
    old: int | None = None  # the `---` line, with `+++` after it
    end: int = 0


class FileRepairs:
    """One pass over a text. `edits` and `repairs` are what was done, `proofs` what is unsure."""

    def __init__(self, text: PatchText, head: HeadFiles) -> None:
        self._text = text
        self._lines = text.lines
        self._head = head
        self._edits: dict[int, list[bytes]] = {}
        self._context_widths: set[int] = set()
        self.repairs: list[Repair] = []
        self.proofs: list[Proof] = []

    def run(self) -> PatchText:
        """Return the repaired text. Raises PatchMalformedError for two possible meanings."""
        at = 0
        while at < len(self._lines):
            if begins_file(self._lines, at):
                at = self._file(at)
            elif PREFACE.match(self._lines[at]):
                at = self._behind_preface(at)
            else:
                self._between(at)
                at += 1
        return self._text.edited(self._edits)

    def _note(self, kind: RepairKind, at: int, detail: str) -> None:
        """Report a repair; of several equal ones only the first."""
        if not any(repair.kind is kind and repair.detail == detail for repair in self.repairs):
            self.repairs.append(Repair(kind, detail, self._text.numbers[at]))

    # Between the files

    def _behind_preface(self, at: int) -> int:
        while at < len(self._lines) and not begins_file(self._lines, at):
            at += 1
        return at

    def _between(self, at: int) -> None:
        """Remove a line that options of git print around a diff."""
        line = self._lines[at]
        if _PREAMBLE.match(line) or (_ONE_LINE.match(line) and self._diff_follows(at + 1)):
            self._edits[at] = []
            detail = "Lines that `git diff --stat`, `--raw` or `git show` print were removed."
            self._note(RepairKind.PREAMBLE, at, detail)

    def _diff_follows(self, at: int) -> bool:
        """Return whether a diff starts after blank lines and other lines that git prints."""
        while at < len(self._lines) and (
            not self._lines[at].strip() or _PREAMBLE.match(self._lines[at])
        ):
            at += 1
        return at < len(self._lines) and begins_file(self._lines, at)

    # One file

    def _file(self, start: int) -> int:
        header = self._read_header(start)
        try:
            old, new = self._mend_paths(header)
        except NameProblemError:
            return header.end  # the scanner reports the error
        if header.old is not None:
            old, new = self._mend_header(header, old, new)
        at = header.end
        while at < len(self._lines) and self._lines[at].startswith(b"@@ "):
            at = self._hunk(header, at, new or old or b"", is_new=old is None)
        return at

    def _read_header(self, start: int) -> _Header:
        lines = self._lines
        header = _Header(start, is_git=lines[start].startswith(b"diff --git "))
        at = start + header.is_git
        while header.is_git and at < len(lines) and (word := extended_word(lines[at])):
            header.words.setdefault(word, at)
            at += 1
        if at < len(lines) and begins_traditional(lines, at):
            header.old = at
            at += 2
        header.end = at
        return header

    # Paths

    def _mend_paths(self, header: _Header) -> tuple[bytes | None, bytes | None]:
        """Write each path with its a/ or b/, and return both paths; None is /dev/null.

        Raises NameProblemError for a name that git cannot read in one way.
        """
        written = self._written_paths(header)
        if written is None:
            return b"", b""
        names = [None if name is None else _without_dots(name) for name in written]
        bare = next((name for name in names if name is not None and not has_prefix(name)), None)
        is_whole = False
        if bare is not None:
            is_new = names[0] is None or b"new file mode " in header.words
            # A prefix differs from side to side, and none is `./`.
            is_certain = self._has_equal_halves(header) or tuple(names) != written
            is_whole = self._is_whole_path(header, bare, is_new=is_new, is_certain=is_certain)
        old, new = (None if name is None else _path(name, is_whole) for name in names)
        if tuple(names) != written:
            self._note(RepairKind.PATHS, header.start, "`./` before paths was removed.")
        if bare is not None or tuple(names) != written:
            self._write_paths(header, old, new)
        return old, new

    def _written_paths(self, header: _Header) -> tuple[bytes | None, bytes | None] | None:
        if header.old is not None:
            old, new = (
                written_name(self._lines[at][4:], is_traditional=not header.is_git)
                for at in (header.old, header.old + 1)
            )
            return old, new
        if b"rename from " in header.words or b"copy from " in header.words:
            return None  # these lines have no prefix
        return written_names(self._lines[header.start].removeprefix(b"diff --git "))

    def _is_whole_path(
        self, header: _Header, name: bytes, *, is_new: bool, is_certain: bool
    ) -> bool:
        """Return whether a name without a/ or b/ is a path as a whole, or after its first folder.

        `is_certain`: the headers themselves show that it has no prefix. Raises PatchMalformedError
        where the branch has both paths, NameProblemError where it has neither.
        """
        at = header.start if header.old is None else header.old
        rest = name.partition(b"/")[2]
        if is_new:
            folder = name.rpartition(b"/")[0]
            is_whole = is_certain or not folder or self._head.has_folder(folder)
            is_behind = False
        else:
            is_whole = self._head.has_file(name)
            is_behind = self._head.has_file(rest)
        if is_whole and is_behind and not is_certain:
            raise PatchMalformedError(
                f"{show(name)} can be that file or, as git reads it, {show(rest)}: the branch has"
                f" both. Make the diff by `{DIFF_COMMAND}`.",
                line=self._text.numbers[at],
            )
        if not is_whole and not is_behind:
            raise NameProblemError("names no file of the branch")
        if is_whole:
            detail = "Paths had no a/ and b/ before them (`diff.noprefix`); these were added."
        else:
            detail = "Paths had a folder instead of a/ and b/; it was replaced by these."
        self._note(RepairKind.PATHS, at, detail)
        return is_whole

    def _has_equal_halves(self, header: _Header) -> bool:
        if not header.is_git:
            return False
        halves = written_names(self._lines[header.start].removeprefix(b"diff --git "))
        return halves is not None and halves[0] == halves[1]

    def _write_paths(self, header: _Header, old: bytes | None, new: bytes | None) -> None:
        if header.is_git:
            both = (b"a/" + (old or new or b""), b"b/" + (new or old or b""))
            self._edits[header.start] = [b"diff --git " + b" ".join(map(quoted, both))]
        for word in (b"rename from ", b"rename to ", b"copy from ", b"copy to "):
            if word in header.words:
                at = header.words[word]
                self._edits[at] = [word + _without_dots(self._lines[at].removeprefix(word))]
        if header.old is None:
            return
        for at, prefix, path in ((header.old, b"a/", old), (header.old + 1, b"b/", new)):
            if path is not None:
                word, stamp = self._lines[at][:4], _stamp(self._lines[at][4:])
                self._edits[at] = [word + quoted(prefix + path) + stamp]

    # Other header lines

    def _mend_header(
        self, header: _Header, old: bytes | None, new: bytes | None
    ) -> tuple[bytes | None, bytes | None]:
        """Complete the header of a new or deleted file; return both paths."""
        assert header.old is not None  # noqa: S101 - for the type checker: the caller checks it
        if not header.is_git:
            return old, new
        hunk = self._lines[header.end] if header.end < len(self._lines) else b""
        if b"new file mode " in header.words and old is not None and _NO_OLD.match(hunk):
            self._edits[header.old] = [b"--- /dev/null"]
            old = None
            self._note(RepairKind.FILE_HEADER, header.old, "A new file comes from /dev/null.")
        if b"deleted file mode " in header.words and new is not None and _NO_NEW.match(hunk):
            self._edits[header.old + 1] = [b"+++ /dev/null"]
            new = None
            self._note(RepairKind.FILE_HEADER, header.old, "A deleted file goes to /dev/null.")
        if old is None and b"new file mode " not in header.words:
            self._add_mode(header, b"new file mode ", MODE_FILE)
        if new is None and old is not None and b"deleted file mode " not in header.words:
            entry = self._head.lookup(old)
            self._add_mode(header, b"deleted file mode ", entry[0] if entry else MODE_FILE)
        return old, new

    def _add_mode(self, header: _Header, word: bytes, mode: int) -> None:
        index = header.words.get(b"index ")
        said = _MODE_OF_INDEX.search(self._lines[index]) if index is not None else None
        line = word + (said.group(1) if said else b"%06o" % mode)
        self._edits.setdefault(header.start, [self._lines[header.start]]).append(line)
        detail = f"The line `{show(word)}…` was missing after `diff --git`."
        self._note(RepairKind.FILE_HEADER, header.start, detail)

    # Hunks

    def _hunk(self, header: _Header, start: int, path: bytes, *, is_new: bool) -> int:
        """Repair a hunk's header or end; return where the next hunk may start."""
        lines = self._lines
        match = HUNK.match(lines[start])
        if match is None or max(map(len, match.groups(b""))) > _MAX_DIGITS:
            return start + 1  # the scanner refuses it
        old_start, old_count, new_start, new_count = (int(each) for each in match.groups(b"1"))
        declared = consume(lines, start + 1, old_count, new_count)
        found = count_to_end(lines, start + 1)
        if is_new and found.old == 0 and (old_start, old_count) != (0, 0):
            old_start = old_count = 0
            declared = consume(lines, start + 1, old_count, new_count)
            self._edits[start] = [b"@@ -0,0 +1,%d @@" % new_count]
            detail = "The hunk of a new file begins with `@@ -0,0`."
            self._note(RepairKind.HUNK_COUNTS, start, detail)
        if declared.is_whole and not goes_on(lines, declared.end):
            self._learn_context(start, declared.end, old_start)
            return declared.end
        if found.old >= old_count and found.new >= new_count:
            if self._is_surplus_sure(declared.end, found.end):
                self._recount(match, start, old_start, found.old, new_start, found.new)
                self._doubt(header, start, path, is_required=False)
        elif self._is_end(declared.end):
            self._pad(header, start, path, declared, old_start)
            return declared.end
        elif not self._is_end(found.end) and self._has_ids(header):
            self._recount(match, start, old_start, found.old, new_start, found.new)
            self._doubt(header, start, path, is_required=True)
        return found.end

    def _recount(
        self,
        match: re.Match[bytes],
        at: int,
        old_start: int,
        old_count: int,
        new_start: int,
        new_count: int,
    ) -> None:
        counts = b"@@ -%d,%d +%d,%d @@" % (old_start, old_count, new_start, new_count)
        self._edits[at] = [counts + self._lines[at][match.end() :]]
        detail = "A hunk's header declared another number of lines than follow; they were counted."
        self._note(RepairKind.HUNK_COUNTS, at, detail)

    def _is_surplus_sure(self, start: int, end: int) -> bool:
        """Return whether lines after those that a header declares belong to the hunk.

        After a blank line they may be prose, such as a list. So the last of them must be a context
        line, which git compares.
        """
        has_blank = any(not line for line in self._lines[start:end])
        return not has_blank or self._lines[end - 1][:1] == b" "

    def _pad(
        self, header: _Header, start: int, path: bytes, declared: Consumed, old_start: int
    ) -> None:
        """Restore blank context lines that were trimmed from the patch's end.

        A patch that was cut off looks the same. The difference: each change is followed by the same
        number of context lines. If not more than these are missing, none of the missing lines is a
        change. In other cases, and where the last line may be cut itself, the ids on the `index`
        line must confirm the result.
        """
        missing = declared.old_left
        if declared.new_left != missing or self._lines[-1].startswith(b"\\"):
            return
        self._learn_context(start, declared.end, old_start)
        kept = _trailing_context(self._lines[start + 1 : declared.end])
        width = max(self._context_widths, default=_USUAL_CONTEXT)
        is_sure = kept > 0 and kept + missing == width
        if not is_sure and not self._has_ids(header):
            return
        last = len(self._lines) - 1
        self._edits.setdefault(last, [self._lines[last]]).extend([b" "] * missing)
        detail = f"{missing} blank lines of context were trimmed from the patch's end; restored."
        self._note(RepairKind.TRIMMED_CONTEXT, last, detail)
        self._doubt(header, start, path, is_required=not is_sure)

    def _learn_context(self, start: int, end: int, old_start: int) -> None:
        """Count the context lines that this patch has before a change."""
        body = self._lines[start + 1 : end]
        if old_start > 1:
            self._context_widths.add(_trailing_context(body[::-1]))

    def _is_end(self, at: int) -> bool:
        return all(not line.strip() for line in self._lines[at:])

    def _has_ids(self, header: _Header) -> bool:
        at = header.words.get(b"index ")
        return at is not None and _INDEX_IDS.match(self._lines[at]) is not None

    def _doubt(self, header: _Header, at: int, path: bytes, *, is_required: bool) -> None:
        refusal = PatchMalformedError(
            "The hunk has another number of lines than its header declares, and the file's `index`"
            " line does not prove that none is lost: send the whole output of"
            f" `{DIFF_COMMAND}`.",
            line=self._text.numbers[at],
        )
        self.proofs.append(Proof(path, is_required, refusal))


def _without_dots(name: bytes) -> bytes:
    """Return a name without `./` at its start, before or after its prefix.

    Raises NameProblemError for one that leads out of the repository.
    """
    name = _DOTS.sub(b"", name)
    if has_prefix(name):
        return name[:2] + checked_path(_DOTS.sub(b"", name[2:]))
    return checked_path(name)


def _path(name: bytes, is_whole: bool) -> bytes:
    return name if is_whole and not has_prefix(name) else name.partition(b"/")[2]


def _stamp(text: bytes) -> bytes:
    """Return the text after the name on a `---` or `+++` line, from its tab on."""
    rest = unquote(text)[1] if text.startswith(b'"') else text
    return rest[rest.index(b"\t") :] if b"\t" in rest else b""


def _trailing_context(body: list[bytes]) -> int:
    count = 0
    for line in reversed(body):
        if line[:1] not in (b" ", b""):
            break
        count += 1
    return count
