"""What happened, as messages to webhooks. (docs/webhooks.md)

A webhook follows the feed of events by a position in the database. What it is to be told becomes
rows in the transaction that moves the position, so a restart loses nothing and repeats nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from ..domain.errors import AutopackError
from ..domain.webhooks import (
    ATTENTION_TYPE,
    EVENT_TYPE,
    TEST_TYPE,
    WebhookFormat,
    cloud_event,
    github_dispatch,
    make_message_id,
    slack_message,
    wants,
    wants_attention,
)
from ..models import Delivery, Webhook
from ..store import feed
from ..store import webhooks as store
from ..store.feed import PAGE
from ..store.session import RowSession
from ..views.attention import AttentionItem
from .attention import attention
from .context import AppContext
from .deliveries import queue_delivery
from .feed import document_of

logger = structlog.get_logger(__name__)

# At most this many pages of events of one webhook in one pass.
MOST_PAGES: Final = 10


@dataclass(frozen=True, slots=True)
class Message:
    kind: str
    at: datetime
    run_id: str | None
    text: str
    data: Mapping[str, Any]


def tell_webhooks(context: AppContext) -> None:
    """Turn what happened into deliveries, and queue those that are due."""
    with context.reading() as session:
        active = [each for each in store.list_webhooks(session) if each.off_at is None]
        due = set(store.list_with_due(session, context.now())) if active else set()
    items = _items(context) if any(wants_attention(each.kinds) for each in active) else None
    for webhook in active:
        with context.writing() as session:
            if _tell(context, session, webhook.id, items) or webhook.id in due:
                queue_delivery(session, webhook.id)
            session.commit()


def _items(context: AppContext) -> tuple[list[AttentionItem], bool] | None:
    try:
        found = attention(context)
    except AutopackError as error:  # events are sent nevertheless
        logger.warning("attention_not_told", why=error.detail)
        return None
    return found.items, found.is_complete


def _tell(
    context: AppContext,
    session: RowSession,
    webhook_pk: int,
    items: tuple[list[AttentionItem], bool] | None,
) -> bool:
    """Add a webhook's new deliveries and move its position; return whether there are any."""
    webhook = store.lock_active(session, webhook_pk)
    if webhook is None:  # another process tells it, or it was removed
        return False
    now = context.now()
    messages: list[Message] = []
    horizon, _ = feed.find_horizon(session)
    for _ in range(MOST_PAGES):
        events, webhook.position = store.list_news(session, webhook, horizon)
        for found in events:
            data = document_of(found)
            place = f"{found.event.phase_id}: " if found.event.phase_id else ""
            kind = f"{EVENT_TYPE}{found.event.kind}"
            text = f"{place}{data['sentence']}"
            messages.append(Message(kind, found.event.at, found.run_id, text, data))
        if len(events) < PAGE:
            break
    if items is not None:
        messages += _news_of_attention(session, webhook, *items, now=now)
    if messages:
        rows = [new_delivery(context, webhook, message, now) for message in messages]
        store.add_deliveries(session, rows)
        store.prune_deliveries(session, webhook.id)
    return bool(messages)


def _news_of_attention(
    session: RowSession,
    webhook: Webhook,
    items: list[AttentionItem],
    is_complete: bool,
    *,
    now: datetime,
) -> list[Message]:
    wanted = {item.id: item for item in items if wants(webhook.kinds, item.kind)}
    if webhook.format is WebhookFormat.GITHUB:  # the workflow needs the branch on the remote
        pushed = store.list_pushed(session, [item.run_id or "" for item in wanted.values()])
        wanted = {key: item for key, item in wanted.items() if item.run_id in pushed}
    told = store.list_told(session, webhook.id)
    new = wanted.keys() - told
    gone = told - wanted.keys() if is_complete else set[str]()
    store.change_told(session, webhook.id, new=new, gone=gone)
    return [
        Message(
            f"{ATTENTION_TYPE}{item.kind}",
            now,
            item.run_id,
            item.text,
            item.model_dump(mode="json"),
        )
        for key, item in wanted.items()
        if key in new
    ]


def new_delivery(
    context: AppContext, webhook: Webhook, message: Message, now: datetime
) -> Delivery:
    message_id = make_message_id()
    if webhook.format is WebhookFormat.GITHUB:
        body = github_dispatch(message.run_id, is_test=message.kind == TEST_TYPE)
    elif webhook.format is WebhookFormat.SLACK:
        body = slack_message(message.run_id, message.text, _link(context, message.run_id))
    else:
        body = cloud_event(
            message_id=message_id,
            kind=message.kind,
            project_id=context.settings.project_id,
            subject=message.run_id,
            at=message.at,
            data=message.data,
        )
    return Delivery(
        webhook_pk=webhook.id,
        message_id=message_id,
        kind=message.kind,
        body=body,
        created_at=now,
        wanted_at=now,
        next_try_at=now,
        attempts=0,
    )


def _link(context: AppContext, run_id: str | None) -> str:
    settings = context.settings
    base = (settings.public_url or f"http://{settings.host}:{settings.port}").rstrip("/")
    return f"{base}/dashboard" + (f"/runs/{run_id}" if run_id else "")
