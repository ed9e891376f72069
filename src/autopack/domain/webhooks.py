"""What webhooks are told, how it is signed, and when it is tried again. (docs/webhooks.md)

The body is an event in the CloudEvents JSON format, the signature that of Standard Webhooks.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from .attention import AttentionKind
from .backoff import doubling
from .errors import ConflictError, InvalidError
from .events import EVENT_KINDS, canonical_json, wire_time
from .naming import branch_name
from .values import Closed, Identifier, Several, Text

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what a secret begins with
FIRST_WAIT: Final = timedelta(seconds=5)
LONGEST_WAIT: Final = timedelta(hours=1)
# A delivery that fails for so long switches its webhook off.
GIVE_UP_AFTER: Final = timedelta(days=1)
ANSWER_LENGTH: Final = 500
EVERYTHING: Final = "*"
TEST_TYPE: Final = "autopack.test"
EVENT_TYPE: Final = "autopack.event."
ATTENTION_TYPE: Final = "autopack.attention."
MEDIA_TYPE: Final = "application/cloudevents+json"


class WebhookFormat(StrEnum):
    CLOUDEVENTS = "cloudevents"
    SLACK = "slack"
    GITHUB = "github"


class WebhookNameTakenError(ConflictError):
    code = "webhook_name_taken"


class WebhookOffError(ConflictError):
    code = "webhook_off"


class InvalidWebhookError(InvalidError):
    code = "invalid_webhook"


# What starts promotion.yml on GitHub, and the one kind of which it is told.
GITHUB_EVENT: Final = "autopack-promotion"
GITHUB_KINDS: Final = (AttentionKind.RUN_ELIGIBLE,)

#: What a webhook can be told of.
KINDS: Final = frozenset({EVERYTHING, *EVENT_KINDS, *AttentionKind})


def _kind(value: str) -> str:
    if value in KINDS:
        return value
    near = difflib.get_close_matches(value[:100], sorted(KINDS), n=1, cutoff=0.0)
    raise ValueError(f"{value[:100]!r} is no kind of event or attention; the nearest is {near[0]}")


Kind = Annotated[str, AfterValidator(_kind)]


class NewWebhook(Closed):
    """What an operator asks for."""

    name: Identifier
    url: Annotated[Text, Field(description="An https:// address of the public internet.")]
    kinds: Annotated[
        Several[Kind],
        Field(min_length=1, description="Kinds of events and of attention; `*` is all of them."),
    ]
    format: WebhookFormat = WebhookFormat.CLOUDEVENTS
    project_id: Annotated[
        Identifier | None, Field(description="The project that it is about; null is all.")
    ] = None


def make_secret() -> str:
    """Return a new random secret, in the form of Standard Webhooks."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def make_message_id() -> str:
    """Return the id of a message, which stays the same each time it is sent."""
    return f"msg_{secrets.token_hex(16)}"


def signed_headers(secret: str, message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks: id, time in seconds, HMAC-SHA256 over all three."""
    timestamp = str(int(at.timestamp()))
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    digest = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{digest}",
    }


def wants(kinds: Sequence[str], kind: str) -> bool:
    """Say whether a webhook of these kinds is told of one."""
    return EVERYTHING in kinds or kind in kinds


def wants_attention(kinds: Sequence[str]) -> bool:
    return any(wants(kinds, kind) for kind in AttentionKind)


def retry_wait(attempts: int) -> timedelta:
    return doubling(FIRST_WAIT, LONGEST_WAIT, attempts)


def cloud_event(
    *,
    message_id: str,
    kind: str,
    project_id: str,
    subject: str | None,
    at: datetime,
    data: Mapping[str, Any],
) -> bytes:
    """Return a message in the CloudEvents JSON format, version 1.0."""
    document: dict[str, Any] = {
        "specversion": "1.0",
        "id": message_id,
        "source": f"/autopack/{project_id}",
        "type": kind,
        "time": wire_time(at),
        "datacontenttype": "application/json",
        "data": dict(data),
    }
    if subject:
        document["subject"] = subject
    return canonical_json(document)


def slack_message(run_id: str | None, text: str, link: str) -> bytes:
    """Return one line with a link, as Slack's incoming webhooks take it."""
    words = f"<{_slack(link)}|{_slack(run_id or 'Autopack')}> {_slack(text)}"
    return canonical_json({"text": words})


def github_dispatch(run_id: str | None, *, is_test: bool) -> bytes:
    """Return a `repository_dispatch` for promotion.yml; a test has a type that starts nothing."""
    if is_test or run_id is None:
        return canonical_json({"event_type": "autopack-test", "client_payload": {}})
    payload = {"run_id": run_id, "integration_branch": branch_name(run_id)}
    return canonical_json({"event_type": GITHUB_EVENT, "client_payload": payload})


def repositories_of(api: str) -> str:
    """Return how each address of a repository begins in GitHub's API, which gets the token."""
    return f"{api.rstrip('/')}/repos/"


def require_github(wanted: NewWebhook, *, api: str, has_token: bool) -> None:
    """Check a webhook of the format `github`: the service's token must go nowhere else.

    Raises InvalidWebhookError.
    """
    if not has_token:
        raise InvalidWebhookError("format: 'github' needs AUTOPACK_GITHUB_TOKEN")
    if tuple(wanted.kinds) != GITHUB_KINDS:
        raise InvalidWebhookError("kinds: of the format 'github' are ['run_eligible'] alone")
    name = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
    top = repositories_of(api)
    if not re.fullmatch(rf"{re.escape(top)}{name}/{name}/dispatches", wanted.url):
        raise InvalidWebhookError(f"url: of the format 'github' is {top}OWNER/NAME/dispatches")


def _slack(text: str) -> str:
    """Escape what has a meaning in Slack's markup, so that no text can add a link or a mention."""
    line = " ".join(text.split())
    for letter, escape in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        line = line.replace(letter, escape)
    return line.replace("|", "¦")
