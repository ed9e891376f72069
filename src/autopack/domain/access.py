"""Who may call what: roles, the one table of operations, callers. (docs/security.md)

An operation is named by its method and path in OpenAPI. Tools of MCP are named by the operation
whose use case they call, so they need no table of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from .errors import ForbiddenError
from .events import SUPERVISOR
from .limits import CallerLimits
from .terms import Role


class AccessRole(StrEnum):
    """What a key may be used for; a key may have several."""

    VIEWER = "viewer"
    BUILDER = "builder"
    AUDITOR = "auditor"
    CI = "ci"
    OPERATOR = "operator"


class MissingRoleError(ForbiddenError):
    code = "missing_role"


class WrongProjectError(ForbiddenError):
    code = "wrong_project"


_RUN: Final = "/runs/{run_id}"
_PHASE: Final = f"{_RUN}/phases/{{phase_id}}"
_ISSUE: Final = "/project/issues/{issue_key}"

# What is answered without a key: it says that the process runs, and nothing of its runs.
PUBLIC: Final = frozenset({"GET /health/live"})

# What each role adds. Every role may also do what the viewer may, the operator everything.
_OF_AGENTS: Final = (
    "POST /claim",
    f"POST {_RUN}/claim",
    f"POST {_PHASE}/heartbeat",
    f"POST {_PHASE}/release",
    f"POST {_RUN}/patch_check",
    f"POST {_PHASE}/auditor_request",
    f"POST {_PHASE}/record_issue",
)
GRANTS: Final[Mapping[AccessRole, tuple[str, ...]]] = {
    AccessRole.VIEWER: (
        "GET /",
        "GET /health",
        "GET /metrics",
        "GET /metrics/runs",
        "GET /metrics/tiers/{run_id}",
        "GET /attention",
        "GET /runs",
        f"GET {_RUN}",
        f"GET {_RUN}/events",
        "GET /events/stream",
        f"GET {_RUN}/timeline",
        f"GET {_RUN}/patches/{{patch_id}}",
        f"GET {_PHASE}",
        f"GET {_PHASE}/attempts",
        f"GET {_RUN}/issues/index",
        "GET /project/issues/backlog",
        f"GET {_ISSUE}",
        f"GET {_RUN}/ci",
        f"GET {_RUN}/ci/{{ci_run_id}}/log",
        f"GET {_RUN}/integration_status",
        f"GET {_RUN}/diff",
        f"GET {_RUN}/next_phase",
        f"GET {_RUN}/promotion",
        f"GET {_RUN}/incident",
        f"GET {_RUN}/incident.md",
        "GET /metrics/costs",
        "GET /metrics/quality",
        "GET /reports/issue_backlog_summary",
        "GET /reports/budget_analysis",
        "GET /reports/run_summary/{run_id}",
        "GET /project/ruleset",
        "GET /project/ruleset/versions",
        "POST /project/ruleset/diff",
        "GET /project/protected_paths",
        "POST /strategy/dry_run",
        "POST /strategy/backtest",
        "GET /whoami",
        "GET /projects",
        "GET /projects/{project}",
        "GET /nodes",
    ),
    AccessRole.BUILDER: (*_OF_AGENTS, f"POST {_PHASE}/builder_result"),
    AccessRole.AUDITOR: (*_OF_AGENTS, f"POST {_PHASE}/auditor_result"),
    AccessRole.CI: (f"POST {_PHASE}/ci_result",),
    AccessRole.OPERATOR: (
        "POST /runs/start",
        f"POST {_RUN}/continue",
        f"POST {_RUN}/rebase",
        f"POST {_RUN}/cancel",
        f"POST {_RUN}/rollback",
        f"POST {_PHASE}/update_status",
        f"POST {_ISSUE}/resolve",
        f"POST {_ISSUE}/reopen",
        "PUT /project/ruleset",
        "POST /attention/{item}/dismiss",
        "GET /keys",
        "POST /keys",
        "POST /keys/{name}/revoke",
        "POST /keys/{name}/rotate",
        "GET /audit",
        "POST /projects",
        "PUT /projects/{project}",
        "POST /projects/{project}/close",
        "POST /projects/{project}/reopen",
        "DELETE /nodes/{node_id}",
        "GET /webhooks",
        "POST /webhooks",
        "POST /webhooks/{name}/remove",
        "POST /webhooks/{name}/enable",
        "POST /webhooks/{name}/test",
        "GET /webhooks/{name}/deliveries",
        "POST /webhooks/{name}/deliveries/{message_id}/redeliver",
    ),
}


def _roles_of() -> dict[str, tuple[AccessRole, ...]]:
    operations = {operation for granted in GRANTS.values() for operation in granted}
    return {
        operation: tuple(
            role
            for role in AccessRole
            if role is AccessRole.OPERATOR
            or operation in GRANTS[role]
            or operation in GRANTS[AccessRole.VIEWER]
        )
        for operation in operations
    }


#: The roles of which a caller needs one, by operation.
ROLES_OF: Final[Mapping[str, tuple[AccessRole, ...]]] = _roles_of()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the key that came with the call, or a process that needs none (`key` is None).

    `project_id` is the one project that the caller may see, None: all of them. `role` is the one in
    which the caller does what was asked for, once that is known. A caller without a key is a
    process of `host`, known by the `name` that it gives itself, or the `subject` of a token that an
    issuer has signed (oidc.py).
    """

    roles: frozenset[AccessRole] = frozenset(AccessRole)
    key: str | None = None
    project_id: str | None = None
    role: AccessRole | None = None
    name: str | None = None
    host: str | None = None
    limits: CallerLimits | None = None
    subject: str | None = None

    @property
    def actor(self) -> str:
        """How events name the caller: `key:NAME:ROLE`, `oidc:SUBJECT:ROLE`, `local:NAME@HOST`, or
        `supervisor`.

        A caller without a key and a name is named by its role. One that has no role either is the
        service itself.
        """
        if self.holder is not None:
            return f"{self.holder}:{self.role}"
        name = self.name or self.role
        if name is None:
            return SUPERVISOR
        return f"local:{name}" if "@" in name or self.host is None else f"local:{name}@{self.host}"

    @property
    def holder(self) -> str | None:
        """Whose limits a call counts for: a key's or a subject's; None: no one's."""
        if self.key is not None:
            return f"key:{self.key}"
        return None if self.subject is None else f"oidc:{self.subject}"

    def named(self, name: str | None) -> Caller:
        """Return the caller under the name that it gives itself, which counts without a key."""
        return self if name is None else replace(self, name=name)

    def acting(self, operation: str) -> Caller:
        """Return the caller in the role by which it may do this. Raises MissingRoleError."""
        return self._acting(ROLES_OF[operation], operation)

    def claiming(self, role: Role) -> Caller:
        """Return the caller in the role that a claim is for. Raises MissingRoleError."""
        return self._acting((AccessRole(role), AccessRole.OPERATOR), f"a claim as {role}")

    @property
    def label(self) -> str:
        return f"key '{self.key}'" if self.subject is None else f"the token of '{self.subject}'"

    def _acting(self, accepted: tuple[AccessRole, ...], what: str) -> Caller:
        role = next((each for each in accepted if each in self.roles), None)
        if role is AccessRole.OPERATOR:
            role = accepted[0]  # an operator does an agent's work in the agent's role
        if role is None:
            own = ", ".join(each for each in AccessRole if each in self.roles)
            raise MissingRoleError(
                f"{what} needs the role {' or '.join(accepted)}; {self.label} has {own}",
                allowed=list(accepted),
            )
        return replace(self, role=role)


#: The service, for what no caller asked for: time that passes, background work.
SERVICE: Final = Caller()
