"""A patch becomes a commit of a run, or a refusal. (rules §2.1)"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ..config import Settings, repository_top
from ..domain.changes import MODE_EXECUTABLE, MODE_FILE, FileChange, Repair
from ..domain.closed_paths import CLOSED
from ..domain.dependencies import (
    DependencyChange,
    ManifestChange,
    changed_dependencies,
    dependency_document,
)
from ..domain.errors import AutopackError, ErrorKind
from ..domain.manifests import is_manifest
from ..domain.naming import STRICT_MARK
from ..domain.outcomes import CommitKind, Outcome, PatchStatus
from ..domain.patches import AppliedPatch, PendingPatch
from ..domain.path_policy import DEFAULT_PROTECTED, PathPolicy, check_changes
from ..domain.redaction import redacted
from ..domain.run import PhaseState, RunState
from ..domain.secret_rules import redact_bytes
from ..domain.terms import CiProfile
from ..gitrepo import (
    BranchCheckedOutError,
    ChangeSet,
    PatchAlreadyAppliedError,
    PatchConflictError,
    PatchEmptyError,
    PatchMalformedError,
    PatchPolicyError,
    PolicyCheck,
)
from ..models import Patch, Phase, Run, Submission
from ..store.patches import PatchOnBranch, list_patches_after
from .change import RunChange

# Refusals because of the patch's content: they use a try. A patch above a limit, or an error of the
# repository, changes nothing.
PATCH_FAULTS: tuple[type[AutopackError], ...] = (
    PatchAlreadyAppliedError,
    PatchConflictError,
    PatchEmptyError,
    PatchMalformedError,
    PatchPolicyError,
)


def require_free_branch(change: RunChange) -> None:
    """Refuse patches while a work tree has the run's branch checked out; no try is used."""
    branch = change.run.branch
    folder = change.context.repository.checked_out_in(branch)
    if folder is not None:
        raise BranchCheckedOutError(
            f"branch {branch} is checked out in {folder}; patches wait until it is not"
        )


def _own_folders(settings: Settings) -> Iterator[str]:
    """Yield home and runs directory, if they are in the repository."""
    top = repository_top(settings.repo_path)
    for folder in (settings.home, settings.autonomous_runs_dir):
        if folder.is_relative_to(top) and folder != top:
            yield f"{folder.relative_to(top).as_posix()}/**"


def most_files(settings: Settings, phase: Phase) -> int:
    """Return how many files a patch of this phase may change (rules §9)."""
    return min(settings.max_patch_files, phase.max_patch_files or settings.max_patch_files)


def policy_check_for(
    settings: Settings, run: Run, phase: Phase, *, opened: Iterable[str] | None = None
) -> PolicyCheck:
    """Return the policy check for patches of this phase.

    `opened` are the protected paths that they may change; None: those of the phase.
    """
    policy = PathPolicy(
        protected=(*DEFAULT_PROTECTED, *run.protected_paths),
        closed=(*CLOSED, *_own_folders(settings)),
        opened=tuple(phase.opened_paths if opened is None else opened),
        allowed=None if phase.allowed_paths is None else tuple(phase.allowed_paths),
        max_files=most_files(settings, phase),
        max_path_bytes=settings.max_path_bytes,
        max_path_depth=settings.max_path_depth,
        is_portable=run.portable_names,
    )

    def require_allowed(changes: ChangeSet) -> None:
        violations = check_changes(changes, policy)
        if violations:
            raise PatchPolicyError(violations)

    return require_allowed


@contextmanager
def _telling_no_secrets() -> Iterator[None]:
    """Redact a refusal: its text and its ticket quote the patch and the branch, and are stored."""
    try:
        yield
    except PATCH_FAULTS as fault:
        fault.detail, fault.extra = redacted(fault.detail), redacted(fault.extra)
        raise


def keep_no_secrets(patches: Iterable[Patch]) -> None:
    """Redact the stored bytes of refused patches; their hash is still that of the sent bytes."""
    for patch in patches:
        if patch.status is PatchStatus.REFUSED:
            patch.content = redact_bytes(patch.content)


class _Inspection:
    """The policy check of a phase's patch, which also notes the dependencies that it changes."""

    def __init__(self, change: RunChange, phase: Phase) -> None:
        self._require_allowed = policy_check_for(change.context.settings, change.run, phase)
        self.dependencies: tuple[DependencyChange, ...] = ()

    def __call__(self, changes: ChangeSet) -> None:
        self._require_allowed(changes)
        self.dependencies = dependencies_of(changes.files, changes.read)


def dependencies_of(
    files: Iterable[FileChange], read: Callable[[str], bytes]
) -> tuple[DependencyChange, ...]:
    """Return the dependencies that changed files add or change; `read` returns a blob."""
    return tuple(
        DependencyChange(**redacted(dependency_document(each)))
        for each in changed_dependencies(_manifests(files, read))
    )


def _manifests(
    files: Iterable[FileChange], read: Callable[[str], bytes]
) -> Iterator[ManifestChange]:
    """Yield the manifests among the changed files; a link or a submodule is none."""

    def content(mode: int, oid: str | None) -> bytes | None:
        is_file = mode in (MODE_FILE, MODE_EXECUTABLE) and oid is not None
        return read(str(oid)) if is_file else None

    for file in files:
        if is_manifest(file.path):
            yield ManifestChange(
                path=file.path,
                before=content(file.old_mode, file.old_oid),
                after=content(file.new_mode, file.new_oid),
            )


