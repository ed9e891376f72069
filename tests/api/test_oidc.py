"""Tokens of an OpenID Connect issuer: each wrong one is refused by name."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from starlette.testclient import TestClient

from autopack.config import Settings, SettingsError, load_settings
from autopack.domain.access import AccessRole
from autopack.main import create_app
from autopack.services.oidc import IssuerKeys

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx2 import Response
    from tests.api.conftest import Api
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

AUDIENCE = "autopack.example.org"
CLAIMS = {
    "ci": {"repository": "acme/sample", "ref": "refs/heads/autonomous/*"},
    "viewer": {"repository": "acme/sample"},
}
RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
OTHER = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
CURVE = ec.generate_private_key(ec.SECP256R1())
PATH = "/runs/run-001/phases/P0.0/ci_result"


@dataclass
class Issuer:
    """An issuer on this machine, as GitHub is one."""

    url: str = ""
    keys: dict[str, Any] = field(default_factory=lambda: {"rsa": RSA, "ec": CURVE})
    asked: int = 0
    is_away: bool = False

    def token(
        self, *, key: Any = RSA, algorithm: str = "RS256", kid: Any = "rsa", **claims: Any
    ) -> str:
        now = int(time.time())
        given = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "repo:acme/sample:ref:refs/heads/autonomous/run-001",
            "iat": now,
            "exp": now + 300,
            "repository": "acme/sample",
            "ref": "refs/heads/autonomous/run-001",
            **claims,
        }
        body = {name: value for name, value in given.items() if value is not None}
        return jwt.encode(body, key, algorithm, headers={} if kid is None else {"kid": kid})

    def document(self, path: str) -> Any:
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        self.asked += 1
        made = []
        for kid, key in self.keys.items():
            kind = jwt.algorithms.RSAAlgorithm if kid != "ec" else jwt.algorithms.ECAlgorithm
            made.append({**json.loads(kind.to_jwk(key.public_key())), "kid": kid, "use": "sig"})
        return {"keys": made}


@contextmanager
def serving() -> Iterator[Issuer]:
    issuer = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500 if issuer.is_away else 200)
            self.end_headers()
            if not issuer.is_away:
                self.wfile.write(json.dumps(issuer.document(self.path)).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield issuer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serving() as issuer:
        yield issuer


@dataclass
class Github:
    """A service that takes the issuer's tokens, asked from elsewhere."""

    client: TestClient
    app: FastAPI

    def ask(self, method: str, path: str, token: str, **given: Any) -> Response:
        return self.client.request(
            method, path, headers={"Authorization": f"Bearer {token}"}, **given
        )


@pytest.fixture
def github(settings: Settings, issuer: Issuer) -> Iterator[Github]:
    changed = {
        "auth": "required",
        "oidc_issuer": issuer.url,
        "oidc_audience": AUDIENCE,
        "oidc_claims": {AccessRole(role): claims for role, claims in CLAIMS.items()},
    }
    app = create_app(settings.model_copy(update=changed))
    with TestClient(app, base_url="http://localhost", client=("10.0.0.7", 50_000)) as client:
        yield Github(client, app)


@pytest.fixture
def api(github: Github, git_repo: GitRepo, settings: Settings) -> Api:
    from tests.api.conftest import Api

    return Api(github.client, git_repo, settings.autonomous_runs_dir)


def test_a_token_has_the_roles_whose_claims_it_meets(
    github: Github, issuer: Issuer, api: Api
) -> None:
    told = github.ask("GET", "/whoami", issuer.token()).json()
    assert told["roles"] == ["viewer", "ci"]
    assert told["key"] is None
    assert told["actor"] == "oidc:repo:acme/sample:ref:refs/heads/autonomous/run-001:viewer"
    assert github.ask("POST", PATH, issuer.token(), json={}).status_code in (404, 422)
    main = issuer.token(ref="refs/heads/main", sub="repo:acme/sample:ref:refs/heads/main")
    refused = github.ask("POST", PATH, main, json={})
    api.refused(refused, 403, "missing_role", "the token of 'repo:acme/sample:ref:refs/heads/main'")
    curved = issuer.token(key=CURVE, algorithm="ES256", kid="ec")
    assert github.ask("GET", "/runs", curved).status_code == 200
    key = {"name": "x", "roles": ["ci"]}
    api.refused(github.ask("POST", "/keys", issuer.token(), json=key), 403, "missing_role")


def test_each_wrong_token_is_refused_by_name(github: Github, issuer: Issuer, api: Api) -> None:
    now = int(time.time())
    good = issuer.token()
    head, body, signature = good.split(".")
    for code, token in (
        ("token_wrong_issuer", issuer.token(iss="https://evil.example")),
        ("token_wrong_audience", issuer.token(aud="another")),
        ("token_wrong_audience", issuer.token(aud=["a", "b"])),
        ("token_wrong_algorithm", issuer.token(key="k" * 64, algorithm="HS256")),
        ("token_wrong_algorithm", issuer.token(key=None, algorithm="none")),
        ("token_wrong_signature", issuer.token(key=OTHER)),
        ("token_wrong_signature", f"{head}.{body}.{'A' * len(signature)}"),
        ("token_expired", issuer.token(iat=now - 900, exp=now - 600)),
        ("token_not_valid_yet", issuer.token(iat=now + 600, exp=now + 900)),
        ("token_not_valid_yet", issuer.token(nbf=now + 600)),
        ("token_wrong_claims", issuer.token(repository="acme/other")),
        ("token_wrong_claims", issuer.token(repository=["acme/sample"])),
        ("token_wrong_claims", issuer.token(repository=None)),
        ("token_unknown_key", issuer.token(kid="another")),
        ("token_unknown_key", issuer.token(kid=None)),
        ("token_malformed", "a.b.c"),
        ("token_malformed", ".."),
        ("token_malformed", issuer.token(sub="a\nb")),
        ("token_malformed", issuer.token(exp=None)),
        ("token_malformed", issuer.token(iat=None)),
        ("token_malformed", issuer.token(sub=None)),
        ("token_malformed", issuer.token(key=CURVE, algorithm="ES256", kid="rsa")),
    ):
        response = github.ask("GET", "/runs", token)
        api.refused(response, 401, code)
        assert response.headers["www-authenticate"]
        assert signature not in response.text
    api.refused(github.ask("GET", "/runs", good[:-4]), 401)
    assert github.ask("GET", "/runs", good).status_code == 200


