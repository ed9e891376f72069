"""The further projects, and the databases that they have."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Engine, exists, func, select, text
from sqlalchemy.orm import Session

from ..advisory_locks import PROJECTS
from ..models import Project, Run

_LOCK: Final = text(f"SELECT pg_advisory_xact_lock({PROJECTS.number})")
# The rest of a name of a database, which has 63 bytes at most.
_LONGEST_PREFIX: Final = 30


def lock_projects(session: Session) -> None:
    """Let no other process add or change a project until the end of the transaction."""
    session.execute(_LOCK)


def has_list(session: Session) -> bool:
    """Say whether the schema has the list of projects; an empty or older one does not."""
    return bool(session.scalars(select(func.to_regclass(Project.__tablename__))).one())


def list_projects(session: Session) -> Sequence[Project]:
    """Return all projects, closed ones too, oldest first."""
    return session.scalars(select(Project).order_by(Project.id)).all()


def find_project(session: Session, name: str) -> Project | None:
    """Return the project of exactly this name."""
    return session.scalars(select(Project).where(Project.name == name)).one_or_none()


def has_name(session: Session, name: str) -> bool:
    """Say whether there is, or was, a project of this name in any case."""
    query = select(Project.id).where(func.lower(Project.name) == name.lower())
    return session.scalars(query).first() is not None


def find_owner(session: Session, git_dir: str) -> str | None:
    """Return the name of the open project that has a repository."""
    query = select(Project.name).where(Project.git_dir == git_dir, Project.closed_at.is_(None))
    return session.scalars(query).one_or_none()


def has_live_runs(session: Session) -> bool:
    return bool(session.scalars(select(exists().where(Run.ended_at.is_(None)))).one())


def new_database_name(autocommit: Engine) -> str:
    """Return a name for a project's database that no other one has."""
    prefix = (autocommit.url.database or "autopack").replace('"', "")[:_LONGEST_PREFIX]
    return f"{prefix}_project_{uuid.uuid4().hex[:16]}"


def free_connections(session: Session) -> tuple[int, int]:
    """Return how many connections Postgres could still take, and its `max_connections`."""
    query = text(
        "SELECT current_setting('max_connections')::int, "
        "current_setting('superuser_reserved_connections')::int, "
        "(SELECT sum(numbackends) FROM pg_stat_database)::int"
    )
    most, reserved, used = session.execute(query).one()
    return most - reserved - used, most


def has_database(autocommit: Engine, name: str) -> bool:
    """Say whether the server has a database of this name."""
    query = text("SELECT EXISTS (SELECT FROM pg_database WHERE datname = :name)")
    with autocommit.connect() as connection:
        return bool(connection.execute(query, {"name": name}).scalar_one())


def create_database(autocommit: Engine, name: str) -> None:
    """Create an empty database on the same server. Raises ProgrammingError if the role may not."""
    with autocommit.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'UTF8'")


def drop_database(autocommit: Engine, name: str) -> None:
    """Remove a database that no project has got."""
    with autocommit.connect() as connection:
        connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')
