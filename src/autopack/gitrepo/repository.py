"""The git repository of the service: commits are made without its checkout."""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..config import PROJECT_FILE, Settings
from ..domain.changes import MODE_ABSENT, MODE_FILE, FileChange
from ..domain.rehearsal import GIT_NEEDED, OLDEST_GIT
from ..domain.statement import Signature
from .apply import (
    ApplicablePatch,
    ChangeSet,
    PolicyCheck,
    Quarantined,
    RefusedError,
    Resolution,
    apply_in_quarantine,
    apply_to_tree,
)
from .bundles import Bundles
from .conflict import resolve
from .cost import require_few_steps
from .encoding import commit_lines, encode_commit, encode_tag, object_text, tag_lines
from .errors import GitFailedError, RepositoryUnusableError, StorageError
from .head import HeadFiles
from .history import MAX_GAINED, GainedCommits
from .node import NodeIdentity, identify, locked_home, write_whole
from .objects import (
    EMPTY_TREE,
    MODE_FOLDER,
    Loose,
    NewObjects,
    Objects,
    TreeDraft,
    encode_loose,
    path_bytes,
)
from .pointers import Pointers, find_pointers
from .process import GitResult, GitRunner
from .push import Remote
from .quarantine import Quarantine, open_quarantine, remove_leftovers, scratch_folder
from .rebase import RebaseConflict, RebasedCommit, rebase
from .refs import PreparedRefs, RecordedRef, Refs, RefUpdate, is_branch_name
from .remaking import Remaking
from .repair import read_patch
from .signing import Signer
from .tracked import TRUST, require_untracked

