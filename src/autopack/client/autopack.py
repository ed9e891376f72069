"""One method for each operation of the HTTP API, with its name. (docs/cli.md)"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from ..views import Shape
from ..views.attention import AttentionAnswer, DismissalAnswer
from ..views.branches import IntegrationStatusAnswer, PatchCheckAnswer, RollbackAnswer
from ..views.events import EventAnswer, EventPage
from ..views.figures import CostsAnswer, QualityAnswer
from ..views.incident import IncidentPack
from ..views.issues import (
    BacklogAnswer,
    BacklogEntryAnswer,
    BacklogIssueAnswer,
    IssueIndexAnswer,
    RecordIssueAnswer,
)
from ..views.keys import AuditPage, CallerAnswer, KeyAnswer, KeysAnswer, SecretKeyAnswer
from ..views.metrics import RunMetricsPage, TierMetricsListAnswer
from ..views.project import (
    BacktestAnswer,
    DryRunAnswer,
    ProtectedPathsAnswer,
    RulesetDiffAnswer,
    RulesetVersionsAnswer,
)
from ..views.projects import ProjectAnswer, ProjectsAnswer
from ..views.promotion import PromotionAnswer
from ..views.reports import (
    BacklogSummaryAnswer,
    BudgetAnalysisAnswer,
    RunReportAnswer,
)
from ..views.results import (
    AttemptsAnswer,
    AuditorResultAnswer,
    AuditRequestAnswer,
    BuilderResultAnswer,
    CiResultAnswer,
    CiRunsAnswer,
    TimelineAnswer,
)
from ..views.runs import PhaseReport, RunAnswer, RunPage, StatusAnswer
from ..views.service import HealthAnswer, LiveAnswer, NodeAnswer, NodesAnswer, ServiceAnswer
from ..views.webhooks import (
    DeliveriesAnswer,
    DeliveryAnswer,
    SecretWebhookAnswer,
    WebhookAnswer,
    WebhooksAnswer,
)
from ..views.work import WAITS_HEADER, HeartbeatAnswer, ReleaseAnswer, WorkItemAnswer
from .connection import (
    FIRST_PAUSE_SECONDS,
    RETRIES,
    TIMEOUT_SECONDS,
    Body,
    Connection,
    is_away,
    new_key,
    unreadable,
)
from .documents import parse_document
from .errors import ApiError, ClientError, UnreachableError
from .messages import MEDIA_TYPE, Message, read_messages

BACKTEST_SECONDS = 600.0  # a thousand long runs take long
EVENTS_A_PAGE = 1_000
POLL_SECONDS = 1.0

Role = Literal["builder", "auditor"]
Answer = TypeVar("Answer", bound=Shape)


class Autopack:
    """A client of the service. Close it, or use it in a `with` statement.

    `url` is that of AUTOPACK_URL, API_URL or the operator's autopack.toml when it is not given,
    else http://localhost:8000. `api_key` is that of AUTOPACK_API_KEY, of the file
    AUTOPACK_API_KEY_FILE, or of `autopack login` when it is not given; "" is none.
    `project` is that of AUTOPACK_PROJECT when it is not given, "" the default one; an address that
    ends in `/projects/NAME` names it itself. Bodies are
    mappings, or models that write themselves as JSON. A repeatable request without an answer or
    with 503 is sent again, up to `retries` times, with longer and longer pauses; so is one with 502
    or 504, which are a proxy's. An operation that accepts an Idempotency-Key gets one, which makes
    it repeatable.

    Every method raises ApiError for a refusal and UnreachableError when there is no answer.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        project: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(
            url,
            api_key=api_key,
            project=project,
            timeout=timeout,
            retries=retries,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @property
    def address(self) -> str:
        """The service's address."""
        return self._connection.address

    @property
    def is_in_clear(self) -> bool:
        """Whether others on the way can read what is sent: no TLS, and another machine."""
        return self._connection.is_in_clear

    # The service itself

    def service(self) -> ServiceAnswer:
        return self._get(ServiceAnswer, "/")

    def health(self) -> HealthAnswer:
        """Return the health of all parts; an unhealthy service is not an error here."""
        response = self._connection.send("GET", "/health", expected=(503,))
        return _read(HealthAnswer, response)

    def live(self) -> LiveAnswer:
        return self._get(LiveAnswer, "/health/live")

    # Keys

    def attention(self) -> AttentionAnswer:
        """Read what needs a person."""
        return self._get(AttentionAnswer, "/attention")

    def dismiss(self, item: str) -> DismissalAnswer:
        """Dismiss an item about a run that is over."""
        return self._post(
            DismissalAnswer, f"/attention/{_quoted(item)}/dismiss", is_repeatable=True
        )

    def whoami(self) -> CallerAnswer:
        return self._get(CallerAnswer, "/whoami")

    def list_keys(self) -> KeysAnswer:
        return self._get(KeysAnswer, "/keys")

    def create_key(self, key: Body) -> SecretKeyAnswer:
        """Make a key: `name`, `roles`, `project_id`, `expires_at`. The answer alone has it."""
        return self._post(SecretKeyAnswer, "/keys", key)

    def revoke_key(self, name: str) -> KeyAnswer:
        return self._post(KeyAnswer, f"/keys/{_quoted(name)}/revoke", is_repeatable=True)

    def rotate_key(self, name: str) -> SecretKeyAnswer:
        return self._post(SecretKeyAnswer, f"/keys/{_quoted(name)}/rotate")

    def list_webhooks(self) -> WebhooksAnswer:
        return self._get(WebhooksAnswer, "/webhooks")

    def create_webhook(self, webhook: Body) -> SecretWebhookAnswer:
        """Make a webhook; the answer tells its secret, this once."""
        return self._post(SecretWebhookAnswer, "/webhooks", webhook)

    def remove_webhook(self, name: str) -> WebhookAnswer:
        return self._post(WebhookAnswer, f"{_webhook(name)}/remove")

    def enable_webhook(self, name: str) -> WebhookAnswer:
        """Switch a webhook on again that was switched off since its receiver failed."""
        return self._post(WebhookAnswer, f"{_webhook(name)}/enable", is_repeatable=True)

    def test_webhook(self, name: str) -> DeliveryAnswer:
        """Send a test message."""
        return self._post(DeliveryAnswer, f"{_webhook(name)}/test")

    def deliveries(
        self, name: str, *, limit: int = 100, cursor: str | None = None
    ) -> DeliveriesAnswer:
        """Read the last deliveries of a webhook."""
        path = f"{_webhook(name)}/deliveries"
        return self._get(DeliveriesAnswer, path, limit=limit, cursor=cursor)

    def redeliver(self, name: str, message_id: str) -> DeliveryAnswer:
        """Deliver a message again, under the same id."""
        path = f"{_webhook(name)}/deliveries/{_quoted(message_id)}/redeliver"
        return self._post(DeliveryAnswer, path)

    def audit(self, *, limit: int = 100, cursor: str | None = None) -> AuditPage:
        return self._get(AuditPage, "/audit", limit=limit, cursor=cursor)

    # Nodes

    def list_nodes(self) -> NodesAnswer:
        return self._get(NodesAnswer, "/nodes")

    def remove_node(self, node_id: str) -> NodeAnswer:
        """Remove a node that is gone; a second time it is an ApiError of the status 404."""
        return _read(NodeAnswer, self._connection.send("DELETE", f"/nodes/{_quoted(node_id)}"))

    # Projects

    def list_projects(self) -> ProjectsAnswer:
        return self._get(ProjectsAnswer, "/projects")

    def get_project(self, project: str) -> ProjectAnswer:
        return self._get(ProjectAnswer, _project(project))

    def create_project(self, project: Body) -> ProjectAnswer:
        """Add a project: `name`, `repository`, `base_branch`, `git_remote`."""
        return self._post(ProjectAnswer, "/projects", project)

    def change_project(self, project: str, wanted: Body) -> ProjectAnswer:
        """Give a project another `repository`, `base_branch` and `git_remote`."""
        response = self._connection.send("PUT", _project(project), body=wanted, is_repeatable=True)
        return _read(ProjectAnswer, response)

    def close_project(self, project: str) -> ProjectAnswer:
        """Stop serving a project without live runs; what it has is kept."""
        return self._post(ProjectAnswer, f"{_project(project)}/close")

    def reopen_project(self, project: str) -> ProjectAnswer:
        return self._post(ProjectAnswer, f"{_project(project)}/reopen")

    # Runs

    def start_run(self, plan: Body | str) -> RunAnswer:
        """Start a run; the same plan again returns the run that it started.

        A plan may be a file's text, JSON or YAML. Raises DocumentError too.
        """
        body = parse_document(plan) if isinstance(plan, str) else plan
        return self._post(RunAnswer, "/runs/start", body, is_repeatable=True)

    def list_runs(
        self,
        *,
        status: str | None = None,
        failure_code: str | None = None,
        promotion: str | None = None,
        project_id: str | None = None,
        live: bool | None = None,
        ended_since: str | None = None,
        text: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> RunPage:
        query: dict[str, str | None] = {
            "status": status,
            "failure_code": failure_code,
            "promotion": promotion,
            "project_id": project_id,
            "live": None if live is None else str(live).lower(),
            "ended_since": ended_since,
            "text": text,
        }
        return self._get(RunPage, "/runs", **query, limit=limit, cursor=cursor)

    def get_run(self, run_id: str) -> RunAnswer:
        return self._get(RunAnswer, _run(run_id))

    def cancel(self, run_id: str, reason: str = "") -> RunAnswer:
        return self._post(RunAnswer, f"{_run(run_id)}/cancel", {"reason": reason})

    def continue_run(self, run_id: str, choice: Body | None = None) -> RunAnswer:
        """Continue a failed run as a new one; the same call again returns that run."""
        return self._post(RunAnswer, f"{_run(run_id)}/continue", choice or {}, is_repeatable=True)

    def rebase_run(self, run_id: str, choice: Body | None = None) -> RunAnswer:
        """Make a run's branch again on today's base; the same call again returns the same run."""
        return self._post(RunAnswer, f"{_run(run_id)}/rebase", choice or {}, is_repeatable=True)

    def rollback(
        self, run_id: str, to_phase: str, reason: str = "", *, idempotency_key: str | None = None
    ) -> RollbackAnswer:
        body = {"to_phase": to_phase, "reason": reason}
        return self._post_once(RollbackAnswer, f"{_run(run_id)}/rollback", body, idempotency_key)

    def events(self, run_id: str, *, after: int = 0) -> Iterator[EventAnswer]:
        """Yield a run's present events in order, from after a sequence number."""
        is_last = False
        while not is_last:
            page = self.event_page(run_id, limit=EVENTS_A_PAGE, after=after)
            for event in page.events:
                after = event.sequence
                yield event
            is_last = page.next_cursor is None

    def event_page(
        self, run_id: str, *, limit: int = 100, cursor: str | None = None, after: int | None = None
    ) -> EventPage:
        path = f"{_run(run_id)}/events"
        return self._get(EventPage, path, limit=limit, cursor=cursor, after=after)

    def follow(self, run_id: str, *, after: int = 0) -> Iterator[EventAnswer]:
        """Yield a run's events live; ends when the run is over and all its events were sent.

        Resumes after a broken connection. If the service has no free stream, it polls the events.
        """
        failures = 0  # since the last event
        while failures <= self._connection.retries:
            if failures:
                time.sleep(FIRST_PAUSE_SECONDS * 2**failures)
            failures += 1
            headers = {"Accept": MEDIA_TYPE, "Last-Event-ID": str(after)}
            try:
                with self._connection.stream(f"{_run(run_id)}/events", headers) as response:
                    if not response.headers.get("Content-Type", "").startswith(MEDIA_TYPE):
                        break
                    for message in read_messages(response.iter_lines()):
                        if message.event == "end":
                            return
                        event = _read_event(message, response)
                        after, failures = event.sequence, 0
                        yield event
            except ApiError as error:
                if error.status == 503:
                    break
                if not is_away(error.status):
                    raise
            except UnreachableError:
                continue
        yield from self._poll(run_id, after)

    def _poll(self, run_id: str, after: int) -> Iterator[EventAnswer]:
        is_over = False
        while True:
            for event in self.events(run_id, after=after):
                after = event.sequence
                yield event
            if is_over:
                return
            is_over = self.get_run(run_id).state.is_final  # the last events are then read
            time.sleep(0 if is_over else POLL_SECONDS)

    # Work

    def claim(
        self,
        role: Role,
        agent: str,
        *,
        run_id: str | None = None,
        lease_seconds: int = 900,
        account: str | None = None,
        model: str | None = None,
        on_waits: Callable[[str], None] | None = None,
        idempotency_key: str | None = None,
    ) -> WorkItemAnswer | None:
        """Claim the next work item, of one run or of any; None when there is none now.

        `account`: a label of the account whose limits the agent shares. `on_waits` is called with
        the review that waits for another Auditor than this one, and why. `idempotency_key`: of a
        claim that is repeated until it finds work; take another one after each item.
        """
        path = "/claim" if run_id is None else f"{_run(run_id)}/claim"
        body: dict[str, str | int] = {"role": role, "agent": agent, "lease_seconds": lease_seconds}
        if account is not None:
            body["account"] = account
        if model is not None:
            body["model"] = model
        key = idempotency_key or new_key()
        response = self._connection.send("POST", path, body=body, key=key, is_repeatable=True)
        waits = response.headers.get(WAITS_HEADER)
        if waits and on_waits is not None:
            on_waits(waits)
        return _read_any(WorkItemAnswer, response)

    def next_phase(self, run_id: str, role: Role = "builder") -> WorkItemAnswer | None:
        """Return the work item that a claim would return; None when there is none now."""
        response = self._connection.send(
            "GET", f"{_run(run_id)}/next_phase", query={"role": role}, is_repeatable=True
        )
        return _read_any(WorkItemAnswer, response)

    def heartbeat(
        self,
        run_id: str,
        phase_id: str,
        lease_token: str,
        tokens_used: int = 0,
        cost_usd: Decimal | None = None,
    ) -> HeartbeatAnswer:
        """Extend a lease; both figures are what this attempt used since its claim."""
        body: dict[str, str | int] = {"lease_token": lease_token, "tokens_used": tokens_used}
        if cost_usd is not None:
            body["cost_usd"] = str(cost_usd)
        path = f"{_phase(run_id, phase_id)}/heartbeat"
        return self._post(HeartbeatAnswer, path, body, is_repeatable=True)

    def release(
        self, run_id: str, phase_id: str, release: Body, *, idempotency_key: str | None = None
    ) -> ReleaseAnswer:
        """Release a lease without using a try: `lease_token`, `reason`, `retry_at`, `account`."""
        path = f"{_phase(run_id, phase_id)}/release"
        return self._post_once(ReleaseAnswer, path, release, idempotency_key)

    # Results

    def submit_builder_result(
        self, run_id: str, phase_id: str, report: Body, *, idempotency_key: str | None = None
    ) -> BuilderResultAnswer:
        path = f"{_phase(run_id, phase_id)}/builder_result"
        return self._post_once(BuilderResultAnswer, path, report, idempotency_key)

    def request_audit(
        self,
        run_id: str,
        phase_id: str,
        request: Body | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> AuditRequestAnswer:
        path = f"{_phase(run_id, phase_id)}/auditor_request"
        return self._post_once(AuditRequestAnswer, path, request or {}, idempotency_key)

    def submit_auditor_result(
        self, run_id: str, phase_id: str, report: Body, *, idempotency_key: str | None = None
    ) -> AuditorResultAnswer:
        path = f"{_phase(run_id, phase_id)}/auditor_result"
        return self._post_once(AuditorResultAnswer, path, report, idempotency_key)

    def submit_ci_result(
        self, run_id: str, phase_id: str, report: Body, *, idempotency_key: str | None = None
    ) -> CiResultAnswer:
        path = f"{_phase(run_id, phase_id)}/ci_result"
        return self._post_once(CiResultAnswer, path, report, idempotency_key)

    def get_phase(self, run_id: str, phase_id: str) -> PhaseReport:
        return self._get(PhaseReport, _phase(run_id, phase_id))

    def timeline(self, run_id: str) -> TimelineAnswer:
        return self._get(TimelineAnswer, f"{_run(run_id)}/timeline")

    def patch(self, run_id: str, patch_id: int) -> bytes:
        """Return a patch that an agent sent, on the branch or not."""
        path = f"{_run(run_id)}/patches/{patch_id}"
        return self._connection.send("GET", path, is_repeatable=True).content

    def attempts(self, run_id: str, phase_id: str) -> AttemptsAnswer:
        return self._get(AttemptsAnswer, f"{_phase(run_id, phase_id)}/attempts")

    def update_status(self, run_id: str, phase_id: str, change: Body) -> StatusAnswer:
        path = f"{_phase(run_id, phase_id)}/update_status"
        return self._post(StatusAnswer, path, change)

    # Issues

    def record_issue(
        self, run_id: str, phase_id: str, issue: Body, *, idempotency_key: str | None = None
    ) -> RecordIssueAnswer:
        path = f"{_phase(run_id, phase_id)}/record_issue"
        return self._post_once(RecordIssueAnswer, path, issue, idempotency_key)

    def issue_index(self, run_id: str) -> IssueIndexAnswer:
        return self._get(IssueIndexAnswer, f"{_run(run_id)}/issues/index")

    def backlog(
        self,
        *,
        status: str | None = None,
        category: str | None = None,
        severity: str | None = None,
        text: str | None = None,
        order: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> BacklogAnswer:
        query = {
            **{"status": status, "category": category, "severity": severity},
            **{"text": text, "order": order},
        }
        return self._get(
            BacklogAnswer, "/project/issues/backlog", **query, limit=limit, cursor=cursor
        )

    def get_issue(self, issue_key: str) -> BacklogIssueAnswer:
        """Return an issue of the backlog. Raises ClientError for `backlog`, the list's path."""
        if issue_key == "backlog":
            raise ClientError("an issue 'backlog' cannot be read alone: list the backlog")
        return self._get(BacklogIssueAnswer, f"/project/issues/{_quoted(issue_key)}")

    def resolve_issue(self, issue_key: str) -> BacklogEntryAnswer:
        path = f"/project/issues/{_quoted(issue_key)}/resolve"
        return self._post(BacklogEntryAnswer, path, is_repeatable=True)

    def reopen_issue(self, issue_key: str) -> BacklogEntryAnswer:
        path = f"/project/issues/{_quoted(issue_key)}/reopen"
        return self._post(BacklogEntryAnswer, path, is_repeatable=True)

    # Branches

    def integration_status(self, run_id: str) -> IntegrationStatusAnswer:
        return self._get(IntegrationStatusAnswer, f"{_run(run_id)}/integration_status")

    def diff(self, run_id: str, phase_id: str | None = None) -> bytes:
        """Return the changes of a run, or of one phase, as a patch that git applies."""
        response = self._connection.send(
            "GET", f"{_run(run_id)}/diff", query={"phase_id": phase_id}, is_repeatable=True
        )
        return response.content

    def ci_runs(self, run_id: str) -> CiRunsAnswer:
        return self._get(CiRunsAnswer, f"{_run(run_id)}/ci")

    def ci_log(self, run_id: str, ci_run_id: int, *, tail: int | None = None) -> bytes:
        """Return the log of a CI run, or its last lines."""
        path = f"{_run(run_id)}/ci/{ci_run_id}/log"
        return self._connection.send("GET", path, query={"tail": tail}, is_repeatable=True).content

    def patch_check(self, run_id: str, check: Body) -> PatchCheckAnswer:
        path = f"{_run(run_id)}/patch_check"
        return self._post(PatchCheckAnswer, path, check, is_repeatable=True)

    def promotion(self, run_id: str) -> PromotionAnswer:
        return self._get(PromotionAnswer, f"{_run(run_id)}/promotion")

    def incident(self, run_id: str) -> IncidentPack:
        return self._get(IncidentPack, f"{_run(run_id)}/incident")

    def incident_page(self, run_id: str) -> bytes:
        """Return the incident pack as Markdown."""
        path = f"{_run(run_id)}/incident.md"
        return self._connection.send("GET", path, is_repeatable=True).content

    # Policy

    def get_ruleset(self) -> dict[str, Any]:
        """Return the project's ruleset in the form that `put_ruleset` accepts."""
        return _document(self._connection.send("GET", "/project/ruleset", is_repeatable=True))

    def ruleset_diff(self, ruleset: Body) -> RulesetDiffAnswer:
        """Return which fields a ruleset would change of the one in force."""
        body = {"ruleset": ruleset}
        return self._post(RulesetDiffAnswer, "/project/ruleset/diff", body, is_repeatable=True)

    def ruleset_versions(
        self, *, limit: int = 20, cursor: str | None = None
    ) -> RulesetVersionsAnswer:
        path = "/project/ruleset/versions"
        return self._get(RulesetVersionsAnswer, path, limit=limit, cursor=cursor)

    def protected_paths(self) -> ProtectedPathsAnswer:
        return self._get(ProtectedPathsAnswer, "/project/protected_paths")

    def put_ruleset(self, ruleset: Body) -> dict[str, Any]:
        """Replace the whole ruleset; missing fields get their defaults."""
        return _document(
            self._connection.send("PUT", "/project/ruleset", body=ruleset, is_repeatable=True)
        )

    def dry_run(
        self, plan: Mapping[str, Any], ruleset: Mapping[str, Any] | None = None
    ) -> DryRunAnswer:
        """Compile a plan's strategy, under another ruleset if one is given; start nothing."""
        body = dict(plan) if ruleset is None else {**plan, "ruleset": ruleset}
        return self._post(DryRunAnswer, "/strategy/dry_run", body, is_repeatable=True)

    def backtest(
        self,
        ruleset: Mapping[str, Any],
        *,
        run_ids: Sequence[str] = (),
        limit: int | None = None,
        changed_only: bool = False,
    ) -> BacktestAnswer:
        """Decide finished runs again under a ruleset: these, else the newest."""
        body: dict[str, Any] = {"ruleset": ruleset}
        if run_ids:
            body["run_ids"] = list(run_ids)
        if limit is not None:
            body["limit"] = limit
        if changed_only:
            body["changed_only"] = True
        response = self._connection.send(
            "POST", "/strategy/backtest", body=body, is_repeatable=True, timeout=BACKTEST_SECONDS
        )
        return _read(BacktestAnswer, response)

    # Figures and reports

    def metrics_runs(
        self, *, status: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> RunMetricsPage:
        return self._get(RunMetricsPage, "/metrics/runs", status=status, limit=limit, cursor=cursor)

    def costs(
        self,
        *,
        by: str = "model",
        start: str | None = None,
        end: str | None = None,
        limit: int = 100,
    ) -> CostsAnswer:
        query = {"by": by, "from": start, "to": end, "limit": limit}
        return self._get(CostsAnswer, "/metrics/costs", **query)

    def quality(self, *, start: str | None = None, end: str | None = None) -> QualityAnswer:
        return self._get(QualityAnswer, "/metrics/quality", **{"from": start, "to": end})

    def metrics_tiers(self, run_id: str) -> TierMetricsListAnswer:
        return self._get(TierMetricsListAnswer, f"/metrics/tiers/{_quoted(run_id)}")

    def issue_backlog_summary(
        self, *, limit: int = 100, cursor: str | None = None
    ) -> BacklogSummaryAnswer:
        path = "/reports/issue_backlog_summary"
        return self._get(BacklogSummaryAnswer, path, limit=limit, cursor=cursor)

    def budget_analysis(
        self, *, limit: int = 100, cursor: str | None = None
    ) -> BudgetAnalysisAnswer:
        return self._get(
            BudgetAnalysisAnswer, "/reports/budget_analysis", limit=limit, cursor=cursor
        )

    def run_summary(self, run_id: str) -> RunReportAnswer:
        return self._get(RunReportAnswer, f"/reports/run_summary/{_quoted(run_id)}")

    def _get(self, shape: type[Answer], path: str, **query: str | int | None) -> Answer:
        return _read(shape, self._connection.send("GET", path, query=query, is_repeatable=True))

    def _post(
        self,
        shape: type[Answer],
        path: str,
        body: Body | None = None,
        *,
        is_repeatable: bool = False,
    ) -> Answer:
        response = self._connection.send("POST", path, body=body, is_repeatable=is_repeatable)
        return _read(shape, response)

    def _post_once(
        self, shape: type[Answer], path: str, body: Body, idempotency_key: str | None
    ) -> Answer:
        """Post a request with an idempotency key, so that it has one effect if it is repeated."""
        key = idempotency_key or new_key()
        response = self._connection.send("POST", path, body=body, key=key, is_repeatable=True)
        return _read(shape, response)


def _run(run_id: str) -> str:
    return f"/runs/{_quoted(run_id)}"


def _phase(run_id: str, phase_id: str) -> str:
    return f"{_run(run_id)}/phases/{_quoted(phase_id)}"


def _project(name: str) -> str:
    return f"/projects/{_quoted(name)}"


def _webhook(name: str) -> str:
    return f"/webhooks/{_quoted(name)}"


def _quoted(name: str) -> str:
    """Return a name quoted as one part of a path; `.` and `..` cannot change the path.

    Raises ClientError for an empty name.
    """
    if not name:
        raise ClientError("an id is empty")
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")


def _read(shape: type[Answer], response: httpx.Response) -> Answer:
    document = _document(response)
    try:
        return shape.model_validate(document)
    except ValidationError as error:
        raise unreadable(response, f"that is not a {shape.__name__}: {error}") from error


def _read_event(message: Message, response: httpx.Response) -> EventAnswer:
    try:
        return EventAnswer.model_validate_json(message.data)
    except ValidationError as error:
        raise unreadable(response, f"a message that is not an event: {error}") from error


def _read_any(shape: type[Answer], response: httpx.Response) -> Answer | None:
    return None if response.status_code == 204 else _read(shape, response)


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        raise unreadable(response, "no JSON") from None
    if not isinstance(document, dict):
        raise unreadable(response, "not a JSON object")
    return document
