"""Every walk ends: random plans and agents over the real API, then everything is counted again.

`WALKS=500` in front of pytest makes it a long campaign of so many random examples.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, event, example, given
from hypothesis import settings as walking
from hypothesis import strategies as st
from tests.api.conftest import with_remote

from autopack.config import Settings

from ..recovery import consistency
from . import recount
from .test_figures import add_up, shown, spent
from .test_tampering import check

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx2 import Response
    from tests.api.conftest import Api

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

Json = dict[str, Any]
NOTES = "notes.txt"
LINES = [f"line {number}\n" for number in range(24)]
KEYS = ("flaky", "slow", "odd")
SOURCES = ("test", "probe", "ci", "ci", "static_check", "cursor_self_doubt", "auditor")
SECRET = "AKIA" + "Q3EGRTW5ZX7YV2BN"
PHASE_STATES = (
    "EXECUTING",
    "EXECUTING",
    "QUEUED",
    "EXECUTING",
    "GATE",
    "CI_RUNNING",
    "COMPLETE",
    "FAILED",
    "SKIPPED",
)


class Clock:
    """Time that passes when a test says so, and a little with every look at it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1_000)
        return self.now


# What is drawn: plain values only, so that a failing walk can be read and shrunk.

CATEGORIES = st.sampled_from(
    ["docs", "docs", "tests", None, "schema_change", "debt_cleanup", "security_auth_change", "x"]
)
ISSUE_CATEGORIES = st.sampled_from(["test_failure", "security_auth", "docs", "bulk_operation"])
RULES = st.fixed_dictionaries(
    {
        "max_builder_attempts": st.integers(1, 3),
        "max_auditor_attempts": st.integers(0, 2),
        "incident_token_cap": st.sampled_from([100, 1_000_000]),
        "auto_apply": st.sampled_from([True, True, False]),
        "approvals": st.sampled_from([1, 1, 2, 3]),
        "independence": st.sampled_from(["none", "none", "agent", "model"]),
    }
)
RULESETS = st.fixed_dictionaries(
    {
        "docs": st.none() | RULES,
        "default": st.none() | RULES,
        "minors_tolerated_per_phase": st.integers(0, 3),
        "majors_tolerated": st.integers(0, 2),
        "minor_issues_per_phase": st.integers(0, 3),
        "token_cap_factor": st.sampled_from([1, 3]),
        "audit_minutes": st.sampled_from([30, 60]),
        "ci_mode": st.sampled_from(["none", "external"]),
    }
)
PHASES = st.fixed_dictionaries(
    {
        "task_category": CATEGORIES,
        "complexity": st.sampled_from([None, "low", "medium", "high"]),
        "builder_mode": st.sampled_from([None, None, "compose", "tweak_light"]),
        "allow_empty": st.booleans(),
        "allowed_paths": st.sampled_from([None, None, None, ["src/**", NOTES]]),
        "expected_issues": st.sampled_from([[], [], ["flaky"], ["flaky", "odd"]]),
    }
)
PLANS = st.fixed_dictionaries(
    {
        "tiers": st.lists(
            st.integers(0, 9).flatmap(
                lambda drawn: st.lists(PHASES, min_size=min(drawn, 1), max_size=min(drawn, 3))
            ),
            min_size=1,
            max_size=3,
        ),
        "run_scope": st.sampled_from(["incremental", "multi_tier", "multi_tier", None, "single"]),
        "safety_profile": st.sampled_from(["normal", "normal", "safety_critical", None]),
        "token_cap": st.sampled_from([None, None, None, None, 60, 300]),
        "max_duration_minutes": st.sampled_from([None, 45, 400, 400, 400]),
    }
)
AGENTS = st.sampled_from([None, "codex@host", "claude@host", "gemini@host"])
TOKENS = st.integers(0, 24).map(
    lambda drawn: {
        20: "to_phase_cap",
        21: "over_phase_cap",
        22: "to_cap",
        23: "over",
        24: "0",
    }.get(drawn, "7")
)
ISSUES = st.lists(
    st.fixed_dictionaries(
        {
            "issue_key": st.sampled_from(KEYS),
            "severity": st.sampled_from([None, "minor", "minor", "major"]),
            "category": ISSUE_CATEGORIES,
            "source": st.sampled_from(SOURCES),
            "expected_fail": st.booleans(),
        }
    ),
    max_size=2,
)
PATCHES = st.sampled_from(
    [
        *["new", "new", "new", "edit", "edit", "edit", "edit", "stale", "stale", "stale"],
        *["conflict", "malformed", "policy", "secret", "binary", "many", "outside"],
        *["repeated", "repeated"],
    ]
)
LINE = st.integers(0, len(LINES) - 1)
BUILDS = st.tuples(
    st.just("build"),
    st.sampled_from([*["success"] * 6, "needs_review", "failed"]),
    st.one_of(st.none(), PATCHES, PATCHES, PATCHES, PATCHES),
    LINE,
    TOKENS,
    st.one_of(st.just([]), st.just([]), ISSUES),
    st.sampled_from(["", "", "", "", "key", "again"]),
    AGENTS,
)
REVIEWS = st.tuples(
    st.just("review"),
    st.sampled_from([*["approve"] * 6, *["revise"] * 4, "escalate"]),
    st.one_of(st.just([]), st.just([]), st.lists(PATCHES, min_size=1, max_size=2)),
    LINE,
    TOKENS,
    st.one_of(st.just([]), st.just([]), ISSUES),
    st.one_of(st.just([]), st.lists(st.integers(0, 7), max_size=2)),
    AGENTS,
)
VERDICTS = st.tuples(
    st.just("verdict"),
    st.sampled_from(["green", "green", "green", "red", "red", "flaky", "no tests", "did_not_run"]),
    st.sampled_from(["", "test_a", "test_b"]),
)
WORK = st.tuples(st.just("work"), BUILDS, REVIEWS, VERDICTS)
ELSEWHERE = st.one_of(st.none(), st.integers(0, 8))  # which phase: None is the one at hand
OTHERS = st.one_of(
    st.tuples(st.just("at"), ELSEWHERE, BUILDS),
    st.tuples(st.just("at"), ELSEWHERE, REVIEWS),
    st.tuples(st.just("issues"), ELSEWHERE, ISSUES),
    st.tuples(st.just("issues"), ELSEWHERE, ISSUES),
    st.tuples(st.just("status"), ELSEWHERE, st.sampled_from(PHASE_STATES), TOKENS),
    st.tuples(st.just("hand"), st.integers(0, 4)),
    st.tuples(st.just("hand"), st.integers(0, 4)),
    st.tuples(st.just("lapse"), st.booleans()),
    st.tuples(st.just("claim"), st.integers(1, 3_000)),
    st.tuples(st.just("claim"), st.integers(1, 3_000)),
    st.tuples(st.just("heartbeat"), TOKENS),
    st.tuples(st.just("heartbeat"), TOKENS),
    st.tuples(st.just("at"), ELSEWHERE, VERDICTS),
    st.tuples(st.just("request_review"), ELSEWHERE),
    st.tuples(st.just("wait"), st.sampled_from(["1", "29", "61", "deadline", "run"])),
    st.tuples(st.just("backlog"), st.sampled_from(KEYS), st.sampled_from(["resolve", "reopen"])),
    st.tuples(st.sampled_from(["cancel", "upkeep", "upkeep", "upkeep", "upkeep"])),
)
STEPS = st.builds(
    lambda choice, work, other: work if choice > 1 else other, st.integers(0, 4), WORK, OTHERS
)
SIGHTINGS = st.lists(st.tuples(st.just("issues"), ELSEWHERE, ISSUES), max_size=3)
WALKS = st.lists(
    st.tuples(
        PLANS,
        st.builds(list.__add__, SIGHTINGS, st.lists(STEPS, min_size=12, max_size=30)),
    ),
    min_size=1,
    max_size=4,
)
AFTERWARDS: list[Any] = [
    ("build", "success", "new", 0, "7", [], ""),
    ("review", "approve", [], 0, "7", [], []),
    ("review", "approve", ["new"], 0, "7", [], []),
    ("issues", None, [{"issue_key": "flaky", "category": "docs"}]),
    ("status", None, "EXECUTING", "7"),
    ("request_review", None),
    ("cancel",),
    ("rollback", 0),
    ("upkeep",),
    ("claim", 900),
    ("verdict", "green", ""),
]


