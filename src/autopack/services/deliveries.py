"""Send messages to webhooks, at least once: each try is counted first. (docs/webhooks.md)"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from .. import __version__
from ..domain.printable import one_line
from ..domain.secret_rules import redact
from ..domain.webhooks import (
    ANSWER_LENGTH,
    FIRST_WAIT,
    GIVE_UP_AFTER,
    MEDIA_TYPE,
    WebhookFormat,
    repositories_of,
    retry_wait,
    signed_headers,
)
from ..jobs.queue import defer
from ..outbound import AddressError, HttpReply, SendError, parse_address, send
from ..store import webhooks as store
from ..store.session import RowSession
from .context import AppContext

logger = structlog.get_logger(__name__)

QUEUE: Final = "webhooks"
TASK: Final = "deliver_webhook"
GONE: Final = 410


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
        queue_delivery(session, webhook_pk)  # another process continues
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
                queue_delivery(session, webhook_pk, at)
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


def _send(context: AppContext, order: _Order) -> HttpReply | SendError:
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
    return url.startswith(repositories_of(context.settings.github_api))


def _note(
    context: AppContext, webhook_pk: int, order: _Order, found: HttpReply | SendError
) -> bool:
    """Store the result of a try; return whether the next message may follow at once."""
    now = context.now()
    error = _problem(found)
    with context.writing() as session:
        webhook = store.lock_webhook(session, webhook_pk)
        if webhook is None:
            return False
        delivery = store.lock_delivery(session, webhook_pk, order.message_id)
        delivery.error = error
        delivery.status = found.status if isinstance(found, HttpReply) else None
        delivery.answer = (
            _excerpt(context, found.text, order.secret) if isinstance(found, HttpReply) else None
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
            queue_delivery(session, webhook_pk, now + FIRST_WAIT)
        session.commit()
    return False


def _problem(found: HttpReply | SendError) -> str | None:
    if isinstance(found, SendError):
        return str(found)
    if 200 <= found.status < 300:
        return None
    if 300 <= found.status < 400:
        return f"the answer was {found.status}, and redirects are not followed"
    return f"the answer was {found.status}"


def _excerpt(context: AppContext, text: str, secret: str) -> str:
    """Return the beginning of an answer as people may see it, without what was sent as a secret."""
    token = context.settings.github_token
    for each in (secret, token.get_secret_value() if token else ""):
        text = text.replace(each, "[redacted]") if each else text
    return one_line(redact(text))[:ANSWER_LENGTH]


def queue_delivery(session: RowSession, webhook_pk: int, at: datetime | None = None) -> None:
    defer(
        session,
        TASK,
        queue=QUEUE,
        arguments={"webhook_pk": webhook_pk},
        lock=f"webhook:{webhook_pk}",
        queueing_lock=f"webhook:{webhook_pk}",
        at=at,
    )
