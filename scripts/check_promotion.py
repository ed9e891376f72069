#!/usr/bin/env python3
"""Say whether a run's branch may go to the base branch, by the record at the branch's head.

Needs nothing but Python and git: no service, no network, no installation. It reads the branch,
never the work tree, and trusts no setting of the repository or of its user. Prints each reason
against the promotion; exits 0 when there is none, 1 when there is one, 2 when called wrongly.

What this proves, and what only a signed record proves, stands in Autopack's docs/promotion.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, Any

Json = dict[str, Any]

ALLOWED_SIGNERS = ".github/autopack_allowed_signers"
RUNS = ".autonomous_runs"
RECORD = "run.json"
PULL_REQUEST = "pull_request.md"
SCHEMA_VERSION = 1
GENESIS_HASH = "0" * 64
MAX_OBJECT_BYTES = 64_000_000
MAX_FILES = 20_000
MAX_REASONS = 100
MAX_REASON = 500
MAX_NAMED_FILES = 10
OLDEST_MERGING_GIT = (2, 38)  # the first with `merge-tree --write-tree`
GIT_SECONDS = 300

OID = re.compile(r"[0-9a-f]{40}\Z")
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
RECORD_TRAILER = re.compile(r"^Autopack-Record-SHA256: ([0-9a-f]{64})$", re.MULTILINE)
SSH_SIGNATURE = b"\ngpgsig -----BEGIN SSH SIGNATURE-----\n"
# What nothing opens to a patch, in whatever spelling a file system takes for it: what HFS+ leaves
# out of names, and the short names that NTFS gives besides. (Autopack's path policy says the same.)
OWN_FOLDERS = (RUNS, ".autopack")
IGNORED_BY_HFS = dict.fromkeys(
    [*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF]
)
GIT_DIR_ON_NTFS = re.compile(r"git~[0-9]+\Z")
LINK, FOLDER = "120000", "40000"
MAX_HOPS = 40
BUDGETS = ("token_cap", "cost_cap", "duration_cap", "minor_issue_cap")
PHASE_MOVES = {
    "QUEUED": {"EXECUTING", "SKIPPED"},
    "EXECUTING": {"GATE", "QUEUED", "FAILED", "SKIPPED"},
    "GATE": {"CI_RUNNING", "COMPLETE", "QUEUED", "FAILED", "SKIPPED"},
    "CI_RUNNING": {"COMPLETE", "QUEUED", "GATE", "FAILED", "SKIPPED"},
}

# The record's shape: a type, several of them, a list of one, or the members of an object.
TEXT = (str, type(None))
COMMIT = {
    "sha": str,
    "tree": str,
    "parent": str,
    "kind": str,
    "phase_id": TEXT,
    "patch_sha256": TEXT,
    "is_merged": bool,
}
EVENT = {
    "sequence": int,
    "at": str,
    "actor": str,
    "kind": str,
    "phase_id": TEXT,
    "tier_id": TEXT,
    "from_state": TEXT,
    "to_state": TEXT,
    "reason": TEXT,
    "data": dict,
    "previous_hash": str,
    "hash": str,
}
TIER = {
    "tier_id": str,
    "tier_index": int,
    "state": str,
    "cleanliness": str,
    "cleanliness_reasons": [str],
    "token_cap": int,
    "tokens_used": int,
    "ci_run_cap": int,
    "ci_runs_count": int,
    "minors_tolerated": int,
    "minor_issues_count": int,
    "majors_tolerated": int,
    "major_issues_count": int,
}
PHASE = {
    "phase_id": str,
    "tier_id": str,
    "tier_index": int,
    "phase_index": int,
    "state": str,
    "ci_profile": str,
    "verdict": TEXT,
    "completed_by": TEXT,
    "tokens_used": int,
    "commit": TEXT,
    "ci_runs": [{"commit_sha": str, "verdict": TEXT, "is_flaky": bool}],
}
SHAPE: Json = {
    "schema_version": int,
    "run_id": str,
    "project_id": str,
    "branch": str,
    "base_branch": str,
    "base_commit": str,
    "state": str,
    "failure_code": TEXT,
    "failure_reason": TEXT,
    "is_rolled_back": bool,
    "ended_at": str,
    "budgets": {
        "token_cap": int,
        "tokens_used": int,
        "max_minor_issues_total": int,
        "minor_issues_count": int,
        "major_issues_count": int,
    },
    "promotion": {"eligible": bool, "reasons": [str], "warnings": [str]},
    "tiers": [TIER],
    "phases": [PHASE],
    "commits": [COMMIT],
    "files": [{"path": str, "sha256": str}],
    "events": [EVENT],
}


class RefusedError(Exception):
    """A reason after which there is nothing more to check."""


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
        self, arguments: list[str], folder: Path, environment: Json, stdin: bytes = b""
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
            raise RefusedError(
                f"git {arguments[0]} took longer than {GIT_SECONDS} seconds"
            ) from None

    def find_branch(self, name: str) -> str | None:
        """Return the commit of a branch, of this repository or else of its origin, or None."""
        return self.find_ref(f"refs/heads/{name}") or self.find_ref(f"refs/remotes/origin/{name}")

    def find_ref(self, ref: str) -> str | None:
        """Return what a ref is at, None where there is none, or could be none."""
        if self._theirs("check-ref-format", ref).returncode != 0:
            return None
        found = self._theirs("show-ref", "--verify", "--hash", ref)
        oid = found.stdout.decode("ascii", "replace").strip()
        return oid if found.returncode == 0 and OID.match(oid) else None

    def read(self, oid: str, kind: str) -> bytes:
        """Return an object's content, and see that it is what its id says."""
        if not OID.match(oid):
            raise RefusedError(f"{show(oid)} is no object id")
        pipes = self._reader()
        pipes[0].write(oid.encode() + b"\n")
        pipes[0].flush()
        words = pipes[1].readline().split()
        if len(words) != 3:
            raise RefusedError(f"{kind} {oid} is missing here (a shallow or partial clone?)")
        found, size = words[1].decode(), int(words[2])
        if size > MAX_OBJECT_BYTES:
            raise RefusedError(f"{found} {oid} has {size} bytes, more than {MAX_OBJECT_BYTES}")
        data = pipes[1].read(size + 1)[:-1]
        if found != kind:
            raise RefusedError(f"{oid} is a {found}, no {kind}")
        content = b"%b %d\0%b" % (words[1], size, data)
        if hashlib.sha1(content).hexdigest() != oid:  # noqa: S324 - it is git's
            raise RefusedError(f"{kind} {oid} is damaged: its content is not what its id says")
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
            raise RefusedError("git cannot be asked")
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
        entry: tuple[str, str] | None = ("40000", tree)
        for name in path.split("/"):
            if entry is None or entry[0] != "40000":
                return None
            entry = self.tree(entry[1]).get(name)
        return entry

    def files(self, tree: str, prefix: str = "") -> Iterator[tuple[str, str, str]]:
        """Yield path, mode and id of all below a tree."""
        for name, (mode, oid) in self.tree(tree).items():
            if mode == "40000":
                yield from self.files(oid, f"{prefix}{name}/")
            else:
                yield prefix + name, mode, oid

    def changes(
        self, old: str | None, new: str | None, prefix: str = ""
    ) -> Iterator[tuple[str, str | None, str | None]]:
        """Yield path, new mode and new id (None: deleted) of each file that two trees differ in."""
        before = self.tree(old) if old else {}
        after = self.tree(new) if new else {}
        for name in sorted(before.keys() | after.keys()):
            sides = [before.get(name), after.get(name)]
            if sides[0] == sides[1]:
                continue
            folders = [side[1] if side and side[0] == FOLDER else None for side in sides]
            if any(side and side[0] != FOLDER for side in sides):
                mode, oid = sides[1] if sides[1] and not folders[1] else (None, None)
                yield prefix + name, mode, oid
            if any(folders):
                yield from self.changes(folders[0], folders[1], f"{prefix}{name}/")


