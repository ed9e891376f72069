"""Add up the changes of counts, so that a count stays the sum of a few rows."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Table, Text, delete, func, insert, or_, select
from sqlalchemy.orm import Session
from sqlalchemy.sql import Insert

from ..models import backlog_counts, run_counts

# Fewer rows cost nothing, so an idle service writes nothing.
UNFOLDED: Final = 100


def fold_counts(session: Session) -> None:
    """Replace rows by their sums.

    Only one fold can delete a row, and the same statement adds its value to a sum. So every count
    is right at every moment, also with concurrent folds and changes.
    """
    for statement in _FOLDS:
        session.execute(statement)


def _fold(counts: Table) -> Insert:
    many = select(func.count()).select_from(counts).scalar_subquery() > UNFOLDED
    gone = delete(counts).where(many).returning(counts).cte("gone")
    kinds = [gone.c[each.name] for each in counts.c if isinstance(each.type, Text)]
    sums = [func.sum(gone.c[each.name]) for each in counts.c if not isinstance(each.type, Text)]
    folded = select(*kinds, *sums).group_by(*kinds).having(or_(*(each != 0 for each in sums)))
    return insert(counts).from_select(counts.c.keys(), folded)


_FOLDS = (_fold(run_counts), _fold(backlog_counts))
