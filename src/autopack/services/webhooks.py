"""Webhooks and their deliveries: create, list, enable, remove, test, send again. (docs/webhooks.md)

What a webhook is told is decided in notifications.py, and sent by deliveries.py.
"""

from __future__ import annotations

from typing import Literal

from ..domain.access import WrongProjectError
from ..domain.audit_log import AuditAction
from ..domain.webhooks import (
    TEST_TYPE,
    InvalidWebhookError,
    NewWebhook,
    WebhookFormat,
    WebhookNameTakenError,
    WebhookOffError,
    make_secret,
    require_github,
)
from ..models import Delivery, Webhook
from ..outbound import AddressError, parse_address, resolve
from ..store import feed
from ..store import webhooks as store
from ..views.webhooks import DeliveryAnswer, SecretWebhookAnswer, WebhookAnswer
from .audit_log import note
from .context import AppContext
from .deliveries import queue_delivery
from .notifications import Message, new_delivery


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
        position, _ = feed.find_horizon(session)
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
            webhook.position, _ = feed.find_horizon(session)
            note(session, context, AuditAction.WEBHOOK_ENABLED, name, {})
            session.commit()
        return _answer(context, webhook, 0)


def send_test(context: AppContext, name: str) -> DeliveryAnswer:
    """Queue a message that says that it is a test. Raises NotFoundError, WebhookOffError."""
    now = context.now()
    with context.writing() as session:
        webhook = _on(store.get_webhook(session, name, is_locked=True))
        data = {"message": f"a test of webhook '{name}'", "by": context.caller.actor}
        message = Message(TEST_TYPE, now, None, f"a test of webhook {name}", data)
        delivery = new_delivery(context, webhook, message, now)
        store.add_deliveries(session, [delivery])
        queue_delivery(session, webhook.id)
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
        queue_delivery(session, webhook.id)
        session.commit()
        return _delivery_answer(delivery)


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
