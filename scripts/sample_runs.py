"""Runs of every kind, over HTTP, for screenshots and for looking at the dashboard.

    python scripts/sample_runs.py http://localhost:8000 REPOSITORY [SECONDS]

Starts runs that succeed, fail, were cancelled, conflict with the base branch, and one that is under
way; one has forty phases and long, hostile texts. The service must serve a repository of its own
for this, with a remote: some commits are made on its base branch.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import httpx

GIT: Final = shutil.which("git") or "git"
HEADING: Final = """\
--- a/README.md
+++ b/README.md
@@ -1,2 +1,2 @@
-# Another heading than there is
+# Prices
 Sells things.
"""
FIRST: Final = 3  # tries that a phase has at first
NOTES: Final = "Wrote the change and its test. Prices were rounded twice; now once, at the end."
HOSTILE: Final = (
    '<script>alert(1)</script> "><img src=x onerror=alert(2)> {{ 7 * 7 }} javascript:alert(3)'
    " \x1b[31mred\x1b[0m \u202egnp.exe " + "a-very-long-word-without-a-break" * 12
)


class Samples:
    """Starts runs and answers for their agents."""

    def __init__(self, url: str, repository: Path, pace: float) -> None:
        self.pace = pace
        self.http = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self.repository = repository

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Post, and stop where the service refuses; a patch that does not apply is one sample."""
        answer = self.http.post(path, json=body)
        if answer.status_code >= 400 and answer.json().get("code") != "patch_conflict":
            raise SystemExit(f"POST {path}: {answer.status_code} {answer.text[:400]}")
        return answer.json() if answer.content else {}

    def start(self, run_id: str, names: list[list[str]], **phase: Any) -> None:
        """Start a run with a tier for each list of names, and a phase for each name."""
        run = {"run_id": run_id, "safety_profile": "normal", "run_scope": "incremental"}
        run |= {name: phase.pop(name) for name in ("token_cap", "max_phases") if name in phase}
        tiers = ("Core", "Edges", "Docs", "Later")
        self.post(
            "/runs/start",
            run=run,
            tiers=[
                {"tier_id": f"T{index + 1}", "tier_index": index, "name": tiers[index % 4]}
                for index in range(len(names))
            ],
            phases=[
                {
                    "phase_id": f"P{tier + 1}.{index + 1}",
                    "phase_index": index,
                    "tier_id": f"T{tier + 1}",
                    "name": name,
                    "description": f"{name}. Keep what is there working.",
                    "task_category": "tests",
                    "complexity": "medium",
                    **phase,
                }
                for tier, of_tier in enumerate(names)
                for index, name in enumerate(of_tier)
            ],
        )

    def result(self, run_id: str, phase_id: str, **fields: Any) -> dict[str, Any]:
        """Post a Builder's result: a new file for the phase."""
        path = f"src/{run_id}/{phase_id.replace('.', '_')}.py"
        body = {
            "status": "success",
            "patch_content": new_file(
                path,
                f"def {phase_id.replace('.', '_').lower()}() -> None:",
                '    """Do what the phase asks for."""',
            ),
            "agent": "codex-2",
            "model": "gpt-5-codex",
            "tokens_used": 21_400,
            "cost_usd": "0.143",
            "notes": NOTES,
            **fields,
        }
        return self.post(f"/runs/{run_id}/phases/{phase_id}/builder_result", **body)

    def commit_to_main(self, path: str, text: str) -> None:
        """Add a commit to the base branch, as other people do."""
        (self.repository / path).parent.mkdir(parents=True, exist_ok=True)
        (self.repository / path).write_text(text)
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
        for arguments in (["add", "--all"], [*identity, "commit", "-qm", f"Change {path}"]):
            subprocess.run([GIT, "-C", str(self.repository), *arguments], check=True)


def new_file(path: str, *lines: str) -> str:
    """Return the patch that adds a file."""
    body = "".join(f"+{line}\n" for line in lines)
    return f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,{len(lines)} @@\n{body}"


def fill(url: str, repository: Path, pace: float = 0.0) -> None:
    """Make the runs; `pace` is how many seconds an agent of the last one thinks."""
    samples = Samples(url, repository, pace)
    with samples.http:
        for make in (succeed, conflict, cancel, spend, fail, write_at_length, work):
            make(samples)


