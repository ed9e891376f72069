"""Background work: its queues, and the processes that do it."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

import structlog

from .config import Settings, SettingsError
from .contexts import as_node, open_context
from .jobs.worker import Queue, Workers
from .logs import configure_logging, trace
from .services import pushes
from .services.availability import OUTAGES
from .services.baseline import MEASURE_BASE_TASK, NOTE_BASE_TASK, measure_base, record_base
from .services.ci import BEGIN_TASK, TAKE_TASK, begin_ci_run, record_ci_outcome, run_ci
from .services.context import AppContext
from .services.deliveries import QUEUE as WEBHOOK_QUEUE
from .services.deliveries import TASK as WEBHOOK_TASK
from .services.deliveries import deliver_webhook
from .services.notifications import tell_webhooks
from .services.projects import OpenProject, list_open
from .services.pushes import push_branch, resume_pushes
from .services.retention import Retention
from .services.settling import CI_QUEUE, CI_TASK
from .services.upkeep import UPKEEP_QUEUE, keep_up, start_up

_logger = structlog.get_logger(__name__)
UPKEEP_SECONDS: Final = 5
RETENTION_SECONDS: Final = 50  # how often it is seen whether a pass is due
PUSH_WORKERS: Final = 3
# A receiver that hangs keeps one of them for some seconds at a time.
WEBHOOK_WORKERS: Final = 4
# How often a process for background work alone looks for projects that came or went.
FOLLOWING_SECONDS: Final = 5.0


def begin_work(context: AppContext, stack: ExitStack) -> None:
    """Roll forward what a killed service has left, and begin the background work."""
    start_up(context)
    if context.repository.remote is not None:
        resume_pushes(context)
    if context.settings.jobs == "inside":
        stack.enter_context(working(context, queues_of(context)))


@contextmanager
def first_process(settings: Settings) -> Iterator[None]:
    """Run a service's first process: it does what those that answer leave to one.

    It rolls forward, and works unless the service has no workers of its own. Raises DatabaseError.
    """
    if settings.jobs == "inside":
        with jobs_process(settings, (), None):
            yield
        return
    configure_logging(settings)
    with ExitStack() as stack:
        trace(settings, stack)
        context = stack.enter_context(open_context(settings))
        context = stack.enter_context(as_node(context))
        begin_work(context, stack)
        yield


@contextmanager
def jobs_process(
    settings: Settings, names: Collection[str], concurrency: int | None
) -> Iterator[list[str]]:
    """Run a process for background work only, of all projects; yields the names of its queues.

    Raises SettingsError for a queue that is not worked on with these settings.
    """
    configure_logging(settings)
    with ExitStack() as stack:
        trace(settings, stack)
        context = stack.enter_context(open_context(settings))
        known = [queue.name for queue in queues_of(context)]
        missing = sorted(set(names) - set(known))
        if missing:
            raise SettingsError(
                f"no work for the queue {missing[0]!r}; with these settings there are: "
                f"{', '.join(known)}"
            )
        worked = _work_on(context, names, concurrency, stack)
        further = _FurtherJobs(context, names, concurrency)
        stack.callback(further.stop)
        yield worked


def _work_on(
    context: AppContext, names: Collection[str], concurrency: int | None, stack: ExitStack
) -> list[str]:
    """Work on a project's queues of these names, on all if there are none; return their names."""
    # CI fetches into a copy of its own, and needs neither this node's branches nor its files.
    of_node = {queue.name for queue in queues_of(context)} - {CI_QUEUE}
    if names:
        of_node &= set(names)
    context = stack.enter_context(as_node(context, has_ci_alone=not of_node))
    chosen = [
        replace(queue, concurrency=concurrency or queue.concurrency)
        for queue in queues_of(context)
        if not names or queue.name in names
    ]
    if UPKEEP_QUEUE in of_node:
        start_up(context)
    if pushes.QUEUE in of_node and context.repository.remote is not None:
        resume_pushes(context)
    stack.enter_context(working(context, chosen))
    return [queue.name for queue in chosen]


class _FurtherJobs:
    """Works on the queues of the projects beside the default one, as they come and go."""

    def __init__(
        self, context: AppContext, names: Collection[str], concurrency: int | None
    ) -> None:
        self._context = context
        self._names = names
        self._concurrency = concurrency
        self._open: dict[str, tuple[datetime, ExitStack]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="further-jobs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow({each.name: each for each in list_open(self._context)})
            except OUTAGES as error:
                _logger.warning("projects_not_read", why=type(error).__name__)
            self._stopping.wait(FOLLOWING_SECONDS)
        self._follow({})

    def _follow(self, wanted: Mapping[str, OpenProject]) -> None:
        for name, (changed_at, stack) in [*self._open.items()]:
            if name not in wanted or wanted[name].changed_at != changed_at:
                del self._open[name]
                stack.close()
        for name, each in wanted.items():
            if name in self._open or self._stopping.is_set():
                continue
            try:
                with ExitStack() as stack:
                    context = stack.enter_context(open_context(each.settings, is_default=False))
                    _work_on(context, self._names, self._concurrency, stack)
                    self._open[name] = each.changed_at, stack.pop_all()
            except Exception as error:  # one project must not stop the others
                _logger.warning("project_not_worked_on", project=name, why=str(error))


def queues_of(context: AppContext) -> list[Queue]:
    """Return the queues of background work."""
    queues = [
        # More than one, so that no job waits for a slow upkeep.
        Queue(
            name=UPKEEP_QUEUE,
            concurrency=3,
            every={
                "keep_up": (UPKEEP_SECONDS, partial(keep_up, context)),
                "retain": (RETENTION_SECONDS, Retention(context)),
            },
            tasks={
                BEGIN_TASK: partial(begin_ci_run, context),
                TAKE_TASK: partial(record_ci_outcome, context),
                NOTE_BASE_TASK: partial(record_base, context),
            },
        ),
    ]
    ci_workers = context.settings.ci_workers or max(1, (os.cpu_count() or 1) // 2)
    queues.append(
        Queue(
            name=CI_QUEUE,
            concurrency=ci_workers,
            tasks={
                CI_TASK: partial(run_ci, context),
                MEASURE_BASE_TASK: partial(measure_base, context),
            },
        )
    )
    queues.append(
        Queue(
            name=WEBHOOK_QUEUE,
            concurrency=WEBHOOK_WORKERS,
            every={"tell_webhooks": (UPKEEP_SECONDS, partial(tell_webhooks, context))},
            tasks={WEBHOOK_TASK: partial(deliver_webhook, context)},
        )
    )
    remote = context.repository.remote
    if remote is not None:
        queues.append(
            Queue(
                name=pushes.QUEUE,
                concurrency=PUSH_WORKERS,
                tasks={pushes.TASK: partial(push_branch, context, remote)},
            )
        )
    return queues


@contextmanager
def working(context: AppContext, queues: Sequence[Queue]) -> Iterator[None]:
    """Run the background workers while the `with` block runs."""
    workers = Workers(context.engine, queues)
    workers.start()
    try:
        yield
    finally:
        context.stopping.set()
        if context.repository.remote is not None:
            context.repository.remote.stop()  # else a slow job would delay the end
        workers.stop()
