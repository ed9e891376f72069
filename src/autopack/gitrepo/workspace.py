"""Private work trees of one commit for an agent's command, and its changes as a patch.

The agent gets its own repository, in which it may read history and commit. Its changes are read
through a second git directory that it does not see. So its index, configuration, hooks and commits
have no effect: only the files in the work tree are compared with the commit that was laid out.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..domain.errors import AutopackError
from ..domain.paths import matches
from ..domain.rehearsal import GIT_NEEDED
from .address import AddressError, RemoteAddress, parse_address
from .errors import GitFailedError, RepositoryUnusableError
from .process import GitResult, GitRunner
from .push import access
from .quarantine import locked
from .repository import discover

FETCH_SECONDS = 1800
MEMORY_BYTES = 1024**3
# Files are written and read back byte for byte as in the commit, so that no conversion of line ends
# changes an untouched file. `!diff`: text is sent as text. Files of this name in the top folder are
# between agent and worker, and are in no patch.
OURS = ".autopack-"
TREE = "tree"
_ATTRIBUTES = "* -text -filter -ident -working-tree-encoding !diff\n"
# git's own default for automatic gc, which the service's configuration turns off.
_TIDY = ("-c", "gc.auto=6700", "-c", "gc.autoPackLimit=50", "-c", "gc.autoDetach=false")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
# What agents and editors leave in a work tree for themselves: a file or folder of such a name.
_TOOL_FILE = re.compile(
    r"\.aider.*|\.claude|\.codex|\.gemini|\.opencode|\.cursor|\.idea|\.vscode|\.DS_Store"
    r"|.*~|\..*\.sw[a-p]|\.#.*|#.*#"
)
_NAMED_FOLDERS = 3


class WorkspaceError(Exception):
    """A work tree could not be laid out or read. The message is one line."""


class FetchError(WorkspaceError):
    """The commit could not be fetched now; a later try may succeed."""


class TooMuchChangedError(WorkspaceError):
    """More was changed than one patch may contain."""


@dataclass(frozen=True, slots=True)
class PatchLimits:
    """The service's limits for one patch."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Harvest:
    """The changes as a patch; empty without changes.

    `nested` are the folders of repositories within the tree, `dropped` the files and folders that
    agents and editors keep for themselves; neither is part of the patch.
    """

    patch: bytes
    nested: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """A file of a tree: git's mode and the id of its content."""

    mode: str
    oid: str


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A file in two trees; None where a tree does not have it."""

    old: TreeEntry | None
    new: TreeEntry | None


class ObjectCache:
    """Copies of repositories in one folder, which any number of workers on a machine share."""

    def __init__(self, folder: Path, ssh_auth_sock: str | None = None) -> None:
        executable = shutil.which("git")
        if executable is None:
            raise WorkspaceError(f"git is not installed: install {GIT_NEEDED}.")
        self._folder = folder
        self._ssh_auth_sock = ssh_auth_sock
        self._runner = GitRunner(executable, FETCH_SECONDS, MEMORY_BYTES, has_own_group=True)

    def lay_out(
        self,
        folder: Path,
        *,
        sources: Sequence[str | RemoteAddress],
        branch: str,
        commit: str,
        staged: bytes | None = None,
    ) -> Workspace:
        """Write a commit of a branch into an empty folder, from the first source that has it.

        A source is a path or an address, which may contain credentials. `staged` is a patch that is
        applied on top of the commit if possible; it is not part of the later changes.

        Raises FetchError when a later try may succeed, else WorkspaceError.
        """
        if not _COMMIT.match(commit):
            raise ValueError(f"{commit!r} is no commit's id")
        problems: list[Exception] = []
        for source in sources:
            try:
                copy = self._fetch(source, branch, commit)
            except (AddressError, WorkspaceError) as error:
                problems.append(error)
                continue
            try:
                return _lay_out(self._runner, copy, folder, branch, commit, staged)
            except AutopackError as error:
                raise WorkspaceError(" ".join(error.detail.split())) from error
        is_passing = any(isinstance(problem, FetchError) for problem in problems)
        kind = FetchError if is_passing else WorkspaceError
        raise kind(" ".join("; ".join(map(str, problems)).split()))

    def _fetch(self, source: str | RemoteAddress, branch: str, commit: str) -> Path:
        """Fetch the commit with all its objects into the copy of this source; return the copy."""
        address = parse_address(source, Path.cwd()) if isinstance(source, str) else source
        url, options = self._reach(address)
        copy = self._folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}.git"
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(copy.with_suffix(".lock")):
            self._prepare(copy)
            try:
                # First by id, as a branch is pushed some time after its commit is made; then by
                # branch, as some servers do not send commits by id.
                for wanted in (commit, f"refs/heads/{branch}"):
                    spec = f"+{wanted}:refs/heads/{branch}"
                    is_last = wanted != commit
                    fetched = self._run(
                        copy,
                        *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head"),
                        *("--update-shallow", *options, "--end-of-options", url, spec),
                        environment=access(address, self._ssh_auth_sock),
                        allowed=(0,) if is_last else (0, 1, 128),
                    )
                    if not fetched.status:
                        break
            except AutopackError as error:
                raise FetchError(error.detail) from error
            self._run(copy, *_TIDY, "gc", "--auto", "--quiet")
        asked = self._run(copy, "cat-file", "-e", f"{commit}^{{commit}}", allowed=(0, 1, 128))
        if asked.status:
            raise FetchError(f"{url} has no commit {commit}")
        return copy

    def _prepare(self, copy: Path) -> None:
        """Make a copy, or remove what git left in it when it was killed, as no git works in it now.

        git itself removes none of its locks: each later fetch would fail.
        """
        for left in (*copy.rglob("*.lock"), *copy.glob("objects/*/tmp_*")):
            left.unlink(missing_ok=True)
        if not (copy / "HEAD").exists():
            fresh = copy.with_suffix(".new")  # whole or not at all
            for half in (fresh, copy):
                shutil.rmtree(half, ignore_errors=True)
            self._run(fresh, "init", "--quiet", "--bare", "--template=")
            fresh.rename(copy)

    def _reach(self, address: RemoteAddress) -> tuple[str, list[str]]:
        """Return the address to fetch from, and git's options for it."""
        if address.protocol != "file":
            return address.url, []
        url = address.url
        if "://" not in url:
            if not Path(url).is_dir():
                raise WorkspaceError(f"there is no folder {url} on this machine")
            try:
                url = str(discover(self._runner, Path(url))[0])
            except RepositoryUnusableError as error:
                raise WorkspaceError(f"{url} has no git repository that can be read") from error
        git = shlex.quote(self._runner.executable)
        # It may belong to another user: only git runs there, without hooks.
        return url, [f"--upload-pack={git} -c 'safe.directory=*' upload-pack"]

    def _run(
        self,
        copy: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
        allowed: Collection[int] = (0,),
    ) -> GitResult:
        return self._runner.run(
            *arguments,
            folder=self._folder,
            environment={"GIT_DIR": str(copy), **(environment or {})},
            allowed=allowed,
        )


