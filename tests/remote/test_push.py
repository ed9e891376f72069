"""A branch and its tags arrive on the remote, or nothing there changes and the reason is said."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.waiting import PATIENCE_SECONDS

from autopack.gitrepo import (
    PushFailedError,
    PushInterruptedError,
    Remote,
    RemoteMovedError,
    RepositoryUnusableError,
)

from .conftest import Bare, OpenRemote
from .git_server import GitServer, basic, git_server

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

BRANCH = "refs/heads/autonomous/run-001"
TAG = "refs/tags/autonomous/run-001/tier-T1/phase-P1"
SECRET = "s3cr3t-p4ss"


@pytest.fixture
def commits(git_repo: GitRepo) -> list[str]:
    """Three commits of a run's branch, beside `main`; no ref of the repository names them."""
    ref = git_repo.path / ".git/refs/made"
    made = git_repo.put_commits(
        "refs/made", *({f"src/{number}.txt": "new\n"} for number in range(3))
    )
    ref.unlink()
    return [(git_repo.path / ".git/refs/heads/main").read_text().strip(), *made]


@pytest.fixture
def tag(git_repo: GitRepo, commits: list[str]) -> str:
    text = f"object {commits[1]}\ntype commit\ntag x\ntagger A <a@b> 1 +0000\n\nx\n"
    return git_repo.git("mktag", stdin=text)


@pytest.fixture(params=["file", "http"])
def address(request: pytest.FixtureRequest, bare: Bare, server: GitServer) -> str:
    return {
        "file": f"file://{bare.path}",
        "http": f"{server.url}/bare.git",
    }[request.param]


def push(remote: Remote, commits: list[str], at: int = -1, **tags: str) -> None:
    named = {ref.replace("__", "/"): oid for ref, oid in tags.items()}
    remote.push(BRANCH, commits[at], recorded=commits[:at], tags=named)


# What arrives


@pytest.mark.safety_critical
def test_the_branch_and_its_tags_arrive_and_nothing_else(
    address: str, bare: Bare, open_remote: OpenRemote, commits: list[str], tag: str
) -> None:
    remote = open_remote(address)
    remote.push(BRANCH, commits[2], recorded=commits[:2], tags={TAG: tag})
    assert bare.refs() == {BRANCH: commits[2], TAG: tag}
    remote.push(BRANCH, commits[3], recorded=commits[:3], tags={TAG: tag})
    assert bare.refs() == {BRANCH: commits[3], TAG: tag}
    assert bare.git("fsck", "--strict", "--no-dangling") == ""


def test_what_is_there_already_is_not_sent_again(
    bare: Bare, server: GitServer, open_remote: OpenRemote, commits: list[str], tag: str
) -> None:
    remote = open_remote(f"{server.url}/bare.git")
    for _ in range(3):
        remote.push(BRANCH, commits[2], recorded=commits[:2], tags={TAG: tag})
    assert server.push_count == 1


def test_a_branch_that_was_deleted_or_put_back_on_the_remote_follows_again(
    bare: Bare, open_remote: OpenRemote, commits: list[str]
) -> None:
    remote = open_remote(str(bare.path))
    push(remote, commits, 3)
    bare.git("update-ref", BRANCH, commits[1])
    push(remote, commits, 3)
    assert bare.refs() == {BRANCH: commits[3]}
    bare.git("update-ref", "-d", BRANCH)
    push(remote, commits, 3)
    assert bare.refs() == {BRANCH: commits[3]}


def test_a_pack_larger_than_what_http_sends_at_once_arrives(
    bare: Bare, server: GitServer, open_remote: OpenRemote, git_repo: GitRepo
) -> None:
    base = git_repo.git("rev-parse", "main")
    head = git_repo.commit({"big.bin": os.urandom(2_000_000)})
    open_remote(f"{server.url}/bare.git").push(BRANCH, head, recorded=[base], tags={})
    assert bare.refs() == {BRANCH: head}
    assert max(server.pack_sizes) > 2_000_000


def test_a_remote_without_atomic_pushes_gets_refs_one_by_one(
    address: str, bare: Bare, open_remote: OpenRemote, commits: list[str], tag: str
) -> None:
    bare.git("config", "receive.advertiseAtomic", "false")
    open_remote(address).push(BRANCH, commits[2], recorded=commits[:2], tags={TAG: tag})
    assert bare.refs() == {BRANCH: commits[2], TAG: tag}


