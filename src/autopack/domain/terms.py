"""The closed sets of words that rules, records and the offline checker share.

Standard library alone, so that the checker can be made from modules that use them.
"""

from __future__ import annotations

from enum import StrEnum


class Severity(StrEnum):
    MINOR = "minor"
    MAJOR = "major"
