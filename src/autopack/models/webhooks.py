"""Webhooks, what is to be delivered to them, and what of attention they were told."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ARRAY, ForeignKey, Index, LargeBinary, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from ..domain.webhooks import WebhookFormat
from .base import Base, Id, not_negative, one_of


class Webhook(Base):
    """An address that is told of events; `position` is the last one in the feed that it was told.

    The address and the secret are as they are, since both are needed to send; no view contains
    either of them.
    """

    __tablename__ = "webhooks"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    url: Mapped[str]
    kinds: Mapped[list[str]] = mapped_column(ARRAY(Text))
    format: Mapped[WebhookFormat]
    project_id: Mapped[str | None]
    secret: Mapped[str]
    position: Mapped[int]
    created_at: Mapped[datetime]
    created_by: Mapped[str]
    off_at: Mapped[datetime | None]
    off_reason: Mapped[str | None]
    # Tries since the webhook was made; an older version does not count them.
    delivered_count: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    failed_count: Mapped[int] = mapped_column(default=0, server_default=text("0"))

    __table_args__ = (
        one_of("format", WebhookFormat),
        *not_negative("delivered_count", "failed_count"),
    )


class Delivery(Base):
    """A message for a webhook; it is due while it has a time for the next try."""

    __tablename__ = "deliveries"

    id: Mapped[Id]
    webhook_pk: Mapped[int] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    message_id: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime]
    # When it was first due, from which the day is counted after which it is given up.
    wanted_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]
    status: Mapped[int | None]
    answer: Mapped[str | None]
    error: Mapped[str | None]

    __table_args__ = (
        Index("ix_deliveries_webhook_pk_id", "webhook_pk", "id"),
        Index(
            "ix_deliveries_pending_next_try_at",
            "webhook_pk",
            "next_try_at",
            postgresql_where=text("next_try_at IS NOT NULL"),
        ),
        *not_negative("attempts"),
    )


class ToldAttention(Base):
    """An item of attention that a webhook was told, and that has not gone since."""

    __tablename__ = "told_attention"

    webhook_pk: Mapped[int] = mapped_column(
        ForeignKey("webhooks.id", ondelete="CASCADE"), primary_key=True
    )
    item: Mapped[str] = mapped_column(primary_key=True)
