"""What an agent leaves in its work tree becomes one patch. (docs/worker.md)"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autopack.gitrepo.workspace import (
    FetchError,
    ObjectCache,
    PatchLimits,
    TooMuchChangedError,
    Workspace,
    WorkspaceError,
)

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

LIMITS = PatchLimits(files=20, bytes=100_000)
BINARY = bytes(range(256)) * 20


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    folder = tmp_path / "desk"
    folder.mkdir()
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "cache")


@pytest.fixture
def base(git_repo: GitRepo) -> str:
    """A commit with one of each sort of file, and settings that would change files on their way."""
    (git_repo.path / "link").symlink_to("src/app.py")
    git_repo.git("add", "link")
    return git_repo.commit(
        {
            "run.sh": "echo\n",
            "image.bin": BINARY,
            "crlf.txt": "one\r\ntwo\r\n",
            ".gitignore": "*.log\nbuild/\n",
            ".gitattributes": "*.txt text eol=crlf\n*.py filter=shout -diff\n",
            "vendor/lib/tracked.py": "A = 1\n",
        }
    )


@pytest.fixture
def workspace(git_repo: GitRepo, base: str, cache: ObjectCache, desk: Path) -> Workspace:
    return lay_out(cache, git_repo, base, desk)


def lay_out(
    cache: ObjectCache, repo: GitRepo, commit: str, desk: Path, staged: bytes | None = None
) -> Workspace:
    return cache.lay_out(
        desk, sources=[str(repo.path)], branch="autonomous/run-001", commit=commit, staged=staged
    )


def run(folder: Path, *command: str) -> None:
    identity = {
        f"GIT_{who}_{what}": "a@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    subprocess.run(
        command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **identity},
        check=True,
        capture_output=True,
    )


def applied(repo: GitRepo, base: str, patch: bytes) -> list[str]:
    """Apply a patch to its base; return what changes, as `<status> <mode> <path>`."""
    if not patch:
        return []
    repo.git("read-tree", base)
    repo.git("apply", "--cached", "--whitespace=nowarn", "-", stdin=patch)
    rows = repo.git("diff-index", "--cached", "--raw", "--no-renames", "-z", base).split("\0")
    pairs = zip(rows[::2], rows[1::2], strict=False)
    return [f"{row.split()[4]} {row.split()[1]} {path}" for row, path in pairs]


def make(tree: Path) -> None:
    (tree / "new").mkdir()
    (tree / "new" / "file.py").write_text("B = 2\n")


def make_binary(tree: Path) -> None:
    (tree / "new.bin").write_bytes(BINARY[::-1])
    (tree / "image.bin").write_bytes(BINARY + b"\0")


def delete(tree: Path) -> None:
    (tree / "image.bin").unlink()
    shutil.rmtree(tree / "src")


def rename(tree: Path) -> None:
    (tree / "run.sh").rename(tree / "start.sh")


def change_mode(tree: Path) -> None:
    (tree / "run.sh").chmod(0o755)


def turn_links(tree: Path) -> None:
    (tree / "link").unlink()
    (tree / "link").write_text("no link\n")
    (tree / "other").symlink_to("run.sh")


def ignore(tree: Path) -> None:
    (tree / "noise.log").write_text("noise\n")
    (tree / "build").mkdir()
    (tree / "build" / "out.o").write_bytes(b"\0")
    os.mkfifo(tree / "pipe")


def commit(tree: Path) -> None:
    (tree / "README.md").write_text("# Committed\n")
    run(tree, "git", "commit", "--quiet", "--all", "--message", "Mine")
    run(tree, "git", "checkout", "--quiet", "-b", "elsewhere")
    (tree / "run.sh").write_text("exit\n")


def meddle(tree: Path) -> None:
    """Settings, index and even the repository are the agent's; none has a say."""
    (tree / "README.md").write_text("# Changed\n")
    run(tree, "git", "update-index", "--assume-unchanged", "README.md")
    run(tree, "git", "config", "core.autocrlf", "true")
    (tree / ".git" / "info" / "exclude").write_text("*\n")
    (tree / "new.txt").write_text("new\n")
    shutil.rmtree(tree / ".git")


