"""Alembic's environment: the service passes its connection, the command line opens one."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, MetaData


def run(connection: Connection, metadata: MetaData | None = None) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_server_default=True,
        include_name=is_ours,
    )
    with context.begin_transaction():
        context.run_migrations()


def is_ours(name: str | None, _kind: str, _parents: object) -> bool:
    """Return whether to compare a table with the models: not those of the job engine."""
    return name is None or not name.startswith("procrastinate_")


def run_from_the_command_line() -> None:
    """Run migrations for commands such as `alembic check` and `alembic revision --autogenerate`."""
    from autopack.config import load_settings
    from autopack.database import open_database
    from autopack.models.base import Base

    if context.is_offline_mode():
        context.configure(dialect_name="postgresql", literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    with open_database(load_settings()) as database, database.engine.begin() as connection:
        run(connection, Base.metadata)


# The package is not imported on this path, as its name may be `src.autopack` here.
given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    run_from_the_command_line()
