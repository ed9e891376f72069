"""Archives of a backup or a run: a tar file whose every byte is covered by a sum. (docs/backup.md)

The members have fixed names and come in a fixed order; the last one, SHA256SUMS, has the sum of
each other. There are no links, no folders and no compression here, so a member is never larger than
the archive. An archive is written under a temporary name and gets its own when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from ..domain.errors import ConflictError, InvalidError, UnavailableError
from ..domain.printable import one_line
from ..gitrepo.bundles import Readable

MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"
CHUNK: Final = 1 << 20
# Of the two members that are read into memory.
MOST_MANIFEST_BYTES: Final = 16 << 20
_BLOCK: Final = tarfile.BLOCKSIZE
_END: Final = bytes(2 * _BLOCK)


class ArchiveError(InvalidError):
    """The file is not a whole archive of the kind that is expected."""

    code = "archive_invalid"


class ArchiveExistsError(ConflictError):
    """There is a file of that name; it could be a backup, so it is not replaced."""

    code = "archive_exists"


class ArchiveNotWrittenError(UnavailableError):
    """The archive could not be written, and no part of it is left."""

    code = "archive_not_written"


class ArchiveWriter:
    """Writes the members of an archive one after the other into a file that can seek."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sums: dict[str, str] = {}

    def add(self, name: str, chunks: Iterable[bytes]) -> int:
        """Write a member and return its size, which does not have to be known before."""
        place = self._file.tell()
        self._file.write(bytes(_BLOCK))
        digest, size = hashlib.sha256(), 0
        for chunk in chunks:
            self._file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        self._file.write(bytes(-size % _BLOCK))
        end = self._file.tell()
        self._file.seek(place)
        self._file.write(_header(name, size))
        self._file.seek(end)
        self._sums[name] = digest.hexdigest()
        return size

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, and the sums as `sha256sum` reads them."""
        self.add(MANIFEST, [(json.dumps(manifest, indent=2) + "\n").encode()])
        lines = [f"{digest}  {name}\n" for name, digest in self._sums.items()]
        self.add(SUMS, ["".join(lines).encode()])
        self._file.write(_END)


@contextmanager
def new_archive(path: Path) -> Iterator[ArchiveWriter]:
    """Write an archive that only its owner can read, and give it its name when it is durable.

    Raises ArchiveExistsError, and ArchiveNotWrittenError for a full disk; a killed process leaves a
    file whose name ends in `.partial`.
    """
    if os.path.lexists(path):
        raise ArchiveExistsError(f"{path} exists already: name another file")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w+b") as file:
                yield ArchiveWriter(file)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)  # unlike a rename, it replaces no file that came meanwhile
        finally:
            with suppress(OSError):
                os.unlink(partial)
        _sync_folder(path.parent)
    except FileExistsError:
        raise ArchiveExistsError(f"{path} exists already: name another file") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ArchiveNotWrittenError(
            f"{path} cannot be written: {reason}; nothing is left of it"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Member:
    place: int
    size: int


class Member:
    """A member's bytes, read from its archive as from a file."""

    def __init__(self, file: BinaryIO, member: _Member) -> None:
        self._file = file
        self._place, self._end = member.place, member.place + member.size

    def read(self, size: int = -1, /) -> bytes:
        rest = self._end - self._place
        self._file.seek(self._place)
        data = self._file.read(rest if size < 0 else min(size, rest))
        self._place += len(data)
        return data


