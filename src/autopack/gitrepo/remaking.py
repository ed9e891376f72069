"""Commits and tags made again, to their recorded ids, from what was recorded of them.

No process of git is needed: whether a patch is applied as git did when it was accepted is decided
by the recorded id of the tree. Where that differs, git itself applies the patch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ..config import Settings
from ..domain.changes import MODE_ABSENT, MODE_FILE, FileChange
from .encoding import encode_commit, encode_tag
from .errors import PatchMalformedError, RepositoryUnusableError
from .head import HeadFiles
from .hunks import FileLines, HunkStatus, images, place_hunks, split_lines
from .objects import CollisionError, Loose, Objects, TreeDraft, encode_loose, path_text
from .patch import ScannedFile, ScannedHunk
from .repair import read_patch


class _NotHereError(Exception):
    """A kind of change that only git applies."""


@dataclass(frozen=True, slots=True)
class StoredCommit:
    """A commit of a branch as it was recorded; `patch` leads to it from its parent.

    Without a patch its tree is an earlier one of the branch.
    """

    sha: str
    parent: str
    tree: str
    message: str
    at: datetime
    signature: str | None
    patch: bytes | None


@dataclass(frozen=True, slots=True)
class StoredTag:
    """An annotated tag as it was recorded."""

    oid: str
    name: str
    commit: str
    message: str
    at: datetime
    signature: str | None


class Remaking:
    """Makes commits and tags again, in memory until `install`. For one thread.

    `durably`: on the disk when `install` returns. `replaces`: files of objects that are there are
    written anew, as their content may be damaged.
    """

    def __init__(
        self,
        objects: Objects,
        limits: Settings,
        apply_by_git: Callable[[str, bytes], str],
        *,
        durably: bool,
        replaces: bool,
    ) -> None:
        self._objects = objects
        self._limits = limits
        self._apply_by_git = apply_by_git
        self._durably = durably
        self._replaces = replaces
        self._contents: Loose = {}
        self._histories: Loose = {}

    def commit(self, recorded: StoredCommit) -> None:
        """Make a commit again on its parent. Raises RepositoryUnusableError."""
        patch = recorded.patch
        if patch is not None and self._apply(recorded.parent, patch) != recorded.tree:
            self.install()  # what git reads
            made = self._apply_by_git(recorded.parent, patch)
            _require_same(f"the tree of commit {recorded.sha}", recorded.tree, made)
        oid, loose = encode_commit(
            [recorded.parent], recorded.tree, recorded.message, recorded.at, recorded.signature
        )
        _require_same(f"commit {recorded.sha}", recorded.sha, oid)
        self._histories[oid] = loose

    def tag(self, recorded: StoredTag) -> None:
        """Make a tag again. Raises RepositoryUnusableError."""
        oid, loose = encode_tag(
            *(recorded.name, recorded.commit, recorded.message, recorded.at, recorded.signature)
        )
        _require_same(f"tag {recorded.name}", recorded.oid, oid)
        self._histories[oid] = loose

    def install(self) -> None:
        """Put all that was made into the repository: a commit never stands there before its tree.

        Raises StorageError.
        """
        for made in (self._contents, self._histories):
            self._objects.install(made, durably=self._durably, replaces=self._replaces)
            made.clear()

    def read(self, oid: str) -> tuple[str, bytes]:
        """Return an object's kind and content. Raises ObjectMissingError, which is a KeyError."""
        loose = self._contents.get(oid) or self._histories.get(oid)
        if loose is None:
            return self._objects.read(oid)
        head, _, data = zlib.decompress(loose).partition(b"\0")
        return head.split(b" ")[0].decode(), data

    def draft(self, tree: str) -> TreeDraft:
        """Return a tree that can be read, and changed in memory."""
        return TreeDraft(tree, lambda oid: self.read(oid)[1])

    def _apply(self, parent: str, patch: bytes) -> str | None:
        """Apply a patch to a commit; return the tree, or None where only git can say."""
        try:
            tree = self.read(parent)[1][5:45].decode()
            head = HeadFiles(self, tree)
            files, loose = _Files(head), Loose()
            for file in read_patch(patch, self._limits, head).files:
                files.change(file)
            changes = [files.difference(path, loose) for path in files.touched]
            draft = self.draft(tree)
            draft.edit(changes)
            root, trees = draft.write()
        except (KeyError, CollisionError, PatchMalformedError, _NotHereError):
            return None
        self._contents |= loose | trees
        return root


class _Files:
    """The files of a tree that a patch touches, after each of its sections."""

    def __init__(self, head: HeadFiles) -> None:
        self._head = head
        self.touched: dict[bytes, tuple[int, bytes] | None] = {}  # mode and content; None: deleted

    def change(self, file: ScannedFile) -> None:
        """Apply one section. Raises _NotHereError."""
        if file.is_binary:
            raise _NotHereError
        mode, content = MODE_FILE, b""
        if file.old_path is not None:
            mode, content = self._now(file.old_path)
        content = _patched(content, file.hunks)
        if file.new_path is not None:
            self.touched[file.new_path] = (file.new_mode or mode, content)
        if file.old_path not in (None, file.new_path) and not file.is_copy:
            self.touched[file.old_path] = None

    def difference(self, path: bytes, loose: Loose) -> FileChange:
        """Return what became of a path, and put its content into `loose`."""
        entry = self._head.lookup(path)
        old_mode, old_oid = entry or (MODE_ABSENT, None)
        now = self.touched[path]
        if now is None:
            return FileChange(path_text(path), old_mode, MODE_ABSENT, old_oid, None)
        mode, content = now
        oid, loose[oid] = encode_loose("blob", content)
        return FileChange(path_text(path), old_mode, mode, old_oid, oid)

    def _now(self, path: bytes) -> tuple[int, bytes]:
        if path in self.touched:
            found = self.touched[path]
        else:
            entry, content = self._head.lookup(path), self._head.read(path)
            found = None if entry is None or content is None else (entry[0], content)
        if found is None:
            raise _NotHereError
        return found


def _patched(content: bytes, hunks: Sequence[ScannedHunk]) -> bytes:
    """Return a file's content after hunks. Raises _NotHereError where one does not apply."""
    if not hunks:
        return content
    file = FileLines(split_lines(content))
    parts: list[bytes] = []
    done = 0
    for hunk, place in zip(hunks, place_hunks(hunks, file), strict=True):
        start, end = place.start, place.end
        if place.status is not HunkStatus.APPLIED or start is None or end is None or start < done:
            raise _NotHereError
        parts += file.lines[done:start]
        parts += images(hunk).new
        done = end
    return b"".join([*parts, *file.lines[done:]])


def _require_same(what: str, recorded: str, made: str) -> None:
    if made != recorded:
        raise RepositoryUnusableError(
            f"{what} is missing from the repository and was {recorded}, but made again it is"
            f" {made}: restore it (`git fetch`)"
        )
