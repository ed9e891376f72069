"""git's own http-backend behind a small server that can refuse, redirect and keep waiting."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.waiting import PATIENCE_SECONDS

PUSH = "git-receive-pack"


class GitServer(ThreadingHTTPServer):
    """Serves the bare repositories of a folder over smart HTTP."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.credentials: tuple[str, str] | None = None
        self.redirect_to: str | None = None
        self.requests: list[str] = []
        self.authorizations: list[str] = []
        self.pack_sizes: list[int] = []
        self.has_push = threading.Event()  # a push has arrived
        self.has_pushed = threading.Event()  # a push has been taken or refused
        self.may_push = threading.Event()  # pushes go on
        self.may_push.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def push_count(self) -> int:
        return sum(f"POST {PUSH}" in request for request in self.requests)

    def hold_pushes(self) -> None:
        self.has_push.clear()
        self.may_push.clear()

    def handle_error(self, request: object, client_address: object) -> None:
        """Callers that are killed hang up; everything else is an error of the test's."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: GitServer

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self._body()
        path, _, query = self.path.partition("?")
        server = self.server
        server.requests.append(f"{self.command} {path.rpartition('/')[2]} {query}".strip())
        authorization = self.headers.get("Authorization")
        if authorization:
            server.authorizations.append(authorization)
        if server.redirect_to:
            self._answer(302, {"Location": server.redirect_to + self.path})
        elif server.credentials and authorization != basic(*server.credentials):
            self._answer(401, {"WWW-Authenticate": 'Basic realm="git"'})
        else:
            if self.command == "POST" and path.endswith(PUSH):
                server.pack_sizes.append(len(body))
                server.has_push.set()
                assert server.may_push.wait(PATIENCE_SECONDS)
            self._run_backend(path, query, body)

    def _run_backend(self, path: str, query: str, body: bytes) -> None:
        answer = subprocess.run(
            ["git", "http-backend"],
            env={
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(self.server.folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "REMOTE_USER": "pusher",
                "REMOTE_ADDR": "127.0.0.1",
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            },
            input=body,
            capture_output=True,
            check=False,
        ).stdout
        head, _, content = answer.partition(b"\r\n\r\n")
        lines = [line.split(": ", 1) for line in head.decode().split("\r\n")]
        headers = {name: value for name, value in lines}
        status = int(headers.pop("Status", "200").split()[0])
        if path.endswith(PUSH):
            self.server.has_pushed.set()
        self._answer(status, headers, content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


@contextmanager
def git_server(folder: Path) -> Iterator[GitServer]:
    server = GitServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.may_push.set()
        server.shutdown()
        thread.join()
        server.server_close()