@pytest.mark.parametrize("kind", ["bare", "shallow", "worktree"])
def test_every_kind_of_repository_that_is_served_can_push(
    kind: str, bare: Bare, open_remote: OpenRemote, git_repo: GitRepo, tmp_path: Path
) -> None:
    git_repo.commit({"second.txt": "2\n"})
    head = git_repo.commit({"third.txt": "3\n"})
    git_repo.git("push", "--quiet", str(bare.path), "main")  # or a shallow clone could not push
    other = tmp_path / "other"
    if kind == "worktree":
        git_repo.git("worktree", "add", "--quiet", str(other), "-b", "side")
    else:
        options = ["--bare"] if kind == "bare" else ["--depth=1"]
        git_repo.git("clone", "--quiet", *options, f"file://{git_repo.path}", str(other))
    remote = open_remote(str(bare.path), repo_path=other)
    remote.push(BRANCH, head, recorded=[], tags={})
    assert bare.refs()[BRANCH] == head


# What is left alone


@pytest.mark.safety_critical
@pytest.mark.parametrize("how", ["ahead", "beside", "elsewhere"])
def test_a_branch_that_was_moved_on_the_remote_is_never_overwritten(
    how: str, address: str, bare: Bare, open_remote: OpenRemote, commits: list[str], tag: str
) -> None:
    remote = open_remote(address)
    push(remote, commits, 2)
    if how == "elsewhere":
        empty = bare.git("hash-object", "-t", "tree", "-w", "/dev/null")
        theirs = bare.git("commit-tree", "-m", "Mine", empty)
    else:
        theirs = bare.commit_on(commits[2 if how == "ahead" else 1])
    bare.git("update-ref", BRANCH, theirs)
    with pytest.raises(RemoteMovedError, match=theirs):
        remote.push(BRANCH, commits[3], recorded=commits[:3], tags={TAG: tag})
    assert bare.refs() == {BRANCH: theirs}


@pytest.mark.safety_critical
@pytest.mark.parametrize("how", ["ahead", "beside"])
def test_a_branch_moved_between_the_look_and_the_push_is_never_overwritten(
    how: str,
    address: str,
    bare: Bare,
    open_remote: OpenRemote,
    commits: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remote = open_remote(address)
    push(remote, commits, 2)
    theirs = bare.commit_on(commits[2 if how == "ahead" else 1])
    bare.git("update-ref", BRANCH, theirs)
    monkeypatch.setattr(remote, "_list", lambda _: {BRANCH: commits[2]})
    with pytest.raises(PushFailedError, match="rejected"):
        push(remote, commits, 3)
    assert bare.refs() == {BRANCH: theirs}


def test_a_tag_of_that_name_is_never_overwritten(
    bare: Bare, open_remote: OpenRemote, commits: list[str], tag: str
) -> None:
    remote = open_remote(str(bare.path))
    push(remote, commits, 2)
    bare.git("update-ref", TAG, commits[1])
    with pytest.raises(RemoteMovedError, match="phase-P1"):
        remote.push(BRANCH, commits[3], recorded=commits[:3], tags={TAG: tag})
    assert bare.refs() == {BRANCH: commits[2], TAG: commits[1]}


@pytest.mark.safety_critical
@pytest.mark.parametrize(
    "ref",
    [
        "refs/heads/main",
        "refs/heads/autonomous/../main",
        "+refs/heads/autonomous/run-001",
        "refs/heads/autonomous/",
        "refs/autopack/run-001",
        "refs/heads/autonomous/run-001:refs/heads/main",
        "--force",
    ],
)
def test_nothing_but_a_run_s_branch_and_tags_can_be_named(
    ref: str, bare: Bare, open_remote: OpenRemote, commits: list[str]
) -> None:
    remote = open_remote(str(bare.path))
    with pytest.raises(ValueError, match="must not be pushed"):
        remote.push(ref, commits[1], recorded=[], tags={})
    with pytest.raises(ValueError, match="must not be pushed"):
        remote.push(BRANCH, commits[1], recorded=[], tags={ref: commits[1]})
    with pytest.raises(ValueError, match="must not be pushed"):
        remote.push(BRANCH, "", recorded=[], tags={})  # an empty source would delete it
    assert bare.refs() == {}


# Remotes that fail


def test_a_hook_that_refuses_is_quoted_and_nothing_arrives(
    address: str, bare: Bare, open_remote: OpenRemote, commits: list[str], tag: str
) -> None:
    bare.refuse_pushes("frozen until \x1b[31mMonday")
    with pytest.raises(PushFailedError) as refusal:
        open_remote(address).push(BRANCH, commits[1], recorded=[], tags={TAG: tag})
    assert "frozen until" in refusal.value.detail
    assert "pre-receive hook declined" in refusal.value.detail
    assert refusal.value.detail.isprintable()
    assert bare.refs() == {}


def test_one_ref_that_cannot_be_made_keeps_the_others_away(
    address: str, bare: Bare, open_remote: OpenRemote, commits: list[str], tag: str
) -> None:
    remote = open_remote(address)
    remote.push("refs/heads/autonomous/other", commits[0], recorded=[], tags={})
    bare.git("update-ref", "refs/tags/autonomous/run-001", commits[0])  # a file for the folder
    with pytest.raises(PushFailedError, match=r"cannot lock ref|failed to update|atomic"):
        remote.push(BRANCH, commits[1], recorded=[], tags={TAG: tag})
    assert BRANCH not in bare.refs()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("{folder}/none.git", "does not appear to be a git repository"),
        ("file://{folder}/none.git", "does not appear to be a git repository"),
        ("{http}/none.git", "not found"),
        ("http://127.0.0.1:9/bare.git", "Failed to connect"),
    ],
)
def test_a_remote_that_is_not_there_is_named_with_git_s_own_words(
    address: str,
    words: str,
    bare: Bare,
    server: GitServer,
    open_remote: OpenRemote,
    commits: list[str],
) -> None:
    url = address.format(folder=bare.path.parent, http=server.url)
    with pytest.raises(PushFailedError, match=words) as refusal:
        push(open_remote(url), commits)
    assert url in refusal.value.detail


