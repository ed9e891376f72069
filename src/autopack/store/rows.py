"""Rows of tables as plain objects, and the values of the domain made from rows.

Mapped objects of SQLAlchemy cost about 0.4 ms of CPU a statement, mostly for bookkeeping that a
change of one run does not need. A plain row has the columns of its model as attributes and belongs
to no session of SQLAlchemy; session.py reads and writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar, cast, get_args, get_origin, get_type_hints

from psycopg2.extras import Json
from sqlalchemy import ColumnDefault, Enum, LargeBinary, Table
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.orm import class_mapper
from sqlalchemy.types import TypeEngine

from ..models import Base

Value = TypeVar("Value")
Model = TypeVar("Model", bound=Base)
Other = TypeVar("Other", bound=Base)
Values = Sequence[Any] | Mapping[str, Any]

_DIALECT: Final = PGDialect_psycopg2()  # type: ignore[no-untyped-call]  # SQLAlchemy gives no types


class Rows(Generic[Model]):
    """How the rows of one table are read into plain objects, and written.

    The objects are declared as the model, whose columns and properties they have; they belong to no
    SQLAlchemy session. Columns that the model defers are read if they are named.
    """

    def __init__(self, model: type[Model], *deferred: str) -> None:
        mapper = class_mapper(model, configure=False)
        self.table = cast("Table", model.__table__)
        self.name: Final = self.table.name
        read = [each for each in mapper.column_attrs if not each.deferred or each.key in deferred]
        self._names: Final = tuple(each.key for each in read)
        columns = [each.columns[0] for each in read]
        self.width: Final = len(columns)
        #: The columns that are read, for a SELECT on this table.
        self.columns: Final = ", ".join(f'{self.name}."{column.name}"' for column in columns)
        #: The same, each with its type, without the limits of that type.
        self.typed_columns: Final = ", ".join(
            f'{self.name}."{column.name}"::{_type_without_limits(column.type)}'
            for column in columns
        )
        self._decoders: Final = [
            (position, decode)
            for position, column in enumerate(columns)
            if (decode := _decoder(column.type)) is not None
        ]
        self._all: Final = tuple(column.name for column in self.table.columns)
        self._json: Final = frozenset(
            column.name for column in self.table.columns if isinstance(column.type, JSONB)
        )
        self._defaults: Final = {
            column.name: default.arg
            for column in self.table.columns
            if isinstance(default := column.default, ColumnDefault)
        }
        properties = {
            name: value
            for kind in reversed(model.__mro__)
            for name, value in vars(kind).items()
            if isinstance(value, property)
        }
        # Without the instrumented attributes of the model's class, which make mapped objects slow.
        self._class: Final = type(model.__name__, (_Row,), {"__slots__": (), **properties})

    def new(self, **values: Any) -> Model:
        """Make a new row; columns that are not given have their default, or NULL."""
        row: Any = object.__new__(self._class)
        row.__dict__.update(dict.fromkeys(self._all))
        for name, default in self._defaults.items():
            row.__dict__[name] = default({}) if callable(default) else default
        row.__dict__.update(values)
        return cast("Model", row)

    def read(self, values: Sequence[Any]) -> Model:
        """Make a row from the result of a SELECT of `columns`."""
        row: Any = object.__new__(self._class)
        decoded = list(values)
        for position, decode in self._decoders:
            if decoded[position] is not None:
                decoded[position] = decode(decoded[position])
        row.__dict__ = dict(zip(self._names, decoded, strict=True))
        return cast("Model", row)

    def insert(self, rows: Sequence[Model]) -> tuple[str | Prepared, Values]:
        """Return the statement that adds rows; all of them have an id, or none has."""
        has_ids = rows[0].__dict__.get("id") is not None
        names = tuple(name for name in self._all if name != "id" or has_ids)
        values = [self.encode(name, row.__dict__[name]) for row in rows for name in names]
        one = _insert(self.name, names)
        if len(rows) == 1:
            return one, values
        return f"{one.statement}{f', {_marks(names)}' * (len(rows) - 1)}", values

    def update(self, ids: Sequence[int], changed: dict[str, Any]) -> tuple[str | Prepared, Values]:
        """Return the statement that gives rows the same new values in some columns."""
        values = [self.encode(name, value) for name, value in changed.items()]
        one = _update(self.name, tuple(changed))
        if len(ids) == 1:
            return one, [*values, ids[0]]
        return one.statement.replace("id = %s", "id = ANY(%s)"), [*values, list(ids)]

    def encode(self, name: str, value: Any) -> Any:
        """Return a column's value as psycopg2 takes it."""
        return Json(value) if name in self._json and value is not None else value


class Prepared:
    """A statement that each connection prepares once.

    Postgres would plan such a statement longer than it runs it: the row of a run has 60 columns.
    A service of an older release may serve while a migration changes the tables. Then
    Postgres plans anew, but refuses if the result would have other types: so every column has a
    type of its own here. (docs/decisions/plain-rows.md)
    """

    def __init__(self, name: str, statement: str) -> None:
        """`%s` stands for a value, and for nothing else. The name says in Postgres what runs."""
        self.name: Final = name
        self.statement: Final = statement
        first, *others = statement.split("%s")
        #: The statement to prepare.
        self.text: Final = first + "".join(f"${n}{text}" for n, text in enumerate(others, 1))
        self._marks: Final = ", ".join(["%s"] * len(others))

    def execute(self, name: str) -> str:
        """Return the statement that runs what was prepared under a name."""
        return f"EXECUTE {name} ({self._marks})"


