"""Which statements of a migration are safe beside a running service (docs/how-to-add.md).

The subject is SQL text, one transaction at a time. How it is run is not: see `migrating`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

# Tables whose rows do not grow with the number of runs, so that a scan of them takes milliseconds.
SMALL_TABLES: Final = frozenset(
    {
        "alembic_version",
        "api_keys",  # a key for each member of a team
        "backlog_counts",  # added up every minute
        "browser_sessions",  # a row for each browser that is signed in
        "pulses",  # a row for each process
        "run_counts",
        "ruleset_versions",  # changed by hand
        "nodes",  # a row for each clone that serves the database
        "served_clone",  # one row, later "served_repository"
        "served_repository",
        "told_attention",
        "webhooks",
    }
)

_NAME = r'(?:"?public"?\.)?"?(\w+)"?'
_CREATE_TABLE = re.compile(rf"CREATE TABLE (?:IF NOT EXISTS )?{_NAME}", re.IGNORECASE)
_CREATE_INDEX = re.compile(
    rf"CREATE (?:UNIQUE )?INDEX (CONCURRENTLY )?(?:IF NOT EXISTS )?\w+ ON (?:ONLY )?{_NAME}",
    re.IGNORECASE,
)
_ALTER_TABLE = re.compile(
    rf"ALTER TABLE (?:IF EXISTS )?(?:ONLY )?{_NAME}\s+(.*)", re.IGNORECASE | re.DOTALL
)
_CHANGE_ROWS = re.compile(
    rf"(/\* batch \*/ )?(?:UPDATE|DELETE FROM|INSERT INTO) (?:ONLY )?{_NAME}", re.IGNORECASE
)
_DROP_TABLE = re.compile(r"DROP (TABLE|TYPE|FUNCTION|VIEW|SEQUENCE) ", re.IGNORECASE)
# Takes a strong lock for the time of a change of the catalog alone, or locks only what is new.
_BRIEF = re.compile(
    r"(?:CREATE (?:OR REPLACE )?(?:FUNCTION|TRIGGER|TYPE|SEQUENCE|VIEW) |DROP INDEX |DROP TRIGGER "
    r"|TRUNCATE |COMMENT ON |SET |DROP (?:TABLE|TYPE|FUNCTION|VIEW|SEQUENCE) )",
    re.IGNORECASE,
)
_CREATE_FUNCTION = re.compile(
    rf"CREATE (?:OR REPLACE )?FUNCTION {_NAME}.*?\$\$(.*)\$\$", re.IGNORECASE
)
# Of a body in PL/pgSQL: what is declared, and the statements.
_BODY = re.compile(r"\s*(?:DECLARE (.*?) )?BEGIN (.*); END\b", re.IGNORECASE)
_EXECUTE = re.compile(r"EXECUTE (?:format\s*\(\s*)?'((?:[^']|'')*)'", re.IGNORECASE)
_READ = re.compile(rf"(?:FROM|JOIN) (?:ONLY )?{_NAME}", re.IGNORECASE)
# Their value differs from row to row, so that adding such a column writes the table anew.
_VOLATILE = re.compile(
    r"random\s*\(|clock_timestamp\s*\(|timeofday\s*\(|gen_random_uuid\s*\(|uuidv[47]\s*\("
    r"|nextval\s*\(|\bSERIAL\b|\bBIGSERIAL\b|GENERATED (?:ALWAYS|BY DEFAULT)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class StepFaults:
    """What a migration does that a running service notices.

    `long_locks`: requests wait while it runs. `contracts`: a service of the version before fails
    after it, since something that it reads or writes is gone or is demanded.
    """

    long_locks: tuple[str, ...] = ()
    contracts: tuple[str, ...] = ()


@dataclass(slots=True)
class _Seen:
    """What the statements before have done."""

    new_tables: set[str] = field(default_factory=set)
    unchecked: set[str] = field(default_factory=set)  # tables with a check of NOT NULL
    changed: set[str] = field(default_factory=set)  # tables it locks against writers
    bodies: dict[str, str] = field(default_factory=dict)  # of the functions that it makes
    long_locks: list[str] = field(default_factory=list)
    contracts: dict[str, str] = field(default_factory=dict)  # by what is gone

    def is_big(self, table: str) -> bool:
        return table not in self.new_tables and table not in SMALL_TABLES


def find_faults(transactions: Iterable[Sequence[str]]) -> StepFaults:
    """Return what is unsafe in one migration, given the statements of each of its transactions."""
    seen = _Seen()
    for statements in transactions:
        seen.changed = set()
        for statement in statements:
            _judge(" ".join(statement.split()).rstrip(";"), seen)
        held = sorted(filter(seen.is_big, seen.changed))
        if len(held) > 1:
            # A request that holds the second table and asks for the first would wait for ever.
            seen.long_locks.append(f"one transaction locks {' and '.join(held)}")
    return StepFaults(tuple(seen.long_locks), tuple(seen.contracts.values()))


def _judge(sql: str, seen: _Seen) -> None:
    if created := _CREATE_TABLE.match(sql):
        seen.new_tables.add(created[1])
        # A foreign key locks the other table against writers until the transaction ends.
        seen.changed.update(re.findall(rf"REFERENCES {_NAME}", sql, re.IGNORECASE))
    elif index := _CREATE_INDEX.match(sql):
        if not index[1] and seen.is_big(index[2]):
            seen.long_locks.append(f"CREATE INDEX without CONCURRENTLY on {index[2]}")
    elif altered := _ALTER_TABLE.match(sql):
        _judge_alter(altered[1], altered[2], seen)
    elif rows := _CHANGE_ROWS.match(sql):
        _judge_rows(sql, rows[2], seen, in_batch=rows[1] is not None)
    elif function := _CREATE_FUNCTION.match(sql):
        seen.bodies[function[1]] = function[2]
    elif not _BRIEF.match(sql) and not _calls(sql, seen):
        seen.long_locks.append(f"a statement that no rule knows: {sql[:60]}")
    if _DROP_TABLE.match(sql):
        seen.contracts[sql] = sql[:80]
    elif not re.match("CREATE ", sql, re.IGNORECASE):
        for name in _calls(sql, seen):
            _judge_body(name, seen)


def _calls(sql: str, seen: _Seen) -> list[str]:
    """Return the functions that a statement calls, of those that the migration makes."""
    return [name for name in seen.bodies if re.search(rf"\b{name}\s*\(", sql, re.IGNORECASE)]


def _judge_body(name: str, seen: _Seen) -> None:
    """Judge what a function does when it is called, as if the migration did it itself."""
    text = seen.bodies.pop(name)  # one that calls itself is refused
    body = _BODY.match(text)
    if body is None:
        seen.long_locks.append(f"a function that no rule can look into: {name}")
        return
    for table in _READ.findall(body[1] or ""):
        if seen.is_big(table):
            seen.long_locks.append(f"the function {name} reads {table}")
    for statement in _split(body[2], ";"):
        executed = _EXECUTE.match(statement)
        _judge(executed[1].replace("''", "'") if executed else statement, seen)
    seen.bodies[name] = text


def _judge_rows(sql: str, table: str, seen: _Seen, *, in_batch: bool) -> None:
    is_insert = sql.lstrip("/* batch").upper().startswith("INSERT")
    if is_insert and " SELECT " not in sql.upper():
        return
    if seen.is_big(table) and not in_batch and not is_insert:
        seen.long_locks.append(f"rows of {table} are changed without batches")
    held = sorted(name for name in seen.changed if seen.is_big(name))
    if held:
        seen.long_locks.append(
            f"rows of {table} are changed while the transaction locks {', '.join(held)}"
        )


def _judge_alter(table: str, text: str, seen: _Seen) -> None:
    is_big = seen.is_big(table)
    for action in _split(text, ","):
        words = action.upper()
        if words.startswith("VALIDATE CONSTRAINT"):
            if table in seen.changed and is_big:
                seen.long_locks.append(f"VALIDATE CONSTRAINT while the transaction locks {table}")
            continue
        if table not in seen.new_tables:
            fault = _long_lock(table, words, seen) if is_big else None
            if fault:
                seen.long_locks.append(f"{fault} on {table}")
            _note_contract(table, words, seen)
    if not text.upper().startswith("VALIDATE CONSTRAINT"):
        seen.changed.add(table)


def _long_lock(table: str, words: str, seen: _Seen) -> str | None:
    """Return the name of an action that reads or writes a whole table under its lock."""
    if words.startswith("ADD CONSTRAINT") and "NOT VALID" in words and "IS NOT NULL" in words:
        seen.unchecked.add(table)
    if words.startswith(
        ("ADD CONSTRAINT", "ADD CHECK", "ADD PRIMARY", "ADD UNIQUE", "ADD FOREIGN")
    ):
        is_quick = "NOT VALID" in words or " USING INDEX " in words
        return None if is_quick else "ADD CONSTRAINT without NOT VALID"
    if words.startswith("ADD "):
        if _VOLATILE.search(words):
            return "ADD COLUMN with a value of its own for each row"
        if "NOT NULL" in words and "DEFAULT" not in words:
            return "ADD COLUMN with NOT NULL and no DEFAULT"
        return None
    if re.match(r"ALTER (?:COLUMN )?\S+ (?:SET DATA )?TYPE ", words):
        return "ALTER COLUMN TYPE"
    if words.endswith("SET NOT NULL") and table not in seen.unchecked:
        return "SET NOT NULL without a validated check"
    if words.startswith(("SET LOGGED", "SET UNLOGGED", "SET TABLESPACE", "CLUSTER")):
        return words
    return None


def _note_contract(table: str, words: str, seen: _Seen) -> None:
    """Note what a service of the version before needs and does not find any more."""
    if added := re.match(r"ADD (?:COLUMN )?(?:IF NOT EXISTS )?(\w+)", words):
        # Dropped and added again: the column is there for each reader.
        seen.contracts.pop(f"{table}.{added[1]}", None)
        is_column = added[1] not in {"CONSTRAINT", "CHECK", "PRIMARY", "UNIQUE", "FOREIGN"}
        if is_column and "NOT NULL" in words and "DEFAULT" not in words:
            seen.contracts[words] = f"{table}: {words.lower()}"
        return
    if dropped := re.match(r"DROP (?:COLUMN )?(?:IF EXISTS )?(\w+)", words):
        if dropped[1] != "CONSTRAINT":
            name = dropped[1]
            seen.contracts[f"{table}.{name}"] = f"{table}: drop column {name.lower()}"
        return
    is_stricter = words.endswith(("SET NOT NULL", "DROP DEFAULT")) or words.startswith("RENAME")
    if is_stricter or re.match(r"ALTER (?:COLUMN )?\S+ (?:SET DATA )?TYPE ", words):
        seen.contracts[f"{table} {words}"] = f"{table}: {words.lower()}"


def _split(text: str, mark: str) -> list[str]:
    """Split a text at the marks outside of brackets and quotes, such as the actions of a change."""
    found, depth, quoted, start = [], 0, False, 0
    for place, letter in enumerate(text):
        if letter == "'":
            quoted = not quoted
        elif not quoted and letter in "()":
            depth += 1 if letter == "(" else -1
        elif letter == mark and not quoted and depth == 0:
            found.append(text[start:place].strip())
            start = place + 1
    return [*found, text[start:].strip()]
