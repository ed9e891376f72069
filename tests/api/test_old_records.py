"""A record of an earlier version is decided as that version's service decided it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .test_tampering import check

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

RECORDS = Path(__file__).with_name("records")
VERDICTS: dict[str, Any] = json.loads((RECORDS / "verdicts.json").read_text())


@pytest.mark.parametrize("run_id", VERDICTS)
def test_an_old_record_has_the_verdict_that_it_had(tmp_path: Path, run_id: str) -> None:
    clone = str(tmp_path / "clone")
    bundle = str(RECORDS / "records.bundle")
    subprocess.run(["git", "clone", "--quiet", "--mirror", bundle, clone], check=True)
    found = check(clone, run_id, f"autonomous/{run_id}", "main")
    assert {name: found[name] for name in VERDICTS[run_id]} == VERDICTS[run_id]
