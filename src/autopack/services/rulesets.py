"""The operator's ruleset, read at each start of a run. (rules §9)"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import ValidationError

from ..domain.audit_log import AuditAction
from ..domain.closed_paths import CLOSED
from ..domain.document_diff import differences
from ..domain.errors import InvalidError
from ..domain.events import canonical_json
from ..domain.naming import ruleset_name
from ..domain.path_policy import DEFAULT_PROTECTED
from ..domain.plan import Plan, check_plan, wants_debt_cleanup, with_debt_cleanup
from ..domain.ruleset import CiRules, Ruleset
from ..domain.strategy import Strategy, compile_strategy, require_evidence
from ..domain.terms import CiMode, CiProfile, EvidenceKind
from ..domain.values import MAX_PROBLEMS, Problems
from ..store import issues, nodes, rulesets
from ..store.rulesets import LatestVersion
from ..store.session import RowSession
from ..views.project import (
    FieldChangeAnswer,
    ProtectedPathsAnswer,
    RulesetDiffAnswer,
    RulesetVersionAnswer,
)
from .audit_log import note
from .context import AppContext


class InvalidRulesetError(InvalidError):
    code = "invalid_ruleset"


def read_ruleset(context: AppContext) -> Ruleset:
    """Return the project's ruleset; write the default one when there is none. (rules §9)

    Raises InvalidRulesetError that names the field; the file is never overwritten.
    """
    project_id = context.settings.project_id
    content = context.mirror.read_ruleset(project_id)
    if content is None:
        default = Ruleset(project_id=project_id)
        context.mirror.write_ruleset(project_id, _content(default), only_if_absent=True)
        return default
    return parse_ruleset(content, project_id)


def restore_ruleset(context: AppContext) -> None:
    """Write the ruleset of the last run again, if its file was removed.

    For a runs directory that was removed: the defaults could be another policy.
    """
    project_id = context.settings.project_id
    with context.reading() as session:
        document = rulesets.find_latest(session, project_id)
    if document is not None:
        ruleset = parse_ruleset(json.dumps(document).encode(), project_id)
        context.mirror.write_ruleset(project_id, _content(ruleset), only_if_absent=True)


def _content(ruleset: Ruleset) -> bytes:
    return (json.dumps(ruleset.model_dump(mode="json"), indent=2) + "\n").encode()


def parse_ruleset(content: bytes, project_id: str) -> Ruleset:
    """Check a ruleset document. Raises InvalidRulesetError that names each field."""
    name = ruleset_name(project_id)
    try:
        ruleset = Ruleset.model_validate_json(content, context=Problems())
    except ValidationError as error:
        problems = [
            {
                "loc": ".".join(str(part) for part in problem["loc"]) or "(document)",
                "message": problem["msg"],
            }
            for problem in error.errors(include_url=False, include_input=False)[:MAX_PROBLEMS]
        ]
        first = problems[0]
        raise InvalidRulesetError(
            f"{name}: {first['loc']}: {first['message']}", errors=problems
        ) from None
    if ruleset.project_id != project_id:
        raise InvalidRulesetError(
            f"{name}: project_id: is '{ruleset.project_id}', but this service serves '{project_id}'"
        )
    return ruleset


def write_ruleset(context: AppContext, document: dict[str, Any]) -> Ruleset:
    """Replace the ruleset for the runs that start from now on. (rules §9)

    Raises InvalidRulesetError that names each field; the file does not change then.
    """
    project_id = context.settings.project_id
    ruleset = parse_ruleset(json.dumps(document).encode(), project_id)
    with context.writing() as session:
        _lock(session, context)  # else this node might follow an older version after this file
        context.mirror.write_ruleset(project_id, _content(ruleset))
        version = strategy_version(session, context, ruleset)
        # At once also for the first version: else a newer one of another node would count as older
        # than this file.
        nodes.set_ruleset(session, context.node_id, _digest(ruleset)[0])
        data = {"version": ruleset.version, "strategy_version": version}
        note(session, context, AuditAction.RULESET_REPLACED, project_id, data)
        session.commit()
    return ruleset


def diff_ruleset(context: AppContext, document: dict[str, Any]) -> RulesetDiffAnswer:
    """Return which fields a ruleset would change of the one in force. Raises InvalidRulesetError.

    Fields that the document leaves out have their defaults, as when it is put in force.
    """
    today = read_ruleset(context)
    wanted = parse_ruleset(json.dumps(document).encode(), context.settings.project_id)
    changes = differences(today.model_dump(mode="json"), wanted.model_dump(mode="json"))
    return RulesetDiffAnswer(
        version=today.version, changes=[FieldChangeAnswer.of(each) for each in changes]
    )


def list_versions(
    context: AppContext, *, limit: int, before: int | None
) -> tuple[list[RulesetVersionAnswer], int | None]:
    """Return a page of the ruleset's versions, newest first, and where the next one begins."""
    project_id = context.settings.project_id
    with context.reading() as session:
        # One more, against which the last one of the page is compared.
        rows = rulesets.list_versions(session, project_id, limit=limit + 1, before=before)
        numbers = [row.version for row in rows]
        authors = rulesets.list_authors(session, project_id, numbers) if rows else {}
    found = []
    for place, row in enumerate(rows[:limit]):
        earlier = rows[place + 1].document if place + 1 < len(rows) else None
        changes = [] if earlier is None else differences(earlier, row.document)
        found.append(
            RulesetVersionAnswer(
                version=row.version,
                created_at=row.created_at,
                actor=authors.get(row.version),
                changes=[FieldChangeAnswer.of(each) for each in changes],
                document=row.document,
            )
        )
    return found, rows[limit - 1].version if len(rows) > limit else None


