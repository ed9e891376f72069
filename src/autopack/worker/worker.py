"""Takes work items, one after the other, and has a command do them. (06)"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar

from ..api.schemas.work import ReviewAnswer, WorkItemAnswer
from ..client import ApiError, Autopack, UnreachableError
from ..gitrepo.workspace import (
    FetchError,
    Harvest,
    Limits,
    ObjectCache,
    TooMuchChangedError,
    Workspace,
    WorkspaceError,
)
from .command import AgentCommand, agent_environment
from .heart import Heart
from .mailbox import Mail, Mailbox
from .prompt import write_prompt
from .report import (
    AuditorFile,
    BuilderFile,
    Ended,
    Json,
    auditor_report,
    builder_report,
    read_result,
    refused_report,
    reported_tokens,
)
from .rooms import WorkRoom

Role = Literal["builder", "auditor"]
Tell = Callable[["Step"], None]
Answer = TypeVar("Answer")

STOPPED: Final = "The worker was stopped."
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
MOST_INTERNAL_ERRORS: Final = 5
FETCHING_SECONDS: Final = 60.0  # a branch may be on its way to the remote still
# Refusals of a result that were a try: there is nothing left to say.
_COUNTED: Final = {"patch_empty", "patch_malformed", "patch_policy"}


class WorkerError(Exception):
    """Nothing can be worked on from here. The message is one line that says why."""


class _Interrupted(Exception):  # noqa: N818 - asked for, no error
    """The worker was asked to stop."""


class _RunOver(Exception):  # noqa: N818 - what is waited for, no error
    """Nothing is to be claimed of the run any more."""


class Ending(StrEnum):
    """Why a worker stopped: the run ended, its one item was done, somebody asked for it."""

    SUCCESS = "success"
    FAILURE = "failure"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Agent:
    """A command, and the name that runs know it by."""

    name: str
    command: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a worker is to do. `run_id` None: work on any run; `remote`: where to fetch first."""

    agents: Mapping[Role, Agent]
    run_id: str | None = None
    is_once: bool = False
    lease_seconds: int = 300
    timeout_seconds: float = 3_600.0
    poll_seconds: float = 2.0
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened, for whoever watches."""

    kind: str
    text: str
    item: WorkItemAnswer | None = None


class Worker:
    """One worker: asks for work, lets the command do it, hands in what came of it."""

    def __init__(
        self,
        service: Autopack,
        orders: Orders,
        room: WorkRoom,
        cache: ObjectCache,
        mailbox: Mailbox,
        environment: Mapping[str, str],
        tell: Tell,
    ) -> None:
        self._service = service
        self._orders = orders
        self._room = room
        self._cache = cache
        self._mailbox = mailbox
        self._environment = environment
        self._tell = tell

    def work(self) -> Ending:
        """Work until the run is over, the one item done, or somebody interrupts.

        Raises WorkerError, and ApiError for a refusal that would come again.
        """
        try:
            while True:
                is_taken = self._do(self._next_item())
                if self._orders.is_once:
                    return Ending.SUCCESS if is_taken else Ending.FAILURE
        except _RunOver:
            return self._run_ending()
        except _Interrupted:
            return Ending.INTERRUPTED

    def _next_item(self) -> WorkItemAnswer:
        """Claim, again and again until there is something to do. Raises _RunOver, _Interrupted."""
        orders = self._orders
        self._pause(0)
        while True:
            for role, agent in orders.agents.items():
                claim = partial(
                    self._service.claim,
                    role,
                    agent.name,
                    run_id=orders.run_id,
                    lease_seconds=orders.lease_seconds,
                )
                try:
                    item = self._ask(claim)
                except ApiError as error:
                    if error.code == "run_over":
                        raise _RunOver from error
                    raise
                if item is not None:
                    self._tell(Step("claimed", f"claimed as {item.role}: {item.task.name}", item))
                    return item
            self._pause(orders.poll_seconds)

    def _run_ending(self) -> Ending:
        assert self._orders.run_id is not None  # noqa: S101 - only the claim of one run says so
        run = self._ask(partial(self._service.get_run, self._orders.run_id))
        reason = f": {run.failure_reason}" if run.failure_reason else ""
        self._tell(Step("run_over", f"{run.run_id} is {run.state}{reason}"))
        return Ending.SUCCESS if run.state == "DONE_SUCCESS" else Ending.FAILURE

    def _do(self, item: WorkItemAnswer) -> bool:
        """Do one work item. Returns whether its result was taken, and is no failure."""
        with self._room.desk() as desk:
            result = desk / "result.json"
            tokens_used = partial(reported_tokens, result)
            orders = self._orders
            with Heart(
                self._service, item, orders.lease_seconds, self._mailbox, tokens_used
            ) as heart:
                try:
                    report = self._run(item, desk, result, heart)
                except _Interrupted:
                    self._give_up(item, STOPPED)
                    raise
                except WorkspaceError as error:
                    self._give_up(item, f"No work tree could be laid out: {error}.")
                    raise WorkerError(
                        f"{item.run_id} cannot be worked on from here: {error}. --remote names "
                        "another place to fetch from."
                    ) from error
                return report is not None and self._hand_in(item, report)

    def _run(self, item: WorkItemAnswer, desk: Path, result: Path, heart: Heart) -> Json | None:
        """Let the command work; return what to hand in, or None where there is nothing.

        Raises WorkspaceError when there is nothing to work on.
        """
        begun = time.monotonic()
        workspace = self._lay_out(item, desk)
        prompt = desk / "prompt.txt"
        prompt.write_text(write_prompt(item, is_staged=workspace.is_staged), errors="replace")
        # The lease is the worker's: the agent does the work, and nothing else with it.
        described = desk / "work_item.json"
        described.write_text(item.model_dump_json(indent=1, exclude={"lease": {"token"}}))
        ours = {"AUTOPACK_WORK_ITEM": str(described), "AUTOPACK_RESULT": str(result)}
        command = AgentCommand(
            self._orders.agents[_role(item)].command,
            folder=workspace.tree,
            environment=agent_environment(self._environment, ours),
            prompt=prompt,
            lock=self._room.lock,
            on_end=partial(self._mailbox.post, Mail.ENDED, heart.about),
        )
        try:
            mail = self._mailbox.wait(self._orders.timeout_seconds, heart.about)
        finally:
            exit_code = command.finish()
        if mail is Mail.LOST:
            self._tell(Step("dropped", f"dropped: {heart.reason}", item))
            return None
        failure = self._why_stopped(mail, heart)
        harvest = Harvest(b"")
        if failure is None:
            limits = Limits(item.gate.max_patch_files, item.gate.max_patch_bytes)
            try:
                harvest = workspace.harvest(limits)
            except TooMuchChangedError as error:
                failure = f"Too much was changed: {error}."
            except WorkspaceError as error:
                failure = f"What was changed cannot be read: {error}."
        ended = Ended(
            exit_code=exit_code,
            stdout=command.stdout,
            stderr=command.stderr,
            seconds=time.monotonic() - begun,
            patch=harvest.patch,
            nested=harvest.nested,
            failure=failure,
        )
        report = self._report(item, ended, result)
        if report is not None:
            report["tokens_used"] = max(report["tokens_used"], heart.tokens_used)
        return report

    def _lay_out(self, item: WorkItemAnswer, desk: Path) -> Workspace:
        """Lay out the work tree; what was just committed may be on its way to a remote still."""
        repository = item.repository
        sources = [self._orders.remote, repository.path, repository.remote]
        until = time.monotonic() + FETCHING_SECONDS
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._cache.lay_out(
                    desk,
                    sources=[source for source in sources if source],
                    branch=repository.branch,
                    commit=repository.base_commit,
                    staged=_patch_under(item.review),
                )
            except FetchError:
                if time.monotonic() > until:
                    raise
            self._pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _why_stopped(self, mail: Mail | None, heart: Heart) -> str | None:
        """Say why a command's work does not count; None when it came to its own end."""
        if mail is None:
            minutes = self._orders.timeout_seconds / 60
            return f"The command was stopped: it did not end within {minutes:g} minutes."
        if mail is Mail.OUT_OF_BUDGET:
            return f"The command was stopped: {heart.reason}."
        return STOPPED if mail is Mail.INTERRUPTED else None

    def _report(self, item: WorkItemAnswer, ended: Ended, result: Path) -> Json | None:
        if item.role == "builder":
            return builder_report(item, ended, *read_result(result, BuilderFile))
        report = auditor_report(item, ended, *read_result(result, AuditorFile))
        if report is None:
            why = ended.failure or f"The command gave no verdict (exit code {ended.exit_code})."
            self._tell(Step("no_verdict", f"{why} Its lease lapses, which costs a try", item))
        return report

    def _give_up(self, item: WorkItemAnswer, why: str) -> None:
        """Return a Builder's item as a failed try; an Auditor has no such answer and lets lapse."""
        self._tell(Step("given_up", why, item))
        if item.role == "builder":
            self._hand_in(item, refused_report(item, 0, why))

    def _hand_in(self, item: WorkItemAnswer, report: Json) -> bool:
        """Deliver a result, as often as it takes: one key, so it counts once.

        Returns whether it was taken, and is no failure.
        """
        try:
            phase_state = self._ask(partial(self._submit, item, report, uuid.uuid4().hex))
        except ApiError as error:
            return self._take_refusal(item, report, error)
        what = report.get("status") or report["recommendation"]
        self._tell(Step("handed_in", f"handed in: {what}; the phase is {phase_state}", item))
        return bool(what != "failed")

    def _submit(self, item: WorkItemAnswer, report: Json, key: str) -> str:
        if item.role == "builder":
            return self._service.submit_builder_result(
                item.run_id, item.phase_id, report, idempotency_key=key
            ).phase_state
        return self._service.submit_auditor_result(
            item.run_id, item.phase_id, report, idempotency_key=key
        ).phase_state

    def _take_refusal(self, item: WorkItemAnswer, report: Json, error: ApiError) -> bool:
        """Go on after a refusal; what was no try of a Builder's is handed in as a failed one."""
        self._tell(Step("refused", f"refused: {error}", item))
        if error.status in (401, 403):
            raise error
        is_settled = error.status in (404, 409) or error.code in _COUNTED
        if item.role == "builder" and not is_settled and report["status"] != "failed":
            why = f"The service does not take the result: {error}"
            self._hand_in(item, refused_report(item, report["tokens_used"], why))
        return False

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        """Ask the service until it answers. Raises ApiError for its refusals, _Interrupted."""
        pause = FIRST_PAUSE_SECONDS
        internal_errors = 0
        while True:
            try:
                return request()
            except UnreachableError as error:
                why = str(error)
            except ApiError as error:
                internal_errors += error.status == 500
                is_passing = error.status >= 500 or error.status == 429
                if internal_errors > MOST_INTERNAL_ERRORS or not (
                    is_passing or error.code == "branch_checked_out"
                ):
                    raise
                why = str(error)
            if pause == FIRST_PAUSE_SECONDS:
                self._tell(Step("waiting", f"waiting for the service: {why}"))
            self._pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _pause(self, seconds: float) -> None:
        if self._mailbox.wait(seconds) is Mail.INTERRUPTED:
            raise _Interrupted


def _role(item: WorkItemAnswer) -> Role:
    return "builder" if item.role == "builder" else "auditor"


def _patch_under(review: ReviewAnswer | None) -> bytes | None:
    """Return the patch that a review is about, where it is not yet on the branch."""
    if review is None or not review.is_pending:
        return None
    if review.patch_content_base64:
        return base64.b64decode(review.patch_content_base64)
    return (review.patch_content or "").encode()
