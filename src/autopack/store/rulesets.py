"""Versions of the ruleset, counted as the operator changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import exists, select
from sqlalchemy.orm import Session, undefer

from ..advisory_locks import RULESET
from ..domain.audit_log import AuditAction
from ..models import AuditEntry, RulesetVersion
from .session import RowSession

_LOCK: Final = f"SELECT pg_advisory_xact_lock({RULESET.number('%s')})"


@dataclass(frozen=True, slots=True)
class LatestVersion:
    """The latest version of a project's ruleset, without its document."""

    version: int
    sha256: str


def lock_latest(session: RowSession, project_id: str) -> LatestVersion | None:
    """Return the project's latest version; no other is added until the end of the transaction."""
    session.gather(_LOCK, (RULESET.text_of(project_id),))
    return find_latest_version(session, project_id)


def add_version(
    session: Session,
    project_id: str,
    version: int,
    sha256: str,
    document: Mapping[str, Any],
    now: datetime,
) -> None:
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


def has_version(session: Session, project_id: str, sha256: str) -> bool:
    """Return whether some version of the project's ruleset has this content."""
    found = exists().where(RulesetVersion.project_id == project_id, RulesetVersion.sha256 == sha256)
    return bool(session.scalars(select(found)).one())


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


def find_latest_version(session: RowSession, project_id: str) -> LatestVersion | None:
    """Return the project's latest version; None before the first."""
    found = session.fetch(
        "SELECT version, sha256 FROM ruleset_versions WHERE project_id = %s"
        " ORDER BY version DESC LIMIT 1",
        (project_id,),
    )
    return LatestVersion(*found[0]) if found else None
