"""git over the objects of a repository, in a git dir of our own: no setting reaches it.

`gitrepo/` is the service's way to git. This one trusts neither the repository nor its user, and is
made of nothing but Python's standard library and git's own commands.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Final

from ..domain.record_text import RecordError, show

MAX_OBJECT_BYTES: Final = 64_000_000
GIT_SECONDS: Final = 300
LINK: Final = "120000"
FOLDER: Final = "40000"
PLAIN_FILE: Final = "100644"
EXECUTABLE_FILE: Final = "100755"
OBJECT_ID: Final = re.compile(r"[0-9a-f]{40}\Z")


class WrongUseError(Exception):
    """What was asked for cannot be checked here at all."""


class Commit:
    """A commit as git stores it, whatever grafts and replacements say of it."""

    def __init__(self, data: bytes) -> None:
        head, _, self.message = data.partition(b"\n\n")
        lines = head.decode("utf-8", "replace").split("\n")
        self.tree = lines[0][len("tree ") :]
        self.parents: list[str] = []
        for line in lines[1:]:
            if not line.startswith("parent "):
                break
            self.parents.append(line[len("parent ") :])


class Git:
    """git over the objects of a repository, in a git dir of our own: no setting reaches it."""

    def __init__(self, repository: str, scratch: str) -> None:
        executable = shutil.which("git")
        if executable is None:
            raise WrongUseError("git is not installed")
        self.executable = executable
        self.scratch = Path(scratch)
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name in ("PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP")
        }
        self.environment.update(
            GIT_CONFIG_GLOBAL=os.devnull,
            GIT_CONFIG_SYSTEM=os.devnull,
            GIT_CONFIG_NOSYSTEM="1",
            GIT_ATTR_NOSYSTEM="1",
            GIT_NO_REPLACE_OBJECTS="1",
            GIT_GRAFT_FILE=os.devnull,
            GIT_OPTIONAL_LOCKS="0",
            GIT_TERMINAL_PROMPT="0",
            HOME=os.devnull,
            XDG_CONFIG_HOME=os.devnull,
            LC_ALL="C",
        )
        self.repository = Path(repository)
        self.git_dir = self.scratch / "git"
        self._batch: subprocess.Popen[bytes] | None = None
        self._index: str | None = None  # the tree that our own index holds
        if not self.repository.is_dir():
            raise WrongUseError(f"{self.repository} is no folder")
        objects = self._theirs("rev-parse", "--git-path", "objects")
        if objects.returncode != 0:
            raise WrongUseError(f"{self.repository} is no git repository")
        folder = self.repository / os.fsdecode(objects.stdout).rstrip("\n")
        self._make_git_dir(folder.resolve())

    def _make_git_dir(self, objects: Path) -> None:
        git_dir = self.git_dir
        (git_dir / "objects" / "info").mkdir(parents=True)
        (git_dir / "refs").mkdir()
        (git_dir / "HEAD").write_text("ref: refs/heads/none\n")
        (git_dir / "config").write_text(
            "[core]\n\trepositoryformatversion = 0\n\tbare = true\n\tcommitGraph = false\n"
            "\thooksPath = /dev/null\n[gc]\n\tauto = 0\n[protocol]\n\tallow = never\n"
        )
        alternates = git_dir / "objects" / "info" / "alternates"
        alternates.write_bytes(os.fsencode(objects) + b"\n")

    def _theirs(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run what only reads refs, in the repository itself."""
        options = ["-c", "safe.directory=*", "-c", "core.fsmonitor=false"]
        trust = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
        }
        return self._run([*options, *arguments], self.repository, {**self.environment, **trust})

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run git in our own git dir over the repository's objects."""
        own = {"GIT_DIR": str(self.git_dir), "GIT_INDEX_FILE": str(self.scratch / "index")}
        return self._run([*arguments], self.scratch, {**self.environment, **own}, stdin)

    def _run(
        self, arguments: list[str], folder: Path, environment: Mapping[str, str], stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                [self.executable, *arguments],
                cwd=folder,
                env=environment,
                input=stdin,
                capture_output=True,
                timeout=GIT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RecordError(
                f"git {arguments[0]} took longer than {GIT_SECONDS} seconds"
            ) from None

    def apply(self, tree: str, patch: bytes) -> str | None:
        """Put a patch on a tree, in an index of our own; None: it does not apply.

        Patches in the order of their commits need two processes each: the index is there already.
        """
        held, self._index = self._index, None
        if tree != held and self.run("read-tree", tree).returncode != 0:
            return None
        apply = ("apply", "--cached", "--whitespace=nowarn", "-")
        if self.run(*apply, stdin=patch).returncode != 0:
            return None
        done = self.run("write-tree")
        if done.returncode == 0:
            self._index = done.stdout.decode("ascii", "replace").strip()
        return self._index

    def merge_trees(self, base: str, ours: str, theirs: str) -> str | None:
        """Merge two trees of a common one, in our own git dir; None: there are conflicts."""
        root = self._write_commit(base)
        head, other = self._write_commit(ours, root), self._write_commit(theirs, root)
        done = self.run("merge-tree", "--write-tree", "--no-messages", head, other)
        return done.stdout.decode("ascii", "replace").strip() if done.returncode == 0 else None

    def _write_commit(self, tree: str, *parents: str) -> str:
        lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents)]
        lines += [f"{role} Checker <checker@localhost> 0 +0000" for role in ("author", "committer")]
        text = "\n".join([*lines, "", "Merge", ""]).encode()
        done = self.run("hash-object", "-t", "commit", "-w", "--stdin", stdin=text)
        return done.stdout.decode("ascii", "replace").strip()

    def find_refs(self, *refs: str) -> dict[str, str]:
        """Return what refs are at; those that do not exist, or cannot exist, are left out.

        One process for all of them. git also lists refs below a name, and reads a name as a
        pattern; so each answer is compared with the names that were asked for.
        """
        found = self._theirs("for-each-ref", "--format=%(objectname) %(refname)", "--", *refs)
        if found.returncode != 0:
            return {}
        lines = (line.partition(" ") for line in os.fsdecode(found.stdout).split("\n"))
        return {ref: oid for oid, _, ref in lines if ref in refs and OBJECT_ID.match(oid)}

    def read(self, oid: str, kind: str) -> bytes:
        """Return an object's content, and see that it is what its id says."""
        if not OBJECT_ID.match(oid):
            raise RecordError(f"{show(oid)} is no object id")
        pipes = self._reader()
        pipes[0].write(oid.encode() + b"\n")
        pipes[0].flush()
        words = pipes[1].readline().split()
        if len(words) != 3:
            raise RecordError(f"{kind} {oid} is missing here (a shallow or partial clone?)")
        found, size = words[1].decode(), int(words[2])
        if size > MAX_OBJECT_BYTES:
            raise RecordError(f"{found} {oid} has {size} bytes, more than {MAX_OBJECT_BYTES}")
        data = pipes[1].read(size + 1)[:-1]
        if found != kind:
            raise RecordError(f"{oid} is a {found}, no {kind}")
        content = b"%b %d\0%b" % (words[1], size, data)
        if hashlib.sha1(content).hexdigest() != oid:  # noqa: S324 - it is git's
            raise RecordError(f"{kind} {oid} is damaged: its content is not what its id says")
        return data

    def _reader(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._batch is None:
            self._batch = subprocess.Popen(
                [self.executable, "cat-file", "--batch"],
                cwd=self.scratch,
                env={**self.environment, "GIT_DIR": str(self.git_dir)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        stdin, stdout = self._batch.stdin, self._batch.stdout
        if stdin is None or stdout is None:
            raise RecordError("git cannot be asked")
        return stdin, stdout

    def close(self) -> None:
        if self._batch is not None:
            self._batch.kill()
            self._batch.communicate()

    def version(self) -> tuple[int, int]:
        """Return which git this is, (0, 0) when it does not say."""
        said = self._theirs("version").stdout.decode("ascii", "replace")
        match = re.search(r"(\d+)\.(\d+)", said)
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def commit(self, oid: str) -> Commit:
        return Commit(self.read(oid, "commit"))

    def tree(self, oid: str) -> dict[str, tuple[str, str]]:
        """Return a tree's entries by name, each (mode, id)."""
        data, entries = self.read(oid, "tree"), {}
        while data:
            head, _, rest = data.partition(b"\0")
            mode, _, name = head.partition(b" ")
            entries[name.decode("utf-8", "surrogateescape")] = (mode.decode(), rest[:20].hex())
            data = rest[20:]
        return entries

    def find(self, tree: str, path: str) -> tuple[str, str] | None:
        """Return (mode, id) of what stands at a path of a tree, or None."""
        entry: tuple[str, str] | None = (FOLDER, tree)
        for name in path.split("/"):
            if entry is None or entry[0] != FOLDER:
                return None
            entry = self.tree(entry[1]).get(name)
        return entry

    def files(self, tree: str, prefix: str = "") -> Iterator[tuple[str, str, str]]:
        """Yield path, mode and id of all below a tree."""
        for name, (mode, oid) in self.tree(tree).items():
            if mode == FOLDER:
                yield from self.files(oid, f"{prefix}{name}/")
            else:
                yield prefix + name, mode, oid

    def changes(
        self, old: str | None, new: str | None, prefix: str = ""
    ) -> Iterator[tuple[str, str | None, str | None]]:
        """Yield path, old and new mode (None: no file) of each file that two trees differ in."""
        before = self.tree(old) if old else {}
        after = self.tree(new) if new else {}
        for name in sorted(before.keys() | after.keys()):
            sides = [before.get(name), after.get(name)]
            if sides[0] == sides[1]:
                continue
            folders = [side[1] if side and side[0] == FOLDER else None for side in sides]
            modes = [side[0] if side and side[0] != FOLDER else None for side in sides]
            if any(modes):
                yield prefix + name, modes[0], modes[1]
            if any(folders):
                yield from self.changes(folders[0], folders[1], f"{prefix}{name}/")
