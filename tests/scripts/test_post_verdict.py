"""The key that `post_verdict.py` sends."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.unit

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "post_verdict.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("post_verdict", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_key_comes_from_the_environment_or_a_private_file(
    script: ModuleType, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("ap_file\n")
    file.chmod(0o600)
    named = {"AUTOPACK_API_KEY_FILE": str(file)}
    assert script.key_of({}) == ""
    assert script.key_of(named) == "ap_file"
    assert script.key_of({**named, "AUTOPACK_API_KEY": "ap_given\n"}) == "ap_given"
    file.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        script.key_of(named)


def test_a_key_that_no_header_can_hold_is_not_told(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="must not have") as refusal:
        script.key_of({"AUTOPACK_API_KEY": "ap_one\nap_two"})
    assert "ap_" not in str(refusal.value)