# What chance meets too seldom, for sure: issues that grow old from run to run, agents who never
# come, fix-ups, merges, and a way back.
PLAIN_RULES: Json = {
    "docs": None,
    "default": None,
    "minors_tolerated_per_phase": 3,
    "majors_tolerated": 2,
    "minor_issues_per_phase": 3,
    "token_cap_factor": 3,
    "audit_minutes": 60,
    "ci_mode": "none",
}
PLAIN_PLAN: Json = {
    "tiers": [[{"task_category": "tests"}, {"task_category": "x"}], [{"task_category": "docs"}]],
    "run_scope": "multi_tier",
    "safety_profile": "normal",
    "token_cap": None,
    "max_duration_minutes": 400,
}
OLD_ISSUE = {
    "issue_key": "flaky",
    "severity": None,
    "category": "docs",
    "source": "test",
    "expected_fail": False,
}
CI_ISSUE = {**OLD_ISSUE, "issue_key": "odd", "source": "ci"}
TOUR: list[Any] = [
    ("issues", 0, [OLD_ISSUE]),
    ("issues", 2, [OLD_ISSUE]),
    ("lapse", True),
    ("build", "needs_review", "edit", 3, "7", [], "key"),
    ("build", "success", None, 0, "7", [], "again"),
    ("lapse", False),
    ("review", "revise", ["edit"], 20, "7", [OLD_ISSUE], [0]),
    ("build", "success", "new", 0, "7", [], ""),
    ("review", "approve", ["new"], 0, "7", [], []),
    ("build", "success", "stale", 11, "7", [], ""),
    ("review", "approve", [], 0, "7", [], []),
    ("build", "success", "conflict", 3, "7", [], ""),
    ("build", "success", "new", 0, "7", [], ""),
    ("review", "approve", [], 0, "7", [], []),
    ("rollback", 0),
]
# One key in three phases, of which CI raised two: a green verdict resolves that of its phase alone,
# a review every one; a red verdict is gone with the next patch; agents come with leases.
CI_RULES: Json = {**PLAIN_RULES, "ci_mode": "external"}
CI_TOUR: list[Any] = [
    ("issues", 0, [CI_ISSUE]),
    ("issues", 1, [CI_ISSUE]),
    ("issues", 2, [{**CI_ISSUE, "source": "test", "severity": "major"}]),
    ("claim", 900),
    ("heartbeat", "7"),
    ("build", "success", "new", 0, "7", [], ""),
    ("verdict", "red", "test_a"),
    ("build", "success", "new", 0, "7", [], ""),
    ("verdict", "flaky", "test_b"),
    ("build", "needs_review", "new", 0, "7", [], ""),
    ("claim", 900),
    ("review", "revise", [], 0, "7", [CI_ISSUE], [0, 1]),
    ("build", "success", "new", 0, "7", [CI_ISSUE], ""),
    ("verdict", "green", ""),
    ("build", "success", "new", 0, "7", [], ""),
    ("verdict", "red", "test_a"),
    ("build", "needs_review", "new", 0, "7", [], ""),
    ("hand", 1),
    ("rollback", 0),
]


