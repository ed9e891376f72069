"""The nodes that serve this database, and how far the branches and files of each have come."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ARRAY, CheckConstraint, ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base


class ServedRepository(Base):
    """The one repository that the runs of this database are of."""

    __tablename__ = "served_repository"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    place: Mapped[str]  # of the clone that was served first, for messages
    # Root commits of the base branch; empty where a shallow clone does not have them.
    root_commits: Mapped[list[str]] = mapped_column(ARRAY(Text))
    since: Mapped[datetime]

    __table_args__ = (CheckConstraint("id = 1", name="is_alone"),)


class Node(Base):
    """The processes of one home: they share a clone and a runs directory.

    `generation` is what the home's file must name too, so that two copies of a home are found.
    `position` is the event up to which branches and files show the changes of other nodes; 0: of a
    new node, which has to look at every run. It must still look at the runs with an
    id below `unseen_before` that have no event after `position`.
    """

    __tablename__ = "nodes"

    id: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[str]
    address: Mapped[str | None]
    version: Mapped[str]
    generation: Mapped[str]
    position: Mapped[int] = mapped_column(default=0)
    unseen_before: Mapped[int | None]
    ruleset_sha256: Mapped[str | None]  # of the version that the operator's file here is of
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]


class NodeRun(Base):
    """The revision of a run that the branch and files of a node show.

    Only for runs whose last change came from another node: for its own, a run's row says so.
    `event_sequence` is the run's last event at that revision, or an earlier one; None: not known.
    `lacks` says why a node cannot show a later revision, such as a commit that it does not have.
    """

    __tablename__ = "node_runs"

    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    node_id: Mapped[str] = mapped_column(
        ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True
    )
    revision: Mapped[int]
    event_sequence: Mapped[int | None]
    lacks: Mapped[str | None]

    __table_args__ = (
        # Also serves the removal of a node.
        Index("ix_node_runs_node_id_lacks", "node_id", "lacks"),
    )