class Workspace:
    """One agent's work tree. `is_staged`: the given patch was applied in it."""

    def __init__(self, runner: GitRunner, tree: Path, git_dir: Path, *, is_staged: bool) -> None:
        self.tree = tree
        self.is_staged = is_staged
        self._runner = runner
        self._git_dir = git_dir
        self._base = self._run("write-tree").stdout.decode().strip()

    @property
    def base_tree(self) -> str:
        """Git's id of the tree that was laid out."""
        return self._base

    def files(self) -> dict[str, TreeEntry]:
        """Return every file of the tree that was laid out, by path. Raises AutopackError."""
        listed = self._run("ls-tree", "-r", "-z", "--full-tree", self._base).stdout
        found = {}
        for line in listed.decode(errors="surrogateescape").split("\0")[:-1]:
            about, _, path = line.partition("\t")
            mode, _, oid = about.split(" ")
            found[path] = TreeEntry(mode, oid)
        return found

    def differences(self, old: str, new: str) -> dict[str, ChangedFile]:
        """Return the files in which two commits differ, by path. Raises AutopackError."""
        options = ("diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev")
        listed = self._run(*options, old, new).stdout.decode(errors="surrogateescape")
        fields = listed.split("\0")[:-1]
        found = {}
        for about, path in zip(fields[::2], fields[1::2], strict=True):
            old_mode, new_mode, old_oid, new_oid, _ = about[1:].split(" ")
            found[path] = ChangedFile(_entry(old_mode, old_oid), _entry(new_mode, new_oid))
        return found

    def changed_lines(self, old: TreeEntry, new: TreeEntry) -> frozenset[int]:
        """Return the numbers of a file's new or changed lines, from 1 on. Raises AutopackError."""
        options = ("-U0", "--text", "--no-color", "--no-ext-diff", "--no-textconv")
        output = self._run("diff", *options, old.oid, new.oid).stdout
        found: set[int] = set()
        for start, count in re.findall(rb"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", output, re.MULTILINE):
            found.update(range(int(start), int(start) + int(count or 1)))
        return frozenset(found)

    def read(self, entry: TreeEntry) -> bytes:
        """Return the content of a file. Raises AutopackError."""
        return self._run("cat-file", "blob", entry.oid).stdout

    def store(self, content: bytes, mode: str = "100644") -> TreeEntry:
        """Keep the content of a file for `edit`. Raises AutopackError."""
        done = self._run("hash-object", "-w", "--stdin", stdin=content)
        return TreeEntry(mode, done.stdout.decode().strip())

    def edit(self, changes: Mapping[str, TreeEntry | None]) -> str:
        """Change files of the tree that was laid out; None removes one. Return the tree's id.

        For before any command has run in it. Raises AutopackError.
        """
        lines = "".join(
            f"{entry.mode} {entry.oid}\t{path}\0" if entry else f"0 {'0' * 40}\t{path}\0"
            for path, entry in sorted(changes.items(), key=lambda change: change[1] is not None)
        )
        places = {
            **_places(self._git_dir, self.tree),
            "GIT_INDEX_FILE": str(self._git_dir / "edited"),
        }

        def run(*arguments: str, stdin: bytes = b"") -> str:
            done = self._runner.run(*arguments, folder=self.tree, environment=places, stdin=stdin)
            return done.stdout.decode().strip()

        run("read-tree", self._base)
        # What is removed comes first, as a folder may become a file, and a file a folder.
        run(
            "update-index",
            "--replace",
            "-z",
            "--index-info",
            stdin=lines.encode(errors="surrogateescape"),
        )
        tree = run("write-tree")
        self._run("read-tree", "-u", "--reset", tree)
        self._base = tree
        return tree

    def harvest(self, limits: PatchLimits, *, opened: Sequence[str] = ()) -> Harvest:
        """Return the changes: files created, changed and deleted, without files that git ignores.

        Commits of the agent count by the files that they leave. Nested repositories are left out,
        and new files of agents and editors themselves, unless a pattern of `opened` matches them.
        Raises TooMuchChangedError, WorkspaceError.
        """
        try:
            return self._harvest(limits, opened)
        except GitFailedError as error:
            raise WorkspaceError(" ".join(error.detail.split())) from error
        except AutopackError as error:  # git ran out of its time or memory
            raise TooMuchChangedError(error.detail) from error

    def _harvest(self, limits: PatchLimits, opened: Sequence[str]) -> Harvest:
        if not self.tree.is_dir():
            raise WorkspaceError("the work tree is gone")
        made = self._paths("ls-files", "--others", "--exclude-standard", "-z")
        dropped = {
            path: top
            for path in made
            if (top := _tool_file(path)) is not None
            and not any(matches(path, pattern) for pattern in opened)
        }
        made = [path for path in made if path not in dropped]
        nested = tuple(path.removesuffix("/") for path in made if path.endswith("/"))
        self._require_few(made, limits)
        left_out = (*nested, *self._alone(dropped, made))
        specs = [":/", *(f":(top,exclude,literal){path}" for path in left_out)]
        self._run(
            *("add", "--all", "--pathspec-from-file=-", "--pathspec-file-nul"),
            stdin="\0".join(specs).encode(errors="surrogateescape"),
        )
        against = ("diff-index", "--cached", "--no-renames")
        self._require_few(self._paths(*against, "--name-only", "-z", self._base), limits)
        # Into a file: its size is only known after it is written.
        output = self._git_dir / "patch"
        self._run(
            *(*against, "--patch", "--binary", "--full-index", f"--output={output}", self._base)
        )
        size = output.stat().st_size
        if size > limits.bytes:
            raise TooMuchChangedError(
                f"the changes are a patch of {size} bytes; the service accepts at most"
                f" {limits.bytes}"
            )
        return Harvest(output.read_bytes(), nested, tuple(dict.fromkeys(dropped.values())))

    def _alone(self, dropped: Mapping[str, str], made: Sequence[str]) -> list[str]:
        """Return the paths to leave out for these new files: files that tools made for themselves.

        A folder with other files, of the commit or opened, is not left out as a whole.
        """
        paths: list[str] = []
        for top in dict.fromkeys(dropped.values()):
            if any(path.startswith(f"{top}/") for path in made) or self._paths(
                *("ls-files", "-z", "--", f":(top,literal){top}")
            ):
                paths += [path.removesuffix("/") for path in dropped if dropped[path] == top]
            else:
                paths.append(top)
        return paths

    def _require_few(self, paths: Sequence[str], limits: PatchLimits) -> None:
        if len(paths) <= limits.files:
            return
        tops = [path.partition("/")[0] for path in paths]
        most = sorted(set(tops), key=tops.count, reverse=True)[:_NAMED_FOLDERS]
        raise TooMuchChangedError(
            f"{len(paths)} files were changed, most of them in {', '.join(most)!a}; a patch may"
            f" have {limits.files}. Add files that must not be sent to .gitignore"
        )

    def _paths(self, *arguments: str) -> list[str]:
        output = self._run(*arguments).stdout.decode(errors="surrogateescape")
        return [path for path in output.split("\0") if path]

    def _run(self, *arguments: str, stdin: bytes = b"") -> GitResult:
        environment = _places(self._git_dir, self.tree)
        return self._runner.run(*arguments, folder=self.tree, environment=environment, stdin=stdin)


