"""Serves the gateway on a loopback port, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal
from types import TracebackType
from typing import Any, Final, Self

import httpx
import uvicorn

from .account import Account
from .gateway import Gateway
from .providers import Upstream
from .wire import Provider

KEEP_ALIVE_SECONDS: Final = 300  # longer than clients keep an idle connection
DRAINING_SECONDS: Final = 10.0


class GatewayServer:
    """The gateway of one worker, while the `with` block runs."""

    def __init__(
        self,
        providers: Mapping[Provider, Upstream],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.providers = providers
        self._gateway = Gateway(providers, transport)
        self._listener = _listen()
        config = uvicorn.Config(
            self._gateway,
            access_log=False,
            log_config=None,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
            ws="none",
        )
        self._server = uvicorn.Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        """The gateway's address, without a slash at the end."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._is_up.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()

    def open(
        self,
        tokens: int,
        cost_usd: Decimal | None,
        prices: Mapping[str, Mapping[str, Any]],
        on_refusal: Callable[[], None],
    ) -> tuple[str, Account]:
        """Open an account for one command; returns the token for its environment alone."""
        token = f"autopack-{secrets.token_urlsafe(32)}"
        account = Account(tokens, cost_usd, prices, on_refusal)
        self._call(self._open(token, account))
        return token, account

    def close(self, token: str, patience_seconds: float = DRAINING_SECONDS) -> None:
        """End an account after its command; its figures do not change any more."""
        self._call(self._gateway.close(token, patience_seconds))

    async def _open(self, token: str, account: Account) -> None:
        self._gateway.open(token, account)

    def _call(self, work: Any) -> None:
        assert self._loop is not None  # noqa: S101 - for the type checker: the thread runs
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _run(self) -> None:
        with suppress(KeyboardInterrupt):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_up.set()  # the port is bound already: connections wait until it is served
        await self._server.serve(sockets=[self._listener])
        await self._gateway.aclose()


def _listen() -> socket.socket:
    """Bind a free loopback port.

    asyncio sets TCP_NODELAY where a socket names its protocol, which `create_server` does not.
    Without it an answer's body waits for the client's acknowledgement of its head, some 40 ms.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener
