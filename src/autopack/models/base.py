"""The metadata of all tables, and their common columns."""

from __future__ import annotations

import enum
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Enum,
    Identity,
    MetaData,
    Numeric,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

from ..domain.money import ZERO_USD

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = Annotated[int, mapped_column(BigInteger, Identity(always=True), primary_key=True)]
# Counted money: 0 at first, also in rows of an older release that does not write the column.
Cost = Annotated[Decimal, mapped_column(Numeric(20, 6), default=ZERO_USD, server_default=text("0"))]
Json = Annotated[Any, mapped_column(JSONB)]


class Base(DeclarativeBase):
    """Numbers have 64 bits, times have a time zone, text has no length limit in the database."""

    metadata = metadata
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        int: BigInteger,
        str: Text,
        datetime: DateTime(timezone=True),
        Decimal: Numeric(20, 6),
        enum.Enum: Enum(
            enum.Enum,
            native_enum=False,
            create_constraint=False,  # `one_of` names its check
            length=64,
            values_callable=lambda values: [str(value) for value in values],
        ),
    }


def one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    """Return a check that limits a text column to the values of an enum."""
    names = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({names})", name=f"{column}_known")


def not_negative(*columns: str) -> tuple[CheckConstraint, ...]:
    """Return a check that number columns are never negative."""
    return tuple(
        CheckConstraint(f"{column} >= 0", name=f"{column}_not_negative") for column in columns
    )


def guarded(*checks: CheckConstraint) -> dict[str, Any]:
    """Return the last table argument of a table that checks values by triggers, where they are set.

    Each is named as the check would be. (docs/decisions/guards.md)
    """
    return {"info": {"guards": checks}}