class Check:
    """One branch being checked: the reasons against it, as they are found."""

    def __init__(self, git: Git, run_id: str, branch: str, base: str) -> None:
        self.git = git
        self.run_id = run_id
        self.branch = branch
        self.base = base
        self.reasons: list[str] = []
        self.warnings: list[str] = []
        self.history: list[str] = []
        self.patches: dict[str, bytes] = {}  # of the record, by their hash
        self.title = self.body = ""
        self.rehearsal: Json | None = None  # of the merge with today's base branch
        self.signature = ""

    def expect(self, condition: object, reason: str) -> bool:
        if not condition:
            self.reasons.append(reason)
        return bool(condition)

    def run(self) -> None:
        """Gather every reason that can be found."""
        try:
            head, base_head = self._find_branches()
            commit = self.git.commit(head)
            tree = self._find_record(commit)
            record = self._read_record(commit, tree)
            self._check_signature(head, base_head)
            self._check_files(record, tree)
            self._check_history(record, head)
            check_chain(self, record)
            Replay(self, record).run()
            self._judge(record)
            self._rehearse(record, head, base_head)
        except RefusedError as refused:
            self.reasons.append(str(refused))

    def _find_branches(self) -> tuple[str, str]:
        head, base_head = self.git.find_branch(self.branch), self.git.find_branch(self.base)
        upstream = self.git.find_ref(f"refs/remotes/origin/{self.base}")
        if base_head and upstream and upstream != base_head:
            self.warnings.append(
                f"'{self.base}' is at {base_head[:7]} here and was at {upstream[:7]} on its remote"
                " when it was last fetched: the merge is rehearsed with the one here"
            )
        if head is None:
            raise RefusedError(f"there is no branch '{self.branch}'")
        if base_head is None:
            raise RefusedError(f"there is no base branch '{self.base}'")
        return head, base_head

    def _find_record(self, commit: Commit) -> str:
        """Return the tree of the record's folder, at the branch's head."""
        if not RUN_ID.match(self.run_id):
            raise RefusedError(f"'{self.run_id}' is no run id")
        entry = self.git.find(commit.tree, f"{RUNS}/{self.run_id}")
        if entry is None or entry[0] != "40000":
            raise RefusedError(
                f"the head of '{self.branch}' holds no record of run '{self.run_id}': the run is"
                " not over, or was not recorded"
            )
        return entry[1]

    def _read_record(self, commit: Commit, folder: str) -> Json:
        """Return `run.json`, whose shape is as it must be."""
        entry = self.git.tree(folder).get(RECORD)
        if entry is None or entry[0] != "100644":
            raise RefusedError(f"the record has no {RECORD}")
        data = self.git.read(entry[1], "blob")
        try:
            record = parse_json(data)
        except (ValueError, RecursionError) as error:
            raise RefusedError(f"{RECORD} cannot be read: {error}") from None
        problem = shape_problem(record, SHAPE, RECORD)
        if problem:
            raise RefusedError(problem)
        if record["schema_version"] != SCHEMA_VERSION:
            raise RefusedError(
                f"{RECORD} is of version {record['schema_version']}, this checker reads"
                f" {SCHEMA_VERSION}: take the checker of the Autopack that made the record"
            )
        sealed = RECORD_TRAILER.findall(commit.message.decode("utf-8", "replace"))
        if self.expect(
            len(sealed) == 1,
            "the head of the branch is no record: something was committed after it",
        ):
            self.expect(
                sealed[0] == hashlib.sha256(data).hexdigest(),
                f"{RECORD} is not what the record's commit says: it was changed",
            )
        if not self.expect(
            record["run_id"] == self.run_id,
            f"the record is of run '{record['run_id']}', not of '{self.run_id}'",
        ):
            raise RefusedError("a record of another run says nothing of this one")
        self.expect(
            record["branch"] == self.branch,
            f"the record is of branch '{record['branch']}', not of '{self.branch}'",
        )
        self.expect(
            record["base_branch"] == self.base,
            f"the run started from '{record['base_branch']}', not from '{self.base}'",
        )
        return dict(record)

    # What git holds

    def _check_signature(self, head: str, base_head: str) -> None:
        """Where the base branch says who may sign records, one of them has to have done so."""
        signers = self.git.find(self.git.commit(base_head).tree, ALLOWED_SIGNERS)
        header = self.git.read(head, "commit").partition(b"\n\n")[0] + b"\n"
        is_signed = SSH_SIGNATURE in header
        if signers is None:
            self.signature = (
                f"the record is signed, but '{self.base}' has no {ALLOWED_SIGNERS} to say whose"
                " signature counts: it was not checked"
                if is_signed
                else f"the record is not signed, and '{self.base}' has no {ALLOWED_SIGNERS}: a"
                " forger who may push is not found"
            )
            return
        if not is_signed:
            self.signature = "the record is not signed"
            self.reasons.append(
                f"the record is not signed, and '{self.base}' asks for it by {ALLOWED_SIGNERS}"
            )
            return
        allowed = self.git.scratch / "allowed_signers"
        allowed.write_bytes(self.git.read(signers[1], "blob"))
        done = self.git.run(
            *("-c", f"gpg.ssh.allowedSignersFile={allowed}", "-c", "gpg.minTrustLevel=fully"),
            *("verify-commit", "--raw", head),
        )
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        self.signature = (
            f"the record is signed by one of {ALLOWED_SIGNERS} of '{self.base}'"
            if done.returncode == 0
            else "the record's signature does not count"
        )
        self.expect(
            done.returncode == 0,
            f"the record's signature is not by one of {ALLOWED_SIGNERS} of '{self.base}': "
            + (words[-1] if words else "git does not say why"),
        )

    def _check_files(self, record: Json, folder: str) -> None:
        """The folder holds what the record names, to the byte, and nothing else."""
        named = {entry["path"]: entry["sha256"] for entry in record["files"]}
        patches = {
            f"patches/{each['patch_sha256']}.patch": each["patch_sha256"]
            for each in record["commits"]
            if each["patch_sha256"] is not None
        }
        expected = {**patches, **named}
        found: set[str] = set()
        for path, mode, oid in self.git.files(folder):
            if len(found) > MAX_FILES:
                raise RefusedError(f"the record has more than {MAX_FILES} files")
            found.add(path)
            if path == RECORD:
                continue
            if not self.expect(path in expected, f"the record does not name its file {path}"):
                continue
            if not self.expect(mode == "100644", f"{path} of the record is no plain file"):
                continue
            data = self.git.read(oid, "blob")
            sha256 = hashlib.sha256(data).hexdigest()
            if not self.expect(
                sha256 == expected[path], f"{path} of the record was changed: its hash is another"
            ):
                continue
            if path in patches:
                self.patches[sha256] = data
            if path == PULL_REQUEST:
                self._read_pull_request(data)
        for path in sorted(set(named) - found):
            self.reasons.append(f"{path} is missing from the record")
        for path in sorted(set(patches) - found):
            self.warnings.append(f"{path} is not in the record, so nobody can apply it again")

    def _read_pull_request(self, data: bytes) -> None:
        heading, _, body = data.decode("utf-8", "replace").partition("\n")
        self.title, self.body = heading[len("# ") :].strip(), body.lstrip("\n")

    def _check_history(self, record: Json, head: str) -> None:
        """The branch is what the record names, from its base to itself, commit by commit."""
        named = [each["sha"] for each in record["commits"]]
        base = record["base_commit"]
        found: list[str] = []
        oid = head
        commits: dict[str, Commit] = {}
        while oid != base and len(found) <= len(named) + MAX_REASONS:
            commit = commits[oid] = self.git.commit(oid)
            found.append(oid)
            if len(commit.parents) != 1:
                self.reasons.append(
                    f"commit {oid} has {len(commit.parents)} parents: the branch has to be one line"
                )
                break
            oid = commit.parents[0]
        is_whole = oid == base
        self.expect(is_whole, f"the branch does not lead back to the recorded base {base}")
        found.reverse()
        self.history = found
        before = found[:-1]
        for sha in before:
            self.expect(
                sha in named, f"commit {sha} is on the branch, but the record does not name it"
            )
        for sha in named:
            self.expect(sha in found, f"commit {sha}, which the record names, is not on the branch")
        if set(before) == set(named):
            self.expect(before == named, "the record names the branch's commits in another order")
        if not is_whole:
            return
        commits[base] = self.git.commit(base)
        trees = [commits[base].tree]
        for each in record["commits"]:
            if each["sha"] not in commits or each["sha"] == base:
                continue
            commit = commits[each["sha"]]
            self.expect(
                commit.tree == each["tree"],
                f"commit {each['sha']} has the tree {commit.tree}, the record says {each['tree']}",
            )
            self.expect(
                commit.parents == [each["parent"]],
                f"commit {each['sha']} follows {commit.parents[0]}, the record says"
                f" {each['parent']}",
            )
            if commit.parents[0] in commits:
                self._check_content(each, commits[commit.parents[0]], commit, trees)
            trees.append(commit.tree)
        if len(commits[head].parents) == 1:
            self._check_record_alone(head, commits[commits[head].parents[0]], commits[head])

    def _check_content(
        self, recorded: Json, parent: Commit, commit: Commit, trees: list[str]
    ) -> None:
        """A commit holds what its kind says: its patch, an earlier tree, a record."""
        sha, kind = recorded["sha"], recorded["kind"]
        if kind == "record":
            self._check_record_alone(sha, parent, commit)
        elif kind in ("undo", "rollback"):
            self.expect(commit.tree in trees, f"commit {sha} brings back no earlier tree")
        elif not self.expect(kind == "patch", f"commit {sha} is of the unknown kind '{kind}'"):
            return
        else:
            for path, mode, oid in self.git.changes(parent.tree, commit.tree):
                problem = path_problem(path, mode)
                if problem is None and mode == LINK and oid is not None:
                    problem = self._link_problem(commit.tree, path)
                if not self.expect(not problem, f"commit {sha} changes {show(path)}, {problem}"):
                    break  # one is enough to refuse it
            content = self.patches.get(recorded["patch_sha256"])
            if content is not None and not recorded["is_merged"]:
                self._apply(sha, parent.tree, content, commit.tree)

    def _link_problem(self, tree: str, path: str) -> str | None:
        """Say what is wrong with where a link leads, followed name by name; None: nothing."""
        place: list[str] = []
        ahead = path.split("/")[::-1]
        hops = 0
        while ahead:
            name = ahead.pop()
            if name == ".." and not place:
                return "a link that leads out of the repository"
            if name == "..":
                place.pop()
            if name in ("", ".", ".."):
                continue
            place.append(name)
            problem = path_problem("/".join(place), None)
            if problem:
                return f"a link to {show('/'.join(place))}, {problem}"
            entry = self.git.find(tree, "/".join(place))
            if entry is None or entry[0] != LINK:
                continue
            hops += 1
            target = self.git.read(entry[1], "blob").decode("utf-8", "surrogateescape")
            if hops > MAX_HOPS or not target or target[0] == "/" or "\\" in target:
                return "a link that is absolute, or goes round in a circle"
            place.pop()
            ahead += target.split("/")[::-1]
        return None

    def _apply(self, sha: str, tree: str, patch: bytes, expected: str) -> None:
        """Put a patch on a tree, in an index of our own, and compare what comes of it."""
        made = None
        done = self.git.run("read-tree", tree)
        if done.returncode == 0:
            done = self.git.run("apply", "--cached", "--whitespace=nowarn", "-", stdin=patch)
        if done.returncode == 0:
            done = self.git.run("write-tree")
            made = done.stdout.decode("ascii", "replace").strip()
        self.expect(
            done.returncode == 0 and made == expected,
            f"the recorded patch of commit {sha} does not give its tree",
        )

    def _check_record_alone(self, sha: str, parent: Commit, commit: Commit) -> None:
        """A record's commit changes nothing but the run's own folder."""
        before, after = self.git.tree(parent.tree), self.git.tree(commit.tree)
        old, new = before.pop(RUNS, None), after.pop(RUNS, None)
        others_before = self.git.tree(old[1]) if old and old[0] == "40000" else {}
        others_after = self.git.tree(new[1]) if new and new[0] == "40000" else {}
        others_before.pop(self.run_id, None)
        others_after.pop(self.run_id, None)
        self.expect(
            before == after and others_before == others_after,
            f"commit {sha} changes more than the record's folder {RUNS}/{self.run_id}",
        )
        folder = self.git.find(commit.tree, f"{RUNS}/{self.run_id}")
        if folder is not None and folder[0] == FOLDER:
            for path, mode, _ in self.git.files(folder[1]):
                problem = path_problem(path, mode)
                if not self.expect(not problem, f"commit {sha} records {show(path)}, {problem}"):
                    break

    def _rehearse(self, record: Json, head: str, base_head: str) -> None:
        """Merge the branch with today's base branch, in memory: the run's verdict is of its end."""
        base = record["base_commit"]
        if not OID.match(base):
            raise RefusedError(f"the recorded base {show(base)} is no object id")
        done = self.git.run("merge-base", "--is-ancestor", base, base_head)
        if done.returncode not in (0, 1):
            raise RefusedError(f"the history of '{self.base}' is not whole here (a shallow clone?)")
        if done.returncode == 1:
            self._rehearsed("behind", base_head, [])
            self.reasons.append(
                f"the run started from {base}, which is not in the history of '{self.base}'"
                " (any more)"
            )
            return
        version = self.git.version()
        if version < OLDEST_MERGING_GIT:
            raise RefusedError(
                f"git {version[0]}.{version[1]} cannot rehearse the merge with '{self.base}': git"
                f" {OLDEST_MERGING_GIT[0]}.{OLDEST_MERGING_GIT[1]} or newer is needed"
            )
        options = ("--write-tree", "--name-only", "--no-messages", "-z")
        done = self.git.run("merge-tree", *options, base_head, head)
        if done.returncode not in (0, 1):
            words = done.stderr.decode("utf-8", "replace").strip() or "git does not say why"
            raise RefusedError(f"the merge with '{self.base}' cannot be rehearsed: {words}")
        names = done.stdout.rstrip(b"\0").split(b"\0")[1:]
        files = [each.decode("utf-8", "backslashreplace") for each in dict.fromkeys(names)]
        self._rehearsed("conflict" if done.returncode else "clean", base_head, files)
        if done.returncode:
            named = ", ".join(files[:MAX_NAMED_FILES])
            more = len(files) - MAX_NAMED_FILES
            self.reasons.append(
                f"does not merge with {self.base} at {base_head[:7]}: {named}"
                + (f" and {more} more" if more > 0 else "")
            )

    def _rehearsed(self, result: str, base_head: str, files: list[str]) -> None:
        self.rehearsal = {
            "result": result,
            "base_branch": self.base,
            "base_commit": base_head,
            "files": [show(each) for each in files],
        }

    # What the rules say (Autopack's docs/rules.md, "Promotion")

    def _judge(self, record: Json) -> None:
        reasons, warnings = judge(record)
        recorded = record["promotion"]
        self.expect(
            recorded["reasons"] == reasons and recorded["eligible"] is (not reasons),
            "the record's own verdict is not what its figures give",
        )
        self.reasons += reasons
        self.warnings += warnings


