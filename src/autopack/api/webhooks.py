"""Webhooks: addresses that are told of events and attention. (docs/webhooks.md)"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Path

from ..domain.values import Identifier
from ..domain.webhooks import NewWebhook
from ..services import webhooks
from ..views.webhooks import (
    DeliveriesAnswer,
    DeliveryAnswer,
    SecretWebhookAnswer,
    WebhookAnswer,
    WebhooksAnswer,
)
from .bodies import StrictRoute
from .errors import problems
from .examples import NEW_WEBHOOK, example
from .inputs import Context, Cursor, PageLimit, decode_cursor, encode_cursor

router = APIRouter(tags=["webhooks"], route_class=StrictRoute)

WebhookName = Annotated[
    Identifier,
    Path(description="The webhook's name.", openapi_examples={"chat": {"value": "chat"}}),
]
MessageId = Annotated[
    str,
    Path(
        max_length=100,
        description="The message's id, its header `webhook-id`.",
        openapi_examples={"message": {"value": "msg_0123456789abcdef"}},
    ),
]


@router.get("/webhooks", responses=problems(503), summary="List webhooks")
def list_webhooks(context: Context) -> WebhooksAnswer:
    """All webhooks, oldest first, without their secrets and the paths of their addresses."""
    return WebhooksAnswer(webhooks=webhooks.list_webhooks(context))


@router.post(
    "/webhooks",
    status_code=201,
    responses=problems(409, 413, 422, 503),
    summary="Make a webhook",
)
def create_webhook(
    context: Context,
    wanted: Annotated[NewWebhook, Body(openapi_examples=example(NEW_WEBHOOK, "Ends of runs"))],
) -> SecretWebhookAnswer:
    """It is told what happens from now on. The answer tells the secret, this once.

    The address must begin with `https://` and have public IP addresses alone.
    """
    return webhooks.create_webhook(context, wanted)


@router.post(
    "/webhooks/{name}/remove", responses=problems(404, 422, 503), summary="Remove a webhook"
)
def remove_webhook(context: Context, name: WebhookName) -> WebhookAnswer:
    """Its deliveries are removed with it."""
    return webhooks.remove_webhook(context, name)


@router.post(
    "/webhooks/{name}/enable", responses=problems(404, 422, 503), summary="Switch a webhook on"
)
def enable_webhook(context: Context, name: WebhookName) -> WebhookAnswer:
    """For one that was switched off since its receiver failed for a day.

    It is told what happens from now on; earlier messages can be delivered again one by one.
    """
    return webhooks.enable_webhook(context, name)


@router.post(
    "/webhooks/{name}/test",
    status_code=202,
    responses=problems(404, 409, 422, 503),
    summary="Send a test message",
)
def send_test(context: Context, name: WebhookName) -> DeliveryAnswer:
    """Queue a message of the type `autopack.test`; its delivery shows what came of it."""
    return webhooks.send_test(context, name)


@router.get(
    "/webhooks/{name}/deliveries",
    responses=problems(404, 422, 503),
    summary="List deliveries of a webhook",
)
def list_deliveries(
    context: Context, name: WebhookName, limit: PageLimit = 100, cursor: Cursor = None
) -> DeliveriesAnswer:
    """The last two hundred and those that wait, newest first."""
    before = decode_cursor(cursor, int)[0] if cursor else None
    page, more = webhooks.list_deliveries(context, name, limit=limit, before=before)
    return DeliveriesAnswer(
        webhook=name,
        deliveries=page,
        next_cursor=None if more is None else encode_cursor(more),
    )


@router.post(
    "/webhooks/{name}/deliveries/{message_id}/redeliver",
    status_code=202,
    responses=problems(404, 409, 422, 503),
    summary="Deliver a message again",
)
def redeliver(context: Context, name: WebhookName, message_id: MessageId) -> DeliveryAnswer:
    """The message has the same id as before."""
    return webhooks.redeliver(context, name, message_id)
