"""A run counted again from nothing but its published events, and its branch from its patches.

None of the service's own code is used: this is the second opinion. What a plan and its strategy
fix for good (caps, tries, profiles) is taken from the answer to the start.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest import GitRepo

Json = dict[str, Any]

PHASE_MOVES = {
    "QUEUED": {"EXECUTING", "SKIPPED"},
    "EXECUTING": {"GATE", "QUEUED", "FAILED", "SKIPPED"},
    "GATE": {"CI_RUNNING", "COMPLETE", "QUEUED", "FAILED", "SKIPPED"},
    "CI_RUNNING": {"COMPLETE", "QUEUED", "GATE", "FAILED", "SKIPPED"},
    "COMPLETE": set(),
    "FAILED": set(),
    "SKIPPED": set(),
}
TIER_MOVES = {
    "PENDING": {"IN_PROGRESS", "SKIPPED"},
    "IN_PROGRESS": {"COMPLETE", "FAILED", "SKIPPED"},
    "COMPLETE": set(),
    "FAILED": set(),
    "SKIPPED": set(),
}
FAILURES = {
    "token_cap": "DONE_FAILED_BUDGET_EXHAUSTED",
    "duration_cap": "DONE_FAILED_BUDGET_EXHAUSTED",
    "minor_issue_cap": "DONE_FAILED_BUDGET_EXHAUSTED",
    "branch_moved": "DONE_FAILED_POLICY_VIOLATION",
    "ci_did_not_run": "DONE_FAILED_ENVIRONMENT",
    "cancelled": "DONE_FAILED_REQUIRES_HUMAN_REVIEW",
    "phase_failed": "DONE_FAILED_REQUIRES_HUMAN_REVIEW",
    "tier_not_clean": "DONE_FAILED_REQUIRES_HUMAN_REVIEW",
    "major_issue": "DONE_FAILED_REQUIRES_HUMAN_REVIEW",
}
BUDGETS = ("token_cap", "duration_cap", "minor_issue_cap")


def check_chain(events: list[Json]) -> None:
    """See that the events are whole: numbered from 1, in time, each sealed over the one before."""
    previous, last_at = "0" * 64, ""
    for number, event in enumerate(events, start=1):
        beside = ("hash", "sentence", "outcome")
        document = {name: value for name, value in event.items() if name not in beside}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert event["sequence"] == number
        assert event["previous_hash"] == previous
        assert event["hash"] == hashlib.sha256(text.encode()).hexdigest()
        assert event["at"] >= last_at
        previous, last_at = event["hash"], event["at"]
    assert events[0]["kind"] == "RunStarted"
    assert [event["kind"] for event in events].count("RunStarted") == 1
    ends = [event["at"] for event in events if event["kind"] == "RunEnded"]
    assert len(ends) <= 1


def _is_by_hand(event: Json) -> bool:
    """Events of earlier versions name the operator alone."""
    actor: str = event["actor"]
    return actor == "operator" or actor.startswith("local:operator@") or actor.endswith(":operator")


@dataclass
class Seen:
    """An issue in a phase, as its sightings tell of it."""

    category: str
    source: str
    severity: str
    effective_severity: str
    is_expected: bool
    occurrence_count: int = 1
    is_open: bool = True

    @property
    def counts(self) -> bool:
        return self.is_open and not self.is_expected


@dataclass
class Recount:
    """What a run must be, given how it started and what happened to it."""

    started: Json
    run: Json = field(init=False)
    tiers: dict[str, Json] = field(init=False)
    phases: dict[str, Json] = field(init=False)
    issues: dict[tuple[str, str], Seen] = field(default_factory=dict)
    commits: list[Json] = field(default_factory=list)
    submissions: dict[int, Json] = field(default_factory=dict)
    snapshots: dict[str, str] = field(default_factory=dict)
    has_rollback: bool = False
    unresolved: set[tuple[str, str]] = field(default_factory=set)  # what has to be resolved next
    awaited: dict[str, str] = field(default_factory=dict)  # verdicts that are to take effect

    def __post_init__(self) -> None:
        self.run = {
            "state": "RUN_CREATED",
            "tokens_used": 0,
            "tokens_measured": 0,
            "head_commit": self.started["base_commit"],
            "failure_code": None,
            "failure_reason": None,
            "ended_at": None,
            "last_snapshot": None,
        }
        self.tiers, self.phases = {}, {}
        phases = [phase for tier in self.started["tiers"] for phase in tier["phases"]]
        self._approvals = {each["phase_id"]: each["approvals_needed"] for each in phases}
        self._rules = {each["phase_id"]: each["independence"] for each in phases}
        self._authors: dict[str, set[str]] = {}
        self._last_builder: dict[str, str] = {}
        for tier in self.started["tiers"]:
            self.tiers[tier["tier_id"]] = {
                "state": "PENDING" if tier["phases"] else "SKIPPED",
                "cleanliness": "clean",
                "ci_runs_count": 0,
            }
            for phase in tier["phases"]:
                self.phases[phase["phase_id"]] = {
                    "tier_id": tier["tier_id"],
                    "state": "QUEUED",
                    "builder_attempts_used": 0,
                    "auditor_attempts_used": 0,
                    "approved_by": [],
                    "tokens_used": 0,
                    "tokens_measured": 0,
                    "completed_by": None,
                    "start_commit": None,
                    "started_at": None,
                    "ended_at": None,
                    "commit": None,
                    "snapshot_tag": None,
                    "verdict": None,
                }

    def read(self, events: list[Json]) -> Recount:
        for event in events:
            self._read(event)
        return self

    def _read(self, event: Json) -> None:
        kind, data = event["kind"], event["data"]
        assert kind == "IssueResolved" or not self.unresolved, "each pair of phase and key is named"
        if event["phase_id"] is not None:
            phase = self.phases[event["phase_id"]]
            assert event["tier_id"] == phase["tier_id"]
            if event["to_state"] is not None:
                self._move_phase(phase, event)
            else:
                self._note(phase, event)
        elif kind in ("RunStateChanged", "RunEnded"):
            assert event["from_state"] == self.run["state"]
            assert not self.run["state"].startswith("DONE")
            assert event["to_state"].startswith("DONE") is (kind == "RunEnded")
            self.run["state"] = event["to_state"]
            if kind == "RunEnded":
                code = data.get("failure_code")
                assert event["to_state"] == (FAILURES[code] if code else "DONE_SUCCESS")
                self.run["failure_code"] = code
                self.run["failure_reason"] = event["reason"] if code else None
                self.run["ended_at"] = event["at"]
        elif kind == "TierStateChanged":
            tier = self.tiers[event["tier_id"]]
            assert event["from_state"] == tier["state"]
            assert event["to_state"] in TIER_MOVES[tier["state"]]
            tier["state"] = event["to_state"]
        elif kind == "TierCleanlinessChanged":
            tier = self.tiers[event["tier_id"]]
            assert event["from_state"] == tier["cleanliness"] != event["to_state"]
            tier["cleanliness"] = event["to_state"]
        else:
            assert kind == "RunStarted", kind

    def _move_phase(self, phase: Json, event: Json) -> None:
        before, after = event["from_state"], event["to_state"]
        assert before == phase["state"]
        assert after in PHASE_MOVES[before]
        phase["state"] = after
        if before == "CI_RUNNING" and after != "SKIPPED":
            self._judge(phase, event)
        if after == "EXECUTING" and phase["started_at"] is None:
            phase |= {"started_at": event["at"], "start_commit": self.run["head_commit"]}
        if after == "QUEUED" and before == "EXECUTING" and _is_by_hand(event):
            phase["builder_attempts_used"] += 1
        if after in ("QUEUED", "EXECUTING", "GATE"):
            phase["approved_by"] = []
        if after in ("COMPLETE", "FAILED", "SKIPPED"):
            phase["ended_at"] = event["at"]
            phase["completed_by"] = event["data"].get("completed_by")
        if after == "COMPLETE":
            assert phase["completed_by"] in ("rules", "hand")
            name = f"autonomous/{self.started['run_id']}/tier-{phase['tier_id']}"
            name += f"/phase-{event['phase_id']}"
            phase["snapshot_tag"] = self.run["last_snapshot"] = name
            self.snapshots[name] = self.run["head_commit"]

    def _judge(self, phase: Json, event: Json) -> None:
        """Let the verdict that came be the phase's; none in time is none that CI could give."""
        verdict = self.awaited.pop(event["phase_id"], None)
        if verdict is None and event["actor"] == "supervisor":
            assert event["to_state"] == "FAILED"
            verdict = "did_not_run"
        if verdict is None:
            return
        phase["verdict"] = verdict
        if verdict != "did_not_run":
            self.tiers[phase["tier_id"]]["ci_runs_count"] += 1
        assert (event["to_state"] == "COMPLETE") is (verdict == "green")

    def _check_independent(self, event: Json) -> None:
        """See that no Auditor with a name reviews what it built last, or has on the branch."""
        phase_id, actor = event["phase_id"], event["actor"]
        if event["kind"] == "BuilderResultReceived":
            self._last_builder[phase_id] = actor
        elif self._rules[phase_id] == "agent" and not actor.startswith("local:auditor@"):
            assert actor != self._last_builder.get(phase_id)
            assert actor not in self._authors.get(phase_id, ())

    def _note(self, phase: Json, event: Json) -> None:
        kind, data = event["kind"], event["data"]
        if kind == "TokensCounted":
            assert data["tokens"] > 0
            phase["tokens_used"] += data["tokens"]
            self.run["tokens_used"] += data["tokens"]
            if data.get("is_measured"):
                phase["tokens_measured"] += data["tokens"]
                self.run["tokens_measured"] += data["tokens"]
        elif kind in ("BuilderResultReceived", "AuditorResultReceived"):
            role = "builder" if kind.startswith("Builder") else "auditor"
            self._check_independent(event)
            phase[f"{role}_attempts_used"] += 1
            self.submissions[data["submission_id"]] = {
                "role": role,
                "actor": event["actor"],
                "phase_id": event["phase_id"],
                "attempt": data["attempt"],
                "tokens_used": data["tokens_used"],
                "is_measured": data.get("is_measured", False),
                "status": data["status" if role == "builder" else "recommendation"],
                "commits": [],
            }
        elif kind == "LeaseLapsed":
            phase["builder_attempts_used"] += 1
        elif kind == "AuditLapsed":
            phase["auditor_attempts_used"] += 1
        elif kind == "PendingPatchDiscarded":
            phase["auditor_attempts_used"] -= 1
            phase["approved_by"] = []
        elif kind == "RevisionRequested":
            phase["approved_by"] = []
        elif kind in ("ApprovalGiven", "PhaseApproved"):
            assert event["actor"] not in phase["approved_by"], "an Auditor approves once"
            phase["approved_by"] = [*phase["approved_by"], event["actor"]]
            is_last = len(phase["approved_by"]) == self._approvals[event["phase_id"]]
            assert is_last is (kind == "PhaseApproved")
            if not is_last and not data.get("commits"):
                phase["auditor_attempts_used"] -= 1
        elif kind in ("PatchApplied", "PhaseUndone", "RunRolledBack"):
            self.run["head_commit"] = data["commit"]
            self.commits.append({"kind": kind, "phase": dict(phase), **data})
            self.has_rollback |= kind == "RunRolledBack"
            if kind == "PatchApplied":
                phase["commit"], phase["verdict"] = data["commit"], None
                sent = self.submissions[data["submission_id"]]
                sent["commits"].append(data["commit"])
                if sent["role"] == "auditor":
                    phase["approved_by"] = []
                else:
                    self._authors.setdefault(event["phase_id"], set()).add(sent["actor"])
        elif kind == "IssueRecorded":
            self._sight(event["phase_id"], data)
        elif kind == "IssueResolved":
            place = (event["phase_id"], data["issue_key"])
            if data["cause"] == "auditor":
                if not self.unresolved:
                    self.unresolved = self._open_places(key=data["issue_key"])
                elif place not in self.unresolved:
                    self.unresolved |= self._open_places(key=data["issue_key"])
            else:
                assert data["cause"] == "green_verdict"
            self.unresolved.remove(place)
            self.issues[place].is_open = False
        elif kind == "CiVerdictReceived":
            assert data["commit"] == (phase["commit"] or self.run["head_commit"])
            self.awaited[event["phase_id"]] = data["verdict"]
            if data["verdict"] == "green":
                self.unresolved = self._open_places(phase_id=event["phase_id"], source="ci")

    def _open_places(
        self, *, key: str | None = None, phase_id: str | None = None, source: str | None = None
    ) -> set[tuple[str, str]]:
        return {
            place
            for place, seen in self.issues.items()
            if seen.is_open
            and phase_id in (None, place[0])
            and key in (None, place[1])
            and source in (None, seen.source)
        }

    def _sight(self, phase_id: str, data: Json) -> None:
        place = (phase_id, data["issue_key"])
        seen = self.issues.get(place)
        if seen is None:
            self.issues[place] = Seen(
                data["category"],
                data["source"],
                data["severity"],
                data["effective_severity"],
                data["is_expected"],
            )
            return
        if not seen.is_open or seen.source == "ci":
            seen.source = data["source"]
        seen.severity = _worse(seen.severity, data["severity"])
        seen.effective_severity = _worse(seen.effective_severity, data["effective_severity"])
        seen.is_expected = seen.is_expected and data["is_expected"]
        seen.occurrence_count += 1
        seen.is_open = True

    # What follows from it

    def count(self, *, tier_id: str | None = None, phase_id: str | None = None) -> tuple[int, int]:
        """Count open issues by distinct keys, (minor, major): in the run, a tier or a phase."""
        grave: dict[str, bool] = {}
        for (phase, key), seen in self.issues.items():
            if tier_id not in (None, self.phases[phase]["tier_id"]):
                continue
            if seen.counts and phase_id in (None, phase):
                grave[key] = grave.get(key, False) or seen.effective_severity == "major"
        majors = sum(grave.values())
        return len(grave) - majors, majors

    def index(self) -> Json:
        """Return the run's issue index."""
        order = {name: at for at, name in enumerate(self._phases_in_order())}
        facts = {
            phase["phase_id"]: phase for tier in self.started["tiers"] for phase in tier["phases"]
        }
        entries: Json = {}
        for key in dict.fromkeys(key for _, key in self.issues):
            mine = {phase: seen for (phase, known), seen in self.issues.items() if known == key}
            places = sorted(mine, key=lambda phase: order[phase])
            told = [seen for seen in mine.values() if seen.counts]
            told = told or [seen for seen in mine.values() if seen.is_open] or list(mine.values())
            severities = {seen.severity for seen in told}
            effective = {seen.effective_severity for seen in told}
            entries[key] = {
                "category": next(iter(mine.values())).category,
                "severity": "major" if "major" in severities else "minor",
                "effective_severity": "major" if "major" in effective else "minor",
                "status": "open" if any(seen.is_open for seen in mine.values()) else "resolved",
                "first_phase_index": min(facts[place]["phase_index"] for place in places),
                "last_phase_index": max(facts[place]["phase_index"] for place in places),
                "occurrence_count": sum(seen.occurrence_count for seen in mine.values()),
                "tiers": list(dict.fromkeys(facts[place]["tier_id"] for place in places)),
                "phases": places,
            }
        return entries

    def answer(self) -> Json:
        """Return what GET /runs/{run_id} must say, of all that events decide."""
        minors, majors = self.count()
        run = {**self.run, **_counts(minors, majors), "debt_status": self._debt(minors, majors)}
        del run["head_commit"]  # of a finished run it is that of its record
        tiers = []
        for fixed in self.started["tiers"]:
            tier_id = fixed["tier_id"]
            tier = {"tier_id": tier_id, **self.tiers[tier_id]}
            tier |= _state(*self.count(tier_id=tier_id))
            mine = [self.phases[phase["phase_id"]] for phase in fixed["phases"]]
            tier["tokens_used"] = sum(phase["tokens_used"] for phase in mine)
            tier["tokens_measured"] = sum(phase["tokens_measured"] for phase in mine)
            tier["cleanliness_reasons"] = self._uncleanliness(fixed, tier)
            assert bool(tier["cleanliness_reasons"]) is (tier["cleanliness"] == "not_clean")
            tier["phases"] = [
                {
                    "phase_id": phase["phase_id"],
                    **self.phases[phase["phase_id"]],
                    **_state(*self.count(phase_id=phase["phase_id"])),
                }
                for phase in fixed["phases"]
            ]
            tiers.append(tier)
        reasons = self._promotion_reasons(tiers, minors)
        run["promotion_reasons"] = reasons
        run["promotion_eligible_to_main"] = not reasons and run["ended_at"] is not None
        return {**run, "tiers": tiers}

    def _phases_in_order(self) -> list[str]:
        tiers = sorted(self.started["tiers"], key=lambda tier: tier["tier_index"])
        return [
            phase["phase_id"]
            for tier in tiers
            for phase in sorted(tier["phases"], key=lambda phase: phase["phase_index"])
        ]

    def _debt(self, minors: int, majors: int) -> str:
        if majors:
            return "has_major_issues"
        if minors > self.started["max_minor_issues_total"]:
            return "excess_minor_issues"
        return "has_minor_issues" if minors else "clean"

    def _uncleanliness(self, fixed: Json, tier: Json) -> list[str]:
        reasons = [
            f"phase '{phase['phase_id']}' failed"
            for phase in fixed["phases"]
            if self.phases[phase["phase_id"]]["state"] == "FAILED"
        ]
        for noun, figure, cap in (
            ("minor issues", tier["minor_issues_count"], fixed["minors_tolerated"]),
            ("major issues", tier["major_issues_count"], fixed["majors_tolerated"]),
            ("tokens", tier["tokens_used"], fixed["token_cap"]),
            ("CI runs", tier["ci_runs_count"], fixed["ci_run_cap"]),
        ):
            if figure > cap:
                reasons.append(f"{figure} {noun}, {cap} allowed")
        return reasons

    def _promotion_reasons(self, tiers: list[Json], minors: int) -> list[str]:
        run = self.run
        if run["ended_at"] is None:
            return []
        reasons = []
        if run["state"] != "DONE_SUCCESS":
            reasons.append(f"the run is {run['state']}, not DONE_SUCCESS")
        if run["failure_code"] in BUDGETS:
            reasons.append(f"a budget was exhausted: {run['failure_reason']}")
        if self.has_rollback:
            reasons.append("the branch was rolled back by hand")
        for tier in tiers:
            if tier["cleanliness"] == "not_clean":
                why = "; ".join(tier["cleanliness_reasons"])
                reasons.append(f"tier '{tier['tier_id']}' is not clean: {why}")
        cap = self.started["max_minor_issues_total"]
        if minors > cap:
            reasons.append(
                f"debt_status is excess_minor_issues: {minors} minor issues, {cap} allowed"
            )
        profiles = {
            phase["phase_id"]: phase["ci_profile"]
            for tier in self.started["tiers"]
            for phase in tier["phases"]
        }
        for phase_id in self._phases_in_order():
            phase = self.phases[phase_id]
            if phase["completed_by"] == "hand":
                how = "completed" if phase["state"] == "COMPLETE" else "skipped"
                reasons.append(f"phase '{phase_id}' was {how} by hand")
            is_green = phase["verdict"] == "green"
            if phase["state"] == "COMPLETE" and profiles[phase_id] == "strict" and not is_green:
                reasons.append(f"strict phase '{phase_id}' has no green verdict")
        return reasons


