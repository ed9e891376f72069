"""What is kept of a command's output when there is more of it than may be kept."""

from __future__ import annotations

import pytest

from autopack.ci.checks import Log

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("size", [1, 3, 7, 30])
def test_the_beginning_and_the_end_of_a_long_log_are_kept_however_it_comes(size: int) -> None:
    text = bytes(range(65, 95))
    log = Log(10)
    for at in range(0, len(text), size):
        log.add(text[at : at + size])
    marker = "\n[… 20 bytes left out by AUTOPACK_CI_LOG_BYTES …]\n".encode()
    assert log.content() == text[:5] + marker + text[-5:]


def test_a_log_of_just_the_allowed_length_is_kept_whole() -> None:
    log = Log(10)
    log.add(b"0123456789")
    assert log.content() == b"0123456789"
