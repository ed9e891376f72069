"""The service about itself."""

from __future__ import annotations

from typing import ClassVar, Literal

from . import Shape, WireTime


class ServiceAnswer(Shape):
    service: Literal["Autopack Supervisor"]
    version: str
    description: str
    links: dict[str, str]


class CheckAnswer(Shape):
    status: Literal["ok", "failed", "degraded"]
    detail: str | None = None


class NodeAnswer(Shape):
    """A node: one clone with its home and runs directory, and how far behind the others it is.

    `lag_…` counts changes of other nodes that its branches and files do not show yet, and
    `lag_seconds` is the age of the oldest. `unseen_runs` are those that it has still to look at,
    as it is new or was away long: it catches up in the background, and answers rightly meanwhile.
    `lacking_runs` are runs that it cannot bring up to date by itself; `lacks` says why for the
    first of them. A node is alive if its last sign of life is recent. Counts end at 10,000 runs or
    events. (docs/replicas.md)
    """

    id: str
    place: str
    address: str | None
    version: str
    is_alive: bool
    is_this: bool
    started_at: WireTime
    heartbeat_at: WireTime
    lag_runs: int
    lag_revisions: int
    lag_seconds: float
    unseen_runs: int
    lacking_runs: int
    lacks: list[str]


class NodesAnswer(Shape):
    csv_rows: ClassVar[str] = "nodes"

    nodes: list[NodeAnswer]


class HealthAnswer(Shape):
    """`projects` has each open project that the caller may see, with why one is not served."""

    status: Literal["healthy", "unhealthy"]
    checks: dict[str, CheckAnswer]
    projects: dict[str, CheckAnswer]
    nodes: list[NodeAnswer]


class LiveAnswer(Shape):
    status: Literal["alive"]
