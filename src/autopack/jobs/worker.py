"""Job workers: in the service's process, or in a separate one."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import psycopg
import structlog
from procrastinate import App
from procrastinate.connector import BaseAsyncConnector
from procrastinate.exceptions import UniqueViolation
from procrastinate.jobs import Job, Status
from procrastinate.retry import BaseRetryStrategy, RetryDecision
from procrastinate.utils import utcnow
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from .connector import PatientConnector, make_pool
from .queue import TryAgainError

logger = structlog.get_logger(__name__)

Task = Callable[..., None]

# A worker without a sign of life for so long counts as dead. Each worker sends one, and looks for
# dead ones, every third of that time. Every sixth it polls for jobs that were postponed; Postgres
# notifies about new ones.
STALLED_SECONDS: Final = 30
KEPT_HOURS: Final = 7 * 24
RESTART_SECONDS: Final = 1.0
LONGEST_WAIT_SECONDS: Final = 300
ANSWER_SECONDS: Final = 10.0
POOL_SIZE: Final = 4
CONNECT_SECONDS: Final = 5
POOL_WAIT_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 30.0  # there may be tens of projects


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue whose jobs run in so many threads, independent of other queues.

    A task of `every` is called without arguments every so many seconds (below 60), by only one of
    the processes that work on the queue.
    """

    name: str
    concurrency: int
    tasks: Mapping[str, Task] = field(default_factory=dict)
    every: Mapping[str, tuple[int, Callable[[], None]]] = field(default_factory=dict)


class Workers:
    """One worker for each queue, on a thread with its own event loop, until they are stopped."""

    def __init__(
        self,
        engine: Engine,
        queues: Sequence[Queue],
        *,
        stalled_seconds: int = STALLED_SECONDS,
    ) -> None:
        self._engine = engine
        self._queues = queues
        self._stalled_seconds = stalled_seconds
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._has_loop = threading.Event()

    def start(self) -> None:
        _hand_on_logs()
        self._thread.start()
        self._has_loop.wait()

    def stop(self) -> None:
        """Take no more jobs, and wait for the running ones."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._has_loop.set()
        # The default pool has six threads on two cores; two threads are for the engine's own
        # queries.
        threads = sum(queue.concurrency for queue in self._queues) + 2
        self._loop.set_default_executor(ThreadPoolExecutor(threads, thread_name_prefix="job"))
        async with make_pool(self._engine) as pool:
            connector = PatientConnector()
            await connector.open_async(pool)
            workers = [
                asyncio.create_task(self._keep(queue, self._app(queue, connector)))
                for queue in self._queues
            ]
            await self._stopping.wait()
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _keep(self, queue: Queue, app: App) -> None:
        """Run a queue's worker, and start it again when it ends, as by a database failure."""
        while True:
            why = "a part of it ended"  # the engine has logged it
            try:
                await app.run_worker_async(
                    queues=[queue.name],
                    name=queue.name,
                    concurrency=queue.concurrency,
                    fetch_job_polling_interval=self._stalled_seconds / 6,
                    delete_jobs="successful",
                    install_signal_handlers=False,
                    update_heartbeat_interval=self._stalled_seconds / 3,
                    stalled_worker_timeout=self._stalled_seconds,
                )
            except Exception as error:
                why = _one_line(error)
            if self._stopping.is_set():  # it was cancelled, and could not sign off
                return
            logger.warning("job_worker_restarts", queue=queue.name, why=why)
            await asyncio.sleep(RESTART_SECONDS)
            await asyncio.to_thread(self._revive)

    def _revive(self) -> None:
        """Connect once, which starts an embedded Postgres again."""
        try:
            self._engine.connect().close()
        except SQLAlchemyError as error:
            logger.warning("database_away", why=type(error).__name__)

    def _app(self, queue: Queue, connector: BaseAsyncConnector) -> App:
        app = App(connector=connector)
        for name, task in queue.tasks.items():
            app.task(name=name, queue=queue.name, retry=_Retrying())(task)
        for name, (seconds, call) in queue.every.items():
            timed = app.task(name=name, queue=queue.name, queueing_lock=name)(_timed(name, call))
            app.periodic(cron=f"* * * * * */{seconds}")(timed)
        if queue.every:
            self._look_after_jobs(app, queue)
        return app

    def _look_after_jobs(self, app: App, queue: Queue) -> None:
        """In one process, requeue the jobs of dead workers and remove old finished jobs."""
        manager = app.job_manager

        # No `lock`: a job of this task that a dead worker left would block it forever.
        @app.periodic(cron=f"* * * * * */{self._stalled_seconds // 3}")
        @app.task(name="reap_jobs", queue=queue.name, queueing_lock="reap_jobs")
        async def reap_jobs(timestamp: int) -> None:
            await manager.prune_stalled_workers(self._stalled_seconds)
            for job in await manager.get_stalled_jobs(
                seconds_since_heartbeat=self._stalled_seconds
            ):
                logger.warning("job_taken_up", task=job.task_name, arguments=job.task_kwargs)
                try:
                    await manager.retry_job(job)
                except UniqueViolation:  # the same job waits already
                    await manager.finish_job(job, Status.FAILED, delete_job=True)

        @app.periodic(cron="0 * * * *")
        @app.task(name="forget_jobs", queue=queue.name, queueing_lock="forget_jobs")
        async def forget_jobs(timestamp: int) -> None:
            await manager.delete_old_jobs(
                KEPT_HOURS, include_failed=True, include_cancelled=True, include_aborted=True
            )


class _Retrying(BaseRetryStrategy):
    """Repeats a failed job, with longer and longer waits and without a limit."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision:
        if isinstance(exception, TryAgainError):
            return RetryDecision(retry_at=utcnow())
        wait = timedelta(seconds=min(2 ** min(job.attempts + 1, 16), LONGEST_WAIT_SECONDS))
        logger.warning(
            "job_failed",
            task=job.task_name,
            arguments=job.task_kwargs,
            attempts=job.attempts + 1,
            exc_info=exception,
        )
        return RetryDecision(retry_at=utcnow() + wait)


def _timed(name: str, call: Callable[[], None]) -> Callable[[int], None]:
    """Return a periodic task: a failure is logged, and the next call comes soon."""

    def run(timestamp: int) -> None:
        try:
            call()
        except Exception:
            logger.exception("periodic_work_failed", task=name)

    return run


class _HandOn(logging.Handler):
    """Passes the engine's warnings to the log, without a traceback for a lost database."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None or isinstance(_root(error), psycopg.Error):
            logger.warning("job_engine", detail=_one_line(error or record.getMessage()))
        else:
            logger.warning("job_engine", detail=record.getMessage(), exc_info=error)


def _hand_on_logs() -> None:
    for name, level in (("procrastinate", logging.WARNING), ("psycopg", logging.ERROR)):
        theirs = logging.getLogger(name)
        theirs.propagate = False
        theirs.handlers = [_HandOn(level)]


def _root(error: BaseException) -> BaseException:
    return _root(error.__cause__) if error.__cause__ else error


def _one_line(what: BaseException | str) -> str:
    words = str(_root(what)) if isinstance(what, BaseException) else what
    return " ".join(words.split())
