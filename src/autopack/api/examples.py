"""Examples for the API's pages; each works when it is sent, in this order."""

from __future__ import annotations

from typing import Any

from fastapi.openapi.models import Example

PLAN: dict[str, Any] = {
    "run": {
        "run_id": "docs-001",
        "safety_profile": "normal",
        "run_scope": "incremental",
        "token_cap": 5_000_000,
        "max_phases": 25,
    },
    "tiers": [
        {
            "tier_id": "T1",
            "tier_index": 0,
            "name": "Core Features",
            "description": "Tier 1: Core feature implementation",
        }
    ],
    "phases": [
        {
            "phase_id": "P1.1",
            "phase_index": 0,
            "tier_id": "T1",
            "name": "Implement user authentication",
            "description": "Add JWT-based authentication",
            "task_category": "feature_scaffolding",
            "complexity": "medium",
            "builder_mode": "compose",
        }
    ],
}
NEW_KEY = {"name": "codex-3", "roles": ["builder"]}
NEW_PROJECT = {"name": "shop", "repository": "/srv/shop"}
PROJECT = {"repository": "/srv/shop", "base_branch": "main"}
NEW_WEBHOOK = {
    "name": "chat",
    "url": "https://hooks.example.org/autopack",
    "kinds": ["RunEnded", "run_failed", "run_eligible"],
}
STATUS = {"state": "EXECUTING"}
ISSUE = {
    "issue_key": "test_failure__auth_missing",
    "severity": "minor",
    "source": "test",
    "category": "test_failure",
    "task_category": "feature_scaffolding",
    "complexity": "medium",
    "evidence_refs": ["tests/test_auth.py::test_jwt_validation"],
}
PATCH = """\
diff --git a/src/auth.py b/src/auth.py
new file mode 100644
--- /dev/null
+++ b/src/auth.py
@@ -0,0 +1,2 @@
+def is_known(user: str) -> bool:
+    return bool(user)
"""
BUILDER_RESULT = {
    "phase_id": "P1.1",
    "run_id": "docs-001",
    "patch_content": PATCH,
    "files_changed": ["src/auth.py"],
    "lines_added": 2,
    "lines_removed": 0,
    "builder_attempts": 1,
    "tokens_used": 15_000,
    "input_tokens": 9_000,
    "cached_tokens": 4_000,
    "output_tokens": 2_000,
    "reasoning_tokens": 600,
    "is_measured": False,
    "duration_minutes": 2.5,
    "status": "success",
    "notes": "Implemented JWT authentication with refresh tokens",
}
AUDITOR_REQUEST = {
    "phase_id": "P1.1",
    "run_id": "docs-001",
    "tier_id": "T1",
    "review_focus": "security",
    "auditor_profile": "schema_review",
}
AUDITOR_RESULT = {
    "phase_id": "P1.1",
    "run_id": "docs-001",
    "review_notes": "Security review complete",
    "recommendation": "approve",
    "confidence": "high",
}
CLAIM = {"role": "builder", "agent": "codex@host-3", "lease_seconds": 900, "account": "openai-team"}
HEARTBEAT = {"lease_token": "the token of the lease", "tokens_used": 1_200}
RELEASE = {
    "lease_token": "the token of the lease",
    "reason": "usage limit reached",
    "retry_at": "2026-11-26T18:00:00Z",
    "account": "openai-team",
}
CI_RESULT = {
    "commit_sha": "0123456789abcdef0123456789abcdef01234567",
    "profile": "normal",
    "verdict": "green",
    "tests": {"total": 12, "passed": 12},
    "url": "https://ci.example.org/builds/17",
}
PATCH_CHECK = {"phase_id": "P1.1", "patch_content": PATCH}
ROLLBACK = {"to_phase": "P1.1", "reason": "the release was postponed"}
CANCEL = {"reason": "the plan was wrong"}
BACKTEST = {
    "ruleset": {"project_id": "Autopack", "run": {"max_duration_minutes": 60}},
    "limit": 10,
}
CONTINUATION = {"phases": ["P1.2"], "token_cap": 200_000}
REBASE = {"run_id": "run-001-rebased"}
RULESET_DIFF = {"ruleset": {"project_id": "Autopack", "run": {"max_duration_minutes": 60}}}
RULESET = {"project_id": "Autopack", "run": {"max_duration_minutes": 60}}


def example(value: dict[str, Any], summary: str) -> dict[str, Example]:
    """Wrap one example in OpenAPI's form."""
    return {"example": {"summary": summary, "value": value}}