def judge(record: Json) -> tuple[list[str], list[str]]:
    """Return what stands against a run, and what to look at, by nothing but its figures."""
    reasons, warnings = [], []
    if record["state"] != "DONE_SUCCESS":
        reasons.append(f"the run is {record['state']}, not DONE_SUCCESS")
    if record["failure_code"] in BUDGETS:
        reasons.append(f"a budget was exhausted: {record['failure_reason']}")
    if record["is_rolled_back"]:
        reasons.append("the branch was rolled back by hand")
    for tier in sorted(record["tiers"], key=lambda tier: tier["tier_index"]):
        if tier["cleanliness"] != "clean":
            why = "; ".join(tier["cleanliness_reasons"])
            reasons.append(f"tier '{tier['tier_id']}' is not clean: {why}")
    minors, cap = (
        record["budgets"]["minor_issues_count"],
        record["budgets"]["max_minor_issues_total"],
    )
    if minors > cap:
        reasons.append(f"debt_status is excess_minor_issues: {minors} minor issues, {cap} allowed")
    for phase in sorted(
        record["phases"], key=lambda phase: (phase["tier_index"], phase["phase_index"])
    ):
        if phase["completed_by"] == "hand":
            how = "completed" if phase["state"] == "COMPLETE" else "skipped"
            reasons.append(f"phase '{phase['phase_id']}' was {how} by hand")
        if phase["state"] != "COMPLETE":
            continue
        if phase["verdict"] == "green":
            # A record of an earlier version says nothing of the sandbox.
            if phase.get("sandbox") != "bubblewrap" and record.get("is_sandbox_required"):
                reasons.append(
                    f"the green verdict of phase '{phase['phase_id']}' was not made in a sandbox,"
                    " which ci.require_sandbox asks for"
                )
            elif phase.get("sandbox") == "none":
                warnings.append(
                    f"the green verdict of phase '{phase['phase_id']}' was made without a sandbox"
                )
            continue
        if phase["ci_profile"] == "strict":
            reasons.append(f"strict phase '{phase['phase_id']}' has no green verdict")
        else:
            warnings.append(f"nothing verified phase '{phase['phase_id']}'")
    return reasons, warnings


