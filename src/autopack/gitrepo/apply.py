"""From a patch to a tree: git applies it in quarantine, and the policy checks the result."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..domain.changes import MODE_ABSENT, FileChange, Repair, Violation
from ..domain.links import LinkTable
from .errors import (
    PatchAlreadyAppliedError,
    PatchEmptyError,
    PatchMalformedError,
    PatchPolicyError,
)
from .objects import CollisionError, Entry, Loose, TreeDraft, path_bytes, path_text
from .patch import ScannedPatch
from .quarantine import Quarantine
from .repair import prove, refuse_unproven

_SERIOUS = re.compile(r"^(?:error|fatal): (.*)$", re.MULTILINE)
_LINE = re.compile(r"(?:at |on )?line (\d+)")
# Matched at the start of a line only, so that a path that contains these words does not match.
_UNSAFE = re.compile(r"invalid path '(.*)'|affected file '(.*)' is beyond a symbolic link")
# git's exit status for a patch that it could not read, or a collision of names.
_MALFORMED = 128
_CORRUPT = re.compile(r"^error: corrupt binary patch", re.MULTILINE)
_FILE_AND_FOLDER = "A conflict of file and folder"
_COLLISION = re.compile("appears as both a file and as a directory|unable to add cache entry")


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """What a patch would change, with access to the content of both sides."""

    files: tuple[FileChange, ...]
    text: bytes
    links_before: LinkTable
    links: LinkTable
    _read: Callable[[str], bytes]
    _before: TreeDraft
    _result: TreeDraft

    def read(self, oid: str) -> bytes:
        """Return a file's content, on either side. Raises KeyError for a submodule's commit."""
        return self._read(oid)

    def was_there(self, path: str) -> bool:
        """Return whether the tree before the change has a file or folder at a path."""
        return self._before.lookup(path_bytes(path)) is not None

    def names_in(self, folder: str) -> Iterable[str]:
        """Return the names in a folder of the resulting tree."""
        return map(path_text, self._result.names_in(path_bytes(folder)))


PolicyCheck = Callable[[ChangeSet], None]


@dataclass(frozen=True, slots=True)
class ApplicablePatch:
    """A patch that applies and passed the policy. `merged`: by a three-way merge.

    `repairs` is what was repaired in it.
    """

    tree: str
    changes: tuple[FileChange, ...]
    insertions: int
    deletions: int
    merged: bool = False
    repairs: tuple[Repair, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolution:
    """The tree, in quarantine, that a patch makes of a head that it does not apply to directly."""

    tree: str
    is_merged: bool
    repairs: tuple[Repair, ...] = ()


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An applied patch, and the files of the objects that it created."""

    applied: ApplicablePatch
    loose: Loose


class RefusedError(Exception):
    """git refuses the patch at this head; the text is git's own reason."""


def apply_in_quarantine(
    quarantine: Quarantine,
    patch: bytes,
    scanned: ScannedPatch,
    tree: str,
    check_policy: PolicyCheck,
    resolve: Callable[[str], Resolution],
) -> Quarantined:
    """Apply a patch to a tree in quarantine and check the result by the policy.

    `patch` is what was sent, `scanned` what git receives of it. Where git refuses the patch,
    `resolve` is called with git's reason and returns the tree.
    """
    merged, repairs = False, scanned.repairs
    try:
        changes, result = apply_to_tree(quarantine, scanned, tree)
    except RefusedError as refusal:
        refuse_unproven(scanned)
        resolution = resolve(str(refusal))
        merged, repairs = resolution.is_merged, resolution.repairs or repairs
        changes = difference(quarantine, tree, resolution.tree)
        result = quarantine.draft(tree)
        result.edit(changes)
    prove(scanned, changes)
    if not changes:
        _refuse_no_change(scanned, merged=merged)
    root, loose = result.write()
    links = quarantine.repository.links
    before = links.of_tree(tree)

    def read(oid: str) -> bytes:
        return quarantine.read(oid)[1]

    after = links.of_changed_tree(root, before, changes, read)
    check_policy(ChangeSet(changes, patch, before, after, read, quarantine.draft(tree), result))
    blobs = quarantine.take({each.new_oid for each in changes if each.new_oid is not None})
    applied = ApplicablePatch(
        root, changes, scanned.insertions, scanned.deletions, merged, tuple(repairs)
    )
    return Quarantined(applied, blobs | loose)


