"""Versions of the ruleset, counted as the operator changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session, undefer

from ..domain.audit import AuditAction
from ..models import AuditEntry, RulesetVersion


def version_of(
    session: Session, project_id: str, sha256: str, document: Mapping[str, Any], now: datetime
) -> int:
    """Return the version of the project's ruleset; one that differs from the last is a new one."""
    latest = _latest(session, project_id)
    if latest is not None and latest.sha256 == sha256:
        return latest.version
    lock = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 1))")
    session.execute(lock, {"name": project_id})
    latest = _latest(session, project_id)  # another process may have been faster
    if latest is not None and latest.sha256 == sha256:
        return latest.version
    version = latest.version + 1 if latest is not None else 1
    session.add(
        RulesetVersion(
            project_id=project_id,
            version=version,
            sha256=sha256,
            document=dict(document),
            created_at=now,
        )
    )
    session.flush()
    return version


def find_latest(session: Session, project_id: str) -> dict[str, Any] | None:
    """Return the document of the project's latest ruleset that the database knows."""
    query = (
        select(RulesetVersion.document)
        .where(RulesetVersion.project_id == project_id)
        .order_by(RulesetVersion.version.desc())
        .limit(1)
    )
    return session.scalars(query).one_or_none()


def list_versions(
    session: Session, project_id: str, *, limit: int, before: int | None
) -> list[RulesetVersion]:
    """Return versions of the project's ruleset with their documents, newest first."""
    query = (
        select(RulesetVersion)
        .options(undefer(RulesetVersion.document))
        .where(RulesetVersion.project_id == project_id)
        .order_by(RulesetVersion.version.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(RulesetVersion.version < before)
    return list(session.scalars(query))


def list_authors(session: Session, project_id: str, versions: Sequence[int]) -> dict[int, str]:
    """Return who first put each of these versions in force by the API, as the audit log says."""
    number = AuditEntry.data["strategy_version"].as_integer()
    query = (
        select(number, AuditEntry.actor)
        .where(
            AuditEntry.action == AuditAction.RULESET_REPLACED,
            AuditEntry.subject == project_id,
            number.in_(versions),
        )
        .order_by(AuditEntry.sequence.desc())
    )
    return {version: actor for version, actor in session.execute(query)}


def _latest(session: Session, project_id: str) -> RulesetVersion | None:
    query = (
        select(RulesetVersion)
        .where(RulesetVersion.project_id == project_id)
        .order_by(RulesetVersion.version.desc())
        .limit(1)
    )
    return session.scalars(query).one_or_none()
