"""The advisory locks: their numbers stay, no two are one, and one module writes them."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from autopack import advisory_locks
from autopack.advisory_locks import (
    AUDIT_LOG,
    CLAIM_KEY,
    FIRST_FEED_NUMBER,
    LAST_FEED_NUMBER,
    LEASES_OF_CALLER,
    MIGRATION,
    NODE,
    PERIODIC_WORK,
    PROJECTS,
    PUSH,
    REGISTRATION,
    RULESET,
    RUN,
    SERVING,
    Lock,
    Locks,
)
from autopack.domain.identifiers import identifier_problem

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "autopack"
ONE = {each.text: each for each in vars(advisory_locks).values() if isinstance(each, Lock)}
MANY = [each for each in vars(advisory_locks).values() if isinstance(each, Locks)]
# Texts of each kind, as the modules that take the locks make them.
SAMPLES = {
    RUN: ["run-001", "served", "nodes", "pulse", "1"],
    PERIODIC_WORK: ["upkeep", "retention", ""],
    PUSH: ["1", "12"],
    NODE: ["0123456789abcdef", ""],
    CLAIM_KEY: ["any:one", "any:two"],
    RULESET: ["autopack", "shop", "projects"],
    LEASES_OF_CALLER: ["key:codex-3:", "key:nodes:"],
}


def test_a_version_beside_this_one_uses_the_same_numbers() -> None:
    """A number that changes would let an old and a new version work on the same thing."""
    assert [each.number for each in (SERVING, PROJECTS, REGISTRATION, AUDIT_LOG)] == [
        "hashtextextended('served', 2)",
        "hashtextextended('projects', 6)",
        "hashtextextended('nodes', 1)",
        "hashtextextended('audit_log', 3)",
    ]
    assert [(each.text_of("x"), each.number(":key")) for each in MANY] == [
        ("pulse:x", "hashtextextended(:key, 0)"),
        ("node:x", "hashtextextended(:key, 2)"),
        ("push:x", "hashtextextended(:key, 0)"),
        ("x", "hashtextextended(:key, 7)"),
        ("x", "hashtextextended(:key, 0)"),
        ("x", "hashtextextended(:key, 1)"),
        ("x", "hashtextextended(:key, 4)"),
    ]
    assert MIGRATION == 4702111234474983745


def test_no_two_locks_have_one_number(worker_database: tuple[str, Engine]) -> None:
    _, engine = worker_database
    texts = [(each.text, each.seed) for each in ONE.values()]
    texts += [(each.text_of(name), each.seed) for each in MANY for name in SAMPLES[each]]
    with engine.connect() as connection:
        numbers = [
            connection.scalar(text("SELECT hashtextextended(:text, :seed)"), values)
            for values in ({"text": words, "seed": seed} for words, seed in texts)
        ]
    numbers.append(MIGRATION)
    assert len(set(numbers)) == len(numbers)


def test_texts_of_one_seed_cannot_meet() -> None:
    for one, other in combinations(MANY, 2):
        if one.seed != other.seed:
            continue
        shorter, longer = sorted((one, other), key=lambda each: len(each.prefix))
        is_apart = not longer.prefix.startswith(shorter.prefix)
        # A run's name is an identifier, which has no colon.
        assert is_apart or (shorter is RUN and identifier_problem(longer.text_of("x")))
    meeting = [
        (many, one)
        for many in MANY
        for one in ONE.values()
        if many.seed == one.seed and one.text.startswith(many.prefix)
    ]
    # The module says why a project that is called `nodes` does no harm.
    assert meeting == [(RULESET, REGISTRATION)]


@pytest.mark.parametrize(
    "literal",
    [
        r"hashtextextended\(",
        r"advisory\w*\(\s*['\"%:\d]",
        rf"{MIGRATION}|{MIGRATION:_}",
        r"1_?635_?087_?\d{3}",
    ],
)
def test_one_module_alone_writes_numbers_of_locks(literal: str) -> None:
    own = Path(advisory_locks.__file__)
    assert re.search(literal, own.read_text() + "pg_advisory_lock(1)"), "it finds what it is for"
    assert [
        path.relative_to(ROOT)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != own and re.search(literal, path.read_text())
    ] == []


def test_the_trigger_of_events_has_the_first_number_of_the_feed(
    worker_database: tuple[str, Engine],
) -> None:
    _, engine = worker_database
    query = text("SELECT prosrc FROM pg_proc WHERE proname = 'announce_events'")
    with engine.connect() as connection:
        source = str(connection.scalar(query))
    assert f"({FIRST_FEED_NUMBER} + (newest >> 31))" in source
    # All 63 bits of an id are more than the numbers reach: they last for 2 ** 31 * 1,000 events.
    assert LAST_FEED_NUMBER - FIRST_FEED_NUMBER == 999