def test_a_push_that_takes_too_long_is_ended_with_all_its_processes(
    bare: Bare, server: GitServer, open_remote: OpenRemote, commits: list[str]
) -> None:
    server.hold_pushes()
    remote = open_remote(f"{server.url}/bare.git", seconds=1)
    with pytest.raises(PushFailedError, match="AUTOPACK_GIT_PUSH_TIMEOUT_SECONDS"):
        push(remote, commits)
    assert children() == []
    server.may_push.set()


def test_a_push_under_way_ends_when_the_service_stops(
    bare: Bare, server: GitServer, open_remote: OpenRemote, commits: list[str]
) -> None:
    server.hold_pushes()
    remote = open_remote(f"{server.url}/bare.git")
    outcome = in_background(lambda: push(remote, commits))
    assert server.has_push.wait(PATIENCE_SECONDS)
    remote.stop()
    assert isinstance(outcome(), PushInterruptedError)
    assert children() == []
    with pytest.raises(PushInterruptedError):
        push(remote, commits)


# Who we are


def test_credentials_reach_the_remote_and_no_command_line_answer_or_log(
    bare: Bare, server: GitServer, open_remote: OpenRemote, commits: list[str]
) -> None:
    server.credentials = ("ada", SECRET)
    server.hold_pushes()
    remote = open_remote(server.url.replace("://", f"://ada:{SECRET}@") + "/bare.git")
    outcome = in_background(lambda: push(remote, commits))
    assert server.has_push.wait(PATIENCE_SECONDS)
    lines = []
    for child in children():
        with suppress(psutil.NoSuchProcess):  # it has ended since
            lines.append(" ".join(child.cmdline()))
    assert any("git-remote-http" in line or "remote-http" in line for line in lines)
    assert not any(SECRET in line for line in lines)
    server.may_push.set()
    assert outcome() is None
    assert bare.refs() == {BRANCH: commits[3]}
    assert set(server.authorizations) == {basic("ada", SECRET)}
    assert remote.url == f"{server.url}/bare.git"
    assert SECRET not in repr(remote.address)


def test_wrong_credentials_are_refused_without_being_shown(
    bare: Bare, server: GitServer, open_remote: OpenRemote, commits: list[str]
) -> None:
    server.credentials = ("ada", "another")
    remote = open_remote(server.url.replace("://", f"://ada:{SECRET}@") + "/bare.git")
    with pytest.raises(PushFailedError, match="Authentication failed") as refusal:
        push(remote, commits)
    assert SECRET not in refusal.value.detail


def test_without_credentials_nobody_is_asked_for_them(
    bare: Bare, server: GitServer, open_remote: OpenRemote, commits: list[str]
) -> None:
    server.credentials = ("ada", SECRET)
    with pytest.raises(PushFailedError, match="could not read Username"):
        push(open_remote(f"{server.url}/bare.git"), commits)


