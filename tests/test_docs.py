"""The documentation pages work without internet and allow nothing but this server."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from autopack.api.docs import MEDIA_TYPES, STATIC, mount_docs

pytestmark = pytest.mark.unit


@pytest.fixture
def docs() -> TestClient:
    app = FastAPI(title="Sample", docs_url=None, redoc_url=None)
    mount_docs(app)
    return TestClient(app, base_url="http://localhost")


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_loads_only_what_this_server_has(docs: TestClient, path: str) -> None:
    page = docs.get(path).text
    addresses = re.findall(r'(?:src|href|spec-url)="([^"]+)"', page)
    assert addresses
    for address in addresses:
        assert address.startswith("/")
        assert docs.get(address).status_code == 200
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_policy_allows_exactly_the_scripts_of_the_page(docs: TestClient, path: str) -> None:
    answer = docs.get(path)
    policy = answer.headers["content-security-policy"]
    scripts = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    hashes = {
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    }
    directive = re.findall(r"script-src ([^;]*);", policy)[0]
    assert set(directive.split()) == {"'self'"} | hashes
    assert policy.startswith("default-src 'none'")


def test_redoc_shows_a_logo_that_this_server_has(docs: TestClient) -> None:
    script = (STATIC / "redoc.standalone.js").read_text()
    assert "cdn.redoc.ly" not in script
    assert 'src:"docs/static/favicon.svg"' in script  # relative: behind a proxy's path too
    assert docs.get("/docs/static/favicon.svg").status_code == 200


def test_files_beside_the_pages_are_not_served(docs: TestClient) -> None:
    for name in ("README.md", "..%2fdocs.py", "%2e%2e%2fdocs.py", "redoc.LICENSE.txt"):
        assert docs.get(f"/docs/static/{name}").status_code == 404


def test_every_vendored_file_has_its_licence() -> None:
    present = {path.name for path in STATIC.iterdir()}
    assert set(MEDIA_TYPES) <= present
    for name in ("swagger-ui.LICENSE.txt", "swagger-ui.NOTICE.txt", "redoc.LICENSE.txt"):
        assert name in present


def test_behind_a_proxys_path_the_pages_point_there() -> None:
    app = FastAPI(docs_url=None, redoc_url=None)
    mount_docs(app)
    page = TestClient(app, "http://localhost", root_path="/autopack").get("/autopack/docs").text
    assert "url: '/autopack/openapi.json'" in page


def test_fastapis_own_pages_are_refused() -> None:
    with pytest.raises(ValueError, match="docs_url=None"):
        mount_docs(FastAPI())
