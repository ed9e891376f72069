"""The nodes of the database. (docs/replicas.md)"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from ..domain.values import Identifier
from ..services import nodes
from ..views.service import NodeAnswer, NodesAnswer
from .bodies import StrictRoute
from .errors import problems
from .inputs import Context

router = APIRouter(tags=["service"], route_class=StrictRoute)

NodeId = Annotated[
    Identifier,
    Path(
        description="The node's id, as `GET /nodes` shows it.",
        openapi_examples={"node": {"value": "0123456789abcdef"}},
    ),
]


@router.get("/nodes", responses=problems(503), summary="List nodes")
def list_nodes(context: Context) -> NodesAnswer:
    """The services and job processes of this database by their homes, as in `/health`."""
    return NodesAnswer(nodes=nodes.list_nodes(context))


@router.delete(
    "/nodes/{node_id}",
    responses=problems(404, 409, 422, 503),
    summary="Remove a node that is gone",
)
def remove_node(context: Context, node_id: NodeId) -> NodeAnswer:
    """409 while it is alive. What is noted of its branches and files is removed with it.

    If one of its processes starts again, it comes back under the same id. The answer is the node as
    it was.
    """
    return nodes.remove_node(context, node_id)
