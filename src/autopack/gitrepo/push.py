"""Push a run's branch and tags: forward only, by full names, and nothing else."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from ..config import Settings, repository_top
from .address import SETTING, AddressError, RemoteAddress, is_remote_name, parse_address
from .errors import (
    GitTimeoutError,
    PushFailedError,
    PushInterruptedError,
    RemoteMovedError,
    RepositoryUnusableError,
)
from .process import GitRunner

_PUSHED = re.compile(r"refs/(heads|tags)/autonomous(/[A-Za-z0-9][A-Za-z0-9._-]*)+\Z")
_OID = re.compile(r"[0-9a-f]{40}\Z")
_CONFIG = {
    # Resources of a push next to the service: one thread, and pack windows within its memory.
    "pack.threads": "1",
    "pack.windowMemory": "64m",
}
# The only credential helper, for one host only, so that a redirect to another host gets nothing.
_CREDENTIAL_HELPER = (
    '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n"'
    ' "$AUTOPACK_PUSH_USERNAME" "$AUTOPACK_PUSH_PASSWORD"; }; f'
)
_SSH_OPTIONS = ("BatchMode=yes", "ConnectTimeout=30", "ServerAliveInterval=15", "ControlMaster=no")
_NOT_ATOMIC = "does not support --atomic"
_LONGEST_ERROR = 1000


class Remote:
    """The one repository that branches are pushed to, and that a lost base commit is fetched from.

    Any number of threads may use it.

    git runs in the service's own git directory over the repository's objects and pushes them by id.
    So neither the user's configuration nor a moved ref changes what is sent.
    """

    @classmethod
    def open(
        cls, settings: Settings, runner: GitRunner, git_dir: Path, environment: Mapping[str, str]
    ) -> Remote | None:
        """Read AUTOPACK_GIT_REMOTE; None when it is not set. Does not contact the remote.

        Raises RepositoryUnusableError, one line that names the setting.
        """
        if settings.git_remote is None:
            return None
        text = settings.git_remote.get_secret_value().strip()
        top = repository_top(settings.repo_path)
        try:
            if is_remote_name(text):
                text = _configured_url(text, runner, git_dir)
            address = parse_address(text, top)
        except AddressError as error:
            raise RepositoryUnusableError(f"{SETTING}: {error}.") from error
        return cls(address, settings, runner, environment)

    def __init__(
        self,
        address: RemoteAddress,
        settings: Settings,
        runner: GitRunner,
        environment: Mapping[str, str],
    ) -> None:
        self.address = address
        self._asking = replace(runner, has_own_group=True)
        self._pushing = replace(
            self._asking,
            timeout_seconds=settings.git_push_timeout_seconds,
            timeout_setting=Settings.variable("git_push_timeout_seconds"),
        )
        self._folder = Path(environment["GIT_DIR"])
        self._environment = {
            **environment,
            **access(address, str(settings.ssh_auth_sock) if settings.ssh_auth_sock else None),
        }
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], GitRunner] = {}
        self._is_stopped = False

    @property
    def url(self) -> str:
        """The address without credentials."""
        return self.address.url

    def check(self) -> None:
        """Check that the remote answers. Raises PushFailedError."""
        self._list({"refs/heads/autopack"})  # with any ref name: only the answer matters

    def push(
        self, branch: str, head: str, *, recorded: Collection[str], tags: Mapping[str, str]
    ) -> None:
        """Set a branch and its tags on the remote to these ids; refs that are there already stay.

        The branch moves when the remote has none of that name, or has it at one of the `recorded`
        commits, which all lead to the head; a tag is only ever created.

        Raises RemoteMovedError, and pushes nothing, when another process moved one of them;
        PushFailedError, PushInterruptedError.
        """
        wanted = {branch: head, **tags}
        for ref, oid in wanted.items():
            if not _PUSHED.match(ref) or not _OID.match(oid):
                raise ValueError(f"{ref!r} at {oid!r} must not be pushed")
        actual = self._list(wanted)
        for ref, there in actual.items():
            if there != wanted[ref] and not (ref == branch and there in recorded):
                raise RemoteMovedError(ref, self.url, expected=wanted[ref], actual=there)
        missing = {ref: oid for ref, oid in wanted.items() if actual.get(ref) != oid}
        if missing:
            self._send(missing)

    def fetch(self, wanted: str, known: str) -> None:
        """Get a branch or a commit with its history, without any ref; `known` is a commit here.

        Raises PushFailedError, PushInterruptedError.
        """
        options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
        tip = f"--negotiation-tip={known}"
        self._run(self._pushing, "fetch", *options, tip, patterns=[wanted])

    def stop(self) -> None:
        """Stop running pushes and start no other; a later service repeats them."""
        with self._lock:
            self._is_stopped = True
            for process, runner in self._running.items():
                runner.stop(process)

    def _list(self, refs: Collection[str]) -> dict[str, str]:
        """Return the ids of those of these refs that the remote has."""
        output = self._run(
            self._asking, "ls-remote", "--heads", "--tags", "--refs", "--quiet", patterns=refs
        )
        rows = [line.split("\t", 1) for line in output.splitlines() if "\t" in line]
        return {ref: oid for oid, ref in rows if ref in refs}

    def _send(self, refs: Mapping[str, str]) -> None:
        options = [
            *("--porcelain", "--no-verify", "--no-signed"),
            *("--no-follow-tags", "--recurse-submodules=no"),
        ]
        # Without a plus: git refuses what is not a fast-forward.
        specs = [f"{oid}:{ref}" for ref, oid in refs.items()]
        try:
            self._run(self._pushing, "push", *options, "--atomic", patterns=specs)
        except PushFailedError as error:
            if _NOT_ATOMIC not in error.detail:
                raise
            self._run(self._pushing, "push", *options, patterns=specs)

    def _run(
        self, runner: GitRunner, command: str, *options: str, patterns: Collection[str]
    ) -> str:
        arguments = (command, *options, "--end-of-options", self.url, *patterns)
        with self._lock:
            if self._is_stopped:
                raise PushInterruptedError("the service is stopping")
            process = runner.start(*arguments, folder=self._folder, environment=self._environment)
            self._running[process] = runner
        try:
            stdout, words = runner.finish(process, command)
        except GitTimeoutError as error:
            raise PushFailedError(f"{self.url}: {error.detail}", url=self.url) from error
        finally:
            with self._lock:
                del self._running[process]
        answer = stdout.decode(errors="backslashreplace")
        if process.returncode == 0:
            return answer
        if self._is_stopped:
            raise PushInterruptedError("the service is stopping")
        refusals = [line[1:] for line in answer.splitlines() if line.startswith("!")]
        reason = self._one_line([words, *refusals])
        said = "nothing was fetched" if command == "fetch" else "was not pushed to"
        raise PushFailedError(f"{self.url} {said}: {reason}", url=self.url)

    def _one_line(self, texts: list[str]) -> str:
        """Return the message of git and the remote as one printable line."""
        lines = [" ".join(line.split()) for text in texts for line in text.splitlines()]
        line = self.address.clean("; ".join(line for line in lines if line))
        return "".join(sign if sign.isprintable() else "?" for sign in line)[:_LONGEST_ERROR]


def _configured_url(name: str, runner: GitRunner, git_dir: Path) -> str:
    """Return the push address of a remote of the repository. Raises AddressError."""
    for key in ("pushurl", "url"):
        answer = runner.run(
            "config",
            "--local",  # which follows no `include`
            "--null",
            "--get-all",
            f"remote.{name}.{key}",
            folder=git_dir,
            environment={"GIT_DIR": str(git_dir)},
            allowed=(0, 1),
        )
        urls = [url for url in answer.stdout.decode(errors="backslashreplace").split("\0") if url]
        if len(urls) > 1:
            raise AddressError(f"the remote {name!r} has {len(urls)} addresses: give one of them")
        if urls:
            return urls[0]
    raise AddressError(
        f"the repository has no remote {name!r} (`git remote -v` lists them); "
        f"a folder of that name is ./{name}"
    )


def access(address: RemoteAddress, ssh_auth_sock: str | None) -> dict[str, str]:
    """Return the environment in which git can use this address and no other protocol.

    No credential is on a command line, where every user of the machine could read it.
    """
    config = {**_CONFIG, f"protocol.{address.protocol}.allow": "always"}
    environment: dict[str, str] = {}
    if address.username is not None:
        config[f"credential.{address.origin}.helper"] = _CREDENTIAL_HELPER
        environment["AUTOPACK_PUSH_USERNAME"] = address.username
        environment["AUTOPACK_PUSH_PASSWORD"] = address.password or ""
    if address.protocol == "ssh":
        ssh = shutil.which("ssh")
        if ssh is None:
            raise RepositoryUnusableError(f"{SETTING}: ssh is not installed.")
        options = [word for option in _SSH_OPTIONS for word in ("-o", option)]
        environment["GIT_SSH_COMMAND"] = shlex.join([ssh, *options])
        environment["GIT_SSH_VARIANT"] = "ssh"
        if ssh_auth_sock:
            environment["SSH_AUTH_SOCK"] = ssh_auth_sock
    for number, (key, value) in enumerate(config.items()):
        environment[f"GIT_CONFIG_KEY_{number}"] = key
        environment[f"GIT_CONFIG_VALUE_{number}"] = value
    return {**environment, "GIT_CONFIG_COUNT": str(len(config))}
