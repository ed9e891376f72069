"""Sessions of `reading` write nothing: Postgres itself refuses it here."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import create_engine
from tests.api.conftest import Agents

from autopack.config import Settings
from autopack.domain.access import AccessRole
from autopack.domain.keys import NewKey, digest_of
from autopack.services.context import AppContext
from autopack.services.following import follow
from autopack.services.keys import Keyring, create_key
from autopack.services.retention import retain
from autopack.services.upkeep import tend_node
from autopack.store.session import RowSession


@pytest.fixture
def only_reading(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    engine = create_engine(
        settings.database_url or "",
        isolation_level="AUTOCOMMIT",
        connect_args={"options": "-c default_transaction_read_only=on -c timezone=UTC"},
    )
    monkeypatch.setattr(AppContext, "reading", lambda _: RowSession(engine))
    yield
    engine.dispose()


@pytest.mark.usefixtures("only_reading")
def test_a_session_for_reading_writes_nothing(agents: Agents) -> None:
    api, context = agents.api, agents.app.state.context
    # A heartbeat, and what agents and pages do around it.
    api.start(phases=2)
    assert agents.peek().status_code == 200
    item = agents.claim()
    assert agents.beat(item, tokens_used=10)["directive"] == "continue"
    assert agents.build(item).status_code == 200
    for page in ("", "/events", "/timeline", "/issues/index", "/promotion", "/ci", "/diff"):
        assert api.client.get(f"/runs/run-001{page}").status_code == 200, page
    for page in ("/attention", "/project/issues/backlog", "/nodes", "/health", "/webhooks"):
        assert api.client.get(page).status_code == 200, page
    # The first use of a key is noted.
    secret = create_key(context, NewKey(name="ada", roles=(AccessRole.VIEWER,))).api_key
    assert Keyring(context).read(digest_of(secret.encode())) is not None
    (ada,) = api.client.get("/keys").json()["keys"]
    assert ada["last_used_at"] is not None
    # Periodic work; a node that has looked at nothing notes where it looks first.
    assert api.client.post("/runs/run-001/cancel", json={"reason": "done"}).status_code == 200
    follow(context)
    tend_node(context)
    agents.wait(days=1)
    agents.upkeep()
    # Runs whose details are removed are marked.
    assert retain(context, timedelta(0)).runs == 1