# Two Auditors must approve: one builds what it may not review, one lets its review lapse, one sends
# the phase back after another's approval, one brings a patch of its own.
TWO_RULES: Json = {
    **CI_RULES,
    "default": {"approvals": 2, "auto_apply": False, "independence": "agent"},
    "docs": {"approvals": 2, "max_auditor_attempts": 3},
}
TWO_PLAN: Json = {**PLAIN_PLAN, "tiers": [[{"task_category": "x"}], [{"task_category": "docs"}]]}
TWO_TOUR: list[Any] = [
    ("build", "success", "new", 0, "7", [], "", "codex@host"),
    ("review", "approve", [], 0, "7", [], [], "codex@host"),
    ("review", "approve", [], 0, "7", [], [], "claude@host"),
    ("review", "approve", [], 0, "7", [], [], "claude@host"),
    ("review", "revise", [], 0, "7", [], [], "gemini@host"),
    ("build", "success", "new", 0, "7", [], "", "codex@host"),
    ("claim", 900),
    ("review", "approve", [], 0, "7", [], [], "claude@host"),
    ("lapse", True),
    ("review", "approve", [], 0, "7", [], [], "gemini@host"),
    ("verdict", "green", ""),
    ("build", "success", "new", 0, "7", [], "", "codex@host"),
    ("review", "approve", [], 0, "7", [], [], "claude@host"),
    ("verdict", "green", ""),
    ("build", "needs_review", "new", 0, "7", [], "", "codex@host"),
    ("review", "approve", [], 0, "7", [], [], "claude@host"),
    ("review", "approve", ["new"], 0, "7", [], [], "gemini@host"),
    ("review", "approve", [], 0, "7", [], [], "claude@host"),
    ("verdict", "green", ""),
]