def name_oddly(tree: Path) -> None:
    (tree / "spa ce\ttab").write_text("a\n")
    (Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9"))).write_text("latin\n")
    (tree / "latin.txt").write_bytes(b"caf\xe9\n")


def nest(tree: Path) -> None:
    for name in ("nested", "vendor/lib"):
        (tree / name).mkdir(exist_ok=True)
        run(tree / name, "git", "init", "--quiet")
        (tree / name / "inside.py").write_text("C = 3\n")
    run(tree / "vendor/lib", "git", "add", "inside.py")
    run(tree / "vendor/lib", "git", "commit", "--quiet", "--message", "Inside")
    (tree / "beside.py").write_text("D = 4\n")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tree: None, []),
        (make, ["A 100644 new/file.py"]),
        (make_binary, ["M 100644 image.bin", "A 100644 new.bin"]),
        (delete, ["D 000000 image.bin", "D 000000 src/app.py"]),
        (rename, ["D 000000 run.sh", "A 100644 start.sh"]),
        (change_mode, ["M 100755 run.sh"]),
        (turn_links, ["T 100644 link", "A 120000 other"]),
        (ignore, []),
        (commit, ["M 100644 README.md", "M 100644 run.sh"]),
        (meddle, ["M 100644 README.md", "A 100644 new.txt"]),
        (
            name_oddly,
            ["A 100644 caf\udce9", "A 100644 latin.txt", "A 100644 spa ce\ttab"],
        ),
        # Files beside tracked ones are kept, also if their folder was changed.
        (nest, ["A 100644 beside.py", "A 100644 vendor/lib/inside.py"]),
    ],
)
def test_what_was_changed_becomes_a_patch(
    git_repo: GitRepo,
    base: str,
    workspace: Workspace,
    change: Callable[[Path], None],
    expected: list[str],
) -> None:
    change(workspace.tree)
    harvest = workspace.harvest(LIMITS)
    assert applied(git_repo, base, harvest.patch) == expected
    assert harvest.nested == (("nested",) if change is nest else ())


def test_files_that_agents_and_editors_make_for_themselves_are_left_out(
    git_repo: GitRepo, cache: ObjectCache, desk: Path
) -> None:
    """A file of the commit is not left out, nor is one that the ruleset opens."""
    base = git_repo.commit({".claude/settings.json": "{}\n", ".vscode/tasks.json": "{}\n"})
    workspace = lay_out(cache, git_repo, base, desk)
    made = (
        *(".aider.chat.history.md", ".aider.tags.cache.v4/a/b", ".claude/settings.json"),
        *(".claude/settings.local.json", "src/.gemini/x", "src/.app.py.swp", "src/app.py~"),
        *(".idea/a.xml", ".idea/b.xml", ".vscode/launch.json", "src/new.py", "codex/x"),
    )
    for name in made:
        path = workspace.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new\n")
    (workspace.tree / ".vscode/tasks.json").unlink()
    harvest = workspace.harvest(LIMITS, opened=[".idea/a*"])
    assert applied(git_repo, base, harvest.patch) == [
        "M 100644 .claude/settings.json",
        "A 100644 .idea/a.xml",
        "D 000000 .vscode/tasks.json",
        "A 100644 codex/x",
        "A 100644 src/new.py",
    ]
    assert set(harvest.dropped) == {
        *(".aider.chat.history.md", ".aider.tags.cache.v4", ".claude", ".idea", ".vscode"),
        *("src/.gemini", "src/.app.py.swp", "src/app.py~"),
    }


def test_the_agent_finds_a_clean_repository_with_history(
    git_repo: GitRepo, base: str, workspace: Workspace
) -> None:
    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=workspace.tree, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert ask("status", "--porcelain") == ""
    assert ask("rev-parse", "HEAD") == base
    assert ask("branch", "--show-current") == "autonomous/run-001"
    assert ask("log", "--format=%s").splitlines() == ["Change files", "Start the sample"]
    assert (workspace.tree / "crlf.txt").read_bytes() == b"one\ntwo\n"  # as the commit has it


