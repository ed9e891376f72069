"""Objects and trees, read and written in-process.

Reading uses libgit2's object database and nothing else of libgit2, so no configuration is read and
no helper process is needed. Writing is done here because libgit2 cannot make many objects durable
together.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import pygit2

from ..domain.changes import MODE_ABSENT, MODE_LINK, FileChange
from ..domain.links import NO_LINKS, LinkTable
from ..syncing import is_quick_to_sync, sync_file_system
from .errors import ObjectMissingError, StorageError

MODE_FOLDER = 0o040000
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

# libgit2 would keep up to 256 MB of small objects in memory, for the whole process.
pygit2.settings.cache_max_size(16 * 1024 * 1024)

_MANY = 1_000  # so many files take minutes if each is synced alone

Entry = tuple[int, str]
Loose = dict[str, bytes]

_FOLDER = b"40000"
_LINK = b"120000"
_MAX_TABLES = 256
_MAX_FOLDERS = 500_000
_FolderLinks = dict[bytes, str]
_NO_LINKS_WITHIN: _FolderLinks = {}
_ENTRY = re.compile(rb"([0-7]{5,6}+) ([^\0]++)\0(.{20})", re.DOTALL)


class CollisionError(Exception):
    """A file and a folder would have one name in one tree."""


def path_bytes(path: str) -> bytes:
    return path.encode(errors="surrogateescape")


def path_text(path: bytes) -> str:
    return path.decode(errors="surrogateescape")


def encode_loose(kind: str, data: bytes) -> tuple[str, bytes]:
    """Return an object's id and the bytes of its loose file."""
    raw = b"%b %d\0%b" % (kind.encode(), len(data), data)
    return hashlib.sha1(raw, usedforsecurity=False).hexdigest(), zlib.compress(raw, 1)


class Objects:
    """A repository's object store. Safe for any number of threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.links = TreeLinks(lambda oid: self.read(oid)[1])
        self._database = pygit2.Odb(folder)

    def read(self, oid: str) -> tuple[str, bytes]:
        """Return an object's kind and content. Raises ObjectMissingError, which is a KeyError."""
        try:
            kind, data = self._database.read(oid)
        except (KeyError, pygit2.GitError):
            try:
                # libgit2 rereads packs by itself after a repack, but not new alternates.
                self._database = pygit2.Odb(self.folder)
                kind, data = self._database.read(oid)
            except (KeyError, pygit2.GitError) as error:  # or it is damaged, or all are gone
                raise ObjectMissingError(oid) from error
        return kind.name.lower(), data

    def remove_empty(self) -> None:
        """Remove empty object files: a power cut leaves them, and git fails at them."""
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            if path.stat().st_size == 0:
                path.unlink(missing_ok=True)

    def install(
        self, loose: Mapping[str, bytes], *, durably: bool = True, replaces: bool = False
    ) -> None:
        """Make objects part of the repository; `durably`: all are on disk when this returns.

        An object that is in a pack already is written too. A copy is harmless, but an unreachable
        old object could be pruned before the run's ref names it. `replaces`: also one that has a
        file, which may be damaged.
        """
        try:
            self._install(loose, durably, replaces)
        except OSError as error:
            raise StorageError(
                f"Nothing can be written to {self.folder}: {error.strerror}."
                " Check free space and permissions there, then try again."
            ) from error

    def _install(self, loose: Mapping[str, bytes], durably: bool, replaces: bool) -> None:
        written: list[LooseFile] = []
        folders: set[str] = set()
        top = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Each object synced alone is most of what an install costs.
            is_at_once = durably and (len(loose) > _MANY or is_quick_to_sync(top))
            for oid, content in loose.items():
                folder = f"{self.folder}/{oid[:2]}"
                target = f"{folder}/{oid[2:]}"
                if not replaces:
                    with suppress(FileNotFoundError, PermissionError):  # another user's file
                        os.utime(target)  # keeps `git gc` from pruning it
                        continue
                if self._make_folder(folder):
                    folders.add(str(self.folder))
                folders.add(folder)
                written.append(LooseFile(folder, target))
                written[-1].write(content, is_synced=durably and not is_at_once)
            if is_at_once:
                sync_file_system(top)
            for file in written:  # in the order of `loose`: what an object names is there before it
                file.rename()
            if is_at_once:
                sync_file_system(top)
            elif durably:
                _sync(folders)
        except BaseException:
            for file in written:  # on a full disk, partial files would take the last space
                file.remove()
            raise
        finally:
            os.close(top)

    def _make_folder(self, folder: str) -> bool:
        try:
            os.mkdir(folder)
        except FileExistsError:
            return False
        # New folders get the group permissions of a shared repository.
        os.chmod(folder, self.folder.stat().st_mode & 0o7777)
        return True


