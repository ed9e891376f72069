"""Claims work items, one after the other, and runs a command for each. (docs/worker.md)"""

from __future__ import annotations

import base64
import secrets
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from .. import tracing
from ..client import ApiError, Autopack, UnreachableError
from ..domain.next_step import NextAction
from ..gitrepo.workspace import (
    OURS,
    TREE,
    FetchError,
    Harvest,
    ObjectCache,
    PatchLimits,
    TooMuchChangedError,
    Workspace,
    WorkspaceError,
)
from ..views.results import NextStep
from ..views.work import ReviewAnswer, WorkItemAnswer
from .agents import KNOWN_AGENTS, Agent, read_output
from .command import AgentCommand, agent_environment
from .cooling import Cooling, WorkerError, why_unavailable
from .heartbeat import Heartbeat
from .mailbox import Mail, Mailbox
from .metered import Metered, measured_report, metering, spent_line
from .prompt import write_prompt
from .report import (
    AnyFile,
    AuditorFile,
    BuilderFile,
    Ended,
    Json,
    auditor_report,
    builder_report,
    last_line,
    last_word,
    read_result,
    refused_report,
    reported_tokens,
    with_last_words,
)
from .workspace import WorkerFolder

if TYPE_CHECKING:
    from ..meter.server import GatewayServer

Role = Literal["builder", "auditor"]
Tell = Callable[["Step"], None]
Answer = TypeVar("Answer")

STOPPED: Final = "The worker was stopped."
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
MAX_INTERNAL_ERRORS: Final = 5
WAITING_SECONDS: Final = 60.0  # between two lines about what the worker waits for
FETCHING_SECONDS: Final = 60.0  # a branch may be on its way to the remote still
# Refusals of a result that used a try: the worker must not submit a failure too.
_NOT_THIS_AGENT: Final = {"not_independent", "already_approved"}
_COUNTED: Final = {"patch_empty", "patch_malformed", "patch_policy"}


NO_TOKENS: Final = (
    "warning: no tokens were counted, so no cap of tokens had an effect; the agents must report"
    " them (docs/worker.md, Input and output of a command)"
)


NOTHING_MEASURED: Final = (
    "warning: no request of a model came through the gateway, so the figures are the agent's own"
    " (docs/worker.md, Measured spend)"
)


class _Interrupted(Exception):  # noqa: N818 - a request, not an error
    """The worker was asked to stop."""


class _RunOver(Exception):  # noqa: N818 - the expected end, not an error
    """The run is over, so no more work of it can be claimed."""


class Ending(StrEnum):
    """Why a worker stopped: the run ended, its one item was done, or a signal came."""

    SUCCESS = "success"
    FAILURE = "failure"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a worker must do. `run_id` None: work on any run; `remote`: where to fetch first."""

    agents: Mapping[Role, Agent]
    run_id: str | None = None
    is_once: bool = False
    lease_seconds: int = 300
    timeout_seconds: float = 3_600.0
    poll_seconds: float = 2.0
    remote: str | None = None

    @property
    def kinds(self) -> set[str | None]:
        """The kinds of all agents that may be run, fallbacks too."""
        pairs = ((agent, agent.fallback or agent) for agent in self.agents.values())
        return {each.kind for pair in pairs for each in pair}


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the worker, for the command's output."""

    kind: str
    text: str
    item: WorkItemAnswer | None = None