def protected_paths(context: AppContext) -> ProtectedPathsAnswer:
    """Return what no patch of a run that starts now may change. (docs/paths.md)"""
    ruleset = read_ruleset(context)
    known = {*DEFAULT_PROTECTED, *ruleset.paths.protected}
    scripts = ci_scripts(context, ruleset.ci, context.repository.base().commit)
    return ProtectedPathsAnswer(
        always=list(CLOSED),
        by_default=[path for path in DEFAULT_PROTECTED if path not in CLOSED],
        by_ruleset=list(ruleset.paths.protected),
        ci_scripts=sorted(scripts - known),
        opened={category: list(paths) for category, paths in ruleset.paths.opened.items()},
    )


def ci_scripts(context: AppContext, ci: CiRules, commit: str) -> set[str]:
    """Return the files of a commit that CI's commands call.

    They are protected paths, so that an agent cannot change the scripts that judge its patches.
    """
    profiles = (ci.command_for(profile) for profile in CiProfile)
    named = {name for profile in profiles for name in profile.programs()}
    return context.repository.files_in(commit, named) if named else set()


def strategy_version(session: RowSession, context: AppContext, ruleset: Ruleset) -> int:
    """Return the version number of strategies of this ruleset; it is a new one if it differs."""
    latest = rulesets.find_latest_version(session, ruleset.project_id)
    return _version_after(session, context, ruleset, latest)


def _version_after(
    session: RowSession, context: AppContext, ruleset: Ruleset, latest: LatestVersion | None
) -> int:
    digest, document = _digest(ruleset)
    if latest is None or latest.sha256 != digest:
        # Another process may have been faster.
        latest = rulesets.lock_latest(session, ruleset.project_id)
    if latest is not None and latest.sha256 == digest:
        return latest.version
    version = latest.version + 1 if latest is not None else 1
    rulesets.add_version(session, ruleset.project_id, version, digest, document, context.now())
    if latest is not None:  # of the first version, the next look after the node notes it
        nodes.set_ruleset(session, context.node_id, digest)
    return version


def current_ruleset(context: AppContext, session: RowSession) -> tuple[Ruleset, int]:
    """Return the project's ruleset and its version, also if another node has replaced it since.

    A file that the operator edited here is a new version, on any node. (docs/replicas.md)
    """
    ruleset = read_ruleset(context)
    digest, _ = _digest(ruleset)
    latest = rulesets.find_latest_version(session, ruleset.project_id)
    if latest is not None and latest.sha256 != digest:
        # This node may have followed the latest since the file was read: it does not from here on.
        latest = _lock(session, context)
        ruleset = read_ruleset(context)
        digest, _ = _digest(ruleset)
        if latest is not None and latest.sha256 != digest and _is_old(session, context, digest):
            ruleset = _take_latest(session, context)
    return ruleset, _version_after(session, context, ruleset, latest)


