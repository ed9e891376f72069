"""Webhooks: create and remove them, find new events for them, deliver messages. (docs/webhooks.md)

A webhook follows the feed of events by a position in the database. What it is to be told becomes
rows in the transaction that moves the position, so a restart loses nothing and repeats nothing.
Rows are delivered at least once: a try is counted before it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import structlog

from .. import __version__
from ..domain.access import WrongProjectError
from ..domain.audit import AuditAction
from ..domain.errors import AutopackError
from ..domain.printable import one_line
from ..domain.secret_rules import redact
from ..domain.webhooks import (
    ANSWER_LENGTH,
    ATTENTION_TYPE,
    EVENT_TYPE,
    FIRST_WAIT,
    GIVE_UP_AFTER,
    MEDIA_TYPE,
    TEST_TYPE,
    InvalidWebhookError,
    NewWebhook,
    WebhookFormat,
    WebhookNameTakenError,
    WebhookOffError,
    cloud_event,
    github_dispatch,
    make_message_id,
    make_secret,
    require_github,
    retry_wait,
    signed_headers,
    slack_message,
    wants,
    wants_attention,
)
from ..jobs.queue import defer
from ..models import Delivery, Webhook
from ..outbound import AddressError, Reply, SendError, parse_address, resolve, send
from ..store import feed
from ..store import webhooks as store
from ..store.feed import PAGE
from ..store.session import RowSession
from ..views.attention import AttentionItem
from ..views.webhooks import DeliveryAnswer, SecretWebhookAnswer, WebhookAnswer
from .attention import attention
from .audit import note
from .context import AppContext
from .feed import document_of

logger = structlog.get_logger(__name__)

QUEUE: Final = "webhooks"
TASK: Final = "deliver_webhook"
# At most this many pages of events of one webhook in one pass.
MOST_PAGES: Final = 10
GONE: Final = 410


def create_webhook(context: AppContext, wanted: NewWebhook) -> SecretWebhookAnswer:
    """Make a webhook that is told what happens from now on; tell its secret, this once.

    Raises InvalidWebhookError, WebhookNameTakenError, WrongProjectError.
    """
    served = context.settings.project_id
    if wanted.project_id not in (None, served):
        raise WrongProjectError(
            f"project '{wanted.project_id}' is not the one that is served here: '{served}'"
        )
    settings = context.settings
    if wanted.format is WebhookFormat.GITHUB:
        has_token = settings.github_token is not None
        require_github(wanted, api=settings.github_api, has_token=has_token)
    is_allowed = settings.webhook_private
    try:
        address = parse_address(wanted.url, is_private_allowed=is_allowed)
        resolve(address, is_private_allowed=is_allowed)
    except AddressError as error:
        raise InvalidWebhookError(f"url: {error}") from None
    with context.writing() as session:
        data = {"address": address.origin, "kinds": list(wanted.kinds), "format": wanted.format}
        note(session, context, AuditAction.WEBHOOK_CREATED, wanted.name, data)
        # Under the log's lock, so that no other process takes the name meanwhile.
        if store.has_name(session, wanted.name):
            raise WebhookNameTakenError(f"there is a webhook '{wanted.name}' already")
        position, _ = feed.find_settled(session)
        webhook = Webhook(
            name=wanted.name,
            url=wanted.url,
            kinds=list(dict.fromkeys(wanted.kinds)),
            format=wanted.format,
            project_id=wanted.project_id,
            secret=make_secret(),
            position=position,
            created_at=context.now(),
            created_by=context.caller.actor,
        )
        session.add(webhook)
        session.commit()
        return SecretWebhookAnswer(secret=webhook.secret, webhook=_answer(context, webhook, 0))


def list_webhooks(context: AppContext) -> list[WebhookAnswer]:
    """Return all webhooks, oldest first."""
    with context.reading() as session:
        waiting = store.count_due(session)
        return [
            _answer(context, each, waiting.get(each.id, 0)) for each in store.list_webhooks(session)
        ]


def remove_webhook(context: AppContext, name: str) -> WebhookAnswer:
    """Remove a webhook with all its deliveries. Raises NotFoundError."""
    with context.writing() as session:
        webhook = store.get_webhook(session, name, is_locked=True)
        answer = _answer(context, webhook, 0)
        note(session, context, AuditAction.WEBHOOK_REMOVED, name, {})
        store.remove_webhook(session, webhook)
        session.commit()
    return answer


def enable_webhook(context: AppContext, name: str) -> WebhookAnswer:
    """Switch a webhook on, from now on: what happened meanwhile is not told.

    Raises NotFoundError.
    """
    with context.writing() as session:
        webhook = store.get_webhook(session, name, is_locked=True)
        if webhook.off_at is not None:
            webhook.off_at = webhook.off_reason = None
            webhook.position, _ = feed.find_settled(session)
            note(session, context, AuditAction.WEBHOOK_ENABLED, name, {})
            session.commit()
        return _answer(context, webhook, 0)


def send_test(context: AppContext, name: str) -> DeliveryAnswer:
    """Queue a message that says that it is a test. Raises NotFoundError, WebhookOffError."""
    now = context.now()
    with context.writing() as session:
        webhook = _on(store.get_webhook(session, name, is_locked=True))
        data = {"message": f"a test of webhook '{name}'", "by": context.caller.actor}
        message = _Message(TEST_TYPE, now, None, f"a test of webhook {name}", data)
        delivery = _delivery(context, webhook, message, now)
        store.add_deliveries(session, [delivery])
        _queue(session, webhook.id)
        session.commit()
        return _delivery_answer(delivery)


def list_deliveries(
    context: AppContext, name: str, *, limit: int, before: int | None
) -> tuple[list[DeliveryAnswer], int | None]:
    """Return a page of a webhook's deliveries, newest first, and where the next one begins.

    Raises NotFoundError.
    """
    with context.reading() as session:
        webhook = store.get_webhook(session, name)
        rows = store.list_deliveries(session, webhook.id, limit=limit + 1, before=before)
        page = rows[:limit]
        more = page[-1].id if len(rows) > limit else None
        return [_delivery_answer(each) for each in page], more


def redeliver(context: AppContext, name: str, message_id: str) -> DeliveryAnswer:
    """Make a delivery due again, under its id. Raises NotFoundError, WebhookOffError."""
    now = context.now()
    with context.writing() as session:
        webhook = _on(store.get_webhook(session, name, is_locked=True))
        delivery = store.lock_delivery(session, webhook.id, message_id)
        delivery.next_try_at = delivery.wanted_at = now
        delivery.attempts, delivery.delivered_at = 0, None
        _queue(session, webhook.id)
        session.commit()
        return _delivery_answer(delivery)


# What is told


@dataclass(frozen=True, slots=True)
class _Message:
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
                _queue(session, webhook.id)
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
    messages: list[_Message] = []
    settled, _ = feed.find_settled(session)
    for _ in range(MOST_PAGES):
        events, webhook.position = store.list_news(session, webhook, settled)
        for found in events:
            data = document_of(found)
            place = f"{found.event.phase_id}: " if found.event.phase_id else ""
            kind = f"{EVENT_TYPE}{found.event.kind}"
            text = f"{place}{data['sentence']}"
            messages.append(_Message(kind, found.event.at, found.run_id, text, data))
        if len(events) < PAGE:
            break
    if items is not None:
        messages += _news_of_attention(session, webhook, *items, now=now)
    if messages:
        rows = [_delivery(context, webhook, message, now) for message in messages]
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
) -> list[_Message]:
    wanted = {item.id: item for item in items if wants(webhook.kinds, item.kind)}
    if webhook.format is WebhookFormat.GITHUB:  # the workflow needs the branch on the remote
        pushed = store.list_pushed(session, [item.run_id or "" for item in wanted.values()])
        wanted = {key: item for key, item in wanted.items() if item.run_id in pushed}
    told = store.list_told(session, webhook.id)
    new = wanted.keys() - told
    gone = told - wanted.keys() if is_complete else set[str]()
    store.change_told(session, webhook.id, new=new, gone=gone)
    return [
        _Message(
            f"{ATTENTION_TYPE}{item.kind}",
            now,
            item.run_id,
            item.text,
            item.model_dump(mode="json"),
        )
        for key, item in wanted.items()
        if key in new
    ]


def _delivery(context: AppContext, webhook: Webhook, message: _Message, now: datetime) -> Delivery:
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


# Delivery


@dataclass(frozen=True, slots=True)
class _Order:
    """One try, which was counted already."""

    delivery_pk: int
    name: str
    url: str
    format: WebhookFormat
    secret: str
    message_id: str
    body: bytes


def deliver_webhook(context: AppContext, webhook_pk: int) -> None:
    """Send what is due of a webhook, one message after the other, until one fails.

    The job engine runs one such job of a webhook at a time. A killed process leaves a try that was
    counted and not noted: the message is sent again, under the same id, after the usual wait.
    """
    while not context.stopping.is_set():
        order = _begin(context, webhook_pk)
        if order is None or not _note(context, webhook_pk, order, _send(context, order)):
            return
    with context.writing() as session:
        _queue(session, webhook_pk)  # another process continues
        session.commit()


def _begin(context: AppContext, webhook_pk: int) -> _Order | None:
    """Count the next try that is due; where none is, queue the job for the time of the next one."""
    now = context.now()
    with context.writing() as session:
        webhook = store.lock_webhook(session, webhook_pk)
        if webhook is None or webhook.off_at is not None:
            return None
        delivery = store.find_due(session, webhook_pk, now)
        if delivery is None:
            if (at := store.next_try(session, webhook_pk)) is not None:
                _queue(session, webhook_pk, at)
                session.commit()
            return None
        delivery.attempts += 1
        delivery.next_try_at = now + retry_wait(delivery.attempts)
        order = _Order(
            delivery.id,
            webhook.name,
            webhook.url,
            webhook.format,
            webhook.secret,
            delivery.message_id,
            delivery.body,
        )
        session.commit()
    return order


def _send(context: AppContext, order: _Order) -> Reply | SendError:
    is_event = order.format is WebhookFormat.CLOUDEVENTS
    headers = {
        "Content-Type": MEDIA_TYPE if is_event else "application/json",
        "User-Agent": f"autopack/{__version__}",
        "Connection": "close",
        **signed_headers(order.secret, order.message_id, context.now(), order.body),
    }
    token = context.settings.github_token
    if order.format is WebhookFormat.GITHUB and token is not None:
        headers["Authorization"] = f"Bearer {token.get_secret_value()}"
        headers["Accept"] = "application/vnd.github+json"
    is_allowed = context.settings.webhook_private
    try:
        if order.format is WebhookFormat.GITHUB and not _is_of_github(context, order.url):
            raise AddressError("is not an address of AUTOPACK_GITHUB_API")
        address = parse_address(order.url, is_private_allowed=is_allowed)
        return send(address, headers, order.body, is_private_allowed=is_allowed)
    except AddressError as error:
        return SendError(str(error))
    except SendError as error:
        return error


def _is_of_github(context: AppContext, url: str) -> bool:
    """Say whether the token may go to an address: the setting may have changed since."""
    return url.startswith(f"{context.settings.github_api.rstrip('/')}/repos/")


def _note(context: AppContext, webhook_pk: int, order: _Order, found: Reply | SendError) -> bool:
    """Store the result of a try; return whether the next message may follow at once."""
    now = context.now()
    error = _problem(found)
    with context.writing() as session:
        webhook = store.lock_webhook(session, webhook_pk)
        if webhook is None:
            return False
        delivery = store.lock_delivery(session, webhook_pk, order.message_id)
        delivery.error = error
        delivery.status = found.status if isinstance(found, Reply) else None
        delivery.answer = (
            _shown(context, found.text, order.secret) if isinstance(found, Reply) else None
        )
        if error is None:
            delivery.delivered_at, delivery.next_try_at = now, None
            webhook.delivered_count += 1
            session.commit()
            return True
        webhook.failed_count += 1
        logger.warning("webhook_failed", webhook=order.name, attempts=delivery.attempts, why=error)
        # Gone (410): the receiver asks that nothing be sent any more.
        is_gone = delivery.status == GONE
        next_try_at = now + retry_wait(delivery.attempts)
        if is_gone or next_try_at > delivery.wanted_at + GIVE_UP_AFTER:
            why = "its receiver is gone" if is_gone else "a delivery failed for a day"
            webhook.off_at, webhook.off_reason = now, f"{why}: {error}"
            session.flush()
            store.give_up(session, webhook_pk)
            delivery.next_try_at = None
            logger.warning("webhook_off", webhook=order.name, why=webhook.off_reason)
        else:
            delivery.next_try_at = next_try_at
            # Other due messages wait too: a receiver that hangs would block this worker.
            _queue(session, webhook_pk, now + FIRST_WAIT)
        session.commit()
    return False


def _problem(found: Reply | SendError) -> str | None:
    if isinstance(found, SendError):
        return str(found)
    if 200 <= found.status < 300:
        return None
    if 300 <= found.status < 400:
        return f"the answer was {found.status}, and redirects are not followed"
    return f"the answer was {found.status}"


def _shown(context: AppContext, text: str, secret: str) -> str:
    """Return the beginning of an answer as people may see it, without what was sent as a secret."""
    token = context.settings.github_token
    for each in (secret, token.get_secret_value() if token else ""):
        text = text.replace(each, "[redacted]") if each else text
    return one_line(redact(text))[:ANSWER_LENGTH]


def _queue(session: RowSession, webhook_pk: int, at: datetime | None = None) -> None:
    defer(
        session,
        TASK,
        queue=QUEUE,
        arguments={"webhook_pk": webhook_pk},
        lock=f"webhook:{webhook_pk}",
        queueing_lock=f"webhook:{webhook_pk}",
        at=at,
    )


def _on(webhook: Webhook) -> Webhook:
    if webhook.off_at is not None:
        raise WebhookOffError(f"webhook '{webhook.name}' is off: enable it first")
    return webhook


def _answer(context: AppContext, webhook: Webhook, waiting: int) -> WebhookAnswer:
    # The setting may have changed since: that must not hide the webhook.
    address = parse_address(webhook.url, is_private_allowed=True)
    state: Literal["on", "off"] = "on" if webhook.off_at is None else "off"
    return WebhookAnswer.of(webhook, address=address.origin, state=state, waiting=waiting)


def _delivery_answer(delivery: Delivery) -> DeliveryAnswer:
    state = "given_up"
    if delivery.next_try_at is not None:
        state = "waiting"
    elif delivery.delivered_at is not None:
        state = "delivered"
    return DeliveryAnswer.of(delivery, state=state)
