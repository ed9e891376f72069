"""Runs with records on real branches: driven by the rules, committed by git, without a service.

`Story` is a run that is over, and what stands on its branch. `write` puts it there, sealed; a test
that tampers changes the story first, and seals what a forger would.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pygit2
from tests.domain.conftest import NOON, Drive, major_issue, minor_issue, start

from autopack.domain.errors import ConflictError
from autopack.domain.events import (
    GENESIS_HASH,
    SUPERVISOR,
    EventRecord,
    PatchApplied,
    PhaseUndone,
    RunRolledBack,
    RunStarted,
    event_document,
    seal,
    to_record,
)
from autopack.domain.issue_rules import IssueSeen, IssuesSeen, accept_issues
from autopack.domain.naming import (
    PULL_REQUEST,
    RECORD,
    RUNS_FOLDER,
    branch_ref,
    patch_name,
    record_message,
)
from autopack.domain.operating import RollbackCommit, roll_back
from autopack.domain.order import first_at_hand, in_order
from autopack.domain.outcomes import CommitKind
from autopack.domain.patches import AppliedPatch
from autopack.domain.run import RunState
from autopack.domain.run_terms import terms_sha256
from autopack.domain.states import PhaseStatus
from autopack.domain.terms import BuilderStatus, CiProfile, Independence, RunScope, Verdict
from autopack.mirror import run_record
from autopack.views.record import RecordedCommit
from autopack.views.runs import RunDetail

Json = dict[str, Any]

RUN = "run-1"
STRATEGY = "project_implementation_strategy_v1.json"
_ADA = pygit2.Signature("Ada Example", "ada@example.org", 1_767_268_800, 0)


class Branches:
    """A bare repository whose `main` every story starts from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.git = pygit2.init_repository(path, bare=True, initial_head="main")
        tree = self.put(None, {"src/app.py": b"VALUE = 1\n"})
        self.base = self.commit(tree, "Start the sample\n", None)
        self.move("refs/heads/main", self.base)

    def put(self, tree: str | None, files: dict[str, bytes | None]) -> str:
        """Return a tree with files changed; None for a content leaves a file out."""
        index = pygit2.Index()
        if tree is not None:
            index.read_tree(self.git[tree].peel(pygit2.Tree))
        for path, content in files.items():
            if content is None:
                index.remove(path)
            else:
                blob = self.git.create_blob(content)
                index.add(pygit2.IndexEntry(path, blob, pygit2.enums.FileMode.BLOB))
        return str(index.write_tree(self.git))

    def commit(self, tree: str, message: str, parent: str | None) -> str:
        parents = [parent] if parent else []
        return str(self.git.create_commit(None, _ADA, _ADA, message, tree, parents))

    def move(self, ref: str, commit: str) -> None:
        self.git.references.create(ref, commit, force=True)

    def tree_of(self, commit: str) -> str:
        return str(self.git[commit].peel(pygit2.Tree).id)


@dataclass
class GitDrive(Drive):
    """A run whose patches are real, each of them a file of its own."""

    branches: Branches | None = None
    patches: dict[str, bytes] = field(default_factory=dict)
    tip: str = ""

    def decide(self, step: Callable[..., object], actor: str = SUPERVISOR) -> RunState:
        self.tip = self.run.head_commit or ""
        return super().decide(step, actor)

    def _commit(self, submission_id: int) -> AppliedPatch:
        assert self.branches is not None
        self.commits += 1
        name = f"src/work_{self.commits}.txt"
        patch = (
            f"diff --git a/{name} b/{name}\nnew file mode 100644\n--- /dev/null\n+++ b/{name}\n"
            f"@@ -0,0 +1 @@\n+line {self.commits}\n"
        ).encode()
        sha256 = hashlib.sha256(patch).hexdigest()
        self.patches[sha256] = patch
        parent = self.tip
        content = f"line {self.commits}\n".encode()
        tree = self.branches.put(self.branches.tree_of(parent), {name: content})
        self.tip = self.branches.commit(tree, f"Work {self.commits}\n", parent)
        return AppliedPatch(
            submission_id=submission_id,
            patch_sha256=sha256,
            commit=self.tip,
            tree=tree,
            parent=parent,
        )

    def report(self, phase_id: str, issue: IssueSeen) -> None:
        seen = IssuesSeen(phase_id=phase_id, issues=(issue,))
        self.decide(lambda decision: accept_issues(decision, seen))

    def undo(self, phase_id: str = "P1") -> None:
        """Take back what a failed phase left on the branch, as the service does."""
        assert self.branches is not None
        parent = self.run.head_commit or ""
        tree = self.branches.tree_of(self.branches.base)
        commit = self.branches.commit(tree, "Undo\n", parent)
        self.decide(
            lambda decision: decision.record(
                PhaseUndone(phase_id=phase_id, commit=commit, tree=tree)
            )
        )

    def roll_back(self, phase_id: str = "P1") -> None:
        assert self.branches is not None
        commit = self.branches.commit(
            self.branches.tree_of(self.branches.base), "Roll back\n", self.run.head_commit
        )
        given = RollbackCommit(to_phase=phase_id, commit=commit, reason="no good")
        self.decide(lambda decision: roll_back(decision, given))


