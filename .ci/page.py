"""Runs the commands of a page of the docs: every `bash` block, in order, in one shell.

    python .ci/page.py docs/deployment.md

A block marked `bash needs-docker` or `bash needs-github` is skipped, one marked `bash install` if
Autopack is installed already (tests/test_tutorial.py). One marked `bash background` runs until the
next of its kind, and the next block waits until it answers. `/path/to/project` is a new repository,
`/path/to/autopack` a clone of this one, and port 8000 one that is free.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```bash(?: ([a-z-]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PERSON = {
    f"GIT_{role}_{what}": value
    for role in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Ada Example"), ("EMAIL", "ada@example.org"))
}
INHERITED = ("PATH", "HOME", "LANG", "PIP_", "UV_", "SSL_", "HTTP", "http", "https", "NO_PROXY")
# Every process of a page has this in its environment, also in another session.
MARK = "AUTOPACK_PAGE"
STOP = """\
if [ -n "${server:-}" ]; then kill -TERM -- "-$server"; wait "$server" || true; fi
"""
UNTIL_IT_ANSWERS = """\
server=$!
until curl --silent --output /dev/null http://localhost:8000/health/live; do
    kill -0 "$server" || { echo "it ended before it answered" >&2; exit 1; }
    sleep 0.1
done
"""


def script(page: str, *, is_installed: bool = False) -> Iterator[str]:
    """Yield the page's commands, for one shell; without those that install, if that is done."""
    yield "set -euo pipefail"
    for match in BLOCK.finditer(page):
        kind, block = match[1], match[2]
        line = page.count("\n", 0, match.start()) + 2
        title = f"\n== line {line}: {block.splitlines()[0]}"
        if kind in ("needs-docker", "needs-github") or (kind == "install" and is_installed):
            yield f"echo {shlex.quote(f'{title} ({kind}: left out)')}"
        elif kind == "background":
            yield f"{STOP}\necho {shlex.quote(title)}"
            yield f"setsid bash -c {shlex.quote(block)} &\n{UNTIL_IT_ANSWERS}"
        elif kind in (None, "install"):
            yield f"echo {shlex.quote(title)}\n{block}"
        else:
            sys.exit(f"line {line}: a block is marked '{kind}', which means nothing")


def main(name: str) -> int:
    """Run a page. Returns the exit code of the first command that failed."""
    with tempfile.TemporaryDirectory(prefix="autopack-page-") as folder, cleaning_up():
        os.chmod(folder, 0o755)  # noqa: S103 - root's embedded Postgres runs as another user
        project, checkout = Path(folder, "project"), Path(folder, "autopack")
        environment = PERSON | {
            name: value for name, value in os.environ.items() if name.startswith((*INHERITED, MARK))
        }
        for command in (
            ["git", "init", "--quiet", "--initial-branch=main", str(project)],
            ["git", "-C", str(project), "commit", "--quiet", "--allow-empty", "--message=Start"],
            ["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(checkout)],
        ):
            subprocess.run(command, check=True, env=environment)
        text = "\n".join([*script((ROOT / name).read_text()), STOP])
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        for word, value in (
            ("/path/to/project", str(project)),
            ("/path/to/autopack", str(checkout)),
            ("8000", port),
        ):
            text = text.replace(word, value)
        return subprocess.run(
            ["bash", "-c", text],
            cwd=project,
            env=environment | {"AUTOPACK_PORT": port, "API_URL": f"http://localhost:{port}"},
            stdin=subprocess.DEVNULL,
            check=False,
        ).returncode


@contextmanager
def cleaning_up() -> Iterator[None]:
    """End all processes that a page has started, and wait for their end."""
    os.environ[MARK] = str(os.getpid())
    try:
        yield
    finally:
        started = [process for process in psutil.process_iter() if _is_marked(process)]
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(started, timeout=30)


def _is_marked(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.pid != os.getpid() and process.environ().get(MARK) == os.environ[MARK]
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