def test_an_unknown_key_is_asked_for_once_a_minute(issuer: Issuer) -> None:
    now = [0.0]
    keys = IssuerKeys(issuer.url, clock=lambda: now[0])
    keys.find("rsa")
    for _ in range(20):
        with pytest.raises(Exception, match="has no key"):
            keys.find("new")
    assert issuer.asked == 1
    issuer.keys["new"] = OTHER
    now[0] = 61
    assert keys.find("new").key_id == "new"
    assert issuer.asked == 2


def test_an_issuer_that_is_away_is_503_at_first_and_later_its_old_keys_hold(
    github: Github, issuer: Issuer, api: Api
) -> None:
    issuer.is_away = True
    response = github.ask("GET", "/runs", issuer.token())
    api.refused(response, 503, "oidc_issuer_away")
    assert response.headers["retry-after"]
    now = [0.0]
    keys = IssuerKeys(issuer.url, clock=lambda: now[0])
    issuer.is_away = False
    keys.find("rsa")
    issuer.is_away = True
    now[0] = 4_000
    assert keys.find("rsa").key_id == "rsa"


def test_a_key_that_the_issuer_has_removed_holds_for_another_hour_at_most(issuer: Issuer) -> None:
    now = [0.0]
    keys = IssuerKeys(issuer.url, clock=lambda: now[0])
    assert keys.find("ec").key_id == "ec"
    del issuer.keys["ec"]
    now[0] = 3_600
    assert keys.find("ec").key_id == "ec"
    now[0] = 3_601
    with pytest.raises(Exception, match="has no key 'ec'"):
        keys.find("ec")


def test_keys_go_on_to_work_beside_tokens(github: Github, api: Api) -> None:
    from autopack.contexts import create_key
    from autopack.domain.keys import NewKey

    key = NewKey(name="x", roles=(AccessRole.VIEWER,))
    made = create_key(github.app.state.context, key)
    assert github.ask("GET", "/runs", made.api_key).status_code == 200
    api.refused(github.ask("GET", "/runs", "ap_x"), 401, "key_required")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"AUDIENCE": "", "CLAIMS": json.dumps(CLAIMS)}, "needs AUTOPACK_OIDC_AUDIENCE"),
        ({"CLAIMS": ""}, "needed with an issuer"),
        ({"CLAIMS": "{"}, "not JSON"),
        ({"CLAIMS": '{"operator": {"repository": "acme/sample"}}'}, "no token may be an operator"),
        ({"CLAIMS": '{"root": {"repository": "acme/sample"}}'}, "CLAIMS"),
        ({"CLAIMS": '{"ci": {}}'}, "at least 1"),
        ({"CLAIMS": '{"ci": {"repository": "*"}}'}, "at least 2"),
        ({"ISSUER": "", "PROJECT_CLAIMS": '{"shop": {"ci": {"ref": "x/*"}}}'}, "OIDC_ISSUER"),
        ({"CLAIMS": json.dumps(CLAIMS), "PROJECT_CLAIMS": "{"}, "not JSON"),
        ({"CLAIMS": json.dumps(CLAIMS), "PROJECT_CLAIMS": '{"../x": {"ci": {}}}'}, "PROJECT"),
        ({"CLAIMS": json.dumps(CLAIMS), "PROJECT_CLAIMS": '{"shop": {}}'}, "at least 1"),
        (
            {
                "CLAIMS": json.dumps(CLAIMS),
                "PROJECT_CLAIMS": '{"shop": {"operator": {"repository": "acme/shop"}}}',
            },
            "no token may be an operator",
        ),
        ({"ISSUER": "http://issuer.example", "CLAIMS": json.dumps(CLAIMS)}, "https://"),
    ],
)
def test_settings_that_would_let_others_in_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, names: dict[str, str], told: str
) -> None:
    given = {"ISSUER": "https://issuer.example", "AUDIENCE": AUDIENCE, **names}
    for name, value in given.items():
        monkeypatch.setenv(f"AUTOPACK_OIDC_{name}", value)
    with pytest.raises(SettingsError, match=told):
        load_settings()


@pytest.mark.parametrize("is_given", [True, False])
def test_claims_of_further_projects_name_no_default_project(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, is_given: bool
) -> None:
    """They would replace AUTOPACK_OIDC_CLAIMS without a word."""
    settings.home.mkdir()
    (settings.home / "project_id").write_text("shop\n")
    given = {"ISSUER": "https://issuer.example", "AUDIENCE": AUDIENCE, "CLAIMS": json.dumps(CLAIMS)}
    given["PROJECT_CLAIMS"] = json.dumps({"shop": CLAIMS})
    for name, value in given.items():
        monkeypatch.setenv(f"AUTOPACK_OIDC_{name}", value)
    chosen = {"project_id": "shop"} if is_given else {}
    with pytest.raises(SettingsError, match="has 'shop', the default project"):
        load_settings(home=settings.home, **chosen)
    assert load_settings(home=settings.home, project_id="other").oidc_project_claims
