"""What each kind of evidence sees of the corpus in `tests/evidence`, by running every tree.

    python benchmarks/evidence.py

Runs broken CI commands, cheating agents and honest changes with pytest, node's test runner, a shell
runner, make and cc, and keeps the outcomes in `tests/evidence/outcomes.json`, from which the test
suite judges them again. Prints the table of docs/evidence.md. Takes some minutes.
"""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.evidence.corpus import CASES, Case, Files  # noqa: E402  as above
from tests.evidence.judging import RECORDED, judge, key, run_now  # noqa: E402  as above
from tests.evidence.table import table  # noqa: E402  as above

from autopack.domain.evidence_rules import Measured  # noqa: E402  the path must be set first


def main() -> None:
    kept: dict[str, Measured] = {}

    def run(files: Files, command: str, junit: str | None) -> Measured:
        name = key(files, command, junit)
        if name not in kept:
            kept[name] = run_now(files, command, junit)
        return kept[name]

    def found(case: Case) -> dict[str, tuple[str, str]]:
        return judge(case, run)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(CASES, pool.map(found, CASES), strict=True))
    lines = [
        f"{json.dumps(name)}: {json.dumps([each.verdict, each.exit_status, each.cases])}"
        for name, each in sorted(kept.items())
    ]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