def test_credentials_that_a_remote_sends_back_are_not_shown(
    bare: Bare, server: GitServer, open_remote: OpenRemote, commits: list[str]
) -> None:
    bare.refuse_pushes(f"hello {SECRET}")
    remote = open_remote(server.url.replace("://", f"://ada:{SECRET}@") + "/bare.git")
    with pytest.raises(PushFailedError, match=r"hello \*\*\*"):
        push(remote, commits)


@pytest.mark.safety_critical
def test_a_redirect_to_another_host_gets_no_credentials(
    bare: Bare, server: GitServer, open_remote: OpenRemote, commits: list[str]
) -> None:
    server.credentials = ("ada", SECRET)
    with git_server(bare.path.parent) as liar:
        liar.redirect_to = server.url
        remote = open_remote(liar.url.replace("://", f"://ada:{SECRET}@") + "/bare.git")
        with pytest.raises(PushFailedError):
            push(remote, commits)
        assert liar.requests
    assert server.requests
    assert server.authorizations == []


def test_ssh_never_prompts_and_uses_the_agent_of_the_service(
    bare: Bare,
    open_remote: OpenRemote,
    commits: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stand-in runs here what ssh would run over there."""
    stand_in = tmp_path / "bin" / "ssh"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f'#!/bin/sh\necho "$SSH_AUTH_SOCK $@" >> {tmp_path}/calls\n'
        'for last; do :; done\nexec sh -c "$last"\n'
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    push(open_remote(f"git@example.org:{bare.path}"), commits)
    push(open_remote(f"ssh://git@example.org{bare.path}"), commits)
    assert bare.refs() == {BRANCH: commits[3]}
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 3  # look, push, look
    for call in calls:
        assert call.startswith("/run/agent -o BatchMode=yes ")
        assert "git@example.org" in call


# Whose settings count


def test_the_users_configuration_has_no_effect(
    bare: Bare, open_remote: OpenRemote, git_repo: GitRepo, commits: list[str], tmp_path: Path
) -> None:
    hook = git_repo.path / ".git" / "hooks" / "pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/fired\n")
    hook.chmod(0o755)
    git_repo.git("config", f"url.{tmp_path}/elsewhere.insteadOf", str(bare.path))
    git_repo.git("config", "push.followTags", "true")
    git_repo.git("config", "push.gpgSign", "true")
    git_repo.git("config", "core.sshCommand", f"touch {tmp_path}/fired")
    git_repo.git("config", "protocol.allow", "never")
    git_repo.git("tag", "-a", "-m", "mine", "mine", commits[1])
    before = git_repo.git("for-each-ref"), (git_repo.path / ".git" / "config").read_text()
    push(open_remote(str(bare.path)), commits)
    assert bare.refs() == {BRANCH: commits[3]}
    assert not (tmp_path / "fired").exists()
    assert before == (
        git_repo.git("for-each-ref"),
        (git_repo.path / ".git" / "config").read_text(),
    )


def test_a_remote_of_the_repository_is_named(
    bare: Bare, open_remote: OpenRemote, git_repo: GitRepo
) -> None:
    git_repo.git("remote", "add", "origin", "https://ada:hidden@example.org/a.git")
    assert open_remote("origin").url == "https://example.org/a.git"
    git_repo.git("remote", "set-url", "--push", "origin", "../remotes/bare.git")
    assert Path(open_remote("origin").url).resolve() == bare.path
    git_repo.git("remote", "set-url", "--add", "--push", "origin", "/other.git")
    with pytest.raises(RepositoryUnusableError, match=r"AUTOPACK_GIT_REMOTE.* has 2 addresses"):
        open_remote("origin")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("upstream", "no remote 'upstream'"),
        ("ext::sh -c touch", "not an address"),
        ("ftp://ada:hidden@example.org/a", "begins with ftp://"),
    ],
)
def test_a_wrong_remote_stops_the_start_with_one_line(
    address: str, words: str, open_remote: OpenRemote
) -> None:
    with pytest.raises(RepositoryUnusableError, match=words) as refusal:
        open_remote(address)
    assert refusal.value.detail.startswith("AUTOPACK_GIT_REMOTE: ")
    assert "\n" not in refusal.value.detail
    assert "hidden" not in refusal.value.detail


def in_background(action: Callable[[], None]) -> Callable[[], Exception | None]:
    """Start an action; what is returned waits for its end and returns what it raised."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            action()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def outcome() -> Exception | None:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        return raised[0] if raised else None

    return outcome


def children() -> list[psutil.Process]:
    """Return the git processes that this one has started and the server has not."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            is_git = child.name().startswith("git") and "http-backend" not in child.cmdline()
            if is_git and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return [child for child in found if "postgres" not in child.name()]
