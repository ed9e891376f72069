"""The types of values from outside. (docs/security.md)"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Final, Self, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from .identifiers import IDENTIFIER_PATTERN, identifier_problem
from .money import MAX_USD, usd, usd_text

MAX_COUNT = 2**53 - 1
MAX_TEXT = 20_000


def _identifier(value: str) -> str:
    problem = identifier_problem(value)
    if problem:
        raise ValueError(problem)
    return value


def _clean_text(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


# `str.isprintable` also refuses the spaces of other scripts, which are printable.
_SPACES: Final = dict.fromkeys(
    (code for code in range(0x3001) if unicodedata.category(chr(code)) == "Zs"), " "
)


def _printable(value: str) -> str:
    """Refuse Unicode category C, and Zl and Zp: U+2028 and U+2029 break lines too."""
    if not (value.isprintable() or value.translate(_SPACES).isprintable()):
        raise ValueError("must contain only printable characters, no control characters")
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
# US dollars: input is a JSON number or a decimal string, output a string with six places.
Usd = Annotated[
    Decimal,
    Field(ge=0, le=MAX_USD),
    AfterValidator(usd),
    PlainSerializer(usd_text, return_type=str, when_used="json-unless-none"),
]
PositiveUsd = Annotated[Usd, Field(gt=0)]
PathGlob = Annotated[str, Field(min_length=1, max_length=1_000), AfterValidator(_printable)]
# A file's name as an agent gives it: any character but NUL is legal.
FilePath = Annotated[str, Field(min_length=1, max_length=4_096), AfterValidator(_clean_text)]
ItemT = TypeVar("ItemT")
# A list of simple values: only its first wrong item is reported. Settings limit its length, which
# is checked before any item is built (docs/security.md).
Several = Annotated[tuple[ItemT, ...], Field(fail_fast=True)]


MAX_PROBLEMS: Final = 20


@dataclass(slots=True)
class Problems:
    """How many more problems of one input are reported. It is the context of a validation."""

    left: int = MAX_PROBLEMS


class Closed(BaseModel):
    """A value from outside: unknown fields are refused, and it does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _stop_at_the_last_reported_problem(
        cls, value: Any, check: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        """Stop validating after MAX_PROBLEMS problems: each costs a kilobyte of memory."""
        problems = info.context
        if not isinstance(problems, Problems):
            return check(value)
        if problems.left <= 0:  # the input is refused already, so this value does not matter
            return cast("Self", cls.model_construct())
        if isinstance(value, dict):
            unknown = [name for name in value if name not in cls.model_fields]
            surplus = set(unknown[problems.left :])
            if surplus:
                value = {name: value[name] for name in value if name not in surplus}
        try:
            return check(value)
        except ValidationError as error:
            problems.left -= error.error_count()
            raise
