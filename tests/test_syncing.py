"""One sync of a file system stands for many of files only where it is as safe, and as quick."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autopack import syncing

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has syncfs")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize(
    ("meminfo", "is_quick"),
    [
        (b"MemTotal: 1 kB\nDirty:   32768 kB\nWriteback:  0 kB\nWritebackTmp: 9999999 kB\n", True),
        (b"Dirty:   32768 kB\nWriteback:  1 kB\n", False),
        (b"MemTotal: 1 kB\n", False),
        (None, False),
    ],
    ids=["little", "much", "unknown", "no such file"],
)
def test_a_file_system_is_synced_at_once_while_little_waits_to_be_written(
    folder: int, monkeypatch: pytest.MonkeyPatch, meminfo: bytes | None, is_quick: bool
) -> None:
    def open_(_path: str, _mode: str) -> Any:
        if meminfo is None:
            raise FileNotFoundError
        return io.BytesIO(meminfo)

    monkeypatch.setattr(syncing, "_IS_RECENT_LINUX", True)
    monkeypatch.setattr(syncing, "_TRUSTED", {syncing.type_of(folder)})
    monkeypatch.setattr(syncing, "open", open_, raising=False)
    assert syncing.is_quick_to_sync(folder) is is_quick


def test_an_unknown_file_system_is_not_trusted(
    folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syncing, "_LITTLE_KB", sys.maxsize)
    monkeypatch.setattr(syncing, "_IS_RECENT_LINUX", True)
    monkeypatch.setattr(syncing, "_TRUSTED", {syncing.type_of(folder)})
    assert syncing.is_quick_to_sync(folder)
    with open("/proc/self/status") as other:
        assert not syncing.is_quick_to_sync(other.fileno())


def test_a_sync_that_fails_is_an_error(folder: int) -> None:
    syncing.sync_file_system(folder)
    with pytest.raises(OSError, match="Bad file descriptor"):
        syncing.sync_file_system(-1)
