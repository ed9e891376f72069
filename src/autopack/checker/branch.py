"""One run's branch, checked against the record at its head. (docs/promotion.md)

`domain/record_check.py` says what the record itself must satisfy; here it is held against what git
has: the branch's commits and trees, the record's files, its signature, today's base branch.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Final

from ..domain.changes import MODE_ABSENT
from ..domain.closed_paths import ALLOWED_SIGNERS, closed_problem
from ..domain.dependencies import (
    DependencyChange,
    ManifestChange,
    changed_dependencies,
    unlisted,
)
from ..domain.events import PatchApplied, PatchReplayed
from ..domain.links import LinkTable, link_problems
from ..domain.manifests import is_manifest
from ..domain.naming import (
    PULL_REQUEST,
    RECORD,
    RUNS_FOLDER,
    STATEMENT,
    branch_name,
    patch_name,
    record_folder,
)
from ..domain.outcomes import CommitKind
from ..domain.record_check import (
    CheckedRecord,
    check_continued,
    check_rebased,
    check_record,
    rebase_reasons,
)
from ..domain.record_text import JsonObject, RecordError, RecordSubject, show
from ..domain.rehearsal import (
    GIT_NEEDED,
    OLDEST_GIT,
    Rehearsal,
    RehearsalResult,
    missing_branch,
    missing_record,
    rehearsal_reasons,
)
from ..domain.signatures import allowed_keys, can_check, fingerprint, is_signed_by
from ..domain.statement import payload_of, read_envelope, signed_bytes
from .objects import (
    EXECUTABLE_FILE,
    FOLDER,
    LINK,
    OBJECT_ID,
    PLAIN_FILE,
    Commit,
    Git,
    WrongUseError,
)

MAX_FILES: Final = 20_000
MAX_REASONS: Final = 100
MAX_CONTINUED: Final = 100
SSH_SIGNATURE: Final = b"\ngpgsig -----BEGIN SSH SIGNATURE-----\n"
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


class BranchCheck:
    """One branch being checked: the reasons against it, as they are found."""

    def __init__(self, git: Git, subject: RecordSubject) -> None:
        self.git = git
        self.subject = subject
        self.run_id, self.branch, self.base = subject.run_id, subject.branch, subject.base_branch
        self.reasons: list[str] = []
        self.warnings: list[str] = []
        self.history: list[str] = []
        self.patches: dict[str, bytes] = {}  # of the record, by their hash
        self.dependencies: dict[str, list[DependencyChange]] = {}  # by the commit that brings them
        self.originals: dict[str, str] = {}  # of commits that are made again
        self.continued: list[JsonObject] = []  # the records of continued runs, newest first
        self.is_review_needed = False
        self.title = self.body = ""
        self.rehearsal: Rehearsal | None = None  # of the merge with today's base branch
        self.signature = ""
        self.allowed: bytes | None = None  # the keys that the base branch accepts
        self.statement = ""

    def expect(self, condition: object, reason: str) -> bool:
        if not condition:
            self.reasons.append(reason)
        return bool(condition)

    def run(self) -> None:
        """Gather every reason that can be found."""
        try:
            head, base_head = self._find_branches()
            commit = self.git.commit(head)
            folder = self._find_record(commit)
            record = self._check_record(commit, folder)
            if record is None:
                return
            self._check_signature(head, base_head)
            self._check_files(record, folder)
            self._check_history(record, head)
            self._check_rebased(record, base_head)
            self._rehearse(record, head, base_head)
        except RecordError as refused:
            self.reasons.append(str(refused))

    def _find_branches(self) -> tuple[str, str]:
        # Of this repository, or else of its origin.
        places = ("refs/heads/", "refs/remotes/origin/")
        refs = self.git.find_refs(
            *(f"{place}{name}" for name in (self.branch, self.base) for place in places)
        )
        head, base_head = (
            next((refs[f"{place}{name}"] for place in places if f"{place}{name}" in refs), None)
            for name in (self.branch, self.base)
        )
        upstream = refs.get(f"refs/remotes/origin/{self.base}")
        if base_head and upstream and upstream != base_head:
            self.warnings.append(
                f"'{self.base}' is at {base_head[:7]} here and was at {upstream[:7]} on its remote"
                " when it was last fetched: the merge is rehearsed with the one here"
            )
        if head is None:
            raise RecordError(missing_branch(self.branch))
        if base_head is None:
            raise RecordError(missing_branch(self.base, is_base=True))
        return head, base_head

    def _find_record(self, commit: Commit) -> str:
        """Return the tree of the record's folder, at the branch's head."""
        if not _RUN_ID.match(self.run_id):
            raise RecordError(f"'{self.run_id}' is no run id")
        entry = self.git.find(commit.tree, record_folder(self.run_id))
        if entry is None or entry[0] != FOLDER:
            raise RecordError(missing_record(self.branch, self.run_id))
        return entry[1]

    def _check_record(self, commit: Commit, folder: str) -> JsonObject | None:
        """Return `run.json`, checked as far as it can be without git; None: it is not the run's."""
        entry = self.git.tree(folder).get(RECORD)
        if entry is None or entry[0] != PLAIN_FILE:
            raise RecordError(f"the record has no {RECORD}")
        data = self.git.read(entry[1], "blob")
        checked = check_record(data, commit.message.decode("utf-8", "replace"), self.subject)
        self.reasons += checked.reasons
        self.warnings += checked.warnings
        return checked.record

    # What git holds

    def _check_signature(self, head: str, base_head: str) -> None:
        """Where the base branch says who may sign records, one of them has to have done so."""
        signers = self.git.find(self.git.commit(base_head).tree, ALLOWED_SIGNERS)
        self.allowed = None if signers is None else self.git.read(signers[1], "blob")
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
        allowed.write_bytes(self.allowed or b"")
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

    def _check_files(self, record: JsonObject, folder: str) -> None:
        """The folder holds what the record names, to the byte, and nothing else."""
        named = {entry["path"]: entry["sha256"] for entry in record["files"]}
        patches = {
            patch_name(each["patch_sha256"]): each["patch_sha256"]
            for each in record["commits"]
            if each["patch_sha256"] is not None
        }
        expected = {**patches, **named}
        found: set[str] = set()
        for path, mode, oid in self.git.files(folder):
            if len(found) > MAX_FILES:
                raise RecordError(f"the record has more than {MAX_FILES} files")
            found.add(path)
            if path == RECORD:
                continue
            if not self.expect(path in expected, f"the record does not name its file {path}"):
                continue
            if not self.expect(mode == PLAIN_FILE, f"{path} of the record is no plain file"):
                continue
            data = self.git.read(oid, "blob")
            sha256 = hashlib.sha256(data).hexdigest()
            if not self.expect(
                sha256 == expected[path], f"{path} of the record was changed: its hash is another"
            ):
                continue
            if path in patches:
                self.patches[sha256] = data
            if path == STATEMENT:
                self._check_statement(record, data)
            if path == PULL_REQUEST:
                self._read_pull_request(data)
        for path in sorted(set(named) - found):
            self.reasons.append(f"{path} is missing from the record")
        for path in sorted(set(patches) - found):
            self.warnings.append(f"{path} is not in the record, so it cannot be applied again")

    def _check_statement(self, record: JsonObject, data: bytes) -> None:
        """The statement is what the record gives, and a signature of it is by an allowed key."""
        envelope = read_envelope(data)
        if not self.expect(
            envelope.payload == payload_of(record), f"{STATEMENT} tells another tale than {RECORD}"
        ):
            return
        if self.allowed is None or not envelope.signatures:
            what = "is signed, but nothing says whose signature counts"
            self.statement = f"the statement {what if envelope.signatures else 'is not signed'}"
            return
        if not can_check():
            self.statement = (
                "the statement's signature was not checked: Python's `cryptography` is not"
                " installed here; the record's own signature covers the statement"
            )
            return
        signed = signed_bytes(envelope.payload)
        keys = [*allowed_keys(self.allowed)]
        for each in envelope.signatures:
            key = next((key for key in keys if fingerprint(key) == each.key_id), None)
            if key is not None and is_signed_by(key, each.value, signed):
                self.statement = f"the statement is signed by {each.key_id}"
                return
        self.reasons.append(
            f"the statement's signature is not by one of {ALLOWED_SIGNERS} of '{self.base}'"
        )

    def _read_pull_request(self, data: bytes) -> None:
        heading, _, body = data.decode("utf-8", "replace").partition("\n")
        self.title, self.body = heading[len("# ") :].strip(), body.lstrip("\n")

    def _check_history(self, record: JsonObject, head: str) -> None:
        """The branch is what the record names, from its base to itself, commit by commit."""
        self._read_events(record)
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
        self, recorded: JsonObject, parent: Commit, commit: Commit, trees: list[str]
    ) -> None:
        """A commit holds what its kind says: its patch, an earlier tree, a record."""
        sha, kind = recorded["sha"], recorded["kind"]
        if kind == CommitKind.RECORD:
            self._check_record_alone(sha, parent, commit)
        elif kind == CommitKind.REPLAY:
            self._check_changes(sha, parent.tree, commit.tree)
            self._check_dependencies(sha, parent.tree, commit.tree)
            self._check_merge_of_original(sha, parent.tree, commit.tree)
        elif kind in (CommitKind.UNDO, CommitKind.ROLLBACK):
            self.expect(commit.tree in trees, f"commit {sha} brings back no earlier tree")
        elif not self.expect(
            kind == CommitKind.PATCH, f"commit {sha} is of the unknown kind '{kind}'"
        ):
            return
        else:
            self._check_changes(sha, parent.tree, commit.tree)
            self._check_dependencies(sha, parent.tree, commit.tree)
            content = self.patches.get(recorded["patch_sha256"])
            if content is not None and not recorded["is_merged"]:
                self._apply(sha, parent.tree, content, commit.tree)

    def _check_changes(self, sha: str, old: str, new: str) -> None:
        for path, problem in self._change_problems(old, new):
            self.reasons.append(f"commit {sha} changes {show(path)}, {problem}")
            break  # one is enough to refuse it

    def _check_merge_of_original(self, sha: str, old: str, new: str) -> None:
        """A commit that is made again is the three-way merge of the original. (rules §8.1)"""
        original = self.git.commit(self.originals.get(sha, ""))
        before = self.git.commit(original.parents[0]).tree
        made: str | None = original.tree
        if before != old:
            made = self.git.merge_trees(before, old, original.tree)
        self.expect(
            made == new,
            f"commit {sha} is not what the commit that it makes again gives on its base",
        )

    def _check_dependencies(self, sha: str, old: str, new: str) -> None:
        """The events name every dependency that a commit brings in. (rules §2.6)"""
        manifests = [path for path, _, _ in self.git.changes(old, new) if is_manifest(path)]
        found = changed_dependencies(
            ManifestChange(path=path, before=self._file(old, path), after=self._file(new, path))
            for path in manifests
        )
        for each in unlisted(self.dependencies.get(sha, ()), found)[:1]:  # one is enough
            what = f"commit {sha} brings in {show(each.text)}, which its event does not name"
            (self.reasons if self.is_review_needed else self.warnings).append(what)

    def _file(self, tree: str, path: str) -> bytes | None:
        entry = self.git.find(tree, path)
        is_file = entry is not None and entry[0] in (PLAIN_FILE, EXECUTABLE_FILE)
        return self.git.read(entry[1], "blob") if entry is not None and is_file else None

    def _read_events(self, record: JsonObject) -> None:
        """Note what the events say of each commit: its dependencies, and what it makes again."""
        self.is_review_needed = record.get("dependencies_need_review", False) is True
        for event in record["events"]:
            if event["kind"] in (PatchApplied.__name__, PatchReplayed.__name__):
                named = event["data"].get("dependencies", [])
                commit = event["data"]["commit"]
                self.dependencies[commit] = [DependencyChange(**each) for each in named]
                if "original" in event["data"]:
                    self.originals[commit] = event["data"]["original"]

    def _change_problems(self, old: str, new: str) -> Iterator[tuple[str, str]]:
        """Yield each path that no patch may change so, and why."""
        has_links = False
        for path, old_mode, mode in self.git.changes(old, new):
            problem = closed_problem(path, int(mode or "0", 8))
            if problem is not None:
                yield path, problem
            has_links |= LINK in (old_mode, mode)
        if has_links:
            for path, problem in link_problems(
                self._links(old),
                self._links(new),
                lambda end: closed_problem("/".join(end), MODE_ABSENT),
            ):
                yield path, f"which {problem}"

    def _links(self, tree: str) -> LinkTable:
        """Read all symbolic links of a tree."""
        return LinkTable(
            {
                path: self.git.read(oid, "blob")
                for path, mode, oid in self.git.files(tree)
                if mode == LINK
            }
        )

    def _apply(self, sha: str, tree: str, patch: bytes, expected: str) -> None:
        """Put a patch on a tree, and compare what comes of it."""
        self.expect(
            self.git.apply(tree, patch) == expected,
            f"the recorded patch of commit {sha} does not give its tree",
        )

    def _check_record_alone(self, sha: str, parent: Commit, commit: Commit) -> None:
        """A record's commit changes nothing but the run's own folder."""
        before, after = self.git.tree(parent.tree), self.git.tree(commit.tree)
        old, new = before.pop(RUNS_FOLDER, None), after.pop(RUNS_FOLDER, None)
        others_before = self.git.tree(old[1]) if old and old[0] == FOLDER else {}
        others_after = self.git.tree(new[1]) if new and new[0] == FOLDER else {}
        others_before.pop(self.run_id, None)
        others_after.pop(self.run_id, None)
        self.expect(
            before == after and others_before == others_after,
            f"commit {sha} changes more than the record's folder {record_folder(self.run_id)}",
        )
        folder = self.git.find(commit.tree, record_folder(self.run_id))
        if folder is not None and folder[0] == FOLDER:
            for path, mode, _ in self.git.files(folder[1]):
                problem = closed_problem(path, int(mode or "0", 8))
                if not self.expect(not problem, f"commit {sha} records {show(path)}, {problem}"):
                    break

    def _check_continued(self, record: JsonObject, base_head: str) -> JsonObject:
        """Check the failed runs that this one continues, whose commits its branch has.

        Returns the record of the first of them, which started from the base branch; `record` where
        it continues none. (rules §2.5)
        """
        hops = 0
        while not self._is_in_base(record, base_head) and record.get("continues") is not None:
            hops += 1
            at = str(record["continued_commit"])
            if hops > MAX_CONTINUED:
                raise RecordError(f"more than {MAX_CONTINUED} runs continue one another")
            if not OBJECT_ID.match(at):
                raise RecordError(f"the continued run's record {show(at)} is no object id")
            run_id = str(record["continues"])
            subject = RecordSubject(
                run_id=run_id, branch=branch_name(run_id), base_branch=self.base
            )
            earlier = BranchCheck(self.git, subject)
            found = earlier.check_as_earlier(at, base_head, record, check_continued)
            what = f"run '{show(run_id)}', which this one continues: "
            self.reasons += [what + reason for reason in earlier.reasons]
            if found is None:
                return record
            self.continued.append(found)
            record = found
        return record

    def _check_rebased(self, record: JsonObject, base_head: str, hops: int = 0) -> None:
        """Check the run whose commits this one makes again, as if it were promoted itself.

        Its branch need not merge with today's base: that is why it was rebased. (rules §8.1)
        """
        if record.get("rebases") is None:
            return
        at, run_id = str(record["rebased_commit"]), str(record["rebases"])
        if hops > MAX_CONTINUED:
            raise RecordError(f"more than {MAX_CONTINUED} runs rebase one another")
        subject = RecordSubject(run_id=run_id, branch=branch_name(run_id), base_branch=self.base)
        earlier = BranchCheck(self.git, subject)
        found = earlier.check_as_earlier(at, base_head, record, check_rebased)
        if found is not None:
            earlier._check_continued(found, base_head)
            earlier._check_rebased(found, base_head, hops + 1)
            records = [*reversed(earlier.continued), found]
            self.reasons += rebase_reasons(record, records)
        what = f"run '{show(run_id)}', which this one rebases: "
        self.reasons += [what + reason for reason in earlier.reasons]

    def check_as_earlier(
        self,
        head: str,
        base_head: str,
        later: JsonObject,
        check: Callable[[bytes, str, JsonObject], CheckedRecord],
    ) -> JsonObject | None:
        """Check a run by the record at `head`; `later` is the record that goes on from it."""
        try:
            commit = self.git.commit(head)
            folder = self._find_record(commit)
            entry = self.git.tree(folder).get(RECORD)
            if entry is None or entry[0] != PLAIN_FILE:
                raise RecordError(f"the record has no {RECORD}")
            data = self.git.read(entry[1], "blob")
            checked = check(data, commit.message.decode("utf-8", "replace"), later)
            self.reasons += checked.reasons
            if checked.record is None:
                return None
            self._check_signature(head, base_head)
            self._check_files(checked.record, folder)
            self._check_history(checked.record, head)
        except RecordError as refused:
            self.reasons.append(str(refused))
            return None
        return checked.record

    def _is_in_base(self, record: JsonObject, base_head: str) -> bool:
        """Say whether a run started from a commit that the base branch has."""
        base = record["base_commit"]
        if not OBJECT_ID.match(base):
            raise RecordError(f"the recorded base {show(base)} is no object id")
        if base == base_head:
            return True
        done = self.git.run("merge-base", "--is-ancestor", base, base_head)
        if done.returncode not in (0, 1):
            raise RecordError(f"the history of '{self.base}' is not whole here (a shallow clone?)")
        return done.returncode == 0

    def _rehearse(self, record: JsonObject, head: str, base_head: str) -> None:
        """Merge the branch with today's base branch, in memory: the run's verdict is of its end."""
        record = self._check_continued(record, base_head)
        if not self._is_in_base(record, base_head):
            self._came_to(RehearsalResult.BEHIND, record, base_head, [])
            return
        options = ("--write-tree", "--name-only", "--no-messages", "-z")
        done = self.git.run("merge-tree", *options, base_head, head)
        if done.returncode not in (0, 1):
            version = self.git.version()
            if version < OLDEST_GIT:
                raise RecordError(
                    f"git {version[0]}.{version[1]} cannot rehearse the merge with '{self.base}':"
                    f" {GIT_NEEDED} is needed"
                )
            words = done.stderr.decode("utf-8", "replace").strip() or "git does not say why"
            raise RecordError(f"the merge with '{self.base}' cannot be rehearsed: {words}")
        names = done.stdout.rstrip(b"\0").split(b"\0")[1:]
        files = [each.decode("utf-8", "backslashreplace") for each in dict.fromkeys(names)]
        result = RehearsalResult.CONFLICT if done.returncode else RehearsalResult.CLEAN
        self._came_to(result, record, base_head, files)

    def _came_to(
        self, result: RehearsalResult, record: JsonObject, base_head: str, files: list[str]
    ) -> None:
        self.rehearsal = Rehearsal(
            result=result,
            base_branch=self.base,
            base_commit=base_head,
            files=tuple(show(each) for each in files),
        )
        self.reasons += rehearsal_reasons(self.rehearsal, record["base_commit"])