def apply_to_tree(
    quarantine: Quarantine, scanned: ScannedPatch, tree: str
) -> tuple[tuple[FileChange, ...], TreeDraft]:
    """Apply the patch by git to an index with only those files that it could change.

    Raises RefusedError, PatchMalformedError, and PatchPolicyError for paths that git itself
    refuses.
    """
    result = quarantine.draft(tree)
    found = (result.file_on_the_way(path) for path in scanned.paths())
    before = dict(each for each in found if each is not None)
    quarantine.write_index(before)
    outcome = quarantine.git(
        "apply",
        "--cached",
        "--whitespace=nowarn",
        "-",
        stdin=scanned.text.content(),
        allowed=(0, 1, 128),
    )
    # At a corrupt binary part git stops reading with a message, but it still applies the files
    # before it and ends with status 0.
    if outcome.status or _CORRUPT.search(outcome.stderr):
        _explain(outcome.status or _MALFORMED, outcome.stderr, scanned.text.numbers)
    changes = tuple(_compare(before, quarantine.read_index()))
    try:
        result.edit(changes)
    except CollisionError as collision:
        # git lets a new file replace a folder whose files are not in the index.
        raise RefusedError(f"{_FILE_AND_FOLDER}: {collision}") from None
    return changes, result


def _explain(status: int, stderr: str, numbers: Sequence[int]) -> None:
    """Raise git's refusal as a typed error; `numbers` are the line numbers in the sent text."""
    lines = _SERIOUS.findall(stderr)
    reason = "; ".join(lines) or stderr.strip()
    unsafe = next(filter(None, map(_UNSAFE.match, lines)), None)
    if unsafe is not None:
        path = unsafe.group(1) or unsafe.group(2)
        raise PatchPolicyError([Violation(path, "path", f"is refused by git: {unsafe.group()}")])
    if _COLLISION.search(reason):
        raise RefusedError(f"{_FILE_AND_FOLDER}: {reason}")
    if status == _MALFORMED:
        line = _LINE.search(reason)
        at = min(int(line.group(1)), len(numbers)) - 1 if line else None
        raise PatchMalformedError(
            f"git cannot read the patch: {reason}.", line=None if at is None else numbers[at]
        )
    raise RefusedError(reason)


def _compare(before: dict[bytes, Entry], after: dict[bytes, Entry]) -> Iterable[FileChange]:
    absent = (MODE_ABSENT, None)
    for path in sorted(before.keys() | after.keys()):
        old_mode, old_oid = before.get(path, absent)
        new_mode, new_oid = after.get(path, absent)
        if (old_mode, old_oid) != (new_mode, new_oid):
            yield FileChange(path_text(path), old_mode, new_mode, old_oid, new_oid)


def difference(quarantine: Quarantine, old: str, new: str) -> tuple[FileChange, ...]:
    """Return the changes between two trees, one of them in quarantine."""
    options = ("-r", "-z", "--raw", "--no-renames", "--no-abbrev", "--end-of-options")
    words = iter(quarantine.git("diff-tree", *options, old, new).stdout.split(b"\0"))
    changes = []
    for head, path in zip(words, words, strict=False):
        old_mode, new_mode, old_oid, new_oid, _ = head.removeprefix(b":").decode().split(" ")
        changes.append(
            FileChange(
                path_text(path),
                int(old_mode, 8),
                int(new_mode, 8),
                old_oid if int(old_oid, 16) else None,
                new_oid if int(new_oid, 16) else None,
            )
        )
    return tuple(changes)


def _refuse_no_change(scanned: ScannedPatch, *, merged: bool) -> None:
    if merged or any(file.old_mode != file.new_mode for file in scanned.files):
        raise PatchAlreadyAppliedError("The branch has all changes of this patch already.")
    raise PatchEmptyError("The patch changes nothing: what it adds equals what it removes.")