def check_chain(check: Check, record: Json) -> None:
    """Each event is sealed by a hash over itself and the one before."""
    previous, last_at = GENESIS_HASH, ""
    for number, event in enumerate(record["events"], start=1):
        if not check.expect(
            event["sequence"] == number, f"event {number} is missing, or out of its place"
        ):
            return
        document = {name: value for name, value in event.items() if name != "hash"}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        sealed = hashlib.sha256(text.encode("utf-8")).hexdigest()
        if not check.expect(
            event["previous_hash"] == previous and event["hash"] == sealed,
            f"event {number} ({event['kind']}) was changed: the chain of hashes breaks there",
        ):
            return
        check.expect(event["at"] >= last_at, f"event {number} lies before the one that it follows")
        previous, last_at = sealed, event["at"]


class Replay:
    """The run as its events tell of it, to compare with what the record says that it came to."""

    def __init__(self, check: Check, record: Json) -> None:
        self.check = check
        self.record = record
        self.state: str | None = None
        self.failure_code: str | None = None
        self.failure_reason: str | None = None
        self.ended_at: str | None = None
        self.is_rolled_back = False
        self.commits: list[tuple[str, ...]] = []
        self.issues: dict[tuple[str, str], Json] = {}  # by phase and key
        self.is_review = False  # the latest that came from outside: a review, or something else
        self.judged: tuple[str, str] | None = None  # the latest verdict: of which phase, what
        self.phases: dict[str, Json] = {
            phase["phase_id"]: {
                "state": "QUEUED",
                "tier_id": phase["tier_id"],
                "tokens_used": 0,
                "cost_usd": Decimal(0),
                "verdict": None,
                "sandbox": None,
                "awaited": None,
                "completed_by": None,
                "commit": None,
            }
            for phase in record["phases"]
        }
        with_phases = {phase["tier_id"] for phase in record["phases"]}
        self.tiers: dict[str, Json] = {
            tier["tier_id"]: {
                "state": "PENDING" if tier["tier_id"] in with_phases else "SKIPPED",
                "cleanliness": "clean",
                "ci_runs_count": 0,
            }
            for tier in record["tiers"]
        }

    def run(self) -> None:
        try:
            for event in self.record["events"]:
                self._read(event)
            self._compare()
        except (KeyError, TypeError, AttributeError, InvalidOperation) as error:
            self.check.reasons.append(f"the events cannot be replayed: {error!r} is out of place")

    def _read(self, event: Json) -> None:
        kind = event["kind"]
        if event["phase_id"] is not None:
            phase = self.phases[event["phase_id"]]
            if event["to_state"] is not None:
                self._move_phase(phase, event)
            else:
                self._note(phase, event, event["data"])
        elif kind == "RunStarted":
            self._take("the run was not", self.state, None, event)
            self.state = event["to_state"]
            self.check.expect(
                event["data"]["base_commit"] == self.record["base_commit"]
                and event["data"]["base_branch"] == self.record["base_branch"],
                "the events tell of a run from another base",
            )
            self.check.expect(
                event["data"].get("is_sandbox_required", False)
                is self.record.get("is_sandbox_required", False),
                "the events tell another tale of whether a sandbox is required",
            )
        elif kind in ("RunStateChanged", "RunEnded"):
            self._take("the run", self.state, event["from_state"], event)
            self.state = event["to_state"]
            if kind == "RunEnded":
                self.failure_code = event["data"].get("failure_code")
                self.failure_reason = event["reason"] if self.failure_code else None
                self.ended_at = event["at"]
        elif kind in ("TierStateChanged", "TierCleanlinessChanged"):
            tier = self.tiers[event["tier_id"]]
            what = "state" if kind == "TierStateChanged" else "cleanliness"
            self._take(f"tier '{event['tier_id']}'", tier[what], event["from_state"], event)
            tier[what] = event["to_state"]

    def _take(self, what: str, stands: object, expected: object, event: Json) -> None:
        self.check.expect(
            stands == expected,
            f"event {event['sequence']} ({event['kind']}) does not follow: {what} is {stands}",
        )

    def _move_phase(self, phase: Json, event: Json) -> None:
        name, before, after = event["phase_id"], event["from_state"], event["to_state"]
        self._take(f"phase '{name}'", phase["state"], before, event)
        self.check.expect(
            after in PHASE_MOVES.get(before, ()),
            f"event {event['sequence']} moves phase '{name}' from {before} to {after},"
            " which no rule allows",
        )
        phase["state"] = after
        if phase["awaited"] is not None and after != "SKIPPED":
            phase["verdict"], phase["sandbox"] = phase["awaited"], phase["awaited_sandbox"]
            if phase["awaited"] != "did_not_run":
                self.tiers[phase["tier_id"]]["ci_runs_count"] += 1
        elif before == "CI_RUNNING" and after == "FAILED" and event["actor"] == "supervisor":
            # It gave no verdict in time.
            phase["verdict"], phase["sandbox"] = "did_not_run", None
        phase["awaited"] = None
        if after in ("COMPLETE", "FAILED", "SKIPPED"):
            phase["completed_by"] = event["data"].get("completed_by")

    def _note(self, phase: Json, event: Json, data: Json) -> None:
        kind = event["kind"]
        if kind in ("AuditorResultReceived", "BuilderResultReceived", "CiVerdictReceived"):
            self.is_review = kind == "AuditorResultReceived"
        if kind == "TokensCounted":
            phase["tokens_used"] += data["tokens"]
            phase["cost_usd"] += Decimal(data.get("cost_usd", "0"))
        elif kind == "CiVerdictReceived":
            self._apply_verdict(phase, event, data)
        elif kind == "PatchApplied":
            phase["commit"] = data["commit"]
            phase["verdict"] = phase["sandbox"] = None  # it was on another commit
            commit = (data["commit"], data["tree"], data["parent"], data["patch_sha256"])
            self.commits.append(("patch", *commit))
        elif kind == "PhaseUndone":
            self.commits.append(("undo", data["commit"]))
        elif kind == "RunRolledBack":
            self.is_rolled_back = True
            self.commits.append(("rollback", data["commit"]))
        elif kind == "IssueRecorded":
            self._sight(event["phase_id"], data)
        elif kind == "IssueResolved":
            self._resolve(event, data)

    def _sight(self, phase_id: str, data: Json) -> None:
        seen = self.issues.setdefault(
            (phase_id, data["issue_key"]),
            {"is_major": False, "is_expected": True, "is_open": False, "source": "ci"},
        )
        if not seen["is_open"] or seen["source"] == "ci":  # what others saw too is not CI's alone
            seen["source"] = data["source"]
        seen["is_major"] |= data["effective_severity"] == "major"
        seen["is_expected"] &= data["is_expected"]
        seen["is_open"] = True

    def _resolve(self, event: Json, data: Json) -> None:
        """Resolve one key in one phase; an older review's event means every phase of the run."""
        number, phase_id, key = event["sequence"], event["phase_id"], data["issue_key"]
        what = f"event {number} resolves {show(key)} in phase '{phase_id}'"
        if "cause" not in data and self.is_review:
            places = [place for place in self.issues if place[1] == key]
        else:
            places = [place for place in self.issues if place == (phase_id, key)]
        self.check.expect(places, f"{what}, where it was never seen")
        if data.get("cause") == "green_verdict":
            self.check.expect(
                self.judged == (phase_id, "green")
                and all(self.issues[place]["source"] == "ci" for place in places),
                f"{what}, where CI did not raise it, or is not green",
            )
        elif "cause" in data:
            self.check.expect(
                data["cause"] == "auditor" and self.is_review, f"{what}, and no review says so"
            )
        for place in places:
            self.issues[place]["is_open"] = False

    def _apply_verdict(self, phase: Json, event: Json, data: Json) -> None:
        head = self.commits[-1][1] if self.commits else self.record["base_commit"]
        self.check.expect(
            data["commit"] == (phase["commit"] or head),
            f"event {event['sequence']}: CI judged {data['commit']}, which is not the commit of"
            f" phase '{event['phase_id']}'",
        )
        self.judged = event["phase_id"], data["verdict"]
        if not data.get("is_repeated"):
            phase["awaited"], phase["awaited_sandbox"] = data["verdict"], data.get("sandbox")

    def _count(self, tier_id: str | None = None) -> tuple[int, int]:
        """Count the open issues of the run or a tier by distinct keys: minor, major."""
        grave: dict[str, bool] = {}
        for (phase_id, key), seen in self.issues.items():
            is_here = tier_id in (None, self.phases[phase_id]["tier_id"])
            if is_here and seen["is_open"] and not seen["is_expected"]:
                grave[key] = grave.get(key, False) or seen["is_major"]
        majors = sum(grave.values())
        return len(grave) - majors, majors

    def _compare(self) -> None:
        record = self.record
        self._same("the run", "state", self.state, record)
        self._same("the run", "failure_code", self.failure_code, record)
        self._same("the run", "failure_reason", self.failure_reason, record)
        self._same("the run", "ended_at", self.ended_at, record)
        self._same("the run", "is_rolled_back", self.is_rolled_back, record)
        spent = sum(phase["tokens_used"] for phase in self.phases.values())
        cost = sum((phase["cost_usd"] for phase in self.phases.values()), Decimal(0))
        if "cost_usd" in record["budgets"]:  # records from before money was counted have none
            self._same("the run", "cost_usd", f"{cost:.6f}", record["budgets"])
        minors, majors = self._count()
        self._same("the run", "tokens_used", spent, record["budgets"])
        self._same("the run", "minor_issues_count", minors, record["budgets"])
        self._same("the run", "major_issues_count", majors, record["budgets"])
        for phase in record["phases"]:
            name, told = f"phase '{phase['phase_id']}'", self.phases[phase["phase_id"]]
            for figure in ("state", "verdict", "completed_by", "tokens_used"):
                self._same(name, figure, told[figure], phase)
            self._same(name, "sandbox", told["sandbox"], {"sandbox": None, **phase})
        for tier in record["tiers"]:
            self._compare_tier(tier, self.tiers[tier["tier_id"]])
        self._compare_commits()

    def _compare_tier(self, tier: Json, told: Json) -> None:
        name = f"tier '{tier['tier_id']}'"
        mine = [phase for phase in self.phases.values() if phase["tier_id"] == tier["tier_id"]]
        minors, majors = self._count(tier["tier_id"])
        self._same(name, "state", told["state"], tier)
        self._same(name, "cleanliness", told["cleanliness"], tier)
        self._same(name, "ci_runs_count", told["ci_runs_count"], tier)
        self._same(name, "tokens_used", sum(phase["tokens_used"] for phase in mine), tier)
        self._same(name, "minor_issues_count", minors, tier)
        self._same(name, "major_issues_count", majors, tier)

    def _compare_commits(self) -> None:
        recorded: list[tuple[str, ...]] = []
        for each in self.record["commits"]:
            if each["kind"] == "patch":
                fields = ("kind", "sha", "tree", "parent", "patch_sha256")
                recorded.append(tuple(each[field] for field in fields))
            elif each["kind"] != "record":
                recorded.append((each["kind"], each["sha"]))
        self.check.expect(
            recorded == self.commits, "the record's commits are not those that its events tell of"
        )

    def _same(self, what: str, figure: str, told: object, recorded: Json) -> None:
        self.check.expect(
            recorded[figure] == told,
            f"{what}: {figure} is {show(recorded[figure])} in the record,"
            f" {show(told)} by its events",
        )


