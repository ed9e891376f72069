"""The operator's ruleset, read anew at each start. (02 §4)"""

from __future__ import annotations

import json

from pydantic import ValidationError

from ..domain.errors import InvalidError
from ..domain.ruleset import Ruleset
from ..domain.values import CiMode
from .house import House


class InvalidRulesetError(InvalidError):
    code = "invalid_ruleset"


def read_ruleset(house: House) -> Ruleset:
    """Return the project's ruleset, written with the defaults when there is none.

    Raises InvalidRulesetError that names the field; the file is never overwritten.
    """
    project_id = house.settings.project_id
    content = house.mirror.read_ruleset(project_id)
    if content is None:
        default = Ruleset(project_id=project_id)
        document = json.dumps(default.model_dump(mode="json"), indent=2) + "\n"
        house.mirror.write_ruleset(project_id, document.encode(), only_if_absent=True)
        return default
    return parse_ruleset(content, project_id)


def parse_ruleset(content: bytes, project_id: str) -> Ruleset:
    """Check a ruleset document. Raises InvalidRulesetError that names each field."""
    name = f"project_ruleset_{project_id}.json"
    try:
        ruleset = Ruleset.model_validate_json(content)
    except ValidationError as error:
        problems = [
            {
                "loc": ".".join(str(part) for part in problem["loc"]) or "(document)",
                "message": problem["msg"],
            }
            for problem in error.errors(include_url=False, include_input=False)
        ]
        first = problems[0]
        raise InvalidRulesetError(
            f"{name}: {first['loc']}: {first['message']}", errors=problems
        ) from None
    if ruleset.project_id != project_id:
        raise InvalidRulesetError(
            f"{name}: project_id: is '{ruleset.project_id}', but this service serves '{project_id}'"
        )
    if ruleset.ci.mode is not CiMode.NONE:
        raise InvalidRulesetError(
            f"{name}: ci.mode: '{ruleset.ci.mode}' is not served yet; use 'none'"
        )
    return ruleset