@dataclass
class Story:
    """A run that is over. `record` and `files` are what its record will be written from."""

    branches: Branches
    run: RunState
    record: Json
    files: dict[str, bytes]
    work: str  # the last commit before the record

    def copy(self) -> Story:
        return replace(self, record=deepcopy(self.record), files=dict(self.files))

    def events(self, kind: str) -> list[Json]:
        return [each for each in self.record["events"] if each["kind"] == kind]

    def event(self, kind: str) -> Json:
        return self.events(kind)[0]

    def number(self) -> None:
        """Number the events anew, as one does who added or removed some."""
        for number, event in enumerate(self.record["events"], start=1):
            event["sequence"] = number

    def seal(self) -> None:
        """Seal the events anew, so that their chain is whole."""
        previous = GENESIS_HASH
        for event in self.record["events"]:
            event["previous_hash"] = previous
            document = {name: value for name, value in event.items() if name != "hash"}
            text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            event["hash"] = previous = hashlib.sha256(text.encode()).hexdigest()

    def write(self, *, data: bytes | None = None, seal: str | None = None) -> str:
        """Put the record on the branch in a commit that seals it; return that commit.

        `data` stands for another `run.json`, `seal` for another hash of it.
        """
        data = json.dumps(self.record).encode() if data is None else data
        seal = seal or hashlib.sha256(data).hexdigest()
        folder = f"{RUNS_FOLDER}/{RUN}"
        files = {RECORD: data, **self.files}
        placed: dict[str, bytes | None] = {f"{folder}/{name}": files[name] for name in files}
        tree = self.branches.put(self.branches.tree_of(self.work), placed)
        message = record_message(RUN, self.run.state, seal, is_strict=False)
        commit = self.branches.commit(tree, message, self.work)
        self.branches.move(branch_ref(RUN), commit)
        return commit


def begin(branches: Branches, drive: Drive) -> GitDrive:
    """Let a run start at the tip of `main`."""
    run = replace(drive.run, run_id=RUN, head_commit=branches.base)
    started = RunStarted(
        at=NOON,
        actor="client",
        plan_sha256="1" * 64,
        base_branch="main",
        base_commit=branches.base,
        strategy_version=1,
        is_sandbox_required=run.is_sandbox_required or None,
        terms_sha256=terms_sha256(run),
    )
    return GitDrive(run=run, events=[started], branches=branches)


def finish(drive: GitDrive) -> Story:
    """Write the record of a run that is over, with the service's own writer."""
    assert drive.branches is not None
    run = drive.run
    assert run.is_over
    files = {
        STRATEGY: b'{"version": 1}\n',
        "run_summary.md": b"# Summary\n",
        PULL_REQUEST: b"# [run-1] Work\n\nDone.\n",
    }
    render = run_record(
        cast("RunDetail", _detail(drive.branches, run)),
        commits=_commits(drive),
        ci_runs={},
        events=_published(to_record(event) for event in drive.events),
    )
    patches = {
        patch_name(event.patch_sha256): drive.patches[event.patch_sha256]
        for event in drive.events
        if isinstance(event, PatchApplied)
    }
    work = run.head_commit or drive.branches.base
    return Story(drive.branches, run, json.loads(render(files)), {**files, **patches}, work)


_KINDS = {
    PatchApplied: CommitKind.PATCH,
    PhaseUndone: CommitKind.UNDO,
    RunRolledBack: CommitKind.ROLLBACK,
}


def _commits(drive: GitDrive) -> list[RecordedCommit]:
    assert drive.branches is not None
    commits = []
    for event in drive.events:
        if not isinstance(event, PatchApplied | PhaseUndone | RunRolledBack):
            continue
        made = drive.branches.git[event.commit].peel(pygit2.Commit)
        commits.append(
            RecordedCommit(
                sha=str(made.id),
                tree=str(made.tree_id),
                parent=str(made.parent_ids[0]),
                kind=_KINDS[type(event)],
                phase_id=event.phase_id,
                patch_sha256=event.patch_sha256 if isinstance(event, PatchApplied) else None,
                is_merged=False,
            )
        )
    return commits


