"""Postgres' own programs for a dump and its restore, streamed. (docs/backup.md)

They are those of the embedded Postgres, or those on the PATH. A program works with servers of its
own major version and older ones, and reads the dumps of its own and older programs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from .embedded_postgres import EmbeddedPostgresError, programs

_CHUNK: Final = 1 << 20
_VERSION: Final = re.compile(r"\(PostgreSQL\) (\d+)")


class PostgresToolError(Exception):
    """A program is missing, too old, or failed. The message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One program, and its major version."""

    path: str
    major: int


@dataclass(frozen=True, slots=True)
class Address:
    """A database for Postgres' programs; the password is never an argument, which `ps` shows."""

    url: str
    password: str | None = None

    def environment(self) -> Mapping[str, str]:
        # Each program has its own name in Postgres: a restore that is killed is known by it.
        left_out = ("PGOPTIONS", "PGAPPNAME")
        known = {name: value for name, value in os.environ.items() if name not in left_out}
        known["LC_ALL"] = "C"
        if self.password is not None:
            known["PGPASSWORD"] = self.password
        return known


def find_tool(name: str, *, oldest: int, wanted: int) -> Tool:
    """Return the program of the `wanted` major version, else the oldest from `oldest` on.

    Raises PostgresToolError.
    """
    found: list[Tool] = []
    with suppress(EmbeddedPostgresError):
        found += _versions_of(str(programs() / name))
    found += _versions_of(shutil.which(name) or "")
    fitting = sorted(
        (tool for tool in found if tool.major >= oldest),
        key=lambda tool: (tool.major != wanted, tool.major),
    )
    if fitting:
        return fitting[0]
    known = ", ".join(f"{tool.path} is of {tool.major}" for tool in found)
    raise PostgresToolError(
        f"This needs the {name} of Postgres {oldest} or newer, and {known or 'there is none'}:"
        f" install the client programs of Postgres {oldest} (Debian: postgresql-client-{oldest})"
        " and put them on the PATH."
    )


def _versions_of(path: str) -> list[Tool]:
    """Return the program at this path with its version; nothing without a program."""
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return []
    match = _VERSION.search(told.stdout)
    return [Tool(path, int(match[1]))] if match else []


def dump(tool: Tool, address: Address, *, schema: str, snapshot: str) -> Iterator[bytes]:
    """Yield a dump of one schema as it is in an exported snapshot. Raises PostgresToolError."""
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [
                *(tool.path, "--format=custom", "--no-owner", "--no-privileges", "--no-password"),
                *("--no-publications", "--no-subscriptions", f"--snapshot={snapshot}"),
                *(f"--schema={_pattern(schema)}", f"--dbname={address.url}"),
            ],
            env=address.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
        )
        try:
            assert process.stdout is not None  # noqa: S101 - for the type checker
            while chunk := process.stdout.read(_CHUNK):
                yield chunk
        except BaseException:  # the reader gave up
            process.kill()
            raise
        finally:
            process.communicate()
        _require_success(tool, process.returncode, messages)


def restore(tool: Tool, address: Address, chunks: Iterable[bytes], *, schema: str) -> None:
    """Restore a dump in one transaction, into a database without its tables.

    Raises PostgresToolError, and nothing is restored then.
    """
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [
                *(tool.path, "--format=custom", "--no-owner", "--no-privileges", "--no-password"),
                *("--single-transaction", "--exit-on-error"),
                # The objects of the schema, and not the schema itself, which exists already.
                *(f"--schema={schema}", f"--dbname={address.url}"),
            ],
            env=address.environment(),
            stdin=subprocess.PIPE,
            stdout=messages,
            stderr=messages,
        )
        try:
            assert process.stdin is not None  # noqa: S101 - for the type checker
            with suppress(BrokenPipeError):  # it ended, and its messages say why
                for chunk in chunks:
                    process.stdin.write(chunk)
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        finally:
            process.kill()
            process.wait()
        _require_success(tool, process.returncode, messages)


def _pattern(name: str) -> str:
    """Quote a name, which pg_dump would take for a pattern."""
    return '"' + name.replace('"', '""') + '"'


def _require_success(tool: Tool, status: int, messages: IO[bytes]) -> None:
    if status == 0:
        return
    messages.seek(0)
    text = messages.read().decode(errors="backslashreplace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line or "atal" in line] or lines[-3:]
    raise PostgresToolError(
        f"{Path(tool.path).name} of Postgres {tool.major} failed:"
        f" {'; '.join(errors[:3])[:1000] or f'status {status}'}"
    )