@dataclass
class Walk:
    """One run on its way, by the service's answers alone."""

    api: Api
    clock: Clock
    run_id: str
    prefix: str
    plan: Json
    started: Json = field(init=False)
    run: Json = field(init=False)
    patches: dict[str, bytes] = field(default_factory=dict)
    operator: list[tuple[str, str, str]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    lease: Json | None = None
    _last_patch: bytes | None = None
    _last_result: tuple[str, Json, Json] | None = None
    _step: int = 0

    # Start and end

    def start(self) -> bool:
        """Post the plan; say whether it was taken."""
        response = self.api.client.post("/runs/start", json=self.plan)
        has_phases = bool(self.plan["phases"])
        scope = self.plan["run"].get("run_scope")
        is_sound = has_phases and not (scope == "single_tier" and len(self.plan["tiers"]) != 1)
        if not is_sound:
            self.api.refused(response, 422, "invalid_plan")
            return False
        assert response.status_code == 201, response.text
        self.started = self.run = response.json()
        return True

    @property
    def is_over(self) -> bool:
        return bool(self.run["state"].startswith("DONE"))

    def take(self, step: Any) -> None:
        """Take a step; whatever it asks, the answer is proper and the run stays whole."""
        self._step += 1
        before = self.run
        response = getattr(self, f"_{step[0]}")(*step[1:])
        if response is not None:
            self.answered(response)
        self.run = self.api.run(self.run_id)
        if before["state"].startswith("DONE"):
            for name in ("state", "tokens_used", "ended_at", "failure_reason", "tiers"):
                assert self.run[name] == before[name], name

    def answered(self, response: Response) -> None:
        status = response.status_code
        assert 200 <= status < 300 or 400 <= status < 500, response.text
        if status >= 400:
            problem = self.api.refused(response, status)
            event(f"refused: {problem['code']}")
            assert problem["code"] != "not_found" or "issue" in problem["detail"]

    def let_end(self) -> None:
        """Wait until the run's time is up at the latest."""
        if not self.is_over:
            self._wait("run")
            self.run = self.api.run(self.run_id)
        assert self.is_over, self.run["state"]
        assert self.run["ended_at"] is not None

    # Steps

    def _work(self, build: Any, review: Any, verdict: Any) -> Response:
        steps = {"GATE": review, "CI_RUNNING": verdict}
        return self._at(None, steps.get(self._at_hand()["state"], build))

    def _at(self, index: int | None, step: Any) -> Response:
        phase_id = self._phase(index)["phase_id"]
        acts: dict[str, Callable[..., Response]] = {
            "review": self._review,
            "build": self._build,
            "verdict": self._verdict,
        }
        return acts[step[0]](*step[1:], phase_id=phase_id)

    def _verdict(self, said: str, check: str, *, phase_id: str | None = None) -> Response:
        phase = self._phase(None) if phase_id is None else self._named(phase_id)
        body: Json = {
            "commit_sha": phase["commit"] or self.run["head_commit"],
            "verdict": said if said in ("red", "did_not_run") else "green",
            "failing_checks": [self.prefix + check] if check else [],
            "flaky": said == "flaky",
        }
        if said == "no tests":
            body["tests"] = {"total": 0}
        path = f"/runs/{self.run_id}/phases/{phase['phase_id']}/ci_result"
        key = f"verdict-{self._step}"  # two of the same words are two verdicts
        return self.api.client.post(path, json=body, headers={"Idempotency-Key": key})

    def _claim(self, seconds: int) -> Response:
        role = "auditor" if self._at_hand()["state"] == "GATE" else "builder"
        body = {"role": role, "agent": f"walker-{self._step % 3}", "lease_seconds": seconds}
        response = self.api.client.post(f"/runs/{self.run_id}/claim", json=body)
        if response.status_code == 200:
            item = response.json()
            self.lease = {"phase_id": item["phase_id"], "token": item["lease"]["token"]}
        return response

    def _heartbeat(self, tokens: str) -> Response | None:
        if self.lease is None:
            return None
        phase = self._named(self.lease["phase_id"])
        body = {"lease_token": self.lease["token"], "tokens_used": self._tokens(tokens, phase)}
        path = f"/runs/{self.run_id}/phases/{phase['phase_id']}/heartbeat"
        return self.api.client.post(path, json=body)

    def _with_lease(self, body: Json, phase: Json) -> Json:
        """Let a result come with the lease that was taken for it; a lease is used once."""
        if self.lease is None or self.lease["phase_id"] != phase["phase_id"]:
            return body
        body["lease_token"], self.lease = self.lease["token"], None
        return body

    def _build(
        self,
        status: str,
        kind: str | None,
        line: int,
        tokens: str,
        issues: list[Json],
        how: str,
        agent: str | None = None,
        *,
        phase_id: str | None = None,
    ) -> Response:
        phase = self._phase(None) if phase_id is None else self._named(phase_id)
        path = f"/runs/{self.run_id}/phases/{phase['phase_id']}/builder_result"
        if how == "again" and self._last_result is not None:
            return self._again()
        body: Json = {
            "status": status,
            "tokens_used": self._tokens(tokens, phase),
            "notes": f"step {self._step}",
            "suggested_issues": self._reports(issues),
            "agent": agent,
            "model": agent and agent[:1],
            "is_measured": agent is not None,
        }
        if kind is not None:
            patch = self._patch(kind, line)
            self._last_patch = patch
            body["patch_content_base64"] = base64.b64encode(patch).decode()
            if kind == "stale":
                body["base_commit"] = self.started["base_commit"]
        body = self._with_lease(body, phase)
        headers = {"Idempotency-Key": f"key-{self._step}"} if how == "key" else {}
        response = self.api.client.post(path, json=body, headers=headers)
        if how == "key":
            self._last_result = (path, body, headers)
        return response

    def _again(self) -> Response:
        """Send a keyed result again: nothing may come of it, and the answer is the first one."""
        assert self._last_result is not None
        path, body, headers = self._last_result
        before = self.api.run(self.run_id)
        response = self.api.client.post(path, json=body, headers=headers)
        if response.headers.get("Idempotency-Replayed"):
            assert self.api.run(self.run_id) == before
        return response

    def _review(
        self,
        recommendation: str,
        kinds: list[str],
        line: int,
        tokens: str,
        issues: list[Json],
        resolved: list[int],
        agent: str | None = None,
        *,
        phase_id: str | None = None,
    ) -> Response:
        phase = self._phase(None) if phase_id is None else self._named(phase_id)
        body = {
            "recommendation": recommendation,
            "review_notes": f"step {self._step}",
            "agent": agent,
            "model": agent and agent[:1],
            "is_measured": agent is not None,
            "tokens_used": self._tokens(tokens, phase),
            "issues_found": self._reports(issues),
            "resolved_issues": [self._seen(number) for number in resolved],
            "suggested_patches": [
                {
                    "description": f"fix-up {number}",
                    "patch_content_base64": base64.b64encode(
                        self._patch(kind, line + number)
                    ).decode(),
                }
                for number, kind in enumerate(kinds)
            ],
        }
        path = f"/runs/{self.run_id}/phases/{phase['phase_id']}/auditor_result"
        return self.api.client.post(path, json=self._with_lease(body, phase))

    def _issues(self, index: int | None, issues: list[Json]) -> None:
        phase_id = self._phase(index)["phase_id"]
        for report in self._reports(issues):
            self.answered(
                self.api.client.post(
                    f"/runs/{self.run_id}/phases/{phase_id}/record_issue", json=report
                )
            )

    def _status(self, index: int | None, state: str, tokens: str) -> Response:
        phase = self._phase(index)
        return self.api.status(
            state, self.run_id, phase["phase_id"], tokens_used=self._tokens(tokens, phase)
        )

    def _hand(self, number: int) -> Response:
        """Move the phase at hand where it may go."""
        phase = self._at_hand()
        states = sorted(recount.PHASE_MOVES[phase["state"]]) or [phase["state"]]
        state = states[number % len(states)]
        return self.api.status(state, self.run_id, phase["phase_id"])

    def _lapse(self, by_itself: bool) -> None:
        """Let an agent claim the present phase, or a review be due, and let it lapse."""
        phase = self._at_hand()
        if phase["state"] == "QUEUED":
            self.answered(self.api.status("EXECUTING", self.run_id, phase["phase_id"]))
            self.run = self.api.run(self.run_id)
        self._wait("deadline")
        if by_itself:
            self._upkeep()

    def _request_review(self, index: int | None) -> Response:
        phase = self._phase(index)
        path = f"/runs/{self.run_id}/phases/{phase['phase_id']}/auditor_request"
        return self.api.client.post(path, json={"review_focus": "everything"})

    def _wait(self, how: str) -> None:
        deadlines = [phase["deadline_at"] for phase in self._phases() if phase["deadline_at"]]
        if how == "run":
            until = datetime.fromisoformat(self.started["deadline_at"])
        elif how == "deadline":
            until = datetime.fromisoformat(min(deadlines, default=self.started["created_at"]))
        else:
            until = self.clock.now + timedelta(minutes=int(how))
        self.clock.now = max(self.clock.now, until)

    def _backlog(self, key: str, verb: str) -> Response:
        key = self.prefix + key
        response = self.api.client.post(f"/project/issues/{key}/{verb}")
        if response.status_code == 200:
            self.operator.append((stamp(self.clock.now), key, verb))
        return response

    def _rollback(self, index: int | None) -> Response:
        body = {"to_phase": self._phase(index)["phase_id"], "reason": "back"}
        return self.api.client.post(f"/runs/{self.run_id}/rollback", json=body)

    def _cancel(self) -> Response:
        return self.api.client.post(f"/runs/{self.run_id}/cancel", json={"reason": "enough"})

    def _upkeep(self) -> None:
        from autopack.services.upkeep import keep_up

        keep_up(self.api.client.app.state.context)  # type: ignore[attr-defined]

    # What a step is made of

    def _phases(self) -> list[Json]:
        return [phase for tier in self.run["tiers"] for phase in tier["phases"]]

    def _at_hand(self) -> Json:
        final = ("COMPLETE", "FAILED", "SKIPPED")
        phases = self._phases()
        return next((phase for phase in phases if phase["state"] not in final), phases[-1])

    def _phase(self, index: int | None) -> Json:
        phases = self._phases()
        return self._at_hand() if index is None else phases[index % len(phases)]

    def _named(self, phase_id: str) -> Json:
        return next(phase for phase in self._phases() if phase["phase_id"] == phase_id)

    def _tokens(self, how: str, phase: Json) -> int:
        to_cap = self.run["token_cap"] - self.run["tokens_used"]
        to_phase_cap = phase["incident_token_cap"] - phase["tokens_used"]
        tokens = {
            "to_phase_cap": to_phase_cap,
            "over_phase_cap": to_phase_cap + 1,
            "to_cap": to_cap,
            "over": to_cap + 1,
        }
        return max(0, tokens[how] if how in tokens else int(how))

    def _reports(self, issues: list[Json]) -> list[Json]:
        self.seen |= {self.prefix + issue["issue_key"] for issue in issues}
        return [
            {
                **issue,
                "issue_key": self.prefix + issue["issue_key"],
                "evidence_refs": [f"step {self._step}"],
            }
            for issue in issues
        ]

    def _seen(self, number: int) -> str:
        """Name an issue of this run; the last number names one that was never seen."""
        seen = sorted(self.seen)
        return seen[number % len(seen)] if seen and number < 7 else "never seen"

    def _patch(self, kind: str, line: int) -> bytes:
        patch = self._make_patch(kind, line)
        self.patches[hashlib.sha256(patch).hexdigest()] = patch
        return patch

    def _make_patch(self, kind: str, line: int) -> bytes:
        name = f"{self._step}-{len(self.patches)}"
        match kind:
            case "edit":
                return self._edit(self.run["head_commit"], line)
            case "stale":
                return self._edit(self.started["base_commit"], line)
            case "conflict":
                patch = self._edit(self.started["base_commit"], line)
                return patch.replace(b" line ", b" not a line ").replace(b"-line ", b"-other ")
            case "malformed":
                return b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,9 +1,9 @@\n+" + name.encode()
            case "policy":
                path = (".github/workflows/x.yml", "../x", ".git/config", "a/.gitattributes")[
                    line % 4
                ]
                return self.api.new_file(path, name).encode()
            case "secret":
                return self.api.new_file(f"src/{name}.py", f'key = "{SECRET}"').encode()
            case "binary":
                return self.api.new_file(f"src/{name}.bin", "a\x00b").encode()
            case "many":
                return b"".join(
                    self.api.new_file(f"src/{name}/{number}").encode() for number in range(3)
                )
            case "outside":
                return self.api.new_file(f"elsewhere/{name}").encode()
            case "repeated" if self._last_patch is not None:
                return self._last_patch
            case _:
                return self.api.new_file(f"src/{name}.txt", f"step {name}").encode()

    def _edit(self, commit: str, line: int) -> bytes:
        """Change one line of a file as it is in a commit."""
        repo = self.api.repo
        before = repo.git("show", f"{commit}:{NOTES}").splitlines(keepends=True)
        before[-1] = before[-1].rstrip("\n") + "\n"
        after = list(before)
        after[line % len(after)] = f"line {line} by step {self._step} of {self.run_id}\n"
        old, new = (
            repo.git("hash-object", "--stdin", stdin="".join(text)) for text in (before, after)
        )
        diff = difflib.unified_diff(before, after, f"a/{NOTES}", f"b/{NOTES}")
        head = f"diff --git a/{NOTES} b/{NOTES}\nindex {old}..{new} 100644\n"
        return (head + "".join(diff)).encode()


def stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def make_plan(run_id: str, drawn: Json) -> Json:
    tiers = drawn["tiers"]
    run = {
        name: drawn[name]
        for name in ("run_scope", "safety_profile", "token_cap", "max_duration_minutes")
        if drawn[name] is not None
    }
    if run.get("run_scope") == "single":
        run["run_scope"] = "single_tier"
        tiers = tiers[: 1 + (len(tiers) > 2)]  # of the longest plans an unsound one is left
    return {
        "run": {"run_id": run_id, **run},
        "tiers": [
            {"tier_id": f"T{tier}", "tier_index": tier * 2, "name": f"Tier {tier}"}
            for tier in range(len(tiers))
        ],
        "phases": [
            {
                "phase_id": f"P{tier}.{index}",
                "phase_index": index * 3,
                "tier_id": f"T{tier}",
                "name": f"Phase {index} of tier {tier}",
                **{name: value for name, value in phase.items() if value is not None},
            }
            for tier, phases in enumerate(tiers)
            for index, phase in enumerate(phases)
        ],
    }


def make_ruleset(ruleset: Json, drawn: Json) -> Json:
    categories = dict(ruleset["categories"])
    for name in ("docs", "default"):
        categories[name] = {**categories[name], **(drawn[name] or {})}
    tolerated = drawn["minors_tolerated_per_phase"]
    return {
        **ruleset,
        "categories": categories,
        "safety_profiles": {
            name: {**profile, "minors_tolerated_per_phase": tolerated}
            for name, profile in ruleset["safety_profiles"].items()
        },
        "run": {**ruleset["run"], "minor_issues_per_phase": drawn["minor_issues_per_phase"]},
        "tier": {
            **ruleset["tier"],
            "majors_tolerated": drawn["majors_tolerated"],
            "token_cap_factor": drawn["token_cap_factor"],
        },
        "audit_minutes": drawn["audit_minutes"],
        "ci": {**ruleset["ci"], "mode": drawn["ci_mode"]},
    }


@dataclass
class Entry:
    """A key of the backlog, as all sightings of all runs make it."""

    category: str
    first_seen_run: str
    base_severity: str = "minor"
    status: str = "open"
    total_occurrences: int = 0
    last_seen_run: str = ""
    runs: set[str] = field(default_factory=set)
    tiers: set[str] = field(default_factory=set)
    aged_at: str = ""


def recount_backlog(
    walks: list[Walk], events: dict[str, list[Json]], ruleset: Json
) -> dict[str, Entry]:
    """Let the backlog follow from every run's sightings and the operator's word, in their order.

    Meanwhile, the severity of each report is computed again: of the issue itself, and in its run.
    """
    high_risk = {
        name for name, rule in ruleset["categories"].items() if rule["default_severity"] == "major"
    }
    high_risk |= {alias for alias, name in ruleset["aliases"].items() if name in high_risk}
    happened: list[tuple[str, Walk, Json | tuple[str, str]]] = []
    for walk in walks:
        happened += [(at, walk, (key, verb)) for at, key, verb in walk.operator]
        happened += [
            (each["at"], walk, each)
            for each in events[walk.run_id]
            if each["kind"] == "IssueRecorded"
        ]
    entries: dict[str, Entry] = {}
    for at, walk, what in sorted(happened, key=lambda each: each[0]):
        if isinstance(what, tuple):
            entry = entries[what[0]]
            if what[1] == "resolve":
                entry.status = "resolved"
            elif entry.status == "resolved":
                entry.status = "open"
            continue
        data = what["data"]
        default = "major" if data["category"] in high_risk else "minor"
        assert data["severity"] == (data["reported_severity"] or default)
        expected = [
            phase["expected_issues"]
            for tier in walk.started["tiers"]
            for phase in tier["phases"]
            if phase["phase_id"] == what["phase_id"]
        ]
        if data["is_expected"]:
            assert data["issue_key"] in expected[0]
            assert data["effective_severity"] == data["severity"]
            continue
        entry = entries.setdefault(
            data["issue_key"], Entry(data["category"], first_seen_run=walk.run_id)
        )
        _sight(entry, at, walk.started, what, ruleset)
    return entries


def _sight(entry: Entry, at: str, run: Json, what: Json, ruleset: Json) -> None:
    data = what["data"]
    was_aged = entry.status == "needs_cleanup" and entry.aged_at <= run["created_at"]
    assert data["effective_severity"] == ("major" if was_aged else data["severity"])
    entry.total_occurrences += 1
    entry.last_seen_run = run["run_id"]
    entry.runs.add(run["run_id"])
    entry.tiers.add(what["tier_id"])
    if data["severity"] == "major":
        entry.base_severity = "major"
    if entry.status == "resolved":
        entry.status = "open"
    profile = ruleset["safety_profiles"][run["safety_profile"]]
    is_old = (
        len(entry.runs) >= profile["cleanup_after_runs"]
        or len(entry.tiers) >= profile["cleanup_after_tiers"]
    )
    if entry.status == "open" and entry.base_severity == "minor" and is_old:
        entry.status, entry.aged_at = "needs_cleanup", at


def all_pages(api: Api, path: str, member: str) -> list[Any]:
    """Read a list to its end, in small pages."""
    found: list[Any] = []
    cursor = None
    while True:
        query = {"limit": 50} | ({"cursor": cursor} if cursor else {})
        response = api.client.get(path, params=query)
        assert response.status_code == 200, response.text
        page = response.json()
        items = page[member]
        found += items.items() if isinstance(items, dict) else items
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def check_run(api: Api, walk: Walk, events: list[Json]) -> None:
    """Count a run again from its events: API, attempts, branch and files must say the same."""
    recount.check_chain(events)
    counted = recount.Recount(walk.started).read(events)
    run = api.run(walk.run_id)
    recount.assert_same(counted.answer(), run)
    for tier in run["tiers"]:
        phases = tier["phases"]
        assert tier["tokens_used"] == sum(phase["tokens_used"] for phase in phases)
        assert all(phase["deadline_at"] is None for phase in phases)
    index = api.client.get(f"/runs/{walk.run_id}/issues/index").json()["issues_by_key"]
    assert index == counted.index()
    check_attempts(api, walk, counted)
    rollbacks = [event for event in events if event["kind"] == "RunRolledBack"]
    records = 1 + len(rollbacks) if walk.is_over else 0
    recount.check_branch(api.repo, counted, walk.patches, run["head_commit"], records)
    check_files(api, run, index)
    check_offline(api, walk.run_id)


def check_offline(api: Api, run_id: str) -> None:
    """The checker, which has nothing but the branch, comes to the verdict of the service.

    The rules decided it at the run's end; the endpoint reads the record, as the checker does.
    """
    run = api.run(run_id)
    given = api.client.get(f"/runs/{run_id}/promotion").json()
    found = check(str(api.repo.path), run_id, f"autonomous/{run_id}", "main")
    assert found["reasons"] == given["reasons"] == run["promotion_reasons"], run_id
    assert found["warnings"] == given["warnings"], run_id


def check_attempts(api: Api, walk: Walk, counted: recount.Recount) -> None:
    """Every attempt that counts is in the events, with what came of it, and no other is."""
    found: dict[int, Json] = {}
    for phase_id in counted.phases:
        path = f"/runs/{walk.run_id}/phases/{phase_id}/attempts"
        for attempt in api.client.get(path).json()["attempts"]:
            if attempt["outcome"] != "advisory":
                found[attempt["id"]] = {**attempt, "phase_id": phase_id}
    assert found.keys() == counted.submissions.keys()
    recount.assert_same(
        {str(key): value for key, value in counted.submissions.items()},
        {str(key): value for key, value in found.items()},
        "attempts",
    )
    spent = sum(attempt["tokens_used"] for attempt in found.values())
    assert spent <= counted.run["tokens_used"]  # the rest an operator counted by hand


STATE = re.compile(r"^\*\*.+\*\* \(`([A-Z_]+)`\)", re.MULTILINE)


def check_files(api: Api, run: Json, index: Json) -> None:
    """The guide's files say what the API says."""

    def state(*parts: str) -> str:
        found = STATE.search(api.file(run["run_id"], *parts))
        assert found, parts
        return found[1]

    assert state("run_summary.md") == run["state"]
    for tier in run["tiers"]:
        assert state("tiers", f"tier_{tier['tier_index']}_{tier['tier_id']}.md") == tier["state"]
        for phase in tier["phases"]:
            name = f"phase_{phase['phase_index']}_{phase['phase_id']}"
            assert state("phases", f"{name}.md") == phase["state"]
            document = api.document(run["run_id"], "issues", f"{name}_issues.json")
            assert document["minor_issue_count"] == phase["minor_issues_count"]
            assert document["major_issue_count"] == phase["major_issues_count"]
    assert api.document(run["run_id"], "run_issue_index.json")["issues_by_key"] == index
    has_pack = (api.runs_dir / run["run_id"] / "incident.json").exists()
    assert has_pack is run["state"].startswith("DONE_FAILED")


def check_backlog(api: Api, entries: dict[str, Entry]) -> None:
    found = dict(all_pages(api, "/project/issues/backlog", "issues_by_key"))
    file = api.document("project_issue_backlog.json")["issues_by_key"]
    for key, entry in entries.items():
        expected = {
            "category": entry.category,
            "base_severity": entry.base_severity,
            "status": entry.status,
            "age_in_runs": len(entry.runs),
            "age_in_tiers": len(entry.tiers),
            "total_occurrences": entry.total_occurrences,
            "first_seen_run": entry.first_seen_run,
            "last_seen_run": entry.last_seen_run,
            "tiers": sorted(entry.tiers),
        }
        recount.assert_same(expected, found[key], key)
        recount.assert_same({**expected, "status": entry.status}, file[key], f"file: {key}")


def check_backtest(api: Api, ruleset: Json, run_ids: list[str]) -> None:
    """Decided again under its own rules, no run has another result."""
    body = {"ruleset": ruleset, "run_ids": run_ids}
    response = api.client.post("/strategy/backtest", json=body)
    assert response.status_code == 200, response.text
    for compared in response.json()["runs"]:
        assert compared["changes"] == [], compared
        assert compared["parted_at"] is None, compared
        assert (compared["skipped_inputs"], compared["assumed_patches"]) == (0, 0), compared


# By default always the same walks, so that the suite fails for what was changed and nothing else.
EXAMPLES = int(os.environ.get("WALKS", "0"))


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """Have a remote, without which no run starts whose CI is elsewhere."""
    return with_remote(settings, tmp_path)


@pytest.mark.parametrize("examples", [1, pytest.param(8, marks=pytest.mark.campaigns)])
def test_every_walk_ends_and_its_events_tell_all(
    api: Api, app: FastAPI, settings: Settings, examples: int
) -> None:
    clock = Clock()
    app.state.context = replace(app.state.context, now=clock)
    api.repo.commit({NOTES: "".join(LINES)}, "Have a file that many change")
    defaults = api.client.get("/project/ruleset").json()
    numbers = iter(range(1_000_000))

    @walking(
        max_examples=EXAMPLES or examples,
        deadline=None,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(rules=RULESETS, drawn=WALKS)
    @example(rules=PLAIN_RULES, drawn=[(PLAIN_PLAN, TOUR)] * 3)
    @example(rules=CI_RULES, drawn=[(PLAIN_PLAN, CI_TOUR)])
    @example(rules=TWO_RULES, drawn=[(TWO_PLAN, TWO_TOUR)])
    def walk_and_count(rules: Json, drawn: list[tuple[Json, list[Any]]]) -> None:
        example = next(numbers)
        response = api.client.put("/project/ruleset", json=make_ruleset(defaults, rules))
        assert response.status_code == 200, response.text
        ruleset = response.json()
        walks = []
        for number, (plan, steps) in enumerate(drawn):
            run_id = f"walk-{example}-{number}"
            walk = Walk(api, clock, run_id, f"{example}:", make_plan(run_id, plan))
            if not walk.start():
                continue
            walks.append(walk)
            taken = 0
            while taken < len(steps) and not walk.is_over:
                walk.take(steps[taken])
                taken += 1
            walk.let_end()
            event(f"{walk.run['state']} {walk.run['failure_code'] or ''}")
            for late in range(2):
                walk.take(AFTERWARDS[(taken + late) % len(AFTERWARDS)])
        run_ids = [walk.run_id for walk in walks]
        events = {name: all_pages(api, f"/runs/{name}/events", "events") for name in run_ids}
        for walk in walks:
            check_run(api, walk, events[walk.run_id])
        check_backlog(api, recount_backlog(walks, events, ruleset))
        if walks:
            check_backtest(api, ruleset, run_ids)

    walk_and_count()
    consistency.assert_consistent(settings)
    assert shown(app) == spent(app)
    clock.now += timedelta(hours=1)
    assert add_up(app)
    assert shown(app) == spent(app)
