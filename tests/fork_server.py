"""Starts `autopack` commands as processes that need no time to import it.

A process that has imported everything, and forks a child for each command. A fresh process is the
same after its first second or two, which are imports alone. `tests/processes.py` speaks to it: each
connection to the listening Unix socket of descriptor `sys.argv[1]` starts one process. It sends one
JSON line with the descriptors of standard input, output and error; it gets the process id, and the
exit code when the process has ended, a line each. The server ends with its own standard input.
"""

from __future__ import annotations

import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from importlib import import_module
from io import TextIOWrapper
from typing import Any

from autopack.cli.app import main
from autopack.cli.command import importing

# All that a service or a worker imports, before the fork: these are imported only when needed.
with importing():
    for module in (
        *("alembic.command", "anyio._backends._asyncio", "procrastinate.worker"),
        *("uvicorn.lifespan.on", "uvicorn.loops.uvloop", "autopack.main"),
        *(f"autopack.cli.{name}" for name in ("run", "serve", "up", "work")),
    ):
        import_module(module)

LONGEST_REQUEST = 1 << 20


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Read one line and the descriptors that came with it."""
    text, descriptors = b"", []
    while not text.endswith(b"\n"):
        data, received, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, 3)
        descriptors += received
        if not data:
            raise ConnectionError("the request ended early")
        text += data
    request: dict[str, Any] = json.loads(text)
    return request, descriptors


def become(request: dict[str, Any], descriptors: list[int]) -> int:
    """Run the command in this process, and return its exit code."""
    for number in (signal.SIGINT, signal.SIGCHLD):
        before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, before)
    os.environ.clear()
    os.environ.update(request["environment"])
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(line_buffering=True)
    os.chdir(request["folder"])
    sys.argv = ["autopack", *request["words"]]
    if request["first"]:
        runpy.run_path(request["first"], run_name="__main__")
    return main(request["words"])


def serve(listener: socket.socket) -> None:
    """Start what is asked for, and tell each client how its process ended."""
    clients: dict[int, socket.socket] = {}
    woken, wake = socket.socketpair()
    for each in (woken, wake):
        each.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    for readable in (listener, woken, sys.stdin):
        selector.register(readable, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is woken:
                woken.recv(4096)
                tell_ends(clients)
                continue
            connection, _ = listener.accept()
            request, descriptors = receive(connection)
            child = os.fork()
            if child == 0:
                signal.set_wakeup_fd(-1)
                selector.close()
                for each in (listener, woken, wake, connection, *clients.values()):
                    each.close()
                status = 1
                try:
                    status = become(request, descriptors)
                except SystemExit as end:
                    status = end.code if isinstance(end.code, int) else 1
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
            for descriptor in descriptors:
                os.close(descriptor)
            clients[child] = connection
            connection.sendall(f"{child}\n".encode())


def tell_ends(clients: dict[int, socket.socket]) -> None:
    """Tell the clients of all processes that have ended."""
    while clients:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return
        with clients.pop(child) as connection:
            try:
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            except ConnectionError:
                continue  # no process waits for it


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        serve(listening)
