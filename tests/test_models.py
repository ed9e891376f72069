"""What the database itself promises, whatever code writes to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import CheckConstraint, Engine, event, inspect, select, text
from sqlalchemy.exc import DataError, IntegrityError, InvalidRequestError, StatementError
from sqlalchemy.orm import Session

from autopack.config import Settings
from autopack.database import make_engine
from autopack.domain.events import GENESIS_HASH, PhaseGated, from_record, seal
from autopack.domain.issues import BacklogStatus
from autopack.domain.naming import branch_name
from autopack.domain.outcomes import CommitKind, Outcome, PatchStatus
from autopack.domain.run import DebtStatus, FailureCode
from autopack.domain.states import Cleanliness, PhaseStatus, RunStatus, TierStatus
from autopack.domain.terms import CiProfile, Complexity, Role, RunScope, SafetyProfile, Severity
from autopack.models import (
    BacklogEntry,
    Base,
    CiRun,
    Commit,
    EventRow,
    Issue,
    Lease,
    Patch,
    Phase,
    Reply,
    ReviewRequest,
    Run,
    Sighting,
    Submission,
    Tier,
)
from autopack.store import leases, replies, runs
from autopack.store.session import RowSession

if TYPE_CHECKING:
    from tests.conftest import Explain

pytestmark = pytest.mark.integration

NOON = datetime(2026, 1, 1, 12, 0, 0, 123_456, tzinfo=UTC)
SHA = "0" * 40
MOST = 2**63 - 1

RUN: dict[str, Any] = {
    "project_id": "Shop",
    "run_id": "run-1",
    "state": RunStatus.RUN_CREATED,
    "safety_profile": SafetyProfile.NORMAL,
    "run_scope": RunScope.INCREMENTAL,
    "plan": {},
    "plan_sha256": "",
    "strategy": {},
    "strategy_version": 1,
    "token_cap": 5_000_000,
    "max_phases": 25,
    "max_duration_minutes": 120,
    "max_minor_issues_total": 3,
    "attempt_minutes": 60,
    "audit_minutes": 60,
    "minor_cap_ends_run": False,
    "any_failure_stops": False,
    "high_risk_needs_review": False,
    "cleanup_after_runs": 3,
    "cleanup_after_tiers": 2,
    "major_categories": [],
    "protected_paths": [],
    "base_branch": "main",
    "base_commit": SHA,
    "head_commit": SHA,
    "work_commit": SHA,
    "event_hash": GENESIS_HASH,
    "created_at": NOON,
    "updated_at": NOON,
    "deadline_at": NOON,
}
TIER: dict[str, Any] = {
    "tier_id": "T1",
    "tier_index": 0,
    "name": "First",
    "state": TierStatus.PENDING,
    "token_cap": 1,
    "ci_run_cap": 1,
    "minors_tolerated": 1,
    "majors_tolerated": 0,
}
PHASE: dict[str, Any] = {
    "phase_id": "P1",
    "tier_id": "T1",
    "tier_index": 0,
    "phase_index": 0,
    "name": "One",
    "state": PhaseStatus.QUEUED,
    "task_category": "docs",
    "complexity": Complexity.LOW,
    "allow_empty": False,
    "expected_issues": [],
    "ci_profile": CiProfile.NORMAL,
    "has_ci": False,
    "ci_timeout_seconds": 1,
    "max_builder_attempts": 1,
    "max_auditor_attempts": 1,
    "incident_token_cap": 1,
    "auto_apply": True,
    "is_high_risk": False,
    "opened_paths": [],
}


@pytest.fixture
def session(database_url: str) -> Iterator[RowSession]:
    address = Settings(_env_file=None, database_url=database_url).database_url or ""
    engine = make_engine(address, 15)
    with RowSession(engine) as session:
        yield session
    engine.dispose()


def add_run(session: Session, **fields: Any) -> Run:
    run = Run(**RUN | fields)
    session.add(run)
    session.flush()
    return run


# As many leases that have ended, and replies to keys of one run, as some weeks bring.
MANY = (
    "SET LOCAL session_replication_role = replica",  # there are no run and no phase
    "INSERT INTO leases (run_pk, phase_pk, role, agent, fence, token_sha256, seconds,"
    " expires_at, ended_at) SELECT 1, 1, 'builder', 'a', n, n::text, 900, now(), now()"
    " FROM generate_series(1, 2000) n",
    "INSERT INTO replies (run_pk, scope, fingerprint, body, created_at)"
    " SELECT 1, 'key:' || n, 'f', '{}', now() FROM generate_series(1, 2000) n",
)


def add_tier(session: Session, run: Run, **fields: Any) -> Tier:
    tier = Tier(**TIER | {"run_pk": run.id} | fields)
    session.add(tier)
    session.flush()
    return tier


def add_phase(session: Session, tier: Tier, **fields: Any) -> Phase:
    phase = Phase(**PHASE | {"run_pk": tier.run_pk, "tier_pk": tier.id} | fields)
    session.add(phase)
    session.flush()
    return phase


@pytest.fixture
def phase(session: Session) -> Phase:
    """The one phase of the one tier of the one run that there is, for good."""
    phase = add_phase(session, add_tier(session, add_run(session)))
    session.commit()
    return phase


def one_of_each(session: Session, phase: Phase) -> dict[str, object]:
    """Add a row to every table beneath a run."""
    of_run = {"run_pk": phase.run_pk}
    of_phase = {**of_run, "phase_pk": phase.id}
    lease = Lease(
        **of_phase,
        role=Role.BUILDER,
        agent="a",
        fence=1,
        token_sha256="a",
        seconds=900,
        expires_at=NOON,
    )
    backlog = BacklogEntry(
        project_id="Shop",
        issue_key="k",
        category="c",
        base_severity=Severity.MINOR,
        first_seen_run="run-1",
        last_seen_run="run-1",
        last_seen_at=NOON,
    )
    session.add_all([lease, backlog])
    session.flush()
    submission = Submission(
        **of_phase,
        role=Role.BUILDER,
        attempt=1,
        status="success",
        body={},
        outcome=Outcome.HELD,
        base_commit=SHA,
        created_at=NOON,
    )
    session.add(submission)
    session.flush()
    patch = Patch(
        submission_pk=submission.id,
        position=1,
        sha256="a",
        content=b"\0\xff",
        status=PatchStatus.PENDING,
    )
    session.add(patch)
    session.flush()
    rows: list[Base] = [
        lease,
        backlog,
        submission,
        patch,
        Commit(
            **of_phase,
            position=1,
            kind=CommitKind.PATCH,
            sha=SHA,
            tree=SHA,
            parent=SHA,
            message="m",
            committed_at=NOON,
            patch_pk=patch.id,
        ),
        ReviewRequest(
            **of_phase, is_advisory=False, requested_at=NOON, submission_pk=submission.id
        ),
        CiRun(**of_phase, commit_sha=SHA, profile=CiProfile.NORMAL, attempt=1, requested_at=NOON),
        Reply(**of_run, scope="s", fingerprint="f", body={}, created_at=NOON),
        Issue(
            **of_phase,
            issue_key="k",
            category="c",
            severity=Severity.MINOR,
            effective_severity=Severity.MINOR,
            source="ci",
            task_category="docs",
            complexity=Complexity.LOW,
            is_expected=False,
            first_seen_run="run-1",
            last_seen_run="run-1",
            first_seen_at=NOON,
            last_seen_at=NOON,
            evidence_refs=[],
        ),
        EventRow(
            **of_run,
            sequence=1,
            at=NOON,
            actor="supervisor",
            kind="RunStarted",
            data={},
            previous_hash=GENESIS_HASH,
            hash="a" * 64,
        ),
        Sighting(backlog_pk=backlog.id, run_pk=phase.run_pk, tier_id="T1"),
    ]
    session.add_all(rows)
    session.flush()
    phase.pending_submission_id = submission.id
    session.commit()
    return {type(row).__tablename__: row for row in rows}


def constraint_of(session: Session, write: Callable[[], object]) -> str:
    """Return the name of the constraint that refuses a write."""
    with pytest.raises(IntegrityError) as refusal:
        write()
    session.rollback()
    return str(refusal.value.orig.diag.constraint_name)  # type: ignore[union-attr]


def execute(session: Session, statement: str, **values: object) -> Any:
    return session.execute(text(statement), values)


def refusal_of(session: Session, statement: str, value: object) -> str:
    """Return the name of the constraint that refuses a value."""
    return constraint_of(session, lambda: execute(session, statement, value=value))


class TestUnique:
    @pytest.mark.parametrize("run_id", ["run-1", "RUN-1", "Run-1"])
    def test_a_run_id_is_unique_without_regard_to_case(
        self, session: Session, phase: Phase, run_id: str
    ) -> None:
        name = constraint_of(session, lambda: add_run(session, run_id=run_id))
        assert name == "uq_runs_run_id_lower"

    def test_a_run_is_found_by_its_very_name_and_its_namesakes_by_any_case(
        self, session: RowSession, phase: Phase
    ) -> None:
        assert runs.get_run(session, "run-1").id == phase.run_pk
        found = runs.find_run_by_any_case(session, "RUN-1")
        assert found is not None
        assert found.run_id == "run-1"
        assert found.branch == branch_name("run-1")

    @pytest.mark.parametrize("fields", [{"tier_index": 1}, {"tier_id": "T2"}])
    def test_a_run_has_each_tier_id_and_each_tier_index_once(
        self, session: Session, phase: Phase, fields: dict[str, object]
    ) -> None:
        run = session.get_one(Run, phase.run_pk)
        name = constraint_of(session, lambda: add_tier(session, run, **fields))
        assert name in ("uq_tiers_run_pk_tier_id", "uq_tiers_run_pk_tier_index")

    @pytest.mark.parametrize("fields", [{"phase_index": 1}, {"phase_id": "P2"}])
    def test_a_run_has_each_phase_id_once_and_a_tier_each_phase_index(
        self, session: Session, phase: Phase, fields: dict[str, object]
    ) -> None:
        tier = session.get_one(Tier, phase.tier_pk)
        name = constraint_of(session, lambda: add_phase(session, tier, **fields))
        assert name in ("uq_phases_run_pk_phase_id", "uq_phases_tier_pk_phase_index")

    def test_a_phase_id_must_be_unique_over_all_tiers(self, session: Session, phase: Phase) -> None:
        run = session.get_one(Run, phase.run_pk)
        other = add_tier(session, run, tier_id="T2", tier_index=1)
        name = constraint_of(
            session, lambda: add_phase(session, other, tier_id="T2", phase_index=9)
        )
        assert name == "uq_phases_run_pk_phase_id"

    def test_the_same_names_in_another_run_are_free(self, session: Session, phase: Phase) -> None:
        add_phase(session, add_tier(session, add_run(session, run_id="run-2")))
        session.commit()

    @pytest.mark.parametrize(
        ("table", "constraint"),
        [
            ("submissions", "uq_submissions_phase_pk_role_attempt"),
            ("patches", "uq_patches_submission_pk_position"),
            ("commits", "uq_commits_run_pk_position"),
            ("ci_runs", "uq_ci_runs_phase_pk_commit_sha_attempt"),
            ("replies", "uq_replies_run_pk_scope"),
            ("issues", "uq_issues_phase_pk_issue_key"),
            ("events", "uq_events_run_pk_sequence"),
            ("backlog", "uq_backlog_project_id_issue_key"),
            ("sightings", "pk_sightings"),
        ],
    )
    def test_a_row_of_work_exists_once(
        self, session: Session, phase: Phase, table: str, constraint: str
    ) -> None:
        one_of_each(session, phase)
        columns = [column["name"] for column in inspect(session.connection()).get_columns(table)]
        names = ", ".join(f'"{name}"' for name in columns if name != "id")
        copy = f"INSERT INTO {table} ({names}) SELECT {names} FROM {table}"
        assert constraint_of(session, lambda: execute(session, copy)) == constraint

    def test_a_phase_has_one_open_lease_and_any_number_of_ended_ones(
        self, session: Session, phase: Phase
    ) -> None:
        one_of_each(session, phase)
        again = (
            "INSERT INTO leases (run_pk, phase_pk, role, agent, fence, token_sha256,"
            " seconds, expires_at)"
            " SELECT run_pk, phase_pk, role, agent, fence + 1, :token, seconds, expires_at"
            " FROM leases LIMIT 1"
        )
        name = constraint_of(session, lambda: execute(session, again, token="b"))
        assert name == "uq_leases_open_phase_pk"
        execute(session, "UPDATE leases SET ended_at = now()")
        execute(session, again, token="b")
        session.commit()


CLOSED_SETS = [
    ("runs", "state", RunStatus),
    ("runs", "safety_profile", SafetyProfile),
    ("runs", "run_scope", RunScope),
    ("runs", "debt_status", DebtStatus),
    ("runs", "failure_code", FailureCode),
    ("tiers", "state", TierStatus),
    ("tiers", "cleanliness", Cleanliness),
    ("phases", "state", PhaseStatus),
    ("phases", "complexity", Complexity),
    ("phases", "ci_profile", CiProfile),
    ("leases", "role", Role),
    ("submissions", "outcome", Outcome),
    ("patches", "status", PatchStatus),
    ("commits", "kind", CommitKind),
    ("issues", "effective_severity", Severity),
    ("backlog", "status", BacklogStatus),
]
GUARDS = [
    pytest.param(table.name, guard, id=f"{table.name}-{guard.name}")
    for table in Base.metadata.sorted_tables
    for guard in table.info.get("guards", ())
]


class TestChecks:
    @pytest.mark.parametrize(("table", "column", "values"), CLOSED_SETS)
    def test_a_closed_set_holds_its_values_and_no_other(
        self, session: Session, phase: Phase, table: str, column: str, values: type[RunStatus]
    ) -> None:
        one_of_each(session, phase)
        update = f"UPDATE {table} SET {column} = :value"
        for value in values:
            assert execute(session, update, value=str(value)).rowcount == 1
        for wrong in ("DONE", "", str(next(iter(values))).swapcase()):
            name = refusal_of(session, update, wrong)
            assert name == f"ck_{table}_{column}_known"

    @pytest.mark.parametrize(
        ("table", "column"),
        [
            ("runs", "tokens_used"),
            ("runs", "minor_issues_count"),
            ("runs", "major_issues_count"),
            ("runs", "token_cap"),
            ("tiers", "tokens_used"),
            ("tiers", "ci_runs_count"),
            ("phases", "tokens_used"),
            ("phases", "builder_attempts_used"),
            ("phases", "auditor_attempts_used"),
            ("phases", "fence"),
            ("submissions", "tokens_used"),
            ("leases", "seconds"),
        ],
    )
    def test_a_counter_has_64_bits_and_never_falls_below_zero(
        self, session: Session, phase: Phase, table: str, column: str
    ) -> None:
        one_of_each(session, phase)
        update = f"UPDATE {table} SET {column} = :value"
        execute(session, update, value=MOST)
        session.commit()
        assert execute(session, f"SELECT {column} FROM {table}").scalar_one() == MOST
        name = refusal_of(session, update, -1)
        assert name == f"ck_{table}_{column}_not_negative"
        with pytest.raises(DataError):
            execute(session, update, value=MOST + 1)

    @pytest.mark.parametrize(("table", "guard"), GUARDS)
    def test_a_guard_refuses_what_its_condition_excludes_and_allows_the_rest(
        self, session: Session, phase: Phase, table: str, guard: CheckConstraint
    ) -> None:
        one_of_each(session, phase)
        condition = str(guard.sqltext)
        column = condition.split()[0]
        right, wrong = re.findall(r"'([^']*)'", condition) or ["0"], "-1"
        update = f"UPDATE {table} SET {column} = :value"
        for value in right:
            assert execute(session, update, value=value).rowcount == 1
        name = f"ck_{table}_{guard.name}"
        assert refusal_of(session, update, wrong) == name
        # A row with other names, which no other constraint refuses.
        added = {column: wrong, "run_id": "r2", "tier_id": "T2", "tier_index": 7}
        added |= {"phase_id": "P2", "phase_index": 7, "state": "RUN_CREATED"} | {column: wrong}
        if table != "runs":
            added["state"] = wrong if column == "state" else "COMPLETE"
        insert = (
            f"INSERT INTO {table} OVERRIDING USER VALUE"
            f" SELECT (jsonb_populate_record(it, CAST(:value AS jsonb))).* FROM {table} it"
        )
        assert refusal_of(session, insert, json.dumps(added)) == name

    def test_no_enum_is_written_that_the_set_lacks(self, session: Session) -> None:
        with pytest.raises((StatementError, IntegrityError)):
            add_run(session, state="FINISHED")

    @pytest.mark.parametrize(
        ("table", "column"), [("events", "sequence"), ("issues", "occurrence_count")]
    )
    def test_what_is_counted_from_one_is_never_zero(
        self, session: Session, phase: Phase, table: str, column: str
    ) -> None:
        one_of_each(session, phase)
        name = constraint_of(session, lambda: execute(session, f"UPDATE {table} SET {column} = 0"))
        assert name == f"ck_{table}_{column}_positive"


class TestForeignKeys:
    @pytest.mark.parametrize("table", ["tiers", "phases", "submissions", "events", "commits"])
    def test_nothing_belongs_to_a_run_that_is_not_there(
        self, session: Session, phase: Phase, table: str
    ) -> None:
        one_of_each(session, phase)
        name = constraint_of(
            session, lambda: execute(session, f"UPDATE {table} SET run_pk = 99999")
        )
        assert name == f"fk_{table}_run_pk_runs"

    def test_only_a_submission_that_is_there_can_be_pending(
        self, session: Session, phase: Phase
    ) -> None:
        update = "UPDATE phases SET pending_submission_id = 99999"
        name = constraint_of(session, lambda: execute(session, update))
        assert name == "fk_phases_pending_submission_id_submissions"

    def test_with_a_run_goes_all_that_belongs_to_it_and_the_backlog_stays(
        self, session: Session, phase: Phase
    ) -> None:
        tables = [*one_of_each(session, phase), "runs", "tiers", "phases"]
        execute(session, "DELETE FROM runs")
        session.commit()
        left = {t for t in tables if execute(session, f"SELECT count(*) FROM {t}").scalar_one()}
        assert left == {"backlog"}


class TestShape:
    def test_every_number_has_64_bits_every_time_its_zone_every_text_any_length(
        self, session: Session
    ) -> None:
        columns = execute(
            session,
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
            " AND NOT starts_with(table_name, 'procrastinate_')",
        ).all()
        assert len(columns) > 100
        wrong = {"integer", "smallint", "timestamp without time zone", "json", "real", "text[]"}
        assert [column for column in columns if column.data_type in wrong] == []

    def test_whatever_belongs_to_a_run_or_a_tier_is_found_by_an_index(
        self, session: Session
    ) -> None:
        first_columns = {
            tuple(row)
            for row in execute(
                session,
                "SELECT c.relname, a.attname FROM pg_index i"
                " JOIN pg_class c ON c.oid = i.indrelid"
                " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]"
                " WHERE i.indpred IS NULL",
            )
        }
        for table in Base.metadata.sorted_tables:
            for column in {"run_pk", "tier_pk", "backlog_pk", "submission_pk"} & {*table.c.keys()}:
                if (table.name, column) != ("audits", "submission_pk"):  # read by its phase
                    assert (table.name, column) in first_columns

    @pytest.mark.parametrize(
        ("query", "index"),
        [
            ("SELECT 1 FROM runs WHERE lower(run_id) = 'run-1'", "uq_runs_run_id_lower"),
            ("SELECT 1 FROM runs WHERE mirrored_revision < revision", "ix_runs_lagging"),
            (
                "SELECT 1 FROM runs WHERE ended_at IS NULL AND deadline_at <= now()",
                "ix_runs_live_deadline_at",
            ),
            (
                "SELECT 1 FROM phases WHERE deadline_at IS NOT NULL AND deadline_at <= now()",
                "ix_phases_waiting_deadline_at",
            ),
            (
                "SELECT 1 FROM runs ORDER BY created_at DESC, id DESC LIMIT 9",
                "ix_runs_created_at_id",
            ),
            (
                "SELECT 1 FROM events WHERE run_pk = 1 AND sequence > 5 ORDER BY sequence",
                "uq_events_run_pk_sequence",
            ),
        ],
    )
    def test_what_is_asked_often_is_answered_from_an_index(
        self, explain: Explain, query: str, index: str
    ) -> None:
        assert index in explain(query, without=["seqscan", "bitmapscan", "sort"])

    @pytest.mark.parametrize(
        ("find", "index"),
        [
            (lambda session: leases.find_lease(session, 1, "token"), "uq_leases_open_phase_pk"),
            (lambda session: replies.find_run_of(session, "any:key"), "ix_replies_of_all_runs"),
        ],
        ids=["a lease by a token", "the run of a claim's key"],
    )
    def test_what_is_looked_up_among_all_that_ever_were_is_found_by_an_index(
        self,
        session: RowSession,
        explain: Explain,
        find: Callable[[RowSession], object],
        index: str,
    ) -> None:
        """Leases are kept for good, and each heartbeat and result looks for one."""
        sent: list[str] = []
        connection = session.connection()
        event.listen(connection, "before_cursor_execute", lambda _c, _u, sql, *_: sent.append(sql))
        find(session)
        (query,) = sent
        assert index in explain(query, without=["seqscan", "bitmapscan"], before=MANY)

    def test_times_keep_their_moment_and_microseconds(self, session: Session) -> None:
        elsewhere = NOON.astimezone(timezone(timedelta(hours=9)))
        run = add_run(session, created_at=elsewhere)
        session.commit()
        session.expire_all()
        assert run.created_at == NOON
        assert run.created_at.utcoffset() == timedelta(0)

    def test_a_patch_keeps_its_very_bytes(self, session: Session, phase: Phase) -> None:
        content = bytes(range(256))
        patch = one_of_each(session, phase)["patches"]
        assert isinstance(patch, Patch)
        patch.content = content
        session.commit()
        session.expire_all()
        assert patch.content == content

    def test_a_sealed_event_has_the_same_hash_when_it_is_read_again(
        self, session: RowSession, phase: Phase
    ) -> None:
        run = session.get_one(Run, phase.run_pk)
        happened = PhaseGated(
            actor="a",
            at=NOON,
            phase_id="P1",
            tier_id="T1",
            from_state=PhaseStatus.EXECUTING,
            reason="Grüße \u2028",
            deadline_at=NOON,
            commit="c" * 40,
        )
        runs.add_events(session, run, (happened, happened))
        session.commit()
        session.expire_all()
        rows = session.scalars(select(EventRow).order_by(EventRow.sequence)).all()
        read = [runs.read_event(row) for row in rows]
        assert [from_record(each) for each in read] == [happened, happened]
        assert [one.hash for one in seal(read, 0, GENESIS_HASH)] == [row.hash for row in rows]
        assert (run.event_sequence, run.event_hash) == (2, rows[-1].hash)


class TestLoading:
    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            (Run, "tiers"),
            (Run, "phases"),
            (Tier, "run"),
            (Tier, "phases"),
            (Phase, "run"),
            (Phase, "tier"),
        ],
    )
    def test_a_relationship_that_was_not_asked_for_is_refused_not_fetched(
        self, session: Session, phase: Phase, kind: type[Base], name: str
    ) -> None:
        session.expunge_all()
        row = session.scalars(select(kind)).one()
        with pytest.raises(InvalidRequestError, match="lazy='raise'"):
            getattr(row, name)

    def test_every_relationship_is_such_a_one(self) -> None:
        lazy = {
            str(relationship): relationship.lazy
            for mapper in Base.registry.mappers
            for relationship in mapper.relationships
        }
        assert set(lazy.values()) == {"raise"}, lazy

    def test_a_run_comes_with_its_tiers_and_phases_in_one_statement(
        self, session: RowSession, phase: Phase
    ) -> None:
        run = session.get_one(Run, phase.run_pk)
        second = add_tier(session, run, tier_id="T2", tier_index=1)
        for index in range(5, 0, -1):
            add_phase(
                session,
                second,
                phase_id=f"P2{index}",
                tier_id="T2",
                tier_index=1,
                phase_index=index,
            )
        session.commit()
        session.expunge_all()
        statements: list[str] = []
        engine = session.get_bind()
        assert isinstance(engine, Engine)

        def count(_c: object, _u: object, statement: str, *_: object) -> None:
            statements.append(statement)

        event.listen(engine, "before_cursor_execute", count)
        run = runs.get_run(session, "run-1")
        order = [[p.phase_id for p in tier.phases] for tier in run.tiers]
        event.remove(engine, "before_cursor_execute", count)
        assert order == [["P1"], ["P21", "P22", "P23", "P24", "P25"]]
        assert len(statements) == 1

    def test_what_the_rules_changed_is_written_back_and_read_again(
        self, session: RowSession, phase: Phase
    ) -> None:
        run = runs.lock_run(session, "run-1")
        state = runs.read_state(run)
        changed = replace(
            state,
            state=RunStatus.PHASE_EXECUTION,
            promotion_reasons=("a", "b"),
            phases=(replace(state.phases[0], state=PhaseStatus.EXECUTING, deadline_at=NOON),),
            tiers=(replace(state.tiers[0], cleanliness_reasons=("x",)),),
        )
        runs.write_state(run, changed)
        session.commit()
        session.expunge_all()
        assert runs.read_state(runs.get_run(session, "run-1")) == changed
