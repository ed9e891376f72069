"""Networks for nodes and the proxy before them: a network namespace each, or loopback addresses.

The namespaces and all that is in them end with the processes that hold them. Postgres is reached by
its Unix socket, which no network namespace hides.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Seat:
    """Where a process of the network has its sockets; without a namespace, on this machine."""

    address: str
    namespace: Path | None = None

    def command(self, *words: str) -> list[str]:
        """Return a command that runs here."""
        if self.namespace is None:
            return [*words]
        return ["nsenter", f"--net={self.namespace}", *words]


@dataclass(frozen=True)
class Network:
    """A switch, at which the proxy is, and as many seats for nodes."""

    switch: Seat
    seats: list[Seat]

    def cut(self, at: int) -> None:
        """Let no packet pass between the switch and a seat any more, and tell neither of it."""
        if self.switch.namespace is None:
            pytest.skip("these nodes have no network of their own")
        _run(self.switch.command("ip", "link", "set", f"port{at}", "nomaster"))

    def mend(self, at: int) -> None:
        _run(self.switch.command("ip", "link", "set", f"port{at}", "master", "bridge"))


@contextmanager
def made_network(number: int) -> Iterator[Network]:
    """Make a network; without the rights for namespaces, of loopback addresses."""
    with ExitStack() as stack:
        if not _has_namespaces():
            # Of the worker's own: each test has the port 8000 at them.
            own = f"127.{os.getpid() >> 8 & 127 | 128}.{os.getpid() & 255}"
            seats = [Seat(f"{own}.{at + 2}") for at in range(number)]
            yield Network(Seat(f"{own}.1"), seats)
            return
        holders = [stack.enter_context(_namespace()) for _ in range(number + 1)]
        made = [Path(f"/proc/{pid}/ns/net") for pid in holders]
        switch = Seat("10.0.0.1", made[0])
        seats = [Seat(f"10.0.0.{at + 2}", name) for at, name in enumerate(made[1:])]
        _run(switch.command("ip", "link", "add", "bridge", "type", "bridge"))
        _run(switch.command("ip", "address", "add", f"{switch.address}/24", "dev", "bridge"))
        _run(switch.command("ip", "link", "set", "bridge", "up"))
        for at, seat in enumerate(seats):
            port, peer = f"port{at}", str(holders[at + 1])
            pair = ("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns")
            _run(switch.command(*pair, peer))
            _run(switch.command("ip", "link", "set", port, "master", "bridge", "up"))
            _run(seat.command("ip", "address", "add", f"{seat.address}/24", "dev", "eth0"))
            _run(seat.command("ip", "link", "set", "eth0", "up"))
        yield Network(switch, seats)


def _has_namespaces() -> bool:
    if not all(shutil.which(name) for name in ("ip", "unshare", "nsenter")):
        return False
    tried = ["unshare", "--net", "ip", "link", "add", "bridge", "type", "bridge"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


@contextmanager
def _namespace() -> Iterator[int]:
    """Make a network namespace; yields the process that holds it."""
    words = ["unshare", "--net", "sh", "-ec", "ip link set lo up; echo; exec cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        yield holder.pid
        holder.stdin.close()


def _run(words: list[str]) -> None:
    subprocess.run(words, check=True, capture_output=True)
