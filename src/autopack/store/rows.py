"""Rows of tables as plain objects, and the values of the domain made from rows.

Mapped objects of SQLAlchemy cost about 0.4 ms of CPU a statement, mostly for bookkeeping that a
change of one run does not need. A plain row has the columns of its model as attributes and belongs
to no session of SQLAlchemy; session.py reads and writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache, lru_cache
from itertools import accumulate, chain, pairwise
from operator import attrgetter, itemgetter
from typing import (
    Any,
    Final,
    Generic,
    NamedTuple,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from psycopg2.extras import Json
from pydantic_core import from_json
from sqlalchemy import ColumnDefault, Enum, LargeBinary, Table
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.orm import class_mapper
from sqlalchemy.types import TypeEngine

from ..models import Base

Value = TypeVar("Value")
Model = TypeVar("Model", bound=Base)
Values = Sequence[Any] | Mapping[str, Any]

# So many rows are added by a prepared statement: a change has a few events. It would cost more than
# a plain one for the phases of a plan.
_FEW: Final = 3
_DIALECT: Final = PGDialect_psycopg2()  # type: ignore[no-untyped-call]  # SQLAlchemy gives no types


class Rows(Generic[Model]):
    """How the rows of one table are read into plain objects, and written.

    The objects are declared as the model, whose columns and properties they have; they belong to no
    SQLAlchemy session. Columns that the model defers are read if they are named.
    """

    def __init__(self, model: type[Model], *deferred: str, kept: int = 0) -> None:
        """`kept`: of how many rows the values are kept, as most are as they were when read again.

        Such rows share the lists of their JSON columns, which are replaced and never changed.
        """
        mapper = class_mapper(model, configure=False)
        self.table = cast("Table", model.__table__)
        self.name: Final = self.table.name
        read = [each for each in mapper.column_attrs if not each.deferred or each.key in deferred]
        self._names: Final = tuple(each.key for each in read)
        columns = [each.columns[0] for each in read]
        #: The columns that are read, each with a type without limits, for a SELECT on this table.
        self.column_list: Final = tuple(
            f'{self.name}."{column.name}"::{_read_as(column.type)}' for column in columns
        )
        self.columns: Final = ", ".join(self.column_list)
        self._decoders: Final = [
            (position, decode)
            for position, column in enumerate(columns)
            if (decode := _decoder(column.type)) is not None
        ]
        self._loaded: Final = lru_cache(maxsize=kept)(self._load) if kept else self._load
        self._all: Final = tuple(column.name for column in self.table.columns)
        self._json: Final = frozenset(
            column.name for column in self.table.columns if isinstance(column.type, JSONB)
        )
        defaults = {
            column.name: default.arg
            for column in self.table.columns
            if isinstance(default := column.default, ColumnDefault)
        }
        self._made: Final = {name: make for name, make in defaults.items() if callable(make)}
        self._blank: Final = {**dict.fromkeys(self._all), **defaults}
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
        row.loaded = None
        made = {name: make({}) for name, make in self._made.items()}
        row.__dict__ = {**self._blank, **made, **values}
        return cast("Model", row)

    def read(self, values: Sequence[Any]) -> Model:
        """Make a row from the result of a SELECT of `columns`."""
        row: Any = object.__new__(self._class)
        row.loaded = self._loaded(tuple(values))
        row.__dict__ = dict(row.loaded.values)
        return cast("Model", row)

    def _load(self, values: tuple[Any, ...]) -> Loaded:
        decoded = list(values)
        for position, decode in self._decoders:
            if decoded[position] is not None:
                decoded[position] = decode(decoded[position])
        return Loaded(dict(zip(self._names, decoded, strict=True)))

    def insert(self, rows: Sequence[Model]) -> tuple[str | Prepared, Values]:
        """Return the statement that adds rows; all of them have an id, or none has."""
        has_ids = rows[0].__dict__.get("id") is not None
        names = tuple(name for name in self._all if name != "id" or has_ids)
        read, is_json = itemgetter(*names), [name in self._json for name in names]
        values = [
            Json(value) if is_one and value is not None else value
            for row in rows
            for is_one, value in zip(is_json, read(row.__dict__), strict=True)
        ]
        adding = _insert(self.name, names, len(rows))
        return adding if len(rows) <= _FEW else adding.statement, values

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
            f"SELECT {rows.columns} FROM {rows.name} {condition}",  # noqa: S608 - a literal in `store/`
        )


class Part(NamedTuple):
    """A SELECT among others of one statement."""

    columns: Sequence[str]  # each with its type: `expression::type`
    source: str  # what follows FROM


class PreparedParts(Prepared):
    """A prepared statement that gives the rows of several SELECTs, as a round trip costs more.

    A row has the number of its part first, and NULL in the columns of all others. The parts see
    one moment; rows are in no order.
    """

    def __init__(self, name: str, *parts: Part, before: str = "") -> None:
        """`before` is what the parts may name, a `WITH`."""
        ends = [*accumulate((len(part.columns) for part in parts), initial=1)]
        #: Where a part's columns are in its rows.
        self.places: Final = [slice(*place) for place in pairwise(ends)]
        nulls = [
            [f"NULL::{column.rpartition('::')[2]}" for column in part.columns] for part in parts
        ]
        selects = []
        for number, part in enumerate(parts):
            columns = [*nulls[:number], part.columns, *nulls[number + 1 :]]
            listed = ", ".join(chain([str(number)], *columns))
            selects.append(f"SELECT {listed} FROM {part.source}")  # noqa: S608 - literals and names
        super().__init__(name, f"{before} {' UNION ALL '.join(selects)}")


@lru_cache(maxsize=2_000)  # the rules change some dozen sets of columns
def _update(table: str, names: tuple[str, ...]) -> Prepared:
    """Return the statement that changes columns of one row."""
    marks = ", ".join(f"{_quoted(name)} = %s" for name in names)
    statement = f"UPDATE {table} SET {marks} WHERE id = %s"  # noqa: S608 - names of the models
    return Prepared(f"update_{table}", statement)


@lru_cache(maxsize=200)
def _insert(table: str, names: tuple[str, ...], count: int) -> Prepared:
    """Return the statement that adds so many rows."""
    # An id is taken from its sequence beforehand, where it has to be known.
    head = f"{table} ({', '.join(map(_quoted, names))}) OVERRIDING SYSTEM VALUE"
    marks = ", ".join([_marks(names)] * count)
    statement = f"INSERT INTO {head} VALUES {marks}"  # noqa: S608 - names of the models
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


class Loaded:
    """The values that a row had, which stay, and what was made of them."""

    __slots__ = ("derived", "values")

    def __init__(self, values: dict[str, Any]) -> None:
        self.values: Final = values
        self.derived: Final[dict[object, Any]] = {}


class _Row:
    """A row's attributes stand in its `__dict__`, under the names of its columns."""

    __slots__ = ("__dict__", "loaded")
    loaded: Loaded | None


