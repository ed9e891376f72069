"""The files that show runs to people: the only code that writes under AUTONOMOUS_RUNS_DIR."""

from ..domain.naming import PULL_REQUEST, RECORD, patch_name
from .documents import encode_sorted
from .files import MirrorUnusableError
from .incident import incident_pack, incident_page
from .mirror import Mirror, render_run
from .pull_request import pull_request, pull_request_page
from .record import run_record

__all__ = [
    "PULL_REQUEST",
    "RECORD",
    "Mirror",
    "MirrorUnusableError",
    "encode_sorted",
    "incident_pack",
    "incident_page",
    "patch_name",
    "pull_request",
    "pull_request_page",
    "render_run",
    "run_record",
]
