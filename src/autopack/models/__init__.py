"""The tables."""

from .base import Base, metadata
from .counts import backlog_counts, run_counts
from .events import EventRow
from .figures import Figure
from .issues import BacklogEntry, Issue, IssueEvent, Sighting
from .keys import ApiKey, AuditEntry, BrowserSession
from .nodes import Node, NodeRun, ServedRepository
from .projects import Project
from .pulses import Pulse, RetentionProgress
from .pushes import Push
from .rulesets import RulesetVersion
from .runs import Phase, Run, Tier
from .webhooks import Delivery, ToldAttention, Webhook
from .work import (
    CiLog,
    CiRun,
    Commit,
    Lease,
    Measurement,
    Patch,
    Reply,
    ReviewRequest,
    Submission,
)

__all__ = [
    "ApiKey",
    "AuditEntry",
    "BacklogEntry",
    "Base",
    "BrowserSession",
    "CiLog",
    "CiRun",
    "Commit",
    "Delivery",
    "EventRow",
    "Figure",
    "Issue",
    "IssueEvent",
    "Lease",
    "Measurement",
    "Node",
    "NodeRun",
    "Patch",
    "Phase",
    "Project",
    "Pulse",
    "Push",
    "Reply",
    "RetentionProgress",
    "ReviewRequest",
    "RulesetVersion",
    "Run",
    "ServedRepository",
    "Sighting",
    "Submission",
    "Tier",
    "ToldAttention",
    "Webhook",
    "backlog_counts",
    "metadata",
    "run_counts",
]
