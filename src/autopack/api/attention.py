"""What needs a person. (docs/attention.md)"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from ..services import attention
from ..views.attention import AttentionAnswer, DismissalAnswer
from .bodies import StrictRoute
from .errors import problems
from .inputs import Context

router = APIRouter(tags=["attention"], route_class=StrictRoute)

Item = Annotated[
    str,
    Path(
        max_length=200,
        description="The item's id.",
        openapi_examples={"failed": {"value": "run_failed:run-001"}},
    ),
]


@router.get("/attention", responses=problems(503), summary="Read what needs a person")
def list_attention(context: Context) -> AttentionAnswer:
    """Each item names its cause, its evidence and one call that settles it.

    An item goes when its cause goes. A run that is over goes when its branch is merged, when it is
    dismissed, or after thirty days. Items about keys and webhooks are for operators.
    """
    return attention.attention(context)


@router.post(
    "/attention/{item}/dismiss",
    responses=problems(404, 409, 422, 503),
    summary="Dismiss an item about a run that is over",
)
def dismiss(context: Context, item: Item) -> DismissalAnswer:
    """The run itself stays as it is. The audit log names who dismissed it.

    For `run_failed`, `branch_moved`, `promotion_blocked` and `run_eligible`; other items go with
    their cause alone.
    """
    return attention.dismiss(context, item)