class PreparedSelect(Prepared, Generic[Model]):
    """A prepared SELECT of the rows of a table."""

    def __init__(self, rows: Rows[Model], condition: str) -> None:
        """The condition follows `FROM table`."""
        self.rows: Final = rows
        super().__init__(
            f"select_{rows.name}",
            f"SELECT {self._columns()} FROM {rows.name} {condition}",  # noqa: S608 - a literal in `store/`
        )

    def _columns(self) -> str:
        return self.rows.typed_columns


class PreparedJoin(PreparedSelect[Model], Generic[Model, Other]):
    """A prepared SELECT of the rows of two tables; its condition joins the second one.

    A row of the first may have none of the second.
    """

    def __init__(self, first: Rows[Model], second: Rows[Other], condition: str) -> None:
        self.second: Final = second
        super().__init__(first, condition)

    def _columns(self) -> str:
        return f"{self.rows.typed_columns}, {self.second.typed_columns}"


@lru_cache(maxsize=2_000)  # the rules change some dozen sets of columns
def _update(table: str, names: tuple[str, ...]) -> Prepared:
    """Return the statement that changes columns of one row."""
    marks = ", ".join(f"{_quoted(name)} = %s" for name in names)
    statement = f"UPDATE {table} SET {marks} WHERE id = %s"  # noqa: S608 - names of the models
    return Prepared(f"update_{table}", statement)


@cache
def _insert(table: str, names: tuple[str, ...]) -> Prepared:
    """Return the statement that adds one row."""
    # An id is taken from its sequence beforehand, where it has to be known.
    head = f"{table} ({', '.join(map(_quoted, names))}) OVERRIDING SYSTEM VALUE"
    statement = f"INSERT INTO {head} VALUES {_marks(names)}"  # noqa: S608 - names of the models
    return Prepared(f"insert_{table}", statement)


def _marks(names: Sequence[str]) -> str:
    return f"({', '.join(['%s'] * len(names))})"


def differences(row: object, loaded: dict[str, Any]) -> dict[str, Any]:
    """Return the columns in which a row differs from what was read, with their new values."""
    known = row.__dict__
    if known == loaded:  # most rows of a run are as they were
        return {}
    return {
        name: known[name]
        for name, value in loaded.items()
        if known[name] is not value and known[name] != value
    }


class _Row:
    """A row's attributes stand in its `__dict__`, under the names of its columns."""

    __slots__ = ("__dict__",)


def _decoder(kind: object) -> Callable[[Any], Any] | None:
    if isinstance(kind, Enum) and kind.enum_class is not None:
        return {str(member.value): member for member in kind.enum_class}.__getitem__
    if isinstance(kind, LargeBinary):
        return bytes  # a memoryview, from psycopg2
    return None


def _type_without_limits(kind: TypeEngine[Any]) -> str:
    """Return a type for a cast that changes no value, such as `VARCHAR` for `VARCHAR(200)`."""
    return re.sub(r"\([\d, ]*\)", "", kind.compile(_DIALECT))


def _quoted(name: str) -> str:
    return f'"{name}"'


def read_off(kind: type[Value], row: object, **given: Any) -> Value:
    """Make a dataclass from the attributes of the same names of a row, and from `given`.

    JSON lists become tuples, with objects of the domain where the field's type names their class.
    """
    names, values = _values(kind, tuple(given), row)
    return kind(**dict(zip(names, values, strict=True)), **given)


def read_frozen(kind: type[Value], row: object) -> Value:
    """Do what `read_off` does for a frozen dataclass; equal values give the same object.

    From one change of a run to the next most of its phases are as they were, and to find one costs
    a third of making it.
    """
    names, values = _values(kind, (), row)
    try:
        made: Value = _made(cast("Hashable", kind), names, values)
    except TypeError:  # a JSON object within: it cannot be looked up
        return kind(**dict(zip(names, values, strict=True)))
    return made


@lru_cache(maxsize=5_000)
def _made(kind: Any, names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    return kind(**dict(zip(names, values, strict=True)))


def _values(
    kind: type[Any], given: tuple[str, ...], row: object
) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return the names of the fields that are not given, and a row's values for them."""
    names, read, lists = _reader(kind, given)  # type: ignore[arg-type]  # a class is hashable
    values = read(row)
    if lists:
        changed = list(values)
        for position, read_item in lists:
            found = changed[position]
            changed[position] = tuple(map(read_item, found) if read_item else found)
        values = tuple(changed)
    return names, values


@cache
def _reader(kind: type[Any], given: tuple[str, ...]) -> tuple[
    tuple[str, ...],
    Callable[[object], tuple[Any, ...]],
    tuple[tuple[int, Callable[[Any], Any] | None], ...],
]:
    """Return which attributes are read, a function that reads them, and which of them are lists.

    With each list stands what reads its members where they are JSON objects.
    """
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name not in given}
    lists = [
        (place, _member(hint))
        for place, hint in enumerate(hints.values())
        if get_origin(hint) is tuple
    ]
    return tuple(hints), attrgetter(*hints), tuple(lists)


def _member(hint: Any) -> Callable[[Any], Any] | None:
    member = get_args(hint)[0]
    if not (is_dataclass(member) and isinstance(member, type)):
        return None
    read: Callable[[Any], Any] | None = getattr(member, "read", None)
    return read or (lambda fields: member(**fields))
