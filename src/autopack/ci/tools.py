"""What a CI command can use on this machine, as one hash: a change of it may change an outcome."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..config import Settings

# Package managers change these when they install something.
_SYSTEM: Final = (
    *("/usr/bin", "/usr/lib", "/usr/local/bin", "/usr/local/lib", "/opt"),
    *("/var/lib/dpkg/status", "/var/lib/rpm", "/lib/apk/db/installed", "/etc/os-release"),
)
# Of a folder in AUTOPACK_CI_READABLE_PATHS: what `pip` and `npm` change.
_WITHIN: Final = (".", "bin", "lib", "pyvenv.cfg", ".package-lock.json")


def tools_hash(settings: Settings, sandbox: str) -> str:
    """Return a hash of the machine, the sandbox, its limits and the installed software."""
    lines = [
        platform.node(),
        platform.platform(),
        sandbox,
        f"{settings.ci_memory_bytes} {settings.ci_disk_bytes} {settings.ci_processes}",
        *_stamps(settings),
    ]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _stamps(settings: Settings) -> Iterator[str]:
    for name in _SYSTEM:
        yield _stamp(Path(name))
    for folder in settings.ci_readable_paths:
        for name in _WITHIN:
            yield _stamp(folder / name)
        for packages in sorted(folder.glob("lib/python*/site-packages")):
            yield _stamp(packages)


def _stamp(path: Path) -> str:
    try:
        about = os.stat(path)
    except OSError:
        return f"{path} -"
    return f"{path} {about.st_mtime_ns} {about.st_size}"
