"""The connections of the job engine. They have time limits, as those of the service have.

A server that runs and says nothing (stopped, swapped out, behind a full proxy), or whose machine
has vanished, would otherwise hold the workers for ever, and the end of their process too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString

import psycopg
from procrastinate import PsycopgConnector
from procrastinate.exceptions import ConnectorException
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import Engine

from ..patience import CONNECT_SECONDS, KEEPALIVES

POOL_SIZE: Final = 4
POOL_WAIT_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 30.0  # there may be tens of projects
# The engine's own queries read and write a few rows.
ANSWER_SECONDS: Final = 5.0


def make_pool(engine: Engine) -> AsyncConnectionPool:
    """Return a closed pool of connections to the database of an engine."""
    return AsyncConnectionPool(
        engine.url.set(drivername="postgresql").render_as_string(hide_password=False),
        kwargs={
            "application_name": "autopack jobs",
            "connect_timeout": CONNECT_SECONDS,
            **KEEPALIVES,
        },
        configure=_without_transactions,
        check=AsyncConnectionPool.check_connection,
        min_size=1,
        max_size=POOL_SIZE,
        max_idle=IDLE_SECONDS,
        timeout=POOL_WAIT_SECONDS,
        open=False,
    )


class PatientConnector(PsycopgConnector):
    """A connector whose every query is answered in time, or raises ConnectorException."""

    async def execute_query_async(self, query: LiteralString, **arguments: Any) -> None:
        async with _in_time():
            await super().execute_query_async(query, **arguments)

    async def execute_query_one_async(
        self, query: LiteralString, **arguments: Any
    ) -> dict[str, Any]:
        async with _in_time():
            row: dict[str, Any] = await super().execute_query_one_async(query, **arguments)
            return row

    async def execute_query_all_async(
        self, query: LiteralString, **arguments: Any
    ) -> list[dict[str, Any]]:
        async with _in_time():
            rows: list[dict[str, Any]] = await super().execute_query_all_async(query, **arguments)
            return rows


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            yield
    except TimeoutError:
        silence = psycopg.OperationalError(f"no answer within {ANSWER_SECONDS:g} seconds")
        raise ConnectorException from silence


async def _without_transactions(connection: psycopg.AsyncConnection[Any]) -> None:
    """Run each query of the engine in autocommit, without BEGIN and COMMIT."""
    await connection.set_autocommit(True)
