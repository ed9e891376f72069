"""The projects that are served, each by its own resources, and the door to them. (docs/projects.md)

A handler finds every resource in `request.app.state`. The door sets which state that is: the one of
the default project, which is the application's own, or the one of another project. So no handler,
and nothing that it calls, can name a resource of a project but by way of the door.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

import structlog
from anyio import CapacityLimiter, to_thread
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send

from ..domain.access import Caller
from ..domain.errors import AutopackError
from ..domain.printable import one_line
from ..domain.projects import DEEDS, ProjectNotFoundError, ProjectUnavailableError, project_for
from ..services.availability import OUTAGES
from ..services.context import AppContext
from ..services.keys import Keyring
from ..services.projects import OpenProject, list_open
from .errors import outage_response, refusal_response

logger = structlog.get_logger(__name__)

PATH: Final = "/projects"
# What other processes changed in the list of projects is known within this time of its use.
REFRESH_SECONDS: Final = 5.0


class Place(Protocol):
    """What serves one project: the application itself, or a `FurtherPlace`."""

    @property
    def state(self) -> State: ...


@dataclass(frozen=True, slots=True)
class FurtherPlace:
    """The resources of a project beside the default one, under the names of the application's."""

    state: State = field(default_factory=State)


Serving = Callable[[OpenProject], AbstractAsyncContextManager[FurtherPlace]]


@dataclass(slots=True)
class _Served:
    place: FurtherPlace
    changed_at: datetime
    closing: asyncio.Event
    task: asyncio.Task[None]


class Places:
    """The places of this process. `refresh` follows the list of projects in the database."""

    def __init__(self, default: Place, serving: Serving) -> None:
        self.default = default
        #: Why a project that is open cannot be served here.
        self.problems: dict[str, str] = {}
        self._serving = serving
        self._served: dict[str, _Served] = {}
        self._changing = asyncio.Lock()
        self._refreshed_at = -REFRESH_SECONDS

    @property
    def default_name(self) -> str:
        name: str = self.default.state.context.settings.project_id
        return name

    def further(self) -> Iterator[FurtherPlace]:
        """Yield the places beside the default one."""
        return iter([served.place for served in self._served.values()])

    def names_for(self, caller: Caller) -> list[tuple[str, bool]]:
        """Return the open projects that a caller may see, and whether each is the default one."""
        default = self.default_name
        names = (default, *self._served, *self.problems)
        return [(name, name == default) for name in names if caller.project_id in (None, name)]

    def find(self, name: str) -> Place | None:
        """Return the place of a project, if it is served."""
        if name == self.default_name:
            return self.default
        served = self._served.get(name)
        return None if served is None else served.place

    async def place_for(self, caller: Caller, named: str | None) -> Place:
        """Return where a request is answered.

        Raises ProjectNotFoundError, WrongProjectError, ProjectUnavailableError.
        """
        default, bound = self.default_name, caller.project_id
        asked = [name for name in (named, bound) if name not in (None, default)]
        # While another project is opened, which may take minutes, those that are served go on.
        is_served = all(name in self._served for name in asked)
        if asked and not (is_served and self._changing.locked()):
            await self.refresh(within=REFRESH_SECONDS)
        served = {default, *self._served, *self.problems}
        if named is not None and named not in served and bound is None:
            await self.refresh()
            served = {default, *self._served, *self.problems}
        name = project_for(caller, named, default, served)
        place = self.find(name)
        if place is None:
            raise ProjectUnavailableError(f"project '{name}': {self.problems.get(name, 'closes')}")
        return place

    async def caller_of(
        self, digest: str, *, is_session: bool, lookups: CapacityLimiter
    ) -> tuple[Caller, Place] | None:
        """Return who has the key, or the cookie, of a digest, and the place that knows it.

        A place whose database is away stands in the way of no key of another one. Raises what
        OUTAGES names, and ProjectUnavailableError, where that key may be of one that cannot answer.
        """
        outage: BaseException | None = None
        asked: set[int] = set()
        for is_fresh in (False, True):
            if is_fresh and not await self.refresh(within=REFRESH_SECONDS):
                break
            unknown = []
            for place in (self.default, *self.further()):
                keyring: Keyring = place.state.keyring
                if id(place) in asked:
                    continue
                caller, is_known = keyring.find(digest, is_session=is_session)
                if caller is not None:
                    return caller, place
                if not is_known:
                    unknown.append((keyring, place))
                asked.add(id(place))
            unknown.sort(key=lambda each: not each[0].knew(digest, is_session=is_session))
            for keyring, place in unknown:

                def read(keyring: Keyring = keyring) -> Caller | None:
                    return keyring.read(digest, is_session=is_session)

                try:
                    caller = await to_thread.run_sync(read, limiter=lookups)
                except OUTAGES as error:
                    outage = error
                    continue
                if caller is not None:
                    return caller, place
        if outage is not None:
            raise outage
        if self.problems:
            raise ProjectUnavailableError("no project that can be served now knows this key")
        return None

    async def refresh(self, *, within: float = 0.0) -> bool:
        """Open and close places as the database says, unless that was done within these seconds.

        Returns whether it was done now.
        """
        if time.monotonic() - self._refreshed_at < within:
            return False
        async with self._changing:
            if time.monotonic() - self._refreshed_at < within:
                return False
            context: AppContext = self.default.state.context
            wanted = {each.name: each for each in await to_thread.run_sync(list_open, context)}
            self._refreshed_at = time.monotonic()
            for name, served in [*self._served.items()]:
                project = wanted.get(name)
                if project is None or project.changed_at != served.changed_at:
                    await self._close(name)
            self.problems = {k: v for k, v in self.problems.items() if k in wanted}
            for name, project in wanted.items():
                if name not in self._served:
                    await self._open(project)
        return True

    def end_streams(self) -> None:
        """End the open streams of all projects; the service stops."""
        for place in (self.default, *self.further()):
            place.state.feed.end()

    async def close(self) -> None:
        """Close all places but the default one."""
        async with self._changing:
            for name in [*self._served]:
                await self._close(name)

    async def _open(self, project: OpenProject) -> None:
        closing = asyncio.Event()
        opened: asyncio.Future[FurtherPlace] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            # In a task of its own: what it opens must be closed by the same one.
            try:
                async with self._serving(project) as place:
                    opened.set_result(place)
                    await closing.wait()
            except Exception as error:
                if opened.done():
                    logger.exception("project_not_closed", project=project.name)
                else:
                    opened.set_exception(error)

        task = asyncio.create_task(serve())
        try:
            place = await opened
        except AutopackError as error:
            self.problems[project.name] = one_line(error.detail)
            logger.warning("project_not_served", project=project.name, why=error.detail)
        except OUTAGES as error:
            self.problems[project.name] = "its database does not answer"
            logger.warning("project_not_served", project=project.name, why=str(error))
        except Exception as error:  # one project must not stop the others
            self.problems[project.name] = type(error).__name__
            logger.exception("project_not_served", project=project.name)
        else:
            self.problems.pop(project.name, None)
            self._served[project.name] = _Served(place, project.changed_at, closing, task)
            logger.info("project_served", project=project.name)

    async def _close(self, name: str) -> None:
        served = self._served.pop(name)
        served.closing.set()
        await served.task
        logger.info("project_not_served_any_more", project=name)


