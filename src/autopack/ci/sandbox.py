"""The sandbox of a CI run: bubblewrap, with access only to the system and one work tree."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..config import Settings, repository_top

OBJECTS: Final = Path("/run/autopack/objects")  # the path of the history's objects in the sandbox
_HOME: Final = "/tmp/home"  # noqa: S108 - within the sandbox /tmp is its own
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SYSTEM: Final = ("/usr", "/opt")
_LINKS: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# The files of /etc that programs need; the rest may contain secrets that the service's user can
# read.
_ETC: Final = (
    *("alternatives", "ca-certificates", "group", "hosts", "ld.so.cache", "ld.so.conf"),
    *("ld.so.conf.d", "localtime", "magic", "mime.types", "nsswitch.conf", "os-release"),
    *("passwd", "pki/tls/certs", "protocols", "services", "ssl/certs", "ssl/openssl.cnf"),
)
# Limits on processes do not apply to root. So the CI of a service that runs as root gets another
# user id, from a range that is not assigned permanently.
_FIRST_UID: Final = 61_184
_UIDS: Final = 4_096
_PROBE_SECONDS: Final = 20


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """The limits for all processes of one CI run."""

    memory_bytes: int
    disk_bytes: int
    processes: int


@dataclass(frozen=True, slots=True)
class Start:
    """How to start a command: arguments, environment, and its folder as seen from outside."""

    words: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    is_contained: bool


class Bubblewrap:
    """Bubblewrap on this machine; `problem` says why it cannot be used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bwrap = shutil.which("bwrap")
        self._prlimit = shutil.which("prlimit")
        self._setpriv = shutil.which("setpriv")
        self._is_root = os.geteuid() == 0
        self._readable = tuple(_with_interpreters(settings.ci_readable_paths))
        self._top = repository_top(settings.repo_path)
        self._has_sizes = False
        self.problem = self._find_problem()

    def inside(
        self,
        command: str,
        tree: Path,
        objects: Path,
        environment: Mapping[str, str],
        limits: ProcessLimits,
        status: int,
    ) -> Start:
        """Return how to run a shell command in the sandbox; bwrap writes its report to `status`."""
        uid = _FIRST_UID + secrets.randbelow(_UIDS) if self._is_root else os.geteuid()
        place = self._place()
        if self._is_root:
            _run("chown", "-hR", f"{uid}:{uid}", str(tree))
        words = [
            *self._walls(limits, status),
            *_mounted("--bind", tree, place),
            *_mounted("--ro-bind", objects, OBJECTS),
            *self._within(tree, place),
            *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(place), "--"),
            *self._as_nobody(uid),
            *self._limited(limits, with_processes=True),
            *("/bin/sh", "-c", command),
        ]
        inner = {
            **self._environment(),
            "HOME": _HOME,
            "TMPDIR": "/tmp",  # noqa: S108 - within the sandbox
            **environment,
        }
        return Start(words, inner, tree, is_contained=True)

    def outside(
        self, command: str, tree: Path, environment: Mapping[str, str], limits: ProcessLimits
    ) -> Start:
        """Return how to run a shell command without a sandbox."""
        home = tree.parent / "home"
        home.mkdir(exist_ok=True)
        words = [*self._limited(limits, with_processes=False), "/bin/sh", "-c", command]
        outer = {**self._environment(), "HOME": str(home), **environment}
        return Start(words, outer, tree, is_contained=False)

    def _find_problem(self) -> str | None:
        if self._settings.ci_sandbox == "none":
            return "AUTOPACK_CI_SANDBOX is none"
        needed = {"bwrap": self._bwrap, "prlimit": self._prlimit}
        if self._is_root:
            needed["setpriv"] = self._setpriv
        for name, path in needed.items():
            if path is None:
                return f"{name} is not installed"
        self._has_sizes = " --size " in _run(str(self._bwrap), "--help")[1]
        limits = ProcessLimits(1 << 30, 1 << 20, 64)
        words = [
            *self._walls(limits, None),
            *("--remount-ro", "/", "--"),
            *self._as_nobody(_FIRST_UID),
            *self._limited(limits, with_processes=True),
            *("/bin/sh", "-c", "exit 0"),
        ]
        status, output = _run(*words)
        if status:
            return f"bwrap cannot be used: {' '.join(output.split())[:300] or f'exit {status}'}"
        return None

    def _walls(self, limits: ProcessLimits, status: int | None) -> Iterator[str]:
        """Return the mounts of every CI run."""
        yield str(self._bwrap)
        if self._is_root:
            yield from ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
        else:
            yield "--unshare-user"
        yield from ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts")
        yield from ("--unshare-cgroup-try", "--die-with-parent", "--new-session")
        if status is not None:
            yield from ("--json-status-fd", str(status))
        for folder in _SYSTEM:
            yield from ("--ro-bind-try", folder, folder)
        for link in _LINKS:
            if os.path.islink(link):
                yield from ("--symlink", os.readlink(link), link)
            else:
                yield from ("--ro-bind-try", link, link)
        for name in _ETC:
            yield from _mounted("--ro-bind-try", Path("/etc", name))
        yield from ("--proc", "/proc", "--dev", "/dev")
        for folder in ("/dev/shm", "/tmp"):  # noqa: S108 - the sandbox's own
            size = min(limits.disk_bytes, limits.memory_bytes)
            yield from ("--size", str(size)) if self._has_sizes else ()
            yield from ("--perms", "1777", "--tmpfs", folder)
        yield from ("--perms", "0777", "--dir", _HOME)
        for path in self._readable:
            if not path.is_relative_to(self._top):
                yield from _mounted("--ro-bind-try", path)
        for path in self._hidden():
            if path.is_dir():
                yield from ("--perms", "0755", "--tmpfs", str(path))
            else:
                yield from ("--ro-bind", os.devnull, str(path))

    def _hidden(self) -> Iterator[Path]:
        """Return the service's folders within the visible ones, to be hidden."""
        settings = self._settings
        shown = [Path(folder) for folder in _SYSTEM]
        shown += [path for path in self._readable if not path.is_relative_to(self._top)]
        ours = (self._top, settings.home, settings.autonomous_runs_dir, settings.env_file)
        for path in ours:
            if (
                path is not None
                and path.exists()
                and any(path.is_relative_to(each) for each in shown)
            ):
                yield path

    def _place(self) -> Path:
        """Return the path of the work tree in the sandbox: that of the operator's checkout.

        So packages that were installed "editable" from there use this commit."""
        is_bare = not (self._top / ".git").exists()
        return Path("/build") if is_bare or len(self._top.parts) < 2 else self._top

    def _within(self, tree: Path, place: Path) -> Iterator[str]:
        """Mount readable folders of the operator's checkout, such as its `.venv`, into the tree."""
        for path in self._readable:
            if not path.is_relative_to(self._top) or path == self._top or place != self._top:
                continue
            steps = path.relative_to(self._top).parts
            inner = tree
            for step in steps:
                inner /= step
                if inner.is_symlink() or (inner.exists() and not inner.is_dir()):
                    break  # the commit has a file there: no mount through its links
            else:
                yield from ("--ro-bind-try", str(path), str(path))

    def _as_nobody(self, uid: int) -> Iterator[str]:
        if self._is_root:
            yield from (str(self._setpriv), "--reuid", str(uid), "--regid", str(uid))
            yield from ("--clear-groups", "--inh-caps=-all", "--no-new-privs", "--")

    def _limited(self, limits: ProcessLimits, *, with_processes: bool) -> Iterator[str]:
        if self._prlimit is None:
            return
        yield self._prlimit
        yield from (f"--fsize={limits.disk_bytes}", f"--data={limits.memory_bytes}", "--core=0")
        if with_processes:  # of its own user, or its own user namespace
            yield f"--nproc={limits.processes}"
        yield "--"

    def _environment(self) -> dict[str, str]:
        bins = [str(path / "bin") for path in self._readable if (path / "bin").is_dir()]
        return {"PATH": ":".join([*bins, _PATH]), "LANG": "C.UTF-8", "CI": "true"}


def _mounted(how: str, path: Path, place: Path | None = None) -> Iterator[str]:
    """Mount a path at a place, or at its own path; bwrap would make the parents inaccessible."""
    place = place or path
    for parent in reversed(place.parents[:-1]):
        yield from ("--perms", "0755", "--dir", str(parent))
    yield from (how, str(path), str(place))


def _with_interpreters(paths: Sequence[Path]) -> Iterator[Path]:
    """Add the base Python of virtual environments, which may be in any folder."""
    for path in paths:
        yield path
        try:
            lines = (path / "pyvenv.cfg").read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition("=")
            base = Path(value.strip()).parent
            if name.strip() == "home" and base.is_absolute() and len(base.parts) > 2:
                yield base


def _run(*words: str) -> tuple[int, str]:
    """Run a small system program to its end."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": _PATH, "LC_ALL": "C"},
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout.decode(errors="replace")