class NewObjects:
    """The objects of one change, which become part of the repository together.

    Until `install` no git process sees them.
    """

    def __init__(self, repository: Objects) -> None:
        self._repository = repository
        self._loose: Loose = {}

    def add(self, loose: Loose) -> None:
        """Add objects, each after those that it names."""
        self._loose |= loose

    def install(self) -> None:
        """Make them part of the repository, durably. After a StorageError they are given up."""
        loose, self._loose = self._loose, {}
        if loose:
            self._repository.install(loose)


class LooseFile:
    """An object's file, which gets its name when its content is on the disk."""

    def __init__(self, folder: str, target: str) -> None:
        # git prunes files of this name if the service is killed before the rename.
        self._name = os.path.join(folder, f"tmp_obj_{secrets.token_hex(8)}")
        self._target = target

    def write(self, content: bytes, *, is_synced: bool) -> None:
        descriptor = os.open(self._name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        with open(descriptor, "wb", buffering=0) as file:
            os.fchmod(descriptor, 0o444)  # whatever the umask
            left = memoryview(content)
            while left:
                left = left[file.write(left) or 0 :]
            if is_synced:
                os.fsync(descriptor)

    def rename(self) -> None:
        os.rename(self._name, self._target)

    def remove(self) -> None:
        with suppress(OSError):
            os.unlink(self._name)


def _sync(folders: Collection[str]) -> None:
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class TreeLinks:
    """The links of trees. Safe for any number of threads.

    Of each tree only the folders are read that no earlier tree had. For the tree that a patch leads
    to, only the links that the patch changes are read.
    """

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._tables: OrderedDict[str, LinkTable] = OrderedDict()  # by tree id, the latest last
        self._known: dict[str, _FolderLinks] = {EMPTY_TREE: {}}  # by tree id of any folder

    def of_tree(self, root: str) -> LinkTable:
        """Return the links of a tree of the repository."""
        table = self._tables.get(root)
        if table is None:
            found = self._walk(root)
            contents = {oid: self._read(oid) for oid in set(found.values())}
            table = _table({path_text(path): contents[oid] for path, oid in found.items()})
        self._remember(root, table)
        return table

    def of_changed_tree(
        self,
        root: str,
        before: LinkTable,
        changes: Iterable[FileChange],
        read: Callable[[str], bytes],
    ) -> LinkTable:
        """Return the links of a tree after changes; the same table if they change no link."""
        touched = [each for each in changes if MODE_LINK in (each.old_mode, each.new_mode)]
        table = before
        if touched:
            targets = dict(before.targets)
            for change in touched:
                targets.pop(change.path, None)
                if change.new_mode == MODE_LINK and change.new_oid is not None:
                    targets[change.path] = read(change.new_oid)
            table = _table(targets)
        self._remember(root, table)
        return table

    def _remember(self, root: str, table: LinkTable) -> None:
        self._tables[root] = table
        self._tables.move_to_end(root)
        while len(self._tables) > _MAX_TABLES:
            with suppress(KeyError):  # another thread has done it
                self._tables.popitem(last=False)

    def _walk(self, root: str) -> _FolderLinks:
        """Return the links below a folder by path, reading folders that are not known yet."""
        known = self._known
        if len(known) > _MAX_FOLDERS:
            known = self._known = {EMPTY_TREE: {}}
        pending = [root]
        while pending:
            oid = pending[-1]
            if oid in known:
                pending.pop()
                continue
            data = self._read(oid)
            # A name may contain these bytes too; then the entries are read without need.
            has_folders, has_links = b"40000 " in data, b"120000 " in data
            entries = _parse(data).items() if has_folders or has_links else ()
            folders = [(name, each.hex()) for name, (mode, each) in entries if mode == _FOLDER]
            missing = [each for _, each in folders if each not in known]
            if missing:
                pending += missing
                continue
            found = {name: each.hex() for name, (mode, each) in entries if mode == _LINK}
            for name, each in folders:
                found |= {b"%b/%b" % (name, path): link for path, link in known[each].items()}
            known[oid] = found or _NO_LINKS_WITHIN
            pending.pop()
        return known[root]


def _table(targets: Mapping[str, bytes]) -> LinkTable:
    return LinkTable(targets) if targets else NO_LINKS


class TreeDraft:
    """A tree that is read and then changed in memory; only the needed folders are read."""

    def __init__(self, root: str, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._folders: dict[bytes, dict[bytes, tuple[bytes, bytes]]] = {
            b"": _parse(read(root)) if root != EMPTY_TREE else {}
        }
        self._changed: set[bytes] = set()

    def lookup(self, path: bytes) -> Entry | None:
        """Return the mode and id of the file or folder at a path."""
        parent, _, name = path.rpartition(b"/")
        folder = self._folder(parent)
        entry = folder.get(name) if folder is not None else None
        return (int(entry[0], 8), entry[1].hex()) if entry is not None else None

    def names_in(self, path: bytes) -> Collection[bytes]:
        """Return the names in a folder; none where there is no folder."""
        return (self._folder(path) or {}).keys()

    def file_on_the_way(self, path: bytes) -> tuple[bytes, Entry] | None:
        """Return the file at a path, or a file that is at the place of one of its folders."""
        end = 0
        while end >= 0:
            end = path.find(b"/", end + 1)
            prefix = path if end < 0 else path[:end]
            entry = self.lookup(prefix)
            if entry is None:
                return None
            if entry[0] != MODE_FOLDER:
                return prefix, entry
        return None

    def edit(self, changes: Iterable[FileChange]) -> None:
        """Make the changes, removals first so that a file may become a folder and back.

        Raises CollisionError.
        """
        pending = list(changes)
        for change in pending:
            if change.new_mode == MODE_ABSENT:
                self._remove(path_bytes(change.path))
        for change in pending:
            if change.new_oid is not None:
                self._put(
                    path_bytes(change.path), b"%o" % change.new_mode, bytes.fromhex(change.new_oid)
                )

    def write(self) -> tuple[str, Loose]:
        """Return the root's id and every tree that is new, bottom up."""
        loose: Loose = {}
        root = EMPTY_TREE
        for path in sorted(self._with_parents(), key=_depth, reverse=True):
            root, loose_tree = encode_loose("tree", _serialise(self._folders[path]))
            loose[root] = loose_tree
            if path:
                parent, _, name = path.rpartition(b"/")
                self._folders[parent][name] = (_FOLDER, bytes.fromhex(root))
        return root, loose

    def _with_parents(self) -> set[bytes]:
        found = {b""}
        for path in self._changed:
            while path not in found:
                found.add(path)
                path = path.rpartition(b"/")[0]
        return found

    def _folder(self, path: bytes) -> dict[bytes, tuple[bytes, bytes]] | None:
        known = self._folders.get(path)
        if known is not None:
            return known
        parent, _, name = path.rpartition(b"/")
        above = self._folder(parent)
        entry = above.get(name) if above is not None else None
        if entry is None or entry[0] != _FOLDER:
            return None
        known = self._folders[path] = _parse(self._read(entry[1].hex()))
        return known

    def _remove(self, path: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        folder = self._folder(parent)
        if folder is None or folder.pop(name, None) is None:
            return
        self._changed.add(parent)
        if not folder and parent:
            self._changed.discard(parent)
            del self._folders[parent]
            self._remove(parent)

    def _put(self, path: bytes, mode: bytes, oid: bytes) -> None:
        parent, _, name = path.rpartition(b"/")
        folder = self._folder(parent)
        if folder is None:
            folder = self._make_folder(parent)
        if name in folder and folder[name][0] == _FOLDER and mode != _FOLDER:
            raise CollisionError(f"{path_text(path)} is a folder that has other files")
        folder[name] = (mode, oid)
        self._changed.add(parent)

    def _make_folder(self, path: bytes) -> dict[bytes, tuple[bytes, bytes]]:
        parent, _, name = path.rpartition(b"/")
        above = self._folder(parent)
        if above is None:
            above = self._make_folder(parent)
        if name in above:
            raise CollisionError(f"{path_text(path)} is a file, not a folder")
        above[name] = (_FOLDER, b"")  # the id follows in `write`
        made = self._folders[path] = {}
        self._changed.add(path)
        return made


def _depth(path: bytes) -> int:
    return path.count(b"/") + 1 if path else 0


def _parse(data: bytes) -> dict[bytes, tuple[bytes, bytes]]:
    return {name: (mode, oid) for mode, name, oid in _ENTRY.findall(data)}


def _serialise(entries: Mapping[bytes, tuple[bytes, bytes]]) -> bytes:
    # git sorts a folder as if its name ended in a slash.
    ordered = sorted(
        entries.items(), key=lambda item: item[0] + b"/" if item[1][0] == _FOLDER else item[0]
    )
    return b"".join(b"%b %b\0%b" % (mode, name, oid) for name, (mode, oid) in ordered)