def assert_same(expected: Any, found: Any, place: str = "run") -> None:
    """Expect of a document that it holds what is expected, naming the first place that differs."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            assert name in found, f"{place}.{name} is missing"
            assert_same(value, found[name], f"{place}.{name}")
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        assert len(found) == len(expected), place
        for index, value in enumerate(expected):
            assert_same(value, found[index], f"{place}[{index}]")
    else:
        assert found == expected, f"{place} is {found!r}, and {expected!r} by the events"


def check_branch(
    repo: GitRepo, recount: Recount, patches: dict[str, bytes], head: str, records: int
) -> None:
    """See that git holds what the events say, and that the patches, applied again, give its trees.

    A finished run has a record after its end, and after each rollback.
    """
    started = recount.started
    name = started["branch"]
    assert head == repo.git("rev-parse", f"refs/heads/{name}")
    found = _log(repo, started["base_commit"], head)
    marked = _log(repo, started["base_commit"], head, "--grep=^Autopack-Record-SHA256: ")
    assert len(marked) == records
    assert found[-1:] == marked[-1:] or not records
    work = [line for line in found if line not in marked]
    assert [line[0] for line in work] == [commit["commit"] for commit in recount.commits]
    parent = started["base_commit"]
    trees = {parent: repo.git("rev-parse", f"{parent}^{{tree}}")}
    commits = iter(recount.commits)
    for line in found:
        sha, *parents, tree = line
        assert parents == [parent], "the branch is linear"
        if line in marked:
            paths = repo.git("diff-tree", "-r", "--name-only", parent, sha).splitlines()
            assert all(path.startswith(f".autonomous_runs/{started['run_id']}/") for path in paths)
            trees[sha], parent = tree, sha
            continue
        commit = next(commits)
        match commit["kind"]:
            case "PatchApplied":
                assert (commit["parent"], commit["tree"]) == (parent, tree)
                content = patches[commit["patch_sha256"]]
                assert hashlib.sha256(content).hexdigest() == commit["patch_sha256"]
                assert _apply(repo, trees[parent], content) == tree
            case "PhaseUndone":
                assert tree == trees[commit["phase"]["start_commit"]]
            case _:
                assert tree == trees[recount.snapshots[commit["phase"]["snapshot_tag"]]]
        trees[sha], parent = tree, sha
    tags = repo.git(
        "for-each-ref", "--format=%(refname:short) %(*objectname)", f"refs/tags/{name}/"
    )
    assert dict(line.split() for line in tags.splitlines()) == recount.snapshots


def _log(repo: GitRepo, base: str, head: str, *options: str) -> list[list[str]]:
    log = repo.git("log", "--reverse", "--format=%H %P %T", *options, f"{base}..{head}")
    return [line.split() for line in log.splitlines()]


def _apply(repo: GitRepo, tree: str, patch: bytes) -> str:
    """Let git itself put a patch on a tree; one that was made on an older state is merged."""
    with tempfile.TemporaryDirectory() as scratch:
        objects = Path(scratch, "objects")
        objects.mkdir()
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "GIT_INDEX_FILE": str(Path(scratch, "index")),
            "GIT_OBJECT_DIRECTORY": str(objects),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(repo.path / ".git/objects"),
        }

        def git(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                ["git", *arguments],
                cwd=repo.path,
                env=environment,
                input=stdin,
                capture_output=True,
                check=False,
            )

        assert git("read-tree", tree).returncode == 0
        apply = ("apply", "--cached", "--whitespace=nowarn", "-")
        if git(*apply, stdin=patch).returncode != 0:
            done = git(*apply[:2], "--3way", *apply[2:], stdin=patch)
            assert done.returncode == 0, done.stderr.decode()
        return git("write-tree").stdout.decode().strip()


def _counts(minors: int, majors: int) -> Json:
    return {"minor_issues_count": minors, "major_issues_count": majors}


def _state(minors: int, majors: int) -> Json:
    state = "has_major_issues" if majors else "has_minor_issues" if minors else "no_issues"
    return {**_counts(minors, majors), "issue_state": state}


def _worse(one: str, other: str) -> str:
    return "major" if "major" in (one, other) else "minor"