def _decoder(kind: object) -> Callable[[Any], Any] | None:
    if isinstance(kind, Enum) and kind.enum_class is not None:
        return {str(member.value): member for member in kind.enum_class}.__getitem__
    if isinstance(kind, LargeBinary):
        return bytes  # a memoryview, from psycopg2
    if isinstance(kind, JSONB):
        return from_json
    return None


def _read_as(kind: TypeEngine[Any]) -> str:
    """Return the type as which a column is read, such as `VARCHAR` for `VARCHAR(200)`.

    JSON is read as text, by which values that are kept are looked up.
    """
    if isinstance(kind, JSONB):
        return "TEXT"
    return re.sub(r"\([\d, ]*\)", "", kind.compile(_DIALECT))


def _quoted(name: str) -> str:
    return f'"{name}"'


def read_off(kind: type[Value], row: object, **given: Any) -> Value:
    """Make a dataclass from the attributes of the same names of a row, and from `given`.

    JSON lists become tuples, with objects of the domain where the field's type names their class.
    """
    names, read, lists = _reader(kind, tuple(given))  # type: ignore[arg-type]  # a class is hashable
    values = dict(zip(names, read(row), strict=True))
    for name, read_item in lists:
        values[name] = tuple(map(read_item, values[name]) if read_item else values[name])
    return kind(**values, **given)


def derived(row: Model, derive: Callable[[Model], Value]) -> Value:
    """Return what a pure function makes of a row's columns, which nothing changes.

    It is made once for the values that a row has, and for all rows that were read with equal values
    that are `kept`: from one change of a run to the next most of its phases are as they were.
    """
    plain: Any = row
    if plain.loaded is None or differences(row, plain.loaded.values):
        plain.loaded = Loaded(dict(row.__dict__))
    found = plain.loaded.derived.get(derive)
    if found is None:
        found = plain.loaded.derived[derive] = derive(row)
    return cast("Value", found)


@cache
def _reader(kind: type[Any], given: tuple[str, ...]) -> tuple[
    tuple[str, ...],
    Callable[[object], tuple[Any, ...]],
    tuple[tuple[str, Callable[[Any], Any] | None], ...],
]:
    """Return which attributes are read, a function that reads them, and which of them are lists.

    With each list stands what reads its members where they are JSON objects.
    """
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name not in given}
    lists = [(name, _member(hint)) for name, hint in hints.items() if get_origin(hint) is tuple]
    return tuple(hints), attrgetter(*hints), tuple(lists)


def _member(hint: Any) -> Callable[[Any], Any] | None:
    member = get_args(hint)[0]
    if not (is_dataclass(member) and isinstance(member, type)):
        return None
    read: Callable[[Any], Any] | None = getattr(member, "read", None)
    return read or (lambda fields: member(**fields))