class Archive:
    """An archive whose members all have their sums."""

    def __init__(self, file: BinaryIO, name: str, kind: str, members: Sequence[str]) -> None:
        """Read the whole archive once and check it. Raises ArchiveError."""
        self._file = file
        self._name = name
        self._members: dict[str, _Member] = {}
        self._check([*members, MANIFEST, SUMS])
        self.manifest = self._read_manifest(kind)

    def open(self, name: str) -> Member:
        return Member(self._file, self._members[name])

    def size(self, name: str) -> int:
        return self._members[name].size

    def _refuse(self, why: str) -> ArchiveError:
        return ArchiveError(f"{self._name}: {why}")

    def _check(self, names: Sequence[str]) -> None:
        total = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        sums: dict[str, str] = {}
        for name in names:
            size = self._read_header(name, total)
            self._members[name] = _Member(self._file.tell(), size)
            sums[name] = self._sum_of(name, size)
        if self._file.read(len(_END) + 1) != _END:
            raise self._refuse(f"it does not end after {names[-1]}, so it is truncated or changed")
        listed = self.open(SUMS).read(MOST_MANIFEST_BYTES).decode("ascii", "replace")
        wanted = "".join(f"{sums[name]}  {name}\n" for name in names[:-1])
        if listed != wanted:
            bad = [name for name in names[:-1] if f"{sums[name]}  {name}\n" not in listed]
            raise self._refuse(
                f"the sum of {bad[0]} is not the one in {SUMS}, so it was changed or damaged"
                if bad
                else f"{SUMS} does not list exactly its members"
            )

    def _read_header(self, name: str, total: int) -> int:
        header = self._file.read(_BLOCK)
        if len(header) < _BLOCK:
            raise self._refuse(f"it ends before {name}, so it is truncated")
        try:
            found = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
        except tarfile.HeaderError as error:
            raise self._refuse(f"{name} is expected here, and this is no tar ({error})") from None
        if found.name != name:
            raise self._refuse(f"{name} is expected, and it has {one_line(found.name)[:100]}")
        if found.size < 0 or header != _header(name, found.size):
            raise self._refuse(f"{name} is not a plain member as Autopack writes it")
        if self._file.tell() + found.size > total:
            raise self._refuse(
                f"{name} should have {found.size} bytes and the archive ends before, so it is"
                " truncated"
            )
        return found.size

    def _sum_of(self, name: str, size: int) -> str:
        """Return the sum of the member at this place, and go to the next."""
        digest, rest = hashlib.sha256(), size
        while rest:
            chunk = self._file.read(min(rest, CHUNK))
            if not chunk:
                raise self._refuse(f"it ends within {name}, so it is truncated")
            digest.update(chunk)
            rest -= len(chunk)
        padding = self._file.read(-size % _BLOCK)
        if padding != bytes(-size % _BLOCK):
            raise self._refuse(f"it has other bytes than zeros after {name}")
        return digest.hexdigest()

    def _read_manifest(self, kind: str) -> dict[str, Any]:
        if self.size(MANIFEST) > MOST_MANIFEST_BYTES:
            raise self._refuse(f"{MANIFEST} is larger than {MOST_MANIFEST_BYTES} bytes")
        try:
            manifest = json.loads(self.open(MANIFEST).read())
        except (ValueError, RecursionError):
            raise self._refuse(f"{MANIFEST} is not JSON") from None
        if not isinstance(manifest, dict) or manifest.get("kind") != kind:
            raise self._refuse(f"{MANIFEST} does not have the kind {kind!r}")
        if manifest.get("format") != 1:
            raise self._refuse(
                f"it has format {one_line(str(manifest.get('format')))[:40]}, and this Autopack"
                " reads format 1: update Autopack"
            )
        return manifest


@contextmanager
def open_archive(path: Path, kind: str, members: Sequence[str]) -> Iterator[Archive]:
    """Open an archive and check every byte of it. Raises ArchiveError."""
    try:
        # The opening of a pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArchiveError(f"{path} is not a file")
    with open(descriptor, "rb") as file:
        yield Archive(file, str(path), kind, members)


def chunks_of(stream: Readable) -> Iterator[bytes]:
    """Yield a stream's bytes."""
    while chunk := stream.read(CHUNK):
        yield chunk


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    return member.tobuf(tarfile.GNU_FORMAT)