def _published(events: Iterable[EventRecord]) -> list[Json]:
    return [
        {**event_document(one.sequence, one.event, one.previous_hash), "hash": one.hash}
        for one in seal(list(events), 0, GENESIS_HASH)
    ]


def _detail(branches: Branches, run: RunState) -> SimpleNamespace:
    """Return the run as the service's view has it: its state, and what no rule asks for."""
    phases = [
        SimpleNamespace(
            **asdict(phase),
            name=phase.phase_id,
            task_category="docs",
            complexity="low",
            snapshot_tag=None,
        )
        for phase in run.phases
    ]
    tiers = [
        SimpleNamespace(
            **asdict(tier),
            name=tier.tier_id,
            phases=[phase for phase in phases if phase.tier_id == tier.tier_id],
        )
        for tier in run.tiers
    ]
    state = {name: getattr(run, name) for name in run.__dataclass_fields__ if name != "issues"}
    return SimpleNamespace(
        **{**state, "tiers": tiers, "phases": phases},
        revision=7,
        project_id="Autopack",
        branch=f"autonomous/{RUN}",
        base_branch="main",
        base_commit=branches.base,
        continues=None,
        rebases=None,
        rebased_commit=None,
        continued_commit=None,
        last_snapshot=None,
        safety_profile="normal",
        strategy_version=1,
        started_by="client",
        created_at=NOON,
        max_phases=25,
    )


# Stories


def green(branches: Branches) -> GitDrive:
    """Two tiers, two strict phases: a red verdict, a fix, green; then green at once."""
    phase = {"has_ci": True, "ci_profile": CiProfile.STRICT}
    drive = begin(branches, start({"T1": ("P1",), "T2": ("P2",)}, phase=phase))
    drive.build(tokens=10, cost=Decimal("0.250000"), minors=1)
    drive.red()
    drive.build(tokens=5)
    drive.green()
    drive.build("P2", tokens=7)
    drive.green("P2")
    return drive


def reviewed(branches: Branches) -> GitDrive:
    """A pending patch and a fix-up of the Auditor's, who resolves what was seen."""
    drive = begin(branches, start(phase={"auto_apply": False}))
    drive.count_issues(minors=1)
    drive.build(tokens=3)
    drive.review("revise")
    drive.build(tokens=3)
    drive.review("approve", own_patches=1, tokens=2)
    return drive


def reviewed_and_judged(branches: Branches) -> GitDrive:
    """A pending patch that a review lets pass, and CI after it."""
    drive = begin(branches, start(phase={"auto_apply": False, "has_ci": True}))
    drive.count_issues(minors=1)
    drive.build()
    drive.review("approve")
    drive.green()
    return drive


def approved_twice(branches: Branches) -> GitDrive:
    """Two Auditors approve a pending patch, after one of them has sent another patch back."""
    phase = {"auto_apply": False, "approvals_needed": 2, "independence": Independence.AGENT}
    drive = begin(branches, start(phase=phase))
    one, two = "key:claude:auditor", "key:gemini:auditor"
    drive.build(actor="key:codex:builder", model="gpt-5")
    drive.review("approve", actor=one)
    drive.review("revise", actor=two)
    drive.build(actor="key:codex:builder", model="gpt-5")
    drive.review("approve", actor=one)
    drive.review("approve", actor=two, model="opus")
    return drive


def unverified(branches: Branches) -> GitDrive:
    drive = begin(branches, start({"T1": ("P1", "P2")}))
    drive.build()
    drive.build("P2", has_patch=True)
    return drive


def by_hand(branches: Branches) -> GitDrive:
    drive = begin(branches, start({"T1": ("P1", "P2")}))
    drive.start_phase("P1")
    drive.set_status(PhaseStatus.GATE)
    drive.set_status(PhaseStatus.COMPLETE)
    drive.set_status(PhaseStatus.SKIPPED, "P2")
    return drive


def undone(branches: Branches) -> GitDrive:
    """Fails with a patch on the branch, which is taken back; the operator ends the run."""
    phase = {"has_ci": True, "max_builder_attempts": 1, "max_auditor_attempts": 0}
    plan = start({"T1": ("P1",), "T2": ("P2",)}, phase=phase, run_scope=RunScope.MULTI_TIER)
    drive = begin(branches, plan)
    drive.build()
    drive.red()
    drive.undo()
    drive.cancel("enough")
    return drive


def rolled_back(branches: Branches) -> GitDrive:
    drive = green(branches)
    drive.roll_back("P1")
    return drive


def cancelled(branches: Branches) -> GitDrive:
    drive = begin(branches, start())
    drive.start_phase("P1")
    drive.cancel()
    return drive