def began_at(run: Run | RunState, phase: Phase | PhaseState, head: str) -> str | None:
    """Return the head when the attempt began, if other phases have changed the branch since."""
    is_moved = run.is_parallel and phase.attempt_commit != head
    return phase.attempt_commit if is_moved else None


def dry_apply(
    change: RunChange, phase: Phase, patch: Patch, base_commit: str | None
) -> tuple[PendingPatch, tuple[Repair, ...]]:
    """Check that a patch applies now, and store which files it changes.

    Also return its repairs. Raises one of PATCH_FAULTS.
    """
    inspection = _Inspection(change, phase)
    base_commit = base_commit or began_at(
        change.state, change.phase_state(phase.phase_id), change.head
    )
    with _telling_no_secrets():
        applied = change.context.repository.dry_apply(
            change.head, patch.content, inspection, base_commit=base_commit
        )
    patch.files_changed = [file.printable_path for file in applied.changes]
    return PendingPatch(inspection.dependencies), applied.repairs


def apply(
    change: RunChange,
    phase: Phase,
    submission: Submission,
    patch: Patch,
    *,
    title: str,
    base_commit: str | None = None,
) -> tuple[AppliedPatch, tuple[Repair, ...]]:
    """Put a patch on the branch as one commit; also return its repairs.

    Raises one of PATCH_FAULTS.
    """
    base_commit = base_commit or began_at(
        change.state, change.phase_state(phase.phase_id), change.head
    )
    given = PatchOnBranch(
        message=_message(change, phase, submission, patch, title),
        patch_pk=patch.id,
        submission_pk=submission.id,
        sha256=patch.sha256,
        content=patch.content,
    )
    put, repairs, patch.files_changed = _put_on_branch(change, phase, given, base_commit)
    return put, repairs


def apply_again(change: RunChange, state: PhaseState) -> list[AppliedPatch]:
    """Put the patches of a phase that were on the branch on its new head, each as one commit.

    Raises one of PATCH_FAULTS.
    """
    phase = change.phase(state.phase_id)
    given = list_patches_after(change.session, change.run.id, phase.id, str(state.before_commit))
    return [_put_on_branch(change, phase, each, state.before_commit)[0] for each in given]


def _put_on_branch(
    change: RunChange, phase: Phase, given: PatchOnBranch, base_commit: str | None
) -> tuple[AppliedPatch, tuple[Repair, ...], list[str]]:
    """Put one patch on the branch as one commit; also return its repairs and the changed files.

    Raises one of PATCH_FAULTS.
    """
    inspection = _Inspection(change, phase)
    with _telling_no_secrets():
        applied = change.context.repository.apply(
            change.head,
            given.content,
            inspection,
            base_commit=base_commit,
            into=change.objects,
        )
    commit = change.add_commit(
        CommitKind.PATCH,
        applied.tree,
        given.message,
        phase=phase,
        patch_pk=given.patch_pk,
        is_merged=applied.merged,
        has_own_difference=bool(applied.repairs),
    )
    put = AppliedPatch(
        submission_id=given.submission_pk,
        patch_sha256=given.sha256,
        commit=commit.sha,
        tree=commit.tree,
        parent=commit.parent,
        dependencies=inspection.dependencies,
    )
    return put, applied.repairs, [file.printable_path for file in applied.changes]


def refuse(submission: Submission, error: AutopackError) -> None:
    """Record on a submission why its patch was refused."""
    is_conflict = error.kind is ErrorKind.CONFLICT
    submission.outcome = Outcome.CONFLICT if is_conflict else Outcome.REFUSED
    submission.reason = error.detail
    submission.ticket = error.extra or None


def title_of(patch: Patch, otherwise: str) -> str:
    """Return the first line of a patch's description, else the default."""
    lines = (patch.description or "").strip().splitlines()
    return lines[0][:200] if lines else otherwise


def _message(
    change: RunChange, phase: Phase, submission: Submission, patch: Patch, title: str
) -> str:
    """Return the commit's message; CI looks for `[strict]` in it."""
    mark = f" {STRICT_MARK}" if phase.ci_profile is CiProfile.STRICT else ""
    trailers = [
        f"Autopack-Run: {change.run.run_id}",
        f"Autopack-Phase: {phase.phase_id}",
        f"Autopack-Submission: {submission.id}",
        f"Autopack-Patch-SHA256: {patch.sha256}",
    ]
    if submission.agent:
        name = submission.agent.translate(_NO_ADDRESS_SIGNS).strip() or "agent"
        trailers.append(f"Co-authored-by: {name} <agent@localhost>")
    subject = _SKIPS_CI.sub(r"(\1)", title)
    return f"{subject}{mark}\n\n" + "\n".join(trailers) + "\n"


_NO_ADDRESS_SIGNS = {ord(sign): None for sign in "<>\n\r"}
# An agent's title must not make CI skip its commit.
_SKIPS_CI = re.compile(r"\[((?:skip|no)[ -](?:ci|actions)|(?:ci|actions)[ -]skip)\]", re.IGNORECASE)