def test_a_staged_patch_is_applied_and_is_not_a_change(
    git_repo: GitRepo, base: str, cache: ObjectCache, tmp_path: Path
) -> None:
    desks = [tmp_path / name for name in ("builder", "auditor", "other")]
    for desk in desks:
        desk.mkdir()
    builder = lay_out(cache, git_repo, base, desks[0])
    make(builder.tree)
    pending = builder.harvest(LIMITS).patch
    auditor = lay_out(cache, git_repo, base, desks[1], staged=pending)
    assert auditor.is_staged
    assert auditor.harvest(LIMITS).patch == b""
    (auditor.tree / "new" / "file.py").write_text("B = 3\n")
    fix_up = auditor.harvest(LIMITS).patch
    assert applied(git_repo, base, pending + fix_up) == ["A 100644 new/file.py"]
    assert not lay_out(cache, git_repo, base, desks[2], staged=fix_up).is_staged


def test_changes_above_the_limits_of_a_patch_are_reported_and_not_read(
    workspace: Workspace,
) -> None:
    (workspace.tree / "big").write_bytes(os.urandom(100_001))
    with pytest.raises(TooMuchChangedError, match="100000"):
        workspace.harvest(LIMITS)
    (workspace.tree / "big").unlink()
    (workspace.tree / "env").mkdir()
    for number in range(21):
        (workspace.tree / "env" / str(number)).touch()
    with pytest.raises(TooMuchChangedError, match=r"21 files .* 'env'.*gitignore"):
        workspace.harvest(LIMITS)


def test_it_is_fetched_from_where_it_is(
    git_repo: GitRepo, base: str, cache: ObjectCache, desk: Path, tmp_path: Path
) -> None:
    """From a folder inside the repository, from a remote where the path is another machine's."""
    remote = tmp_path / "remote.git"
    git_repo.git("clone", "--quiet", "--bare", ".", str(remote))
    for number, sources in enumerate(
        ([str(git_repo.path / "src")], [str(tmp_path / "none"), f"file://{remote}"])
    ):
        place = desk / str(number)
        place.mkdir()
        laid_out = cache.lay_out(place, sources=sources, branch="main", commit=base)
        assert (laid_out.tree / "run.sh").read_text() == "echo\n"
    with pytest.raises(WorkspaceError, match="no folder") as nowhere:
        cache.lay_out(desk, sources=[str(tmp_path / "none")], branch="main", commit=base)
    assert not isinstance(nowhere.value, FetchError)
    # What is not there yet may be on its way.
    with pytest.raises(FetchError):
        cache.lay_out(desk, sources=[str(remote)], branch="main", commit="1" * 40)


def test_what_a_killed_git_left_in_the_copy_stops_no_later_fetch(
    git_repo: GitRepo, cache: ObjectCache, base: str, desk: Path, tmp_path: Path
) -> None:
    def fetch(commit: str) -> Path:
        place = desk / commit
        place.mkdir()
        lay_out(cache, git_repo, commit, place)
        [copy] = (tmp_path / "cache").glob("*.git")
        return copy

    copy = fetch(base)
    names = ("refs/heads/autonomous/run-001", "packed-refs", "shallow", "objects/info/alternates")
    left = [*(copy / f"{name}.lock" for name in names), copy / "objects" / "pack" / "tmp_pack_a1b2"]
    for each in left:
        each.touch()
    fetch(git_repo.commit({"new.txt": "new\n"}))
    assert not any(each.exists() for each in left)
    # It may have been killed before its `git init` was done.
    copy.rename(copy.with_suffix(".new"))
    shutil.rmtree(copy.with_suffix(".new") / "objects")
    fetch(git_repo.commit({"newer.txt": "newer\n"}))
