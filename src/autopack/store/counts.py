"""Add up the changes of counts, so that a count stays the sum of a few rows."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Table, Text

from ..models import backlog_counts, run_counts
from .session import RowSession

# Fewer rows cost nothing, so an idle service writes nothing.
UNFOLDED: Final = 100


def fold_counts(session: RowSession) -> None:
    """Replace rows by their sums, with the session's next statement.

    Only one fold can delete a row, and the same statement adds its value to a sum. So every count
    is right at every moment, also with concurrent folds and changes.
    """
    for statement in _FOLDS:
        session.gather(statement)


def _fold(counts: Table) -> str:
    kinds = ", ".join(each.name for each in counts.c if isinstance(each.type, Text))
    added = [each.name for each in counts.c if not isinstance(each.type, Text)]
    sums = [f"sum({name})" for name in added]
    return f"""
        WITH gone AS (DELETE FROM {counts.name}
            WHERE (SELECT count(*) FROM {counts.name}) > {UNFOLDED} RETURNING *)
        INSERT INTO {counts.name} ({kinds}, {", ".join(added)})
        SELECT {kinds}, {", ".join(sums)} FROM gone GROUP BY {kinds}
        HAVING {" OR ".join(f"{each} <> 0" for each in sums)}"""  # noqa: S608 - names of the models


_FOLDS = (_fold(run_counts), _fold(backlog_counts))
