"""Each record has an in-toto statement for other tools, which the checker checks. (promotion.md)"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from autopack.checker import branch
from autopack.checker.branch import check_branch
from autopack.config import Settings
from autopack.domain.record_text import JsonObject, RecordError, RecordSubject
from autopack.domain.signatures import fingerprint, is_signed_by
from autopack.domain.statement import read_envelope, signed_bytes
from autopack.gitrepo import Repository
from autopack.gitrepo.signing import Signer

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

SIGNERS = ".github/autopack_allowed_signers"


def make_key(folder: Path, name: str = "key", *options: str) -> Path:
    options = options or ("-t", "ed25519")
    made = folder / name
    command = ["ssh-keygen", "-q", *options, "-N", "", "-f", str(made)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return made


def public(key: Path) -> bytes:
    return b" ".join(key.with_suffix(".pub").read_bytes().split()[:2])


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"signing_key": make_key(tmp_path)})


def finish(api: Api) -> None:
    api.start(phases=2, phase={"task_category": "debt_cleanup"})
    for phase_id in ("P0.0", "P0.1"):
        model = {"model": "small", "agent": "codex@host"}
        assert api.result(phase_id=phase_id, **model).json()["phase_state"] == "GATE"
        body = {"recommendation": "approve", "review_notes": "seen", "model": "large"}
        answer = api.client.post(f"/runs/run-001/phases/{phase_id}/auditor_result", json=body)
        assert answer.json()["phase_state"] == "COMPLETE", answer.text


def envelope(api: Api) -> JsonObject:
    path = "autonomous/run-001:.autonomous_runs/run-001/statement.json"
    return dict(json.loads(api.repo.git("show", path)))


def statement(api: Api) -> JsonObject:
    return dict(json.loads(base64.b64decode(envelope(api)["payload"])))


def check(api: Api) -> JsonObject:
    subject = RecordSubject(run_id="run-001", branch="autonomous/run-001", base_branch="main")
    return check_branch(str(api.repo.path), subject)


def test_a_statement_says_what_was_made_of_what_by_whom(api: Api) -> None:
    finish(api)
    told = statement(api)
    work = api.head()
    tree = api.repo.git("rev-parse", f"{work}^{{tree}}")
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    assert told["predicateType"] == "https://slsa.dev/provenance/v1"
    digest = {"gitCommit": work, "gitTree": tree}
    assert told["subject"] == [{"name": "autonomous/run-001", "digest": digest}]
    materials = told["predicate"]["buildDefinition"]["resolvedDependencies"]
    base = {"name": "main", "digest": {"gitCommit": api.repo.git("rev-parse", "main")}}
    assert base in materials
    names = [each["name"] for each in materials]
    assert names[1] == "project_implementation_strategy_v1.json"
    patches = [each for each in materials if each["name"].startswith("patches/")]
    assert [each["annotations"]["phase_id"] for each in patches] == ["P0.0", "P0.1"]
    [first, _] = told["predicate"]["autopack_phases"]
    assert first["builders"] == [
        {"actor": "local:codex@host", "model": "small", "status": "success"}
    ]
    assert [(each["model"], each["recommendation"]) for each in first["auditors"]] == [
        ("large", "approve")
    ]
    assert told["predicate"]["autopack_promotion"]["eligible"] is True
    assert (api.runs_dir / "run-001" / "statement.json").read_text().strip() == api.repo.git(
        "show", "autonomous/run-001:.autonomous_runs/run-001/statement.json"
    )


def test_its_signature_is_of_the_operators_key_as_dsse_has_it(api: Api, tmp_path: Path) -> None:
    finish(api)
    found = envelope(api)
    [signature] = found["signatures"]
    payload = base64.b64decode(found["payload"])
    kind = found["payloadType"].encode()
    encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    key: Any = load_ssh_public_key(public(tmp_path / "key"))
    key.verify(base64.b64decode(signature["sig"]), encoded)  # raises where it does not fit
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(tmp_path / "key.pub")], capture_output=True, check=True
    )
    assert signature["keyid"] in shown.stdout.decode()


def test_the_checker_says_by_which_key_it_is_signed(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(api)
    assert check(api)["statement"].startswith("the statement is signed, but nothing says")
    api.repo.commit({SIGNERS: f"autopack@localhost {public(tmp_path / 'key').decode()}\n"})
    verdict = check(api)
    assert verdict["reasons"] == []
    mine = fingerprint(public(tmp_path / "key"))
    assert verdict["statement"] == f"the statement is signed by {mine}"
    monkeypatch.setattr(branch, "can_check", lambda: False)
    verdict = check(api)
    assert verdict["reasons"] == []
    assert "was not checked: Python's `cryptography` is not installed" in verdict["statement"]


def test_a_statement_about_something_else_is_refused(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that was changed signs another tale."""

    monkeypatch.setattr(
        "autopack.services.projection.payload_of", lambda record: b'{"_type": "nothing"}'
    )
    finish(api)

    assert check(api)["reasons"] == ["statement.json tells another tale than run.json"]


def test_without_a_key_the_statement_is_not_signed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Repository, "sign_statement", lambda *_: None)
    finish(api)
    assert envelope(api)["signatures"] == []
    verdict = check(api)
    assert (verdict["reasons"], verdict["statement"]) == ([], "the statement is not signed")


@pytest.mark.parametrize(
    "options",
    [("-t", "ed25519"), ("-t", "ecdsa", "-b", "256"), ("-t", "ecdsa", "-b", "384"), ("-t", "rsa")],
    ids=" ".join,
)
@pytest.mark.parametrize("form", ["openssh", "pem"])
def test_every_kind_of_key_makes_signatures_that_its_public_key_confirms(
    tmp_path: Path, options: tuple[str, ...], form: str
) -> None:
    if form == "pem" and "ed25519" in options:
        pytest.skip("ssh-keygen writes these keys in its own form alone")
    key = make_key(tmp_path, "other", *options, *(("-m", "PEM") if form == "pem" else ()))
    signature = Signer("ssh-keygen", key, 5).sign_raw(signed_bytes(b"{}"))
    assert signature is not None
    assert signature.key_id == fingerprint(public(key))
    assert is_signed_by(public(key), signature.value, signed_bytes(b"{}"))
    assert not is_signed_by(public(key), signature.value, signed_bytes(b"[]"))
    assert not is_signed_by(b"ssh-ed25519 AAAA", signature.value, signed_bytes(b"{}"))


def test_a_key_that_cannot_sign_leaves_the_statement_unsigned(tmp_path: Path) -> None:
    key = tmp_path / "broken"
    key.write_text("-----BEGIN OPENSSH PRIVATE " + "KEY-----\nAAAA\n")
    assert Signer("ssh-keygen", key, 5).sign_raw(b"") is None
    assert Signer("ssh-keygen", tmp_path / "none", 5).sign_raw(b"") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "is no object"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"payload": "", "payloadType": "text/plain", "signatures": []}', "another payloadType"),
        ('{"payload": "!", "payloadType": "T", "signatures": []}', "cannot be read"),
        ('{"payload": "", "payloadType": "T", "signatures": [{}]}', "has no 'keyid'"),
        (
            '{"payload": "", "payloadType": "T", "signatures": ['
            + ",".join(['{"keyid": "", "sig": ""}'] * 11)
            + "]}",
            "more than 10 signatures",
        ),
    ],
)
def test_hostile_envelopes_are_refused(text: str, why: str) -> None:
    text = text.replace('"T"', '"application/vnd.in-toto+json"')
    with pytest.raises(RecordError, match=why):
        read_envelope(text.encode())