def _lay_out(
    runner: GitRunner, copy: Path, folder: Path, branch: str, commit: str, staged: bytes | None
) -> Workspace:
    tree, git_dir = folder / TREE, folder / "git"
    tree.mkdir()
    ours, theirs = _places(git_dir, tree), _places(tree / ".git", tree)
    for places in (ours, theirs):
        runner.run(
            *("init", "--quiet", "--template=", f"--initial-branch={branch}"),
            folder=tree,
            environment=places,
        )
        own = Path(places["GIT_DIR"])
        (own / "info").mkdir(exist_ok=True)
        (own / "info" / "attributes").write_text(_ATTRIBUTES)
        (own / "info" / "exclude").write_text(f"/{OURS}*\n")
        # The second git directory needs the first's objects too: they have the staged patch.
        known = "\n".join(str(each / "objects") for each in (copy, git_dir) if each != own)
        (own / "objects" / "info" / "alternates").write_text(f"{known}\n")
        if (copy / "shallow").exists():
            shutil.copyfile(copy / "shallow", own / "shallow")
    runner.run("read-tree", "-u", "--reset", commit, folder=tree, environment=ours)
    is_staged = staged is not None and not (
        runner.run(
            *("apply", "--index", "--whitespace=nowarn", "-"),
            folder=tree,
            environment=ours,
            stdin=staged,
            allowed=(0, 1, 128),
        ).status
    )
    runner.run("update-ref", f"refs/heads/{branch}", commit, folder=tree, environment=theirs)
    shutil.copyfile(git_dir / "index", tree / ".git" / "index")
    return Workspace(runner, tree, git_dir, is_staged=is_staged)


def _entry(mode: str, oid: str) -> TreeEntry | None:
    return None if mode == "000000" else TreeEntry(mode, oid)


def _tool_file(path: str) -> str | None:
    """Return the part of a path that ends with the name of an agent's or editor's own file."""
    parts = path.removesuffix("/").split("/")
    for depth, part in enumerate(parts, 1):
        if _TOOL_FILE.fullmatch(part):
            return "/".join(parts[:depth])
    return None


def _places(git_dir: Path, tree: Path) -> dict[str, str]:
    return {"GIT_DIR": str(git_dir), "GIT_WORK_TREE": str(tree)}
