"""Commands called in this process, with the application in it too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from autopack.cli import service
from autopack.cli.app import main
from autopack.client import Autopack


class Terminal:
    """Calls commands and gives back what they printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *arguments: object, exit_code: int = 0) -> str:
        out, err = self._printed(arguments, exit_code)
        return out if exit_code in (0, 1) and out else err

    def json(self, *arguments: object, exit_code: int = 0) -> Any:
        return json.loads(self._printed((*arguments, "--json"), exit_code)[0])

    def _printed(self, arguments: tuple[object, ...], exit_code: int) -> tuple[str, str]:
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        assert code == exit_code, out + err
        return out, err

    def refusal(self, *arguments: object, exit_code: int = 2) -> str:
        """Call a command that must fail, and return its one line."""
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        assert (code, out) == (exit_code, "")
        (line,) = err.splitlines()
        assert line.startswith("autopack: ")
        return line


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def autopack(
    in_process: httpx.BaseTransport, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Autopack]:
    """The application in this process, which commands ask too."""

    def connect(
        url: str | None, *, retries: int, api_key: str | None = None, project: str | None = None
    ) -> Autopack:
        return Autopack(
            "http://localhost",
            retries=retries,
            api_key=api_key,
            project=project,
            transport=in_process,
        )

    monkeypatch.setattr(service, "Autopack", connect)
    with connect(None, retries=0) as autopack:
        yield autopack