def succeed(samples: Samples) -> None:
    samples.start("search-index", [["Index the titles", "Index the texts"], ["Say how"]])
    for phase_id in ("P1.1", "P1.2", "P2.1"):
        samples.result("search-index", phase_id)


def conflict(samples: Samples) -> None:
    samples.start("cart-ttl", [["Let carts expire"]])
    samples.result("cart-ttl", "P1.1", patch_content=new_file("cart.py", "TTL = 3600"))
    samples.commit_to_main("cart.py", "TTL = 60\n")


def cancel(samples: Samples) -> None:
    samples.start("old-idea", [["Try the old idea", "And the rest of it"]])
    samples.result("old-idea", "P1.1")
    samples.post("/runs/old-idea/cancel", reason="The new search makes it needless.")


def spend(samples: Samples) -> None:
    samples.start("rename-items", [["Rename items", "Rename the rest"]], token_cap=50_000)
    samples.result("rename-items", "P1.1", tokens_used=61_000, cost_usd="0.41")


def fail(samples: Samples) -> None:
    samples.start("invoice-mails", [["Send the mail once", "Send the reminder"]])
    samples.post(
        "/runs/invoice-mails/phases/P1.1/record_issue",
        issue_key="mail_sent_twice",
        source="test",
        category="test_failure",
        severity="major",
        description="test_mail.TestOnce.test_is_sent_once: 2 != 1",
        evidence_refs=["tests/test_mail.py:41"],
    )
    for number in range(3):
        samples.result(
            "invoice-mails",
            "P1.1",
            status="failed",
            notes=f"Try {number + 1}: the outbox has no key that tells two mails apart.",
        )
        if samples.http.get("/runs/invoice-mails").json()["ended_at"]:
            return
    samples.post(
        "/runs/invoice-mails/phases/P1.1/update_status",
        state="FAILED",
    )


def write_at_length(samples: Samples) -> None:
    names = [[f"Phase {n} of a long plan with a name that goes on and on" for n in range(10)]] * 4
    samples.start("long-plan", names, max_phases=60, description=HOSTILE)
    samples.result("long-plan", "P1.1", notes=HOSTILE, agent="<b>agent</b>", model="m" * 80)
    samples.post(
        "/runs/long-plan/phases/P1.2/record_issue",
        issue_key="<i>issue</i>-" + "k" * 120,
        source="test",
        category="test_failure",
        description=HOSTILE,
    )


def work(samples: Samples) -> None:
    """Let two agents work on a run that goes on; with a pace, its times look like times."""
    run_id = "checkout-rounding"
    samples.start(
        run_id,
        [["Round once", "Round at the end"], ["Show the rounded price"], ["Say so in the docs"]],
    )
    for phase_id, agent in (("P1.1", "codex-2"), ("P1.1", "codex-2"), ("P1.2", "claude-1")):
        claim = samples.post(f"/runs/{run_id}/claim", role="builder", agent=agent)
        token = {"lease_token": claim["lease"]["token"], "agent": agent}
        is_first = claim["left"]["builder_attempts"] == FIRST and phase_id == "P1.1"
        time.sleep(samples.pace * (2 if is_first else 4))
        if is_first:
            notes = "Changed the heading."
            samples.result(
                run_id, phase_id, patch_content=HEADING, tokens_used=9_800, notes=notes, **token
            )
        else:
            samples.result(run_id, phase_id, **token)
        time.sleep(samples.pace)
    claim = samples.post(f"/runs/{run_id}/claim", role="builder", agent="claude-1")
    time.sleep(samples.pace * 3)
    samples.post(
        f"/runs/{run_id}/phases/P2.1/heartbeat",
        lease_token=claim["lease"]["token"],
        tokens_used=6_300,
        cost_usd="0.05",
    )


if __name__ == "__main__":
    fill(
        sys.argv[1],
        Path(sys.argv[2] if len(sys.argv) > 2 else "."),
        pace=float(sys.argv[3] if len(sys.argv) > 3 else 0),
    )