def _lock(session: RowSession, context: AppContext) -> LatestVersion | None:
    """Return the latest version; no node adds one, and this one follows none, until the commit."""
    latest = rulesets.lock_latest(session, context.settings.project_id)
    nodes.lock_ruleset(session, context.node_id)
    return latest


def follow_ruleset(context: AppContext) -> None:
    """Replace this node's ruleset file if another node has put a newer version in force."""
    with context.autocommitting() as session:
        session.begin_change()
        # Before the file is read: else what a request notes of a newer one would be overwritten.
        known = nodes.lock_ruleset(session, context.node_id)
        content = context.mirror.read_ruleset(context.settings.project_id)
        if content is None:
            return
        try:
            digest, _ = _digest(parse_ruleset(content, context.settings.project_id))
        except InvalidRulesetError:
            return  # the operator is editing it
        latest = rulesets.find_latest_version(session, context.settings.project_id)
        if latest is None:
            if known is None:  # a default that was written here must not look edited later
                nodes.set_ruleset(session, context.node_id, digest)
        elif latest.sha256 != digest and _is_old(session, context, digest):
            _take_latest(session, context)
        elif latest.sha256 == digest != known:
            nodes.set_ruleset(session, context.node_id, digest)
        session.commit()


def _is_old(session: RowSession, context: AppContext, digest: str) -> bool:
    """Return whether this node's file is as the node knows it, and so older than the latest."""
    known = nodes.find_ruleset(session, context.node_id)
    if known is None:
        return rulesets.has_version(session, context.settings.project_id, digest)
    return known == digest


def _take_latest(session: RowSession, context: AppContext) -> Ruleset:
    project_id = context.settings.project_id
    document = rulesets.find_latest(session, project_id)
    ruleset = parse_ruleset(json.dumps(document).encode(), project_id)
    context.mirror.write_ruleset(project_id, _content(ruleset))
    nodes.set_ruleset(session, context.node_id, _digest(ruleset)[0])
    return ruleset


def _digest(ruleset: Ruleset) -> tuple[str, dict[str, Any]]:
    document = ruleset.model_dump(mode="json")
    return hashlib.sha256(canonical_json(document)).hexdigest(), document


def plan_under(
    session: RowSession, context: AppContext, plan: Plan, ruleset: Ruleset, *, version: int
) -> tuple[Plan, Strategy]:
    """Check a plan under a ruleset, add phases for debt, compile its strategy. (rules §1, §9)

    Raises InvalidPlanError.
    """
    if ruleset.ci.mode is CiMode.EXTERNAL and context.repository.remote is None:
        raise InvalidRulesetError(
            "ci.mode: 'external' needs a remote from which CI can fetch the branch: set "
            "AUTOPACK_GIT_REMOTE"
        )
    check_plan(plan, ruleset)
    if wants_debt_cleanup(plan, ruleset):
        room = (plan.run.max_phases or ruleset.run.max_phases) - len(plan.phases)
        aged = issues.list_needing_cleanup(session, ruleset.project_id, limit=max(0, room))
        is_measured = not any(
            ruleset.ci.evidence_problem(profile, EvidenceKind.FAILS_BEFORE) for profile in CiProfile
        )
        plan = with_debt_cleanup(
            plan,
            [(entry.issue_key, entry.category) for entry in aged],
            must_fail_before=is_measured,
        )
    strategy = compile_strategy(ruleset, plan, version=version)
    require_evidence(plan, ruleset, strategy)
    return plan, strategy


def dry_run(
    context: AppContext, plan: Plan, ruleset: dict[str, Any] | None
) -> tuple[Strategy, Strategy | None]:
    """Compile a plan's strategy without starting a run.

    With a ruleset given: its strategy, and today's ruleset's one for comparison.
    """
    with context.writing() as session:
        today, version = current_ruleset(context, session)
        _, strategy = plan_under(session, context, plan, today, version=version)
        if ruleset is None:
            return strategy, None
        given = parse_ruleset(json.dumps(ruleset).encode(), context.settings.project_id)
        _, wanted = plan_under(session, context, plan, given, version=version + 1)
    return wanted, strategy
