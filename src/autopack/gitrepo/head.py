"""The files of a commit that a patch will be applied to."""

from __future__ import annotations

from typing import Protocol

from .objects import MODE_FOLDER, Entry, TreeDraft


class Store(Protocol):
    """Objects, and trees to change: a quarantine, or commits that are made again."""

    def read(self, oid: str) -> tuple[str, bytes]: ...

    def draft(self, tree: str) -> TreeDraft: ...


class HeadFiles:
    """The files of one tree; each is read once."""

    def __init__(self, store: Store, tree: str) -> None:
        self._store = store
        self._tree: TreeDraft = store.draft(tree)
        self._contents: dict[bytes, bytes | None] = {}

    def lookup(self, path: bytes) -> Entry | None:
        """Return the mode and id of the file or folder at a path."""
        return self._tree.lookup(path)

    def has_file(self, path: bytes) -> bool:
        entry = self.lookup(path)
        return entry is not None and entry[0] != MODE_FOLDER

    def has_folder(self, path: bytes) -> bool:
        entry = self.lookup(path)
        return entry is not None and entry[0] == MODE_FOLDER

    def read(self, path: bytes) -> bytes | None:
        """Return the content of a file or the target of a link; None where there is neither."""
        if path not in self._contents:
            self._contents[path] = self._read(path)
        return self._contents[path]

    def _read(self, path: bytes) -> bytes | None:
        entry = self.lookup(path)
        if entry is None:
            return None
        try:
            kind, data = self._store.read(entry[1])
        except KeyError:
            return None  # a submodule's commit, which is in another repository
        return data if kind == "blob" else None