class Worker:
    """One worker: claims work, runs the command, submits the result."""

    def __init__(
        self,
        service: Autopack,
        orders: Orders,
        folder: WorkerFolder,
        cache: ObjectCache,
        mailbox: Mailbox,
        environment: Mapping[str, str],
        tell: Tell,
        clock: Callable[[], float] = time.monotonic,
        gateway: GatewayServer | None = None,
    ) -> None:
        self._gateway = gateway
        self._service = service
        self._orders = orders
        self._folder = folder
        self._cache = cache
        self._mailbox = mailbox
        self._environment = environment
        self._tell = tell
        self._clock = clock
        self._cooling = Cooling(lambda text: tell(Step("waiting", text)), clock)
        self._tell_again_at = 0.0  # when a line about what it waits for is due
        # The model that each agent named last: a review of that model's work is not offered to it.
        self._models: dict[str, str] = {}
        self._waits: str | None = None
        # By role, agent, account and model: a claim with another body needs another key.
        self._claim_keys: dict[tuple[str, str, str | None, str | None], str] = {}

    def work(self) -> Ending:
        """Work until the run is over, the one item is done, or a signal comes.

        Raises WorkerError, and ApiError for a refusal that would be repeated.
        """
        try:
            while True:
                item, agent = self._next_item()
                place = {"autopack.run_id": item.run_id, "autopack.phase_id": item.phase_id}
                trace = None if tracing.is_on() else tracing.begin_trace()
                with tracing.span("work", place, parent=trace):
                    is_taken = self._do(item, agent)
                if self._orders.is_once:
                    return Ending.SUCCESS if is_taken else Ending.FAILURE
        except _RunOver:
            return self._run_ending()
        except _Interrupted:
            return Ending.INTERRUPTED

    def _next_item(self) -> tuple[WorkItemAnswer, Agent]:
        """Claim repeatedly until there is work. Raises _RunOver, _Interrupted."""
        orders = self._orders
        self._pause(0)
        while True:
            for role, first in orders.agents.items():
                agent = self._cooling.able(first)
                if agent is None:
                    continue
                item = self._claim(role, agent)
                if item is not None:
                    self._tell(Step("claimed", f"claimed as {item.role}: {item.task.name}", item))
                    self._tell_again_at = 0.0
                    return item, agent
            self._tell_wait()
            self._pause(orders.poll_seconds)

    def _claim(self, role: Role, agent: Agent) -> WorkItemAnswer | None:
        """Claim work once; None when there is none now. Raises _RunOver, _Interrupted.

        An agent's claims have one key until one of them gets work: an item that was given in an
        answer that was lost, or to a request that came late, is given to the next claim again.
        """
        orders, model = self._orders, self._models.get(agent.name)
        mine = (role, agent.name, agent.account, model)
        claim = partial(
            self._service.claim,
            role,
            agent.name,
            run_id=orders.run_id,
            lease_seconds=orders.lease_seconds,
            account=agent.account,
            model=model,
            on_waits=self._tell_waits,
            idempotency_key=self._claim_keys.setdefault(mine, uuid.uuid4().hex),
        )
        item = None
        try:
            item = self._ask(claim)
        except ApiError as error:
            if error.code == "run_over":
                raise _RunOver from error
            if error.code != "lease_lost":  # the item's lease has lapsed since it was given
                raise
        else:
            if item is None:
                return None
        del self._claim_keys[mine]
        return item

    def _tell_wait(self) -> None:
        """Say what the run waits for, at most once in WAITING_SECONDS."""
        if self._orders.run_id is None or self._clock() < self._tell_again_at:
            return
        self._tell_again_at = self._clock() + WAITING_SECONDS
        run = self._ask(partial(self._service.get_run, self._orders.run_id))
        if run.next.action is not NextAction.NONE:
            self._tell(Step("waiting", wait_line(run.next, self._orders.agents)))

    def _tell_waits(self, why: str) -> None:
        """Say once which review waits for another Auditor than this worker's."""
        if why != self._waits:
            self._waits = why
            self._tell(Step("waiting", f"{why} (docs/worker.md, Two roles)"))

    def _run_ending(self) -> Ending:
        assert self._orders.run_id is not None  # noqa: S101 - only claims of one run end so
        run = self._ask(partial(self._service.get_run, self._orders.run_id))
        reason = f": {run.failure_reason}" if run.failure_reason else ""
        self._tell(Step("run_over", f"{run.run_id} is {run.state}{reason}"))
        phases = run.phases
        if run.tokens_used == 0 and any(phase.builder_attempts_used for phase in phases):
            self._tell(Step("warning", NO_TOKENS))
        return Ending.SUCCESS if run.state == "DONE_SUCCESS" else Ending.FAILURE

    def _do(self, item: WorkItemAnswer, agent: Agent) -> bool:
        """Do one work item. Returns whether its result was accepted and is not a failure.

        Raises WorkerError when the agent has failed at once too often.
        """
        with self._folder.desk() as desk:
            # A random name in the work tree, where a sandboxed agent may write. Only the agent gets
            # the name: see docs/decisions/agents-answers.md.
            answer = desk / TREE / f"{OURS}{secrets.token_hex(16)}.json"
            assert item.lease is not None  # noqa: S101 - for the type checker: it was claimed
            at_cap = partial(self._mailbox.post, Mail.OUT_OF_BUDGET, item.lease.token)
            with (
                metering(self._gateway, item, at_cap) as metered,
                Heartbeat(
                    self._service,
                    item,
                    self._orders.lease_seconds,
                    self._mailbox,
                    partial(_spent, metered, answer),
                ) as heartbeat,
            ):
                try:
                    report = self._run(item, agent, desk, answer, heartbeat, metered)
                    if report is None and metered is not None:
                        heartbeat.report_spent()
                except _Interrupted:
                    if metered is not None:
                        heartbeat.report_spent()
                    self._give_up(item, STOPPED)
                    raise
                except WorkspaceError as error:
                    self._give_up(item, f"The work tree could not be created: {error}.")
                    raise WorkerError(
                        f"run {item.run_id} cannot be worked on from here: {error}. --remote names "
                        "another place to fetch from."
                    ) from error
                is_taken = report is not None and self._hand_in(item, *report)
            self._cooling.require_patience(agent)
            return is_taken

    def _run(
        self,
        item: WorkItemAnswer,
        agent: Agent,
        desk: Path,
        answer: Path,
        heartbeat: Heartbeat,
        metered: Metered | None,
    ) -> tuple[Json, str] | None:
        """Run the command; return the result to submit and its last line, or None without one.

        Raises WorkspaceError when the work tree cannot be created.
        """
        begun = time.monotonic()
        workspace = self._lay_out(item, desk)
        command = self._start(item, agent, workspace, answer, heartbeat, metered)
        try:
            mail = self._mailbox.wait(self._orders.timeout_seconds, heartbeat.about)
        finally:
            exit_code = command.finish()
            if metered is not None:
                metered.end()
        if mail is Mail.LOST:
            self._tell(Step("dropped", f"dropped: {heartbeat.reason}", item))
            return None
        if mail is Mail.INTERRUPTED:
            raise _Interrupted
        failure = self._why_stopped(mail, heartbeat, exit_code, metered)
        harvest = Harvest(b"")
        if failure is None:
            harvest, failure = _harvest(workspace, item)
        said = read_output(agent.kind, command.stdout, command.stderr)
        ended = Ended(
            exit_code=exit_code,
            stdout=said.text,
            stderr=command.stderr,
            seconds=time.monotonic() - begun,
            patch=harvest.patch,
            nested=harvest.nested,
            dropped=harvest.dropped,
            failure=failure,
            said=said,
        )
        report = self._report(item, agent, ended, answer)
        if report is None:
            return None
        report = self._with_spent(report, item, heartbeat, metered)
        if report["model"]:
            self._models[agent.name] = report["model"]
        return report, last_line(ended)

    def _start(
        self,
        item: WorkItemAnswer,
        agent: Agent,
        workspace: Workspace,
        answer: Path,
        heartbeat: Heartbeat,
        metered: Metered | None,
    ) -> AgentCommand:
        """Start the agent's command on its prompt, in the work tree."""
        desk = workspace.tree.parent
        prompt = desk / "prompt.txt"
        text = write_prompt(item, is_staged=workspace.is_staged, answer=str(answer))
        prompt.write_text(text, errors="replace")
        # Only the worker may use the lease, so the agent does not get its token.
        described = desk / "work_item.json"
        described.write_text(item.model_dump_json(indent=1, exclude={"lease": {"token"}}))
        ours = {"AUTOPACK_WORK_ITEM": str(described)}
        # Not for an Auditor: it runs the code under review, which could write the answer.
        if item.role == "builder":
            ours["AUTOPACK_RESULT"] = str(answer)
        words, environment = agent.command, self._environment
        if metered is not None:
            words, environment = metered.command(agent), metered.environment(environment, agent)
        command = AgentCommand(
            words,
            folder=workspace.tree,
            environment=agent_environment(environment, ours),
            prompt=prompt,
            lock=self._folder.lock,
            on_end=partial(self._mailbox.post, Mail.ENDED, heartbeat.about),
        )
        prompt.unlink()  # the command has it open; no other process may read it
        return command

    def _with_spent(
        self,
        report: Json,
        item: WorkItemAnswer,
        heartbeat: Heartbeat,
        metered: Metered | None,
    ) -> Json:
        """Return a report with what was measured, or else with what the agent has told so far."""
        if metered is not None and metered.spent is not None:
            self._tell(Step("measured", spent_line(metered.spent), item))
            return measured_report(report, metered.spent)
        if metered is not None:
            self._tell(Step("measured", NOTHING_MEASURED, item))
        told = max(report["tokens_used"], heartbeat.tokens_used)
        return {**report, "tokens_used": told}

    def _lay_out(self, item: WorkItemAnswer, desk: Path) -> Workspace:
        """Create the work tree; waits for a commit that is not yet on the remote."""
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

    def _why_stopped(
        self, mail: Mail | None, heartbeat: Heartbeat, exit_code: int, metered: Metered | None
    ) -> str | None:
        """Return why a command's work does not count; None when the command ended by itself."""
        if mail is None:
            minutes = self._orders.timeout_seconds / 60
            return f"The command was stopped: it did not end within {minutes:g} minutes."
        refusal = metered.account.refusal if metered is not None else None
        if mail is Mail.OUT_OF_BUDGET:
            return f"The command was stopped: {heartbeat.reason or refusal}."
        # Its own message is of a rate limit, but it has failed: another try finds no budget either.
        if refusal is not None and exit_code:
            return f"The command ended with exit code {exit_code}: {refusal}"
        return None

    def _report(
        self, item: WorkItemAnswer, agent: Agent, ended: Ended, answer: Path
    ) -> Json | None:
        """Return the result to submit; pause the agent's account if it has no capacity."""
        if item.role == "builder":
            built = with_last_words(*_read(answer, BuilderFile, ended))
            ended = self._weigh(item, agent, ended, has_answer=built[0] != BuilderFile())
            return self._after_rest(agent, builder_report(item, ended, *built))
        judged = with_last_words(*_read(answer, AuditorFile, ended))
        has_answer = judged[0] != AuditorFile()
        if not ended.exit_code:
            has_answer = has_answer or last_word(ended.stdout) is not None
        ended = self._weigh(item, agent, ended, has_answer=has_answer)
        report = auditor_report(item, ended, *judged)
        if report is not None:
            return self._after_rest(agent, report)
        why = ended.failure or f"The command gave no verdict (exit code {ended.exit_code})."
        lapses = f"{why} Its lease will lapse, which uses a try{last_line(ended)}"
        self._tell(Step("no_verdict", lapses, item))
        return None

    def _weigh(
        self, item: WorkItemAnswer, agent: Agent, ended: Ended, *, has_answer: bool
    ) -> Ended:
        """Mark an agent that could not work, in contrast to one that failed. (rules §3.2)"""
        messages = tuple(item.unavailable_messages.get(agent.kind or "", ()))
        known = KNOWN_AGENTS.get(agent.kind or "")
        why = why_unavailable(
            ended,
            messages,
            has_answer=has_answer,
            hides_failure=known is not None and known.hides_failure,
        )
        return ended if why is None else replace(ended, unavailable=why)

    def _after_rest(self, agent: Agent, report: Json) -> Json:
        """Pause an account without capacity; add to the result until when, and the account."""
        if "unavailable" not in (report.get("status"), report.get("recommendation")):
            self._cooling.has_worked(agent)
            return report
        pause = self._cooling.rest(agent, report["reason"] or "no reason was given")
        until = datetime.now(UTC) + timedelta(seconds=pause)
        given = report["retry_at"]
        if given is not None:
            until = max(until, datetime.fromisoformat(given))
            self._cooling.rest_until(agent, until)
        return {**report, "retry_at": until.isoformat(), "account": agent.account}

    def _give_up(self, item: WorkItemAnswer, why: str) -> None:
        """Release a work item that was not worked on: it uses no try."""
        self._tell(Step("given_up", why, item))
        assert item.lease is not None  # noqa: S101 - for the type checker: it was claimed
        body = {"lease_token": item.lease.token, "reason": why}
        give = partial(
            self._service.release,
            item.run_id,
            item.phase_id,
            body,
            idempotency_key=uuid.uuid4().hex,
        )
        try:
            self._ask(give)
        except ApiError as error:
            self._tell(Step("refused", f"refused: {error}", item))

    def _hand_in(self, item: WorkItemAnswer, report: Json, words: str = "") -> bool:
        """Submit a result until it is answered; with one idempotency key, so that it counts once.

        `words`: the agent's last line. Returns whether it was accepted and is not a failure.
        """
        try:
            phase_state = self._ask(partial(self._submit, item, report, uuid.uuid4().hex))
        except ApiError as error:
            return self._handle_refusal(item, report, error)
        what = report.get("status") or report["recommendation"]
        why = f" ({report['reason']})" if report.get("reason") else ""
        # The reason of an agent that could not work has its last line already.
        said = f"; the agent said{words}" if words and not why else ""
        self._tell(
            Step("handed_in", f"submitted: {what}{why}; the phase is {phase_state}{said}", item)
        )
        return what not in ("failed", "unavailable")

    def _submit(self, item: WorkItemAnswer, report: Json, key: str) -> str:
        if item.role == "builder":
            return self._service.submit_builder_result(
                item.run_id, item.phase_id, report, idempotency_key=key
            ).phase_state
        return self._service.submit_auditor_result(
            item.run_id, item.phase_id, report, idempotency_key=key
        ).phase_state

    def _handle_refusal(self, item: WorkItemAnswer, report: Json, error: ApiError) -> bool:
        """Handle a refusal; if it used no try of the Builder, submit a failed one."""
        self._tell(Step("refused", f"refused: {error}", item))
        if error.status in (401, 403):
            raise error
        if error.code in _NOT_THIS_AGENT:
            self._give_up(item, f"It needs another agent: {error}.")
            if not report.get("model"):  # else the next claim names it, and gets other work
                raise WorkerError(str(error)) from error
            return False
        is_dealt_with = error.status in (404, 409) or error.code in _COUNTED
        if item.role == "builder" and not is_dealt_with and report["status"] != "failed":
            why = f"The service refused the result: {error}"
            self._hand_in(item, refused_report(item, report, why))
        return False

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        """Send a request until the service answers. Raises ApiError for refusals, _Interrupted."""
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
                if internal_errors > MAX_INTERNAL_ERRORS or not (
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


def wait_line(step: NextStep, roles: Collection[Role]) -> str:
    """Return what a run waits for, until when, and the option that an idle role lacks."""
    line = step.detail
    if step.until is not None:
        line += f", until {step.until.astimezone():%Y-%m-%d %H:%M}"
    for role, action in (("auditor", NextAction.AUDIT), ("builder", NextAction.BUILD)):
        if step.action is action and step.agent is None and role not in roles:
            line += f"; start one with --{role}"
    return line


def _spent(metered: Metered | None, answer: Path) -> tuple[int, Decimal | None]:
    """Return the tokens and the cost so far: those that were measured, else those told."""
    if metered is not None and (spent := metered.spent) is not None:
        return spent.usage.tokens, spent.cost_usd
    return reported_tokens(answer), None


def _harvest(workspace: Workspace, item: WorkItemAnswer) -> tuple[Harvest, str | None]:
    """Return what the agent has changed, or why it cannot be submitted."""
    limits = PatchLimits(item.gate.max_patch_files, item.gate.max_patch_bytes)
    try:
        return workspace.harvest(limits, opened=item.gate.opened_paths), None
    except TooMuchChangedError as error:
        return Harvest(b""), f"The changes are too large: {error}."
    except WorkspaceError as error:
        return Harvest(b""), f"The changes cannot be read: {error}."


def _read(answer: Path, kind: type[AnyFile], ended: Ended) -> tuple[AnyFile, str, str | None]:
    file, remark = read_result(answer, kind)
    return file, ended.stdout, remark


def _patch_under(review: ReviewAnswer | None) -> bytes | None:
    """Return the patch under review if it is not on the branch yet."""
    if review is None or not review.is_pending:
        return None
    if review.patch_content_base64:
        return base64.b64decode(review.patch_content_base64)
    return (review.patch_content or "").encode()
