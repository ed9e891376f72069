"""The advisory locks of a database: the number of each, what it protects, and their order.

Postgres knows such a lock by its number alone, so this list is what keeps two of them apart. A
number never changes, as versions of the service work beside each other while one is upgraded.

Whoever waits for a lock while it holds others takes them in the order of this module. To try a lock
(`pg_try_advisory…`) is not to wait, so turns may be tried at any time. A lock of a transaction ends
with it, one of a session with its connection; so a killed process leaves none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Lock:
    """One lock of the database: the hash of a text."""

    text: str
    seed: int

    @property
    def number(self) -> str:
        """The lock's number, in SQL."""
        return f"hashtextextended('{self.text}', {self.seed})"


@dataclass(frozen=True, slots=True)
class Locks:
    """A lock for each of many things: the hash of a prefix and what names the thing."""

    prefix: str
    seed: int

    def number(self, text: str) -> str:
        """Return a lock's number, in SQL; `text` is SQL for what `text_of` returns."""
        return f"hashtextextended({text}, {self.seed})"

    def text_of(self, name: object) -> str:
        return f"{self.prefix}{name}"


# 1. Migrations, of a session: one process migrates. It holds no other lock.
MIGRATION: Final = 4_702_111_234_474_983_745

# 2. Of a session: services and job processes share it, and a restore needs it alone. A process
# takes it on a connection of its own, while it holds no other.
SERVING: Final = Lock("served", 2)

# Turns, of a transaction, only tried: one process at a time does a periodic work, one looks after a
# node. They are held while other locks are taken.
PERIODIC_WORK: Final = Locks("pulse:", 0)
NODE: Final = Locks("node:", 2)
# The same, of a session: one worker pushes a run's branch. By the run's id in its table.
PUSH: Final = Locks("push:", 0)

# 3. Of a transaction: the list of projects, in the default project's database. The locks of a
# project's own database are others, and are taken after it.
PROJECTS: Final = Lock("projects", 6)

# 4. Of a transaction: the list of nodes, and the repository that the database belongs to.
REGISTRATION: Final = Lock("nodes", 1)

# 5. Of a transaction: the end of the audit log, whose entries are a chain.
AUDIT_LOG: Final = Lock("audit_log", 3)

# 6. Of a session, over several transactions: the claims over all runs that have one
# Idempotency-Key, by the scope of their answer.
CLAIM_KEY: Final = Locks("", 7)

# 7. Of a session, over several transactions: a run's name in lower case, even before there is such
# a run. All changes of a run. Its row is locked after it.
RUN: Final = Locks("", 0)

# 8. Of a transaction: the versions of a project's ruleset, by the project's name. That of a project
# called `nodes` is the lock of REGISTRATION: they wait for each other, and nothing takes both.
RULESET: Final = Locks("", 1)

# 9. Of a transaction: how many leases one caller holds, by the beginning of its actors' names.
LEASES_OF_CALLER: Final = Locks("", 4)

# 10. Of a transaction, shared, by the trigger `announce_events` alone (alembic, `event_feed`): two
# numbers, which contain the last event's id before the transaction's own. Nobody waits for it;
# `store/feed.py` reads which ones are held. The first number is this one and the id's upper bits.
FIRST_FEED_NUMBER: Final = 1_635_087_000
LAST_FEED_NUMBER: Final = 1_635_087_999
