"""Lets `autopack up` fork its children, which have everything imported then.

The fork server runs this before the command. Before `exec`, a child runs its command instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from typing import Any

from autopack.cli import child
from autopack.cli.app import main


def start(program: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a child as `Popen` does, up to the program that it becomes."""
    place = program.index(child.__file__)

    def become(_python: str, words: list[str]) -> None:
        os._exit(main(words[words.index("autopack") + 1 :]))

    def run() -> None:
        os.closerange(3, 1024)  # with them the pipe whose end tells `Popen` that it has begun
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os.execv = become  # type: ignore[assignment]  # the same words, and it does not return
        try:
            child._main(int(program[place + 1]), program[place + 2 :])
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    sys.stdout.flush()
    return subprocess.Popen(program, preexec_fn=run, **options)


class Subprocess:
    """The module `subprocess` as `child.py` sees it."""

    Popen = staticmethod(start)

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)


if __name__ == "__main__":
    vars(child)["subprocess"] = Subprocess()
