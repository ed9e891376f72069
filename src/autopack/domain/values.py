"""The types that everything from outside is made of. (05: identifiers, limits)"""

from __future__ import annotations

import unicodedata
from decimal import Decimal
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer

from .identifiers import IDENTIFIER_PATTERN, identifier_problem
from .money import MAX_USD, usd, usd_text
from .terms import Severity as Severity

MAX_COUNT = 2**53 - 1
MAX_TEXT = 20_000


class SafetyProfile(StrEnum):
    NORMAL = "normal"
    SAFETY_CRITICAL = "safety_critical"


class RunScope(StrEnum):
    SINGLE_TIER = "single_tier"
    INCREMENTAL = "incremental"
    MULTI_TIER = "multi_tier"


class Complexity(StrEnum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class CiProfile(StrEnum):
    NORMAL = "normal"
    STRICT = "strict"


class CiMode(StrEnum):
    NONE = "none"
    LOCAL = "local"
    EXTERNAL = "external"


class Role(StrEnum):
    BUILDER = "builder"
    AUDITOR = "auditor"


def _identifier(value: str) -> str:
    problem = identifier_problem(value)
    if problem:
        raise ValueError(problem)
    return value


def _clean_text(value: str) -> str:
    if "\0" in value:
        raise ValueError("must hold no NUL character")
    return value


def _is_unprintable(category: str) -> bool:
    return category[0] == "C" or category in ("Zl", "Zp")  # U+2028 and U+2029 break lines too


def _printable(value: str) -> str:
    if any(_is_unprintable(unicodedata.category(character)) for character in value):
        raise ValueError("must hold printable characters only, no controls")
    return value


Identifier = Annotated[
    str,
    AfterValidator(_identifier),
    Field(json_schema_extra={"pattern": IDENTIFIER_PATTERN}),
]
Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_clean_text)]
Name = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
Word = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]
IssueKey = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Count = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]
PositiveCount = Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)]
Quantity = Annotated[float, Field(strict=True, ge=0, le=MAX_COUNT, allow_inf_nan=False)]
# US dollars: a JSON number or a decimal string comes in, a string with six places goes out.
Usd = Annotated[
    Decimal,
    Field(ge=0, le=MAX_USD),
    AfterValidator(usd),
    PlainSerializer(usd_text, return_type=str, when_used="json-unless-none"),
]
PositiveUsd = Annotated[Usd, Field(gt=0)]
PathGlob = Annotated[str, Field(min_length=1, max_length=1_000), AfterValidator(_printable)]
# A file's name as an agent gives it: any sign may stand in one, but NUL in none.
FilePath = Annotated[str, Field(min_length=1, max_length=4_096), AfterValidator(_clean_text)]


class Closed(BaseModel):
    """A value from outside: unknown fields are refused, and it does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
