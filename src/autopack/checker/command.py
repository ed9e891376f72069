"""The checker's command line: `scripts/check_promotion.py`, and `autopack verify` behind it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Final

from ..domain.record_text import RecordSubject
from .branch import check_branch
from .objects import WrongUseError

ELIGIBLE: Final = 0
REFUSED: Final = 1
WRONG_USE: Final = 2


def main(arguments: list[str] | None = None, program: str | None = None) -> int:
    """Check the branch that the arguments name, print the verdict, return the exit code.

    `arguments` default to the process's own, `program` to the name it was called by.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description="Say whether a run's branch may go to the base branch, by the record at the"
        " branch's head.",
    )
    parser.add_argument("--run-id", required=True, help="the run, such as run-001")
    parser.add_argument("--branch", required=True, help="its branch, such as autonomous/run-001")
    parser.add_argument("--base", default="main", help="where it is to go (main)")
    parser.add_argument("--repository", default=".", help="a clone that has both (.)")
    parser.add_argument("--json", action="store_true", help="write the verdict as JSON")
    given = parser.parse_args(arguments)
    subject = RecordSubject(run_id=given.run_id, branch=given.branch, base_branch=given.base)
    try:
        verdict = check_branch(given.repository, subject)
    except WrongUseError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return WRONG_USE
    if given.json:
        print(json.dumps(verdict, indent=2))
    else:
        lines = [*verdict["reasons"], *(f"warning: {each}" for each in verdict["warnings"])]
        if verdict["signature"]:
            lines.append(verdict["signature"])
        if verdict["statement"]:
            lines.append(verdict["statement"])
        if verdict["eligible"]:
            lines.insert(0, f"'{given.branch}' may go to '{given.base}'")
        encoding = sys.stdout.encoding or "utf-8"
        for line in lines:
            print(line.encode(encoding, "backslashreplace").decode(encoding))
    return ELIGIBLE if verdict["eligible"] else REFUSED


if __name__ == "__main__":
    sys.exit(main())
