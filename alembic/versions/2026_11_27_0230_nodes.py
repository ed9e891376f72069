"""nodes

Any number of clones of one repository serve the database. The clone that was served so far owns the
marks of all its runs: their column gets its id as a constant, so that no row is written again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "nodes"
down_revision = "projects"
branch_labels = None
depends_on = None
stop_first = "an older version does not say whose branch and files it has brought up to date"

# The column's value for all rows is the id of the clone that was served so far, as gitrepo/node.py
# makes it. It is a constant default, so that no row is written.
_OWNER = """
CREATE FUNCTION add_owner() RETURNS void LANGUAGE plpgsql AS $$
DECLARE owner text := (
    SELECT left(encode(sha256(clone::bytea), 'hex'), 16) FROM served_clone
);
BEGIN
    EXECUTE format('ALTER TABLE runs ADD COLUMN mirrored_by text DEFAULT %L', owner);
    ALTER TABLE runs ALTER COLUMN mirrored_by DROP DEFAULT;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "nodes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("generation", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
    )
    # Before anything of `runs` is locked.
    op.execute(
        "INSERT INTO nodes (id, place, version, generation, position, started_at, heartbeat_at)"
        " SELECT left(encode(sha256(clone::bytea), 'hex'), 16), place, '', '',"
        " coalesce((SELECT max(id) FROM events), 0), since, since FROM served_clone"
    )
    op.create_table(
        "node_runs",
        sa.Column("run_pk", sa.BigInteger(), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("lacks", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_pk"], ["runs.id"], name=op.f("fk_node_runs_run_pk_runs"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["node_id"], ["nodes.id"], name=op.f("fk_node_runs_node_id_nodes"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_pk", "node_id", name=op.f("pk_node_runs")),
    )
    op.create_index("ix_node_runs_node_id_lacks", "node_runs", ["node_id", "lacks"])
    op.execute(_OWNER)
    op.execute("SELECT add_owner()")
    op.execute("DROP FUNCTION add_owner()")
    op.rename_table("served_clone", "served_repository")
    op.execute(
        "ALTER TABLE served_repository RENAME CONSTRAINT pk_served_clone TO pk_served_repository"
    )
    op.execute(
        "ALTER TABLE served_repository RENAME CONSTRAINT ck_served_clone_is_alone"
        " TO ck_served_repository_is_alone"
    )
    op.drop_column("served_repository", "clone")


def downgrade() -> None:
    op.add_column(
        "served_repository", sa.Column("clone", sa.Text(), nullable=False, server_default="")
    )
    op.alter_column("served_repository", "clone", server_default=None)
    op.execute(
        "ALTER TABLE served_repository RENAME CONSTRAINT ck_served_repository_is_alone"
        " TO ck_served_clone_is_alone"
    )
    op.execute(
        "ALTER TABLE served_repository RENAME CONSTRAINT pk_served_repository TO pk_served_clone"
    )
    op.rename_table("served_repository", "served_clone")
    op.drop_column("runs", "mirrored_by")
    op.drop_table("node_runs")
    op.drop_table("nodes")
