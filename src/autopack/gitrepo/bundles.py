"""Bundles: commits with all their objects as one stream, out of a repository and into one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGXCPU
from threading import Thread
from typing import Final, Protocol

from .errors import GitFailedError
from .process import GitProcess, GitRunner, redact
from .refs import is_run_ref

_CHUNK: Final = 1 << 20
# Operators ask for bundles of whole repositories, so these limits are not those of a request.
_LONGEST_SECONDS: Final = 24 * 3600
_MOST_MEMORY: Final = 4 << 30
_MOST_HEADER_BYTES: Final = 1 << 30
# A bundle of another service: its objects may unpack to any size.
_FOREIGN_SECONDS: Final = 600
_FOREIGN_MEMORY: Final = 1 << 30
_FOREIGN_HEADER_BYTES: Final = 1 << 20
_MOST_MESSAGE_BYTES: Final = 1 << 16
_LINE: Final = re.compile(rb"([0-9a-f]{40}) (refs/[^\0-\x20\x7f~^:?*\[\\]+)\n")
_SIGNATURE: Final = b"# v2 git bundle\n"


class BundleError(GitFailedError):
    """The bytes are not a bundle that can be put into this repository."""

    code = "bundle_invalid"


class Readable(Protocol):
    """What has bytes, one part after the other."""

    def read(self, size: int = -1, /) -> bytes: ...


class Bundles:
    """Reads and writes the bundles of one repository."""

    def __init__(self, git_dir: Path, executable: str) -> None:
        self._git_dir = git_dir
        self._runner = GitRunner(executable, _LONGEST_SECONDS, _MOST_MEMORY)
        self._foreign_runner = GitRunner(executable, _FOREIGN_SECONDS, _FOREIGN_MEMORY)
        self._environment = {"GIT_DIR": str(git_dir)}

    def list_refs(self, *prefixes: str) -> dict[str, str]:
        """Return the refs below these prefixes, or of these names, with their objects."""
        listed = self._runner.run(
            *("for-each-ref", "--format=%(objectname) %(refname)", *prefixes),
            folder=self._git_dir,
            environment=self._environment,
        )
        lines = listed.stdout.decode(errors="surrogateescape").splitlines()
        return {ref: oid for oid, _, ref in (line.partition(" ") for line in lines)}

    def existing(self, oids: Iterable[str]) -> set[str]:
        """Return those of these objects that the repository has."""
        asked = "".join(f"{oid}\n" for oid in oids).encode()
        found = self._runner.run(
            *("cat-file", "--batch-check=%(objectname) %(objecttype)"),
            folder=self._git_dir,
            environment=self._environment,
            stdin=asked,
        ).stdout.decode()
        rows = (line.split(" ") for line in found.splitlines())
        return {oid for oid, kind in rows if kind in ("commit", "tag")}

    def write(
        self, refs: Iterable[str], commits: Iterable[str] = (), *, without: Iterable[str] = ()
    ) -> Iterator[bytes]:
        """Yield a bundle of refs and further commits, with their history up to `without`.

        Raises GitFailedError.
        """
        words = [*refs, *commits, *(f"^{commit}" for commit in without)]
        process = self._runner.start(
            *("bundle", "create", "--quiet", "--version=2", "-", "--stdin"),
            folder=self._git_dir,
            environment=self._environment,
        )
        try:
            # git reads all of it before it writes.
            with suppress(BrokenPipeError):
                process.stdin.write("".join(f"{word}\n" for word in words).encode())
            with suppress(BrokenPipeError):
                process.stdin.close()
            while chunk := process.stdout.read(_CHUNK):
                yield chunk
        except BaseException:
            process.kill()
            raise
        finally:
            self._end(process, "bundle create")

    def read(
        self,
        stream: Readable,
        *,
        into: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> dict[str, str]:
        """Put a bundle's objects into the repository, or into a quarantine; return its refs.

        `into` is a quarantine's environment. No ref changes. git computes the id of each object and
        refuses one whose links are malformed. `max_bytes`: of another service's bundle, for
        which git has less time and memory. Raises BundleError.
        """
        is_foreign = max_bytes is not None
        refs, rest = _read_header(
            stream, _FOREIGN_HEADER_BYTES if is_foreign else _MOST_HEADER_BYTES
        )
        options = [f"--max-input-size={max_bytes}"] if is_foreign else []
        runner = self._foreign_runner if is_foreign else self._runner
        process = runner.start(
            *("index-pack", "--stdin", "--fix-thin", "--strict", *options),
            folder=self._git_dir,
            environment={**self._environment, **(into or {})},
        )
        # It warns of each odd object, and would wait for a reader of that before it reads on.
        messages: list[bytes] = []
        reader = Thread(target=_drain, args=(process.stderr, messages), daemon=True)
        reader.start()
        try:
            with suppress(BrokenPipeError):  # git ended, and says why
                process.stdin.write(rest)
                while chunk := stream.read(_CHUNK):
                    process.stdin.write(chunk)
        except BaseException:
            process.kill()
            raise
        with suppress(BrokenPipeError):
            process.stdin.close()
        reader.join()
        try:
            self._end(process, "index-pack", b"".join(messages))
        except GitFailedError as error:
            raise BundleError(f"the bundle cannot be read: {error.detail}") from error
        return refs

    def _end(self, process: GitProcess, command: str, message: bytes | None = None) -> None:
        said = redact(process.stderr.read() if message is None else message)
        for stream in (process.stdout, process.stderr, process.stdin):
            with suppress(BrokenPipeError):
                stream.close()
        status = process.wait()
        if status == -SIGXCPU:
            raise GitFailedError(f"git {command} took too much time")
        if status:
            self._runner.require_room(said, command, self._git_dir)
            raise GitFailedError(f"git {command} ended with {status}: {said.strip()[-2000:]}")

    def put_refs(self, wanted: Mapping[str, str], now: Mapping[str, str]) -> None:
        """Set refs to objects that are here; `now` are their present values. All or none.

        Raises RefNameTakenError where git cannot have a ref of that name beside others.
        """
        moves = [
            f"update {ref} {oid} {now.get(ref, '0' * 40)}\n"
            for ref, oid in wanted.items()
            if now.get(ref) != oid
        ]
        self._update(moves)

    def remove_refs(self, refs: Mapping[str, str]) -> None:
        """Remove refs of runs that are at these values; other refs are never removed."""
        self._update([f"delete {ref} {oid}\n" for ref, oid in refs.items() if is_run_ref(ref)])

    def _update(self, commands: Sequence[str]) -> None:
        if not commands:
            return
        done = self._runner.run(
            *("update-ref", "--no-deref", "--stdin"),
            folder=self._git_dir,
            environment=self._environment,
            stdin="".join(["start\n", *commands, "commit\n"]).encode(errors="surrogateescape"),
            allowed=(0, 128),
        )
        if done.status:
            self._runner.require_room(done.stderr, "update-ref", self._git_dir)
            raise GitFailedError(f"git update-ref refused: {done.stderr.strip()[:2000]}")


def _drain(stream: Readable, messages: list[bytes]) -> None:
    """Read a stream to its end, and keep the last of it, where git says why it stopped."""
    while chunk := stream.read(_MOST_MESSAGE_BYTES):
        messages[:] = [b"".join([*messages, chunk])[-_MOST_MESSAGE_BYTES:]]


def _read_header(stream: Readable, most: int) -> tuple[dict[str, str], bytes]:
    """Return a bundle's refs, and the bytes that were read beyond its header."""
    data = b""
    while b"\n\n" not in data:
        chunk = stream.read(_CHUNK)
        data += chunk
        if not chunk or not data.startswith(_SIGNATURE[: len(data)]):
            raise BundleError("the bundle is not one of git's version 2")
        if len(data) > most + _CHUNK:
            raise BundleError(f"the bundle's header has more than {most} bytes")
    header, _, rest = data.partition(b"\n\n")
    refs: dict[str, str] = {}
    for line in header.removeprefix(_SIGNATURE).splitlines(keepends=True):
        line = line if line.endswith(b"\n") else line + b"\n"
        if line.startswith(b"-"):
            continue  # a commit that the repository must have; index-pack finds a missing one
        match = _LINE.fullmatch(line)
        if match is None:
            raise BundleError(f"the bundle has the line {line[:80]!r}, which names no ref")
        refs[match[2].decode(errors="surrogateescape")] = match[1].decode()
    return refs, rest
