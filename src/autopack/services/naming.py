"""Names in a body have to be those of the path."""

from __future__ import annotations

from ..domain.errors import InvalidError


def require_same_names(
    run_id: str, phase_id: str, body_run_id: str | None, body_phase_id: str | None
) -> None:
    """Refuse a body that names another run or phase than the path. Raises InvalidError."""
    for field, inside, outside in (
        ("run_id", body_run_id, run_id),
        ("phase_id", body_phase_id, phase_id),
    ):
        if inside is not None and inside != outside:
            raise InvalidError(
                f"{field} is '{inside}' in the body and '{outside}' in the path; they must agree",
                errors=[{"loc": field, "message": "differs from the path"}],
            )