def enter_project(scope: Scope) -> None:
    """Take `/projects/{project}` off the path of a request to a project's own API.

    The router and the pages know such a part of the path as the address of a proxy has: it is in
    `root_path`. Whether there is such a project is for the door to find out.
    """
    root = str(scope.get("root_path", "")).rstrip("/")
    path: str = scope["path"]
    prefix = f"{root}{PATH}/"
    if scope["type"] != "http" or not path.startswith(prefix):
        return
    name, slash, rest = path[len(prefix) :].partition("/")
    if name and slash and rest not in DEEDS:
        scope["project"] = name
        scope["root_path"] = prefix + name


class ProjectDoor:
    """Pure ASGI, within AccessMiddleware: sends each request on to the place that answers it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller: Caller | None = scope.get("caller")
        is_bound = caller is not None and caller.project_id is not None
        if caller is not None and (is_bound or scope.get("project")) and not _is_list_of_all(scope):
            places = places_of(scope)
            try:
                if scope.get("project") is not None and is_within(path_in(scope), PATH):
                    raise ProjectNotFoundError(path_in(scope))  # projects have no projects
                place = await places.place_for(caller, scope.get("project"))
            except AutopackError as error:
                await refusal_response(error)(scope, receive, send)
                return
            except OUTAGES as error:
                await outage_response(error)(scope, receive, send)
                return
            if place is not places.default:
                await _answer_in(place, self.app, scope, receive, send)
                return
        await self.app(scope, receive, send)


async def _answer_in(
    place: Place, app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    # The same scope, not a copy: the traffic is counted where the request was answered.
    default, scope["app"] = scope["app"], place
    under_way = default.state.traffic.under_way
    here, there = (under_way.labels(each.state.settings.project_id) for each in (default, place))
    here.dec()
    there.inc()
    try:
        await app(scope, receive, send)
    finally:
        there.dec()
        here.inc()


def _is_list_of_all(scope: Scope) -> bool:
    """Tell whether a path is one of the list of projects, which only the service itself has."""
    return scope.get("project") is None and is_within(path_in(scope), PATH)


def is_within(path: str, folder: str) -> bool:
    """Tell whether a path is a folder's, or of what is in it."""
    return path == folder or path.startswith(f"{folder}/")


def path_in(scope: Scope) -> str:
    """Return the path as the router takes it."""
    path: str = scope["path"]
    prefix = str(scope.get("root_path", "")).rstrip("/")
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path


def places_of(scope: Scope) -> Places:
    """Return the places of the process that answers a request."""
    places: Places = scope["app"].state.places
    return places