def over_budget(branches: Branches) -> GitDrive:
    drive = begin(branches, start(token_cap=10))
    drive.build(tokens=11)
    return drive


def too_dear(branches: Branches) -> GitDrive:
    drive = begin(branches, start(cost_cap_usd=Decimal("1.000000")))
    drive.build(cost=Decimal("1.500000"))
    return drive


def unclean(branches: Branches) -> GitDrive:
    plan = start({"T1": ("P1",), "T2": ("P2",)}, run_scope=RunScope.MULTI_TIER)
    drive = begin(branches, plan)
    drive.count_issues(minors=3, majors=1)
    drive.build()
    drive.review("approve")
    drive.build("P2")
    return drive


def unjudged(branches: Branches) -> GitDrive:
    drive = begin(branches, start(phase={"has_ci": True}))
    drive.build()
    drive.judge(Verdict.DID_NOT_RUN)
    return drive


def too_late(branches: Branches) -> GitDrive:
    drive = begin(branches, start(phase={"has_ci": True}))
    drive.build()
    drive.wait(minutes=60)
    return drive


def lapsed(branches: Branches) -> GitDrive:
    drive = begin(branches, start())
    drive.claim()
    drive.wait(minutes=61)
    drive.claim()
    drive.build(tokens=4)
    return drive


def without_phases_in_a_tier(branches: Branches) -> GitDrive:
    drive = begin(branches, start({"T1": ("P1",), "T2": ()}))
    drive.build()
    return drive


NAMED: tuple[Callable[[Branches], GitDrive], ...] = (
    *(green, reviewed, unverified, by_hand, undone, rolled_back, cancelled, over_budget),
    *(too_dear, unclean, unjudged, too_late, lapsed, without_phases_in_a_tier),
    reviewed_and_judged,
    approved_twice,
)


def walk(branches: Branches, seed: int) -> GitDrive:
    """Let a small run meet whatever comes, until it ends: a refusal changes nothing."""
    dice = random.Random(seed)
    sizes = [dice.randint(0, 2) for _ in range(dice.randint(1, 3))]
    tiers = {
        f"T{t}": tuple(f"P{t}{p}" for p in range(size))
        for t, size in enumerate(sizes if sum(sizes) else [1])
    }
    plan = start(
        tiers,
        phase={
            "max_builder_attempts": dice.randint(1, 3),
            "max_auditor_attempts": dice.randint(0, 2),
            "incident_token_cap": dice.choice([5, 1_000]),
            "auto_apply": dice.random() < 0.7,
            "has_ci": dice.random() < 0.6,
            "is_high_risk": dice.random() < 0.3,
            "ci_profile": dice.choice(list(CiProfile)),
        },
        run_scope=dice.choice(list(RunScope)),
        token_cap=dice.choice([20, 1_000]),
        max_minor_issues_total=dice.randint(1, 3),
        minor_cap_ends_run=dice.random() < 0.3,
        any_failure_stops=dice.random() < 0.3,
        high_risk_needs_review=dice.random() < 0.3,
    )
    drive = begin(branches, plan)
    for _ in range(25):
        if not drive.run.is_over:
            _step(drive, dice)
    drive.now = max(drive.now, drive.run.deadline_at)
    drive.wait(minutes=0)
    return drive


def _step(drive: GitDrive, dice: random.Random) -> None:
    phase = first_at_hand(in_order(drive.run.phases))
    assert phase is not None
    name, tokens = phase.phase_id, dice.choice([0, 1, 6])
    conflict = dice.choice([None, None, None, "a"])
    expected: Callable[[], object] = {
        "GATE": lambda: drive.review(
            dice.choice(["approve", "approve", "revise", "escalate"]),
            name,
            tokens=tokens,
            own_patches=dice.randint(0, 1),
        ),
        "CI_RUNNING": lambda: drive.judge(
            dice.choice([Verdict.GREEN, Verdict.GREEN, Verdict.RED]), name, dice.choice("ab")
        ),
    }.get(phase.state, lambda: drive.build(name, tokens=tokens, conflict=conflict, minors=0))
    others: list[Callable[[], object]] = [
        lambda: drive.build(name, dice.choice(list(BuilderStatus)), tokens=tokens),
        lambda: drive.report(name, dice.choice([minor_issue, major_issue])(dice.choice("xyz"))),
        lambda: drive.set_status(dice.choice(list(PhaseStatus)), name),
        lambda: drive.wait(minutes=dice.choice([1, 30])),
        lambda: drive.ask_for_review(name),
        lambda: drive.claim(),
    ]
    with suppress(ConflictError):
        (dice.choice(others) if dice.random() < 0.25 else expected)()
