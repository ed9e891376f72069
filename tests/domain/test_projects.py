"""Who manages projects, and in which project a request is answered. (docs/projects.md)"""

from __future__ import annotations

import pytest

from autopack.domain.access import Caller, WrongProjectError
from autopack.domain.errors import AutopackError
from autopack.domain.projects import ProjectNotFoundError, project_for, require_unbound

pytestmark = pytest.mark.unit

ANYONE = Caller(key="ops")
BOUND = Caller(key="ci", project_id="other")
OF_ISSUER = Caller(subject="repo:org/app", project_id="main")


def test_projects_are_managed_by_callers_for_all_projects() -> None:
    require_unbound(ANYONE)
    with pytest.raises(WrongProjectError, match="key 'ci' is bound to the project 'other'"):
        require_unbound(BOUND)
    with pytest.raises(WrongProjectError, match="is bound to the project 'main'"):
        require_unbound(OF_ISSUER)


@pytest.mark.parametrize(
    ("caller", "named", "place"),
    [
        (ANYONE, None, "main"),
        (ANYONE, "other", "other"),
        (ANYONE, "gone", ProjectNotFoundError),
        (BOUND, None, "other"),
        (BOUND, "other", "other"),
        (BOUND, "main", ProjectNotFoundError),  # as one that is not there
        (Caller(key="ci", project_id="gone"), None, WrongProjectError),
        (OF_ISSUER, None, "main"),
        (OF_ISSUER, "other", ProjectNotFoundError),
    ],
)
def test_a_request_is_answered_in_the_project_of_its_path_else_of_its_key(
    caller: Caller, named: str | None, place: str | type[AutopackError]
) -> None:
    if isinstance(place, str):
        assert project_for(caller, named, "main", {"main", "other"}) == place
    else:
        with pytest.raises(place):
            project_for(caller, named, "main", {"main", "other"})
