"""Answers about webhooks; none contains a secret, or more of an address than its host."""

from __future__ import annotations

from typing import ClassVar, Literal

from ..domain.webhooks import WebhookFormat
from . import Shape, WireTime


class WebhookAnswer(Shape):
    """`address` is without path and query, which may contain a secret. `waiting`: deliveries."""

    name: str
    address: str
    kinds: list[str]
    format: WebhookFormat
    project_id: str | None
    state: Literal["on", "off"]
    off_at: WireTime | None
    off_reason: str | None
    waiting: int
    created_at: WireTime
    created_by: str


class WebhooksAnswer(Shape):
    csv_rows: ClassVar[str] = "webhooks"

    webhooks: list[WebhookAnswer]


class SecretWebhookAnswer(Shape):
    """A webhook that was just made; its secret is told here and never again."""

    secret: str
    webhook: WebhookAnswer


class DeliveryAnswer(Shape):
    """A message. `status` and `answer` are those of the last answer, `error` why a try failed."""

    message_id: str
    kind: str
    state: Literal["delivered", "waiting", "given_up"]
    created_at: WireTime
    attempts: int
    next_try_at: WireTime | None
    delivered_at: WireTime | None
    status: int | None
    answer: str | None
    error: str | None


class DeliveriesAnswer(Shape):
    csv_rows: ClassVar[str] = "deliveries"

    webhook: str
    deliveries: list[DeliveryAnswer]
    next_cursor: str | None