# No limits for a patch that was accepted before.
_UNLIMITED = {
    name: sys.maxsize
    for name in Settings.model_fields
    if name.startswith(("max_patch_", "max_path_", "max_binary_"))
}
_SHADOW_FILES = {
    "HEAD": "ref: refs/heads/none\n",
    "config": "[core]\n\trepositoryformatversion = 0\n\tbare = true\n",
}
_PROBE_BYTES = 65_536  # for patches of ordinary size
_ON_BRANCH = "ref: refs/heads/"
_UNSERVED = r"^(extensions\.(partialclone|refstorage)|remote\..*\.promisor)$"
_UNSERVED_NAMES = re.compile(rb"extensions|promisor", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Base:
    """The branch that runs start from, and the commit it is at."""

    branch: str
    commit: str


@dataclass(frozen=True, slots=True)
class DiffStat:
    """The difference between two commits: paths, and counts of lines for text."""

    files: tuple[str, ...]
    insertions: int
    deletions: int


@dataclass(frozen=True, slots=True)
class MergeResult:
    """Whether two commits merge without a conflict; if not, the paths in conflict.

    Two commits without common history do not merge, and have no path in conflict. `tree` is the id
    of the merge's tree, which is stored nowhere.
    """

    mergeable: bool
    conflicts: tuple[str, ...]
    tree: str | None = None


class Repository:
    """The repository at AUTOPACK_REPO_PATH. One in a service; any number of threads may use it.

    The checkout, its index, the configuration and the hooks are never written, and no setting is
    read from them. Every commit id given and returned is 40 hexadecimal digits.
    """

    @classmethod
    def open(cls, settings: Settings, *, may_be_empty: bool = False) -> Repository:
        """Find the repository and check that it can be served; one to restore into may be empty.

        Raises RepositoryUnusableError, which says why it cannot and what to do.
        """
        runner, git_dir, is_bare = _found(settings)
        require_untracked(settings)
        repository = cls(settings, runner, git_dir, is_bare)
        repository._prepare_home()
        if not may_be_empty:
            repository.check()
        repository.signer = Signer.open(settings)
        repository.remote = Remote.open(settings, runner, git_dir, repository._reading())
        return repository

    def __init__(self, settings: Settings, runner: GitRunner, git_dir: Path, is_bare: bool) -> None:
        self.path = settings.repo_path
        self.git_dir = git_dir  # for a linked work tree, the main one's
        self.is_bare = is_bare
        self.objects = Objects(git_dir / "objects")
        self.bundles = Bundles(git_dir, runner.executable)
        self.remote: Remote | None = None  # the target of pushes
        self.signer: Signer | None = None  # signs records and snapshots
        self._settings = settings
        self._runner = runner
        self._refs = Refs(git_dir, self.objects)
        self._shadow = settings.home / "git"
        self._scratch = settings.home / "scratch"

    def check(self) -> None:
        """Check that the repository still exists and has a base. Raises RepositoryUnusableError."""
        if not self.objects.folder.is_dir():
            raise RepositoryUnusableError(f"{self.git_dir} is missing or not a git repository.")
        self.tree_of(self.base().commit)

    def check_room(self) -> None:
        """Check that home and object store are writable. Raises StorageError."""
        for folder in (self._scratch, self.objects.folder):
            try:
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(bytes(_PROBE_BYTES))
                    probe.flush()
            except OSError as error:
                raise StorageError(f"{folder} cannot be written: {error.strerror}") from error

    # Reading

    def base(self) -> Base:
        """Return the branch and commit where runs start. Raises RepositoryUnusableError."""
        wanted = self._settings.base_branch
        for branch in [wanted] if wanted else self._default_branches():
            commit = self.read_ref(f"refs/heads/{branch}") if is_branch_name(branch) else None
            if commit:
                return Base(branch, commit)
        if wanted:
            raise RepositoryUnusableError(
                f"{self.git_dir} has no branch {wanted!r}: create it, or set AUTOPACK_BASE_BRANCH."
            )
        raise RepositoryUnusableError(
            f"{self.git_dir} has no commit on `main`, on the branch of its HEAD or on the default"
            " branch of `origin`: make a first commit, or set AUTOPACK_BASE_BRANCH."
        )

    def remote_names(self) -> tuple[str, ...]:
        """Return the names of the remotes in the repository's own configuration."""
        found = self._runner.run(
            "config",
            "--local",  # which follows no `include`
            *("--name-only", "--get-regexp", r"^remote\..*\.url$"),
            folder=self.git_dir,
            environment={"GIT_DIR": str(self.git_dir)},
            allowed=(0, 1),
        )
        names = found.stdout.decode(errors="replace").splitlines()
        return tuple(sorted(name.removeprefix("remote.").removesuffix(".url") for name in names))

    def node_identity(self) -> NodeIdentity:
        """Return the identity of this clone and the service's folders."""
        return identify(self._settings, self.objects.folder)

    def root_commits(self) -> tuple[str, ...]:
        """Return the root commits of the base branch; none if a shallow clone lacks them."""
        if (self.git_dir / "shallow").exists():
            return ()
        options = ("--max-parents=0", "--end-of-options", self.base().commit)
        return tuple(sorted(self._read("rev-list", *options).stdout.decode().split()))

    def read_ref(self, ref: str) -> str | None:
        """Return the commit (or tag object) of a ref, or None. Only reads files."""
        return self._refs.read(ref)

    def find_commit(self, name: str) -> str | None:
        """Return the commit that an operator names: a branch, a tag, a (short) id, `HEAD~1`."""
        found = self._runner.run(
            *("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"),
            folder=self.git_dir,
            environment={"GIT_DIR": str(self.git_dir)},
            allowed=(0, 1, 128),
        )
        return found.stdout.decode().strip() if not found.status else None

    def has_commit(self, commit: str) -> bool:
        try:
            return self.objects.read(commit)[0] == "commit"
        except (KeyError, ValueError):
            return False

    def tree_of(self, commit: str) -> str:
        """Return a commit's tree. Raises RepositoryUnusableError when the commit is missing."""
        try:
            kind, data = self.objects.read(commit)
        except KeyError:
            raise RepositoryUnusableError(
                f"Commit {commit} is missing from {self.git_dir}: restore it (`git fetch`)."
            ) from None
        if kind != "commit":
            raise RepositoryUnusableError(f"{commit} in {self.git_dir} is a {kind}, not a commit.")
        return data[5:45].decode()

    def message_of(self, commit: str) -> str:
        """Return what a commit says. Raises RepositoryUnusableError when it is missing."""
        self.tree_of(commit)
        return self.objects.read(commit)[1].partition(b"\n\n")[2].decode("utf-8", "replace")

    def is_signed(self, commit: str) -> bool:
        """Return whether a commit has a signature of any key.

        Raises RepositoryUnusableError when it is missing.
        """
        self.tree_of(commit)
        return b"\ngpgsig" in self.objects.read(commit)[1].partition(b"\n\n")[0]

    def read_file(self, commit: str, path: str) -> bytes | None:
        """Return a file of a commit, None where there is none.

        Raises RepositoryUnusableError when the commit or one of its objects is missing.
        """
        tree = self.tree_of(commit)
        try:
            entry = TreeDraft(tree, self._tree).lookup(path_bytes(path))
            return self._tree(entry[1]) if entry is not None and entry[0] == MODE_FILE else None
        except KeyError as error:
            raise RepositoryUnusableError(
                f"An object of commit {commit} is missing from {self.git_dir}: {error}."
            ) from None

    def read_blob(self, oid: str) -> bytes:
        """Return a file's content by its object id. Raises KeyError when it is missing."""
        return self.objects.read(oid)[1]

    def files_in(self, commit: str, paths: Collection[str]) -> set[str]:
        """Return those of these paths where a commit has a file."""
        options = ("--full-tree", "-z", "--end-of-options")
        output = self._read("ls-tree", *options, commit, *paths).stdout
        entries = (entry.partition(b"\t") for entry in output.split(b"\0"))
        return {
            path.decode(errors="surrogateescape")
            for what, _, path in entries
            if path and b" tree " not in what
        }

    def checked_out_in(self, branch: str) -> Path | None:
        """Return the work tree, main or linked, that has a branch checked out."""
        return self.checked_out().get(branch.removeprefix("refs/heads/"))

    def checked_out(self) -> dict[str, Path]:
        """Return the branches that work trees have checked out, and where."""
        found = {}
        for linked in (self.git_dir / "worktrees").glob("*/HEAD"):
            branch = _branch_of(linked)
            pointer = linked.with_name("gitdir")
            if branch and pointer.is_file():
                folder = Path(pointer.read_text(errors="surrogateescape").strip()).parent
                if folder.is_dir():
                    found[branch] = folder
        branch = None if self.is_bare else _branch_of(self.git_dir / "HEAD")
        if branch:
            found[branch] = self.git_dir.parent if self.git_dir.name == ".git" else self.path
        return found

    def diff(self, base: str, head: str) -> bytes:
        """Return the patch from one commit to another, renames found, binary files included."""
        options = ("-p", "-M", "--binary", "--full-index", "--no-ext-diff", "--no-textconv")
        return self._read("diff-tree", "-r", *options, "--end-of-options", base, head).stdout

    def diff_stat(self, base: str, head: str) -> DiffStat:
        """Return what differs between two commits, a rename as two paths."""
        options = ("-r", "-z", "--numstat", "--no-renames")
        output = self._read("diff-tree", *options, "--end-of-options", base, head).stdout
        rows = [row.split(b"\t", 2) for row in output.split(b"\0") if row]
        return DiffStat(
            files=tuple(row[2].decode(errors="surrogateescape") for row in rows),
            insertions=sum(int(row[0]) for row in rows if row[0] != b"-"),
            deletions=sum(int(row[1]) for row in rows if row[1] != b"-"),
        )

    def ahead_behind(self, commit: str, other: str) -> tuple[int, int]:
        """Return how many commits each of two has that the other has not."""
        options = ("--left-right", "--count", "--end-of-options")
        counts = self._read("rev-list", *options, f"{commit}...{other}").stdout.split()
        return int(counts[0]), int(counts[1])

    def gained_since(self, tip: str, since: str) -> GainedCommits | None:
        """Return the commits of a branch that are not in the history of another commit.

        At most one process; None for more than MAX_GAINED.
        """
        if tip == since:
            return GainedCommits(since, {})
        options = ("--parents", f"--max-count={MAX_GAINED + 1}")
        lines = self._read("rev-list", *options, tip, f"^{since}").stdout.decode().splitlines()
        if len(lines) > MAX_GAINED:
            return None
        commits = (line.split() for line in lines)
        return GainedCommits(since, {commit: parents for commit, *parents in commits})

    def is_ancestor(self, commit: str, of: str) -> bool:
        """Return whether a commit is in the history of another one, or is that one."""
        options = ("--is-ancestor", "--end-of-options")
        return self._read("merge-base", *options, commit, of, allowed=(0, 1)).status == 0

    def try_merge(self, ours: str, theirs: str) -> MergeResult:
        """Merge two commits in memory, without a checkout and without new objects."""
        options = ("--write-tree", "--name-only", "--no-messages", "-z", "--end-of-options")
        with self.quarantine() as quarantine:
            try:
                result = quarantine.git("merge-tree", *options, ours, theirs, allowed=(0, 1))
            except GitFailedError as error:
                if "unrelated histories" in error.detail:
                    return MergeResult(mergeable=False, conflicts=())
                raise
        tree, *paths = result.stdout.rstrip(b"\0").split(b"\0")
        return MergeResult(
            mergeable=result.status == 0,
            conflicts=tuple(dict.fromkeys(path.decode(errors="surrogateescape") for path in paths)),
            tree=tree.decode(),
        )

    # Writing

    def dry_apply(
        self, head: str, patch: bytes, check_policy: PolicyCheck, *, base_commit: str | None = None
    ) -> ApplicablePatch:
        """Do all that `apply` does, but store nothing. Raises the errors of `apply`."""
        with self.quarantine() as quarantine:
            return self._apply_in_quarantine(
                quarantine, head, patch, check_policy, base_commit
            ).applied

    def new_objects(self) -> NewObjects:
        """Return where a change can put its objects, to install them together."""
        return NewObjects(self.objects)

    def apply(
        self,
        head: str,
        patch: bytes,
        check_policy: PolicyCheck,
        *,
        base_commit: str | None = None,
        into: NewObjects | None = None,
    ) -> ApplicablePatch:
        """Apply a patch to a commit; without `into` its objects are durable when this returns.

        What is in `into` already is installed first: the patch may be for a commit in it.
        `check_policy` is called before anything becomes part of the repository. `base_commit` is
        the commit that the patch was made against, for a three-way merge where the patch does not
        apply to the head.

        Raises PatchMalformedError, PatchTooLargeError, PatchEmptyError, PatchAlreadyAppliedError,
        PatchConflictError, whatever `check_policy` raises, GitTimeoutError.
        """
        if into is not None:
            into.install()
        with self.quarantine() as quarantine:
            made = self._apply_in_quarantine(quarantine, head, patch, check_policy, base_commit)
        self._store(made.loose, into)
        return made.applied

    def rebase(
        self, onto: str, commits: Sequence[tuple[str, str]]
    ) -> list[RebasedCommit] | RebaseConflict:
        """Make commits, each given with its parent, again on another commit, three-way.

        The new objects are durable when this returns; after a conflict nothing is stored.
        """
        with self.quarantine() as quarantine:
            result = rebase(quarantine, onto, commits)
            if isinstance(result, RebaseConflict):
                return result
            made, loose = result
            self.objects.install(loose)
        return made

    def change_set(self, onto: str, made: RebasedCommit) -> ChangeSet:
        """Return what a commit that was made again changes, of the tree that it stands on."""
        links = self.objects.links
        before = links.of_tree(onto)
        after = links.of_changed_tree(made.tree, before, made.changes, self.read_blob)
        old, new = TreeDraft(onto, self._tree), TreeDraft(made.tree, self._tree)
        return ChangeSet(made.changes, b"", before, after, self.read_blob, old, new)

    def put_folder(
        self, head: str, path: str, files: Mapping[str, bytes], *, into: NewObjects | None = None
    ) -> str:
        """Return the tree of a commit with these files, and no others, in one of its folders.

        The commit is in the repository. Without `into` the new objects are durable when this
        returns. Raises CollisionError where a file has the folder's place.
        """
        folder, root = TreeDraft(EMPTY_TREE, self._tree), TreeDraft(self.tree_of(head), self._tree)
        loose: Loose = {}
        changes = []
        for name, content in files.items():
            oid, loose_blob = encode_loose("blob", content)
            loose[oid] = loose_blob
            changes.append(FileChange(name, MODE_ABSENT, MODE_FILE, None, oid))
        folder.edit(changes)
        inner, trees = folder.write()
        loose |= trees
        root.edit([FileChange(path, MODE_ABSENT, MODE_FOLDER, None, inner)])
        tree, trees = root.write()
        self._store(loose | trees, into)
        return tree

    def _tree(self, oid: str) -> bytes:
        return self.objects.read(oid)[1]

    def remaking(self, *, durably: bool, replaces: bool = False) -> Remaking:
        """Make recorded commits and tags again; the arguments are those of `Remaking`."""
        limits = self._settings.model_copy(update=_UNLIMITED)
        return Remaking(self.objects, limits, self.apply_again, durably=durably, replaces=replaces)

    def apply_again(self, head: str, patch: bytes) -> str:
        """Apply a patch that was accepted before, without policy and limits; return the tree.

        Raises RepositoryUnusableError when it does not apply any more.
        """
        limits = self._settings.model_copy(update=_UNLIMITED)
        tree = self.tree_of(head)
        with self.quarantine() as quarantine:
            scanned = read_patch(patch, limits, HeadFiles(quarantine, tree))
            try:
                changes, result = apply_to_tree(quarantine, scanned, tree)
            except RefusedError as refusal:
                raise RepositoryUnusableError(
                    f"A patch that was applied to {head} does not apply to it again: {refusal}."
                ) from refusal
            tree, loose = result.write()
            blobs = quarantine.take({each.new_oid for each in changes if each.new_oid})
            self.objects.install(blobs | loose)
        return tree

    def pointers(self, commit: str) -> Pointers:
        """Return the content that a commit only points to: submodules, and files of Git LFS."""
        return find_pointers(commit, self.tree_of(commit), self._tree, self._read)

    def remote_base(self, base: Base) -> str | None:
        """Return the base branch's commit in `origin` at the last fetch, if there was one."""
        return self.read_ref(f"refs/remotes/origin/{base.branch}")

    def has_objects(self, tips: Sequence[str], *, since: str) -> bool:
        """Return whether all objects of these commits and tags exist, beyond an older commit."""
        options = ("--objects", "--quiet", "--end-of-options")
        result = self._read("rev-list", *options, *tips, f"^{since}", allowed=(0, 128))
        return result.status == 0

    def remove_empty_objects(self) -> None:
        """Remove empty object files that a power cut left, and nothing else."""
        self.objects.remove_empty()

    def write_commit(
        self,
        *,
        parents: Sequence[str],
        tree: str,
        message: str,
        at: datetime,
        signature: str | None = None,
        into: NewObjects | None = None,
    ) -> str:
        """Write a commit and return its id: a pure function of the arguments but `into`.

        A rollback is a commit on the head with the tree of the snapshot. Without `into` the commit
        is durable when this returns.
        """
        return self._write(encode_commit(parents, tree, message, at, signature), into)

    def sign_commit(
        self, *, parents: Sequence[str], tree: str, message: str, at: datetime
    ) -> str | None:
        """Return the signature of a commit before it is written; None without a signing key.

        Raises RepositoryUnusableError.
        """
        return self._sign(commit_lines(parents, tree, at), message)

    def sign_statement(self, payload: bytes) -> Signature | None:
        """Return the raw signature of a statement's payload; None without a key that makes one."""
        return self.signer.sign_raw(payload) if self.signer else None

    def write_tag(
        self,
        *,
        name: str,
        commit: str,
        message: str,
        at: datetime,
        signature: str | None = None,
        into: NewObjects | None = None,
    ) -> str:
        """Write an annotated tag and return its id, as `write_commit` does."""
        return self._write(encode_tag(name, commit, message, at, signature), into)

    def sign_tag(self, *, name: str, commit: str, message: str, at: datetime) -> str | None:
        """Return the signature of a tag before it is written; as `sign_commit`."""
        return self._sign(tag_lines(name, commit, at), message)

    def prepare_refs(self, updates: Sequence[RefUpdate]) -> AbstractContextManager[PreparedRefs]:
        """Lock and check refs, so that moving them cannot fail after the database's commit.

        Raises RefMovedError, RefNameTakenError, RefLockedError on entering.
        """
        return self._refs.prepare(updates)

    def require_free_ref(self, ref: str) -> None:
        """Check that refs can be created at and within a name. Raises RefNameTakenError."""
        self._refs.require_free(ref)

    def roll_refs_forward(self, wanted: Sequence[RecordedRef]) -> None:
        """Roll refs forward to their recorded heads. Raises RefMovedError when one was moved."""
        self._refs.roll_forward(wanted)

    def quarantine(self) -> AbstractContextManager[Quarantine]:
        """Open a temporary object folder for git, with the repository's objects as alternates."""
        return open_quarantine(self._scratch, self.objects, self._runner, self._environment())

    def _apply_in_quarantine(
        self,
        quarantine: Quarantine,
        head: str,
        patch: bytes,
        check_policy: PolicyCheck,
        base_commit: str | None,
    ) -> Quarantined:
        tree = self.tree_of(head)
        files = HeadFiles(quarantine, tree)
        scanned = read_patch(patch, self._settings, files)
        require_few_steps(scanned.files, files, self._settings)

        def resolve_conflict(reason: str) -> Resolution:
            return resolve(quarantine, head, scanned, reason, base_commit, self._settings)

        return apply_in_quarantine(quarantine, patch, scanned, tree, check_policy, resolve_conflict)

    def _sign(self, lines: list[str], message: str) -> str | None:
        return self.signer.sign(object_text(lines, message)) if self.signer else None

    def _write(self, made: tuple[str, bytes], into: NewObjects | None) -> str:
        oid, loose = made
        self._store({oid: loose}, into)
        return oid

    def _store(self, loose: Loose, into: NewObjects | None) -> None:
        if into is None:
            self.objects.install(loose)
        else:
            into.add(loose)

    def _read(self, *arguments: str, allowed: Collection[int] = (0,)) -> GitResult:
        """Run a read-only command in the service's git directory over the repository's objects."""
        return self._runner.run(
            *arguments, folder=self._shadow, environment=self._reading(), allowed=allowed
        )

    def _reading(self) -> dict[str, str]:
        return {**self._environment(), "GIT_OBJECT_DIRECTORY": str(self.objects.folder)}

    def _environment(self) -> dict[str, str]:
        # The file that says where a shallow clone's history ends is in the user's git directory,
        # not with the objects; without it git would report a broken clone.
        shallow = self.git_dir / "shallow"
        return {"GIT_DIR": str(self._shadow), "GIT_SHALLOW_FILE": str(shallow)}

    def _default_branches(self) -> Iterator[str]:
        """Yield possible default branches: a detached HEAD, as CI checks out, is on no branch."""
        yield "main"
        for ref, prefix in (
            ("HEAD", "ref: refs/heads/"),
            ("refs/remotes/origin/HEAD", "ref: refs/remotes/origin/"),
        ):
            target = self._refs.read_raw(ref) or ""
            if target.startswith(prefix):
                yield target.removeprefix(prefix)
        yield "master"

    def _prepare_home(self) -> None:
        """Create the service's own git directory, so that no setting of the user reaches git.

        Raises StorageError.
        """
        home = self._settings.home
        try:
            self._write_home(home)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StorageError(
                f"{home} cannot be written: {reason}. AUTOPACK_HOME must name a folder that the"
                " service may write to, on a disk with free space."
            ) from error
        self.remove_leftovers()
        self._refs.remove_left_locks()

    def _write_home(self, home: Path) -> None:
        for folder in (self._shadow / "objects", self._shadow / "refs", self._scratch):
            folder.mkdir(parents=True, exist_ok=True)
        with locked_home(home):
            project = home / PROJECT_FILE
            if not project.exists():
                write_whole(project, f"{self._settings.project_id}\n")
            ignore = home / ".gitignore"
            if not ignore.exists():
                write_whole(ignore, "*\n")
            for name, text in _SHADOW_FILES.items():
                file = self._shadow / name
                if not file.exists() or file.read_text() != text:
                    write_whole(file, text)

    def scratch_folder(self, prefix: str) -> AbstractContextManager[Path]:
        """Create a folder in the home for the time of a `with` block. Raises StorageError."""
        return scratch_folder(self._scratch, prefix)

    def remove_leftovers(self) -> None:
        """Remove the scratch folders of services that were killed."""
        remove_leftovers(self._scratch)


def find_git_dir(settings: Settings) -> Path:
    """Return the git directory that `Repository.open` would serve, and write nothing.

    Raises RepositoryUnusableError.
    """
    return _found(settings)[1]


def _found(settings: Settings) -> tuple[GitRunner, Path, bool]:
    executable = shutil.which("git")
    if executable is None:
        raise RepositoryUnusableError(f"git is not installed: install {GIT_NEEDED}.")
    runner = GitRunner(executable, settings.git_timeout_seconds, settings.git_memory_bytes)
    if not os.path.isdir(settings.repo_path):  # unlike Path's, it says no where it may not look
        raise RepositoryUnusableError(
            f"{settings.repo_path} is not a folder: set AUTOPACK_REPO_PATH to a git repository."
        )
    words, version = _version(runner)
    if version < OLDEST_GIT:
        raise RepositoryUnusableError(f"{words} is too old: install {GIT_NEEDED}.")
    return runner, *discover(runner, settings.repo_path)


@functools.cache  # a process asks once, however many repositories it opens
def _version(runner: GitRunner) -> tuple[str, tuple[int, ...]]:
    words = runner.run("version", folder=Path("/"), environment={}).stdout.decode().strip()
    return words, tuple(map(int, re.findall(r"\d+", words)[:2]))


def discover(runner: GitRunner, path: Path) -> tuple[Path, bool]:
    """Find the git directory as git does; refuse kinds of repositories that are not supported."""
    try:
        answer = runner.run(
            "rev-parse",
            "--path-format=absolute",
            "--is-bare-repository",
            "--show-object-format",
            "--git-common-dir",
            folder=path,
            environment=TRUST,
        )
        is_bare, object_format, git_dir = answer.stdout.decode(errors="surrogateescape").split(
            "\n", 2
        )
        found = Path(git_dir.removesuffix("\n"))
        settings = _unserved_settings(runner, path) if _may_be_unserved(found) else ""
    except GitFailedError as error:
        raise RepositoryUnusableError(
            f"{path} is not a git repository that can be served: {error.detail}."
            " Run `git init` there, or set AUTOPACK_REPO_PATH."
        ) from error
    if object_format != "sha1":
        raise RepositoryUnusableError(
            f"{path} is a {object_format.upper()} repository; only SHA-1 ones are served."
        )
    if "partialclone" in settings or re.search(r"promisor (true|yes|on|1)?$", settings, re.M):
        raise RepositoryUnusableError(
            f"{path} is a partial clone, whose objects may be missing: use a full clone"
            " (`git fetch --refetch --no-filter`, or clone anew)."
        )
    if "reftable" in settings:
        raise RepositoryUnusableError(
            f"{path} keeps its refs as a reftable; only the files format is served"
            " (`git refs migrate --ref-format=files`)."
        )
    return found, is_bare == "true"


def _may_be_unserved(git_dir: Path) -> bool:
    """Say whether git has to be asked for settings that refuse a repository.

    Most configurations have none of these names, and no process of git is needed to see that.
    """
    try:
        return _UNSERVED_NAMES.search((git_dir / "config").read_bytes()) is not None
    except OSError:
        return True


def _unserved_settings(runner: GitRunner, path: Path) -> str:
    asked = ("config", "--local", "--get-regexp", _UNSERVED)
    found = runner.run(*asked, folder=path, environment=TRUST, allowed=(0, 1))
    return found.stdout.decode(errors="replace").lower()


def _branch_of(head: Path) -> str | None:
    """Return the branch of a HEAD, if it is on one."""
    try:
        text = head.read_text(errors="surrogateescape").strip()
    except OSError:
        return None
    return text.removeprefix(_ON_BRANCH) if text.startswith(_ON_BRANCH) else None