def plain_name(name: str) -> str:
    """Write one name of a path as the most forgetful file system reads it."""
    if name in (".", ".."):
        return name
    plain = unicodedata.normalize("NFC", name.translate(IGNORED_BY_HFS)).casefold()
    plain = unicodedata.normalize("NFC", plain)
    plain = plain.partition(":")[0].rstrip(". ") or plain  # streams, and what NTFS cuts off
    return ".git" if GIT_DIR_ON_NTFS.match(plain) else plain


def path_problem(path: str, mode: str | None) -> str | None:
    """Say why no patch may change a path, whatever the ruleset opens; None: it may."""
    names = [plain_name(name) for name in path.replace("\\", "/").split("/")]
    if any(name in ("", ".", "..", ".git") for name in names):
        return "which leads into a git dir, or out of the repository, on some systems"
    signers = ALLOWED_SIGNERS.split("/")
    if names[0] in OWN_FOLDERS or names[: len(signers)] == signers:
        return "which no patch may"
    if mode == LINK and names == signers[: len(names)]:
        return f"a link in the place of a folder of {ALLOWED_SIGNERS}"
    return None


def parse_json(data: bytes) -> Any:
    """Read JSON that says everything once, in numbers of a sane size."""

    def members(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("it names a member twice")
        return found

    def number(text: str) -> int:
        if len(text) > 20:
            raise ValueError("it has a number of too many digits")
        return int(text)

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no JSON")

    text = data.decode("utf-8")
    record = json.loads(text, object_pairs_hook=members, parse_int=number, parse_constant=refuse)
    json.dumps(record, ensure_ascii=False).encode("utf-8")  # half of a surrogate pair is no text
    return record


def shape_problem(value: Any, shape: Any, place: str) -> str | None:
    """Say what is not as it must be; None: nothing."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{place} is no object"
        for name, inner in shape.items():
            if name not in value:
                return f"{place} has no '{name}'"
            problem = shape_problem(value[name], inner, f"{place}: {name}")
            if problem:
                return problem
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is no list"
        for number, each in enumerate(value):
            problem = shape_problem(each, shape[0], f"{place}[{number}]")
            if problem:
                return problem
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        return f"{place} is {show(value)}, which is not of its kind"
    return None


def show(value: object) -> str:
    """Write a value of any size and content as a piece of one line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "…"


def check(repository: str, run_id: str, branch: str, base: str) -> Json:
    """Return the verdict on a branch as a JSON document."""
    with tempfile.TemporaryDirectory(prefix="autopack-check-") as scratch:
        git = Git(repository, scratch)
        checked = Check(git, run_id, branch, base)
        try:
            checked.run()
        except WrongUseError:
            raise
        except Exception as error:  # whatever a hostile record makes of us is a reason against it
            checked.reasons.append(f"the record cannot be checked: {type(error).__name__}: {error}")
        finally:
            git.close()
    reasons = list(dict.fromkeys(show(reason) for reason in checked.reasons))
    more = len(reasons) - MAX_REASONS
    if more > 0:
        reasons[MAX_REASONS:] = [f"and {more} reasons more"]
    return {
        "eligible": not reasons,
        "reasons": reasons,
        "warnings": [show(warning) for warning in checked.warnings[:MAX_REASONS]],
        "title": show(checked.title) or f"[{show(run_id)}]",
        "body": checked.body,
        "head": branch,
        "base": base,
        "commits": checked.history,
        "rehearsal": checked.rehearsal,
        "signature": show(checked.signature),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run-id", required=True, help="the run, such as run-001")
    parser.add_argument("--branch", required=True, help="its branch, such as autonomous/run-001")
    parser.add_argument("--base", default="main", help="where it is to go (main)")
    parser.add_argument("--repository", default=".", help="a clone that has both (.)")
    parser.add_argument("--json", action="store_true", help="write the verdict as JSON")
    given = parser.parse_args(arguments)
    try:
        verdict = check(given.repository, given.run_id, given.branch, given.base)
    except WrongUseError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(verdict, indent=2))
    else:
        lines = [*verdict["reasons"], *(f"warning: {each}" for each in verdict["warnings"])]
        if verdict["signature"]:
            lines.append(verdict["signature"])
        if verdict["eligible"]:
            lines.insert(0, f"'{given.branch}' may go to '{given.base}'")
        encoding = sys.stdout.encoding or "utf-8"
        for line in lines:
            print(line.encode(encoding, "backslashreplace").decode(encoding))
    return 0 if verdict["eligible"] else 1


if __name__ == "__main__":
    sys.exit(main())
