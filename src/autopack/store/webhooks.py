"""Webhooks, their deliveries, and what of attention they were told."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from ..domain.errors import NotFoundError
from ..domain.webhooks import EVERYTHING
from ..models import Delivery, EventRow, Push, Run, ToldAttention, Webhook
from .feed import PAGE, FeedEvent, events_between

# Of each webhook so many deliveries are kept, besides those that are due.
KEPT_DELIVERIES: Final = 200


def list_webhooks(session: Session) -> Sequence[Webhook]:
    return session.scalars(select(Webhook).order_by(Webhook.id)).all()


def get_webhook(session: Session, name: str, *, is_locked: bool = False) -> Webhook:
    """Return a webhook, FOR UPDATE where it is to be changed. Raises NotFoundError."""
    query = select(Webhook).where(Webhook.name == name)
    found = session.scalars(query.with_for_update() if is_locked else query).one_or_none()
    if found is None:
        raise NotFoundError(f"there is no webhook '{name}'")
    return found


def has_name(session: Session, name: str) -> bool:
    query = select(Webhook.id).where(func.lower(Webhook.name) == name.lower())
    return session.scalars(query).first() is not None


def remove_webhook(session: Session, webhook: Webhook) -> None:
    """Remove a webhook with its deliveries."""
    session.execute(delete(Webhook).where(Webhook.id == webhook.id))


def lock_active(session: Session, webhook_pk: int) -> Webhook | None:
    """Return a webhook that is on, FOR UPDATE; None where another process has it, or it is off."""
    query = select(Webhook).where(Webhook.id == webhook_pk, Webhook.off_at.is_(None))
    return session.scalars(
        query.with_for_update(skip_locked=True).execution_options(populate_existing=True)
    ).one_or_none()


def lock_webhook(session: Session, webhook_pk: int) -> Webhook | None:
    """Return a webhook, FOR UPDATE; None where it was removed."""
    query = select(Webhook).where(Webhook.id == webhook_pk).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def list_news(session: Session, webhook: Webhook, horizon: int) -> tuple[list[FeedEvent], int]:
    """Return a page of the events that a webhook is told, and up to which position it is complete.

    Events of other kinds are passed over by the statement.
    """
    query = events_between(webhook.position, horizon)
    if EVERYTHING not in webhook.kinds:
        query = query.where(EventRow.kind.in_(webhook.kinds))
    found = [FeedEvent.of(row) for row in session.execute(query.limit(PAGE))]
    return found, found[-1].position if len(found) == PAGE else max(horizon, webhook.position)


def list_told(session: Session, webhook_pk: int) -> set[str]:
    """Return the items of attention that a webhook was told."""
    query = select(ToldAttention.item).where(ToldAttention.webhook_pk == webhook_pk)
    return set(session.scalars(query))


def change_told(
    session: Session, webhook_pk: int, *, new: Collection[str], gone: Collection[str]
) -> None:
    """Note which items a webhook was told, and which it may be told again."""
    if new:
        rows = [{"webhook_pk": webhook_pk, "item": item} for item in new]
        session.execute(insert(ToldAttention), rows)
    if gone:
        session.execute(
            delete(ToldAttention).where(
                ToldAttention.webhook_pk == webhook_pk, ToldAttention.item.in_(gone)
            )
        )


def add_deliveries(session: Session, deliveries: Sequence[Delivery]) -> None:
    session.add_all(deliveries)
    session.flush()


def prune_deliveries(session: Session, webhook_pk: int) -> None:
    """Remove the oldest deliveries of a webhook that are not due any more."""
    kept = (
        select(Delivery.id)
        .where(Delivery.webhook_pk == webhook_pk)
        .order_by(Delivery.id.desc())
        .offset(KEPT_DELIVERIES)
        .limit(1)
        .scalar_subquery()
    )
    session.execute(
        delete(Delivery).where(
            Delivery.webhook_pk == webhook_pk,
            Delivery.id <= kept,
            Delivery.next_try_at.is_(None),
        ),
        execution_options={"synchronize_session": False},
    )


def list_with_due(session: Session, now: datetime) -> Sequence[int]:
    """Return the webhooks that have a delivery which is due."""
    due = select(Delivery.webhook_pk).where(Delivery.next_try_at <= now).distinct()
    return session.scalars(due).all()


def find_due(session: Session, webhook_pk: int, now: datetime) -> Delivery | None:
    """Return the first delivery of a webhook that is due, FOR UPDATE."""
    query = (
        select(Delivery)
        .where(Delivery.webhook_pk == webhook_pk, Delivery.next_try_at <= now)
        .order_by(Delivery.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def next_try(session: Session, webhook_pk: int) -> datetime | None:
    """Return when the next delivery of a webhook is due; None where none is."""
    query = select(func.min(Delivery.next_try_at)).where(Delivery.webhook_pk == webhook_pk)
    return session.scalars(query).one()


def give_up(session: Session, webhook_pk: int) -> None:
    """Try none of a webhook's deliveries any more."""
    session.execute(
        update(Delivery)
        .where(Delivery.webhook_pk == webhook_pk, Delivery.next_try_at.is_not(None))
        .values(next_try_at=None),
        execution_options={"synchronize_session": False},
    )


def list_deliveries(
    session: Session, webhook_pk: int, *, limit: int, before: int | None
) -> Sequence[Delivery]:
    """Return deliveries of a webhook, newest first, those before an id."""
    query = select(Delivery).where(Delivery.webhook_pk == webhook_pk)
    if before is not None:
        query = query.where(Delivery.id < before)
    return session.scalars(query.order_by(Delivery.id.desc()).limit(limit)).all()


def lock_delivery(session: Session, webhook_pk: int, message_id: str) -> Delivery:
    """Return a delivery, FOR UPDATE. Raises NotFoundError."""
    found = session.scalars(
        select(Delivery)
        .where(Delivery.webhook_pk == webhook_pk, Delivery.message_id == message_id)
        .with_for_update()
    ).one_or_none()
    if found is None:
        raise NotFoundError(f"the webhook has no delivery '{message_id}'")
    return found


def count_due(session: Session) -> dict[int, int]:
    """Return how many deliveries of each webhook wait."""
    query = select(Delivery.webhook_pk, func.count()).where(Delivery.next_try_at.is_not(None))
    return {key: count for key, count in session.execute(query.group_by(Delivery.webhook_pk))}


def list_pushed(session: Session, run_ids: Collection[str]) -> set[str]:
    """Return which of these runs have their whole branch on the remote."""
    query = select(Run.run_id).join(Push, Push.run_pk == Run.id)
    return set(
        session.scalars(
            query.where(
                Run.run_id.in_(run_ids),
                Push.pushed_commit == Run.head_commit,
                Push.next_try_at.is_(None),
            )
        )
    )