def check_branch(repository: str, subject: RecordSubject) -> JsonObject:
    """Return the verdict on a branch of a repository as a JSON document. Raises WrongUseError."""
    with tempfile.TemporaryDirectory(prefix="autopack-check-") as scratch:
        git = Git(repository, scratch)
        checked = BranchCheck(git, subject)
        try:
            checked.run()
        except WrongUseError:
            raise
        except Exception as error:  # whatever a hostile record makes of us is a reason against it
            checked.reasons.append(f"the record cannot be checked: {type(error).__name__}: {error}")
        finally:
            git.close()
    return _document(checked)


def _document(checked: BranchCheck) -> JsonObject:
    rehearsal = checked.rehearsal
    reasons = list(dict.fromkeys(show(reason) for reason in checked.reasons))
    more = len(reasons) - MAX_REASONS
    if more > 0:
        reasons[MAX_REASONS:] = [f"and {more} reasons more"]
    return {
        "eligible": not reasons,
        "reasons": reasons,
        "warnings": [show(warning) for warning in checked.warnings[:MAX_REASONS]],
        "title": show(checked.title) or f"[{show(checked.run_id)}]",
        "body": checked.body,
        "head": checked.branch,
        "base": checked.base,
        "commits": checked.history,
        "rehearsal": rehearsal and {**asdict(rehearsal), "files": list(rehearsal.files)},
        "signature": show(checked.signature),
        "statement": show(checked.statement),
    }
