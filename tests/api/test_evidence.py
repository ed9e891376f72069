"""Evidence of verdicts, with real git and real commands: from the ruleset to promotion."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from autopack.domain.ruleset import CiCommand
from autopack.services import baseline, ci
from autopack.services.context import AppContext
from autopack.views.work import WorkItemAnswer
from autopack.worker.prompt import write_prompt

from .test_local_ci import backtest_changes, context, runs_of_ci, take
from .test_tampering import check

if TYPE_CHECKING:
    from tests.api.conftest import Api

__all__ = ["context"]

pytestmark = pytest.mark.integration

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "evidence.md"
# A small test tool: each line of tests/*.t is a test `NAME: COMMAND`, and its report is JUnit.
TOOL = r"""
mkdir -p out; status=0
{ echo '<testsuite>'
for file in $(find tests -name '*.t' 2>/dev/null | sort); do
  while IFS=: read -r name command; do
    case $command in
      *skip*) echo "<testcase classname='$file' name='$name'><skipped/></testcase>";;
      *) if sh -c "$command" >/dev/null 2>&1
         then echo "<testcase classname='$file' name='$name'/>"
         else echo "<testcase classname='$file' name='$name'><failure/></testcase>"; touch out/red
         fi;;
    esac
  done < $file
done
echo '</testsuite>'; } > out/junit.xml
test ! -e out/red
"""
PROFILE = {
    "command": "sh test.sh",
    "timeout_seconds": 60,
    "retries": 0,
    "junit": "out/*.xml",
}


def rule(api: Api, *evidence: str, ci: dict[str, Any] | None = None, **profile: Any) -> None:
    each = {**PROFILE, "evidence": list(evidence), **profile}
    document = {
        "project_id": "Autopack",
        "ci": {"mode": "local", "profiles": {"normal": each, "strict": each}, **(ci or {})},
    }
    response = api.client.put("/project/ruleset", json=document)
    assert response.status_code == 200, response.text


def base(api: Api, **files: str) -> str:
    """Commit the test tool and files to the base branch."""
    named = {"test.sh": TOOL, **{name.replace("__", "/"): text for name, text in files.items()}}
    return api.repo.commit({**named})


def work_all(context: AppContext) -> None:
    """Do all the jobs of CI that wait, and what follows from them."""
    while True:
        with context.writing() as session:
            query = text(
                "DELETE FROM procrastinate_jobs WHERE id = (SELECT min(id) FROM procrastinate_jobs"
                " WHERE queue_name = 'ci') RETURNING task_name, args"
            )
            found = session.execute(query).one_or_none()
            session.commit()
        if found is None:
            return
        tasks: dict[str, Callable[..., None]] = {
            "run_ci": ci.run_ci,
            baseline.MEASURE_BASE_TASK: baseline.measure_base,
        }
        tasks[found[0]](context, **found[1])
        take(context)


def judge(api: Api, context: AppContext, patch: str, **plan: Any) -> dict[str, Any]:
    """Start a run, submit a patch and let CI judge it; return the last CI run."""
    api.start(**plan)
    answer = api.result(patch=patch)
    assert answer.json()["phase_state"] == "CI_RUNNING", answer.text
    work_all(context)
    return runs_of_ci(api)[-1]


def entries(ci_run: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {each["kind"]: (each["result"], each["reason"]) for each in ci_run["evidence"]}


def test_checks_that_were_red_before_are_not_the_phases_fault(
    api: Api, context: AppContext
) -> None:
    base(api, **{"tests__a.t": "old:false\nfine:true\n"})
    rule(api, "baseline")
    run = judge(api, context, api.new_file("src/more.txt"), phase={"complexity": "high"})
    told = "1 check was red before: tests/a.t.old"
    assert run["verdict"] == "green"
    assert told in run["reason"]
    assert entries(run) == {"baseline": ("passed", told)}
    assert api.phase()["evidence"] == run["evidence"]
    assert api.phase()["evidence_required"] == ["baseline"]
    assert api.run()["promotion_eligible_to_main"], api.run()["promotion_reasons"]
    assert check(str(api.repo.path), "run-001", "autonomous/run-001", "main")["eligible"]
    for page in ("phases/phase_0_P0.0.md", "pull_request.md"):
        assert "tests/a.t.old" in api.file("run-001", *page.split("/"))


def test_what_the_phase_broke_is_red_by_its_name(api: Api, context: AppContext) -> None:
    base(api, **{"tests__a.t": "old:false\nfine:test ! -e src/more.txt\n"})
    rule(api, "baseline")
    run = judge(api, context, api.new_file("src/more.txt"))
    assert (run["verdict"], run["failing_checks"]) == ("red", ["tests/a.t.fine"])
    assert "1 check broke: tests/a.t.fine; 1 check was red before" in run["reason"]
    assert api.phase()["state"] == "QUEUED"


def test_a_strict_baseline_wants_the_old_checks_mended(api: Api, context: AppContext) -> None:
    base(api, **{"tests__a.t": "old:test -e src/more.txt\nolder:false\n"})
    rule(api, "baseline", ci={"baseline": "strict"})
    run = judge(api, context, api.new_file("src/more.txt"))
    assert (run["verdict"], run["failing_checks"]) == ("red", ["tests/a.t.older"])
    assert entries(run)["baseline"][0] == "failed"


def test_the_same_tree_is_measured_once(api: Api, context: AppContext) -> None:
    base(api, **{"tests__a.t": "fine:true\n"})
    rule(api, "baseline")
    for number in range(2):
        run_id = f"run-00{number}"
        api.start(run_id)
        api.result(run_id, patch=api.new_file(f"src/{number}.txt"))
        work_all(context)
    with context.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM measurements")) == 3


def test_an_outcome_that_differs_from_try_to_try_is_not_kept(api: Api, context: AppContext) -> None:
    base(api, **{"tests__a.t": "shaky:test $AUTOPACK_CI_ATTEMPT = 2\nfine:true\n"})
    rule(api, "baseline", retries=1)
    api.start()
    work_all(context)
    events = api.client.get("/runs/run-001/events").json()["events"]
    [told] = [each for each in events if each["kind"] == "BaselineMeasured"]
    assert told["data"]["verdict"] == "green", "the second try"
    with context.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM measurements")) == 0


@pytest.mark.parametrize(
    ("ci", "names"),
    [
        ({"mode": "none", "profiles": {"strict": {"evidence": ["baseline"]}}}, "mode local"),
        (
            {"mode": "local", "profiles": {"normal": {"evidence": ["baseline", "baseline"]}}},
            "'baseline' twice",
        ),
        ({"profiles": {"normal": {"evidence": ["magic"]}}}, "ci.profiles.normal.evidence.0"),
        ({"profiles": {"normal": {"evidence_budget": 0}}}, "ci.profiles.normal.evidence_budget"),
        ({"baseline": "lenient"}, "ci.baseline"),
        ({"deaf_gate": "loud"}, "ci.deaf_gate"),
        ({"seeded_faults": 21}, "ci.seeded_faults"),
        ({"test_paths": ["a\nb"]}, "ci.test_paths.0"),
        (
            {"mode": "local", "profiles": {"normal": {"evidence": ["base_tests"]}}},
            "'base_tests' needs ci.profiles.normal.junit",
        ),
    ],
)
def test_a_ruleset_that_asks_for_what_is_not_there_is_refused(
    api: Api, ci: dict[str, Any], names: str
) -> None:
    document = {"project_id": "Autopack", "ci": ci}
    api.refused(api.client.put("/project/ruleset", json=document), 422, "invalid_ruleset", names)


def test_a_base_that_does_not_run_is_told_before_an_agent_works(
    api: Api, context: AppContext
) -> None:
    rule(api, "baseline", command="./no-such-script")
    api.start()
    assert api.run()["base_problem"] is None
    work_all(context)
    run = api.run()
    told = "CI (normal) does not run on the base commit: "
    assert run["base_problem"].startswith(told)
    assert told in run["next"]["detail"]
    [item] = api.client.get("/attention").json()["items"]
    assert (item["kind"], item["phase_id"]) == ("ci_did_not_run", "P0.0")
    assert told in item["text"]
    assert run["tiers"][0]["phases"][0]["state"] == "QUEUED"


def test_a_base_is_told_once_and_its_red_checks_are_in_the_events(
    api: Api, context: AppContext
) -> None:
    base(api, **{"tests__a.t": "old:false\nfine:true\n"})
    rule(api, "baseline")
    api.start()
    baseline.measure_base(context, run_id="run-001", profile="normal")  # by a worker that is killed
    work_all(context)
    events = api.client.get("/runs/run-001/events").json()["events"]
    [told] = [each for each in events if each["kind"] == "BaselineMeasured"]
    assert told["data"]["failing_checks"] == ["tests/a.t.old"]
    assert "is red (tests/a.t.old)" in told["sentence"]
    api.result()
    work_all(context)
    assert api.run()["promotion_eligible_to_main"], api.run()["promotion_reasons"]
    assert check(str(api.repo.path), "run-001", "autonomous/run-001", "main")["eligible"]


def patched(api: Api, files: Mapping[str, str | None]) -> str:
    """Return a patch from the base branch to these files; None removes one."""
    start = api.repo.git("rev-parse", "HEAD")
    changed = api.repo.commit({**files})
    patch = api.repo.git("diff", "--binary", start, changed)
    api.repo.git("reset", "--hard", "--quiet", start)
    return patch + "\n"


OLD = {"tests__a.t": "price:grep -q 10 src/price\nname:true\n", "src__price": "10\n"}


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        # An assertion is weakened, so that the broken code passes.
        ({"src/price": "11\n", "tests/a.t": "price:true\nname:true\n"}, ["price"]),
        # The test is deleted, skipped, or its file.
        ({"src/price": "11\n", "tests/a.t": "name:true\n"}, ["price"]),
        ({"tests/a.t": "price:skip\nname:true\n"}, ["price"]),
        ({"tests/a.t": None, "tests/b.t": "other:true\n"}, ["name", "price"]),
        # It is renamed, and weakened.
        ({"src/price": "11\n", "tests/a.t": "cost:true\nname:true\n"}, ["price"]),
    ],
)
def test_a_weakened_test_is_red_and_a_major_issue(
    api: Api, context: AppContext, change: dict[str, str | None], checks: list[str]
) -> None:
    base(api, **OLD)
    rule(api, "base_tests")
    run = judge(api, context, patched(api, change))
    assert run["verdict"] == "red", run["evidence"]
    [found] = run["evidence"]
    assert (found["kind"], found["result"]) == ("base_tests", "failed")
    assert found["checks"] == [f"tests/a.t.{name}" for name in checks]
    index = api.client.get("/runs/run-001/issues/index").json()["issues_by_key"]
    assert list(index) == [f"weakened_test__tests/a.t.{name}" for name in checks]
    assert {each["effective_severity"] for each in index.values()} == {"major"}
    assert api.phase()["state"] == "QUEUED"


def test_honest_work_beside_the_old_tests_passes(api: Api, context: AppContext) -> None:
    base(api, **OLD)
    rule(api, "base_tests", "fails_before")
    tests = "price:grep -q 10 src/price\ntax:grep -q 2 src/tax\nname:true\n"
    run = judge(api, context, patched(api, {"src/tax": "2\n", "tests/a.t": tests}))
    assert run["verdict"] == "green", run["evidence"]
    assert entries(run) == {
        "base_tests": (
            "passed",
            "all 2 tests that were green on the base are green with its 1 test file",
        ),
        "fails_before": ("passed", "1 test fails without this change: tests/a.t.tax"),
    }
    assert api.run()["promotion_eligible_to_main"], api.run()["promotion_reasons"]
    assert backtest_changes(api) == []


def test_a_plan_may_expect_weakened_tests_also_for_later_phases(
    api: Api, context: AppContext
) -> None:
    base(api, **OLD)
    rule(api, "base_tests")
    plan = api.plan(phases=2)
    plan["phases"][0]["expected_issues"] = ["weakened_test__*"]
    assert api.client.post("/runs/start", json=plan).status_code == 201
    tests = "price:grep -q 11 src/price\nname:true\n"
    api.result(patch=patched(api, {"src/price": "11\n", "tests/a.t": tests}))
    work_all(context)
    [judged] = runs_of_ci(api)
    assert (judged["verdict"], entries(judged)["base_tests"][0]) == ("green", "warned")
    api.result(phase_id="P0.1")
    work_all(context)
    assert runs_of_ci(api)[-1]["verdict"] == "green"
    run = api.run()
    assert (run["state"], run["major_issues_count"]) == ("DONE_SUCCESS", 0)
    assert run["promotion_eligible_to_main"], run["promotion_reasons"]
    warnings = api.client.get("/runs/run-001/promotion").json()["warnings"]
    assert any("1 weakened test, all expected by the plan" in each for each in warnings)
    verdict = check(str(api.repo.path), "run-001", "autonomous/run-001", "main")
    assert verdict["eligible"], verdict["reasons"]


def test_what_another_phase_may_weaken_later_is_this_phases_fault_now(
    api: Api, context: AppContext
) -> None:
    base(api, **OLD)
    rule(api, "base_tests")
    plan = api.plan(phases=2)
    plan["phases"][1]["expected_issues"] = ["weakened_test__*"]
    assert api.client.post("/runs/start", json=plan).status_code == 201
    tests = "price:grep -q 11 src/price\nname:true\n"
    api.result(patch=patched(api, {"src/price": "11\n", "tests/a.t": tests}))
    work_all(context)
    [judged] = runs_of_ci(api)
    assert (judged["verdict"], entries(judged)["base_tests"][0]) == ("red", "failed")


@pytest.mark.parametrize(
    ("change", "verdict", "reason"),
    [
        (
            {"src/price": "12\n", "tests/new.t": "twelve:grep -q 12 src/price\n"},
            "green",
            "1 test fails without this change: tests/new.t.twelve",
        ),
        (
            {"src/price": "12\n", "tests/new.t": "true:true\n"},
            "red",
            "no test fails without this change",
        ),
        ({"src/other": "12\n"}, "red", "no test fails without this change"),
        # A check that was red is mended, without a new test.
        ({"src/flag": "1\n"}, "green", "1 test fails without this change: tests/a.t.flag"),
    ],
)
def test_a_phase_that_must_fail_before_needs_a_test_that_does(
    api: Api, context: AppContext, change: dict[str, str | None], verdict: str, reason: str
) -> None:
    flag = "true" if "src/flag" not in change else "test -e src/flag"
    base(api, **{"tests__a.t": f"flag:{flag}\n"}, src__price="10\n")
    rule(api, "baseline")
    run = judge(api, context, patched(api, change), phase={"must_fail_before": True})
    assert run["verdict"] == verdict, run["evidence"]
    assert entries(run)["fails_before"][1] == reason


@pytest.mark.parametrize(
    ("ci", "junit", "names"),
    [
        ({"mode": "none"}, None, "needs ci.mode local, and it is none"),
        ({"mode": "local"}, None, "needs ci.profiles.normal.junit"),
        ({"mode": "local", "test_paths": []}, "*.xml", "needs ci.test_paths"),
    ],
)
def test_must_fail_before_without_tests_is_refused_by_name(
    api: Api, ci: dict[str, Any], junit: str | None, names: str
) -> None:
    each = {"command": "true", "junit": junit}
    rules = {"profiles": {"normal": each, "strict": each}, **ci}
    document = {"project_id": "Autopack", "ci": rules}
    assert api.client.put("/project/ruleset", json=document).status_code == 200
    plan = api.plan(phase={"must_fail_before": True})
    response = api.client.post("/runs/start", json=plan)
    api.refused(response, 422, "invalid_plan", "phases[0].must_fail_before", names)
    assert api.client.get("/runs/run-001").status_code == 404


def test_over_its_budget_evidence_is_not_measured_and_promotion_refuses(
    api: Api, context: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autopack.domain.ruleset.MIN_EVIDENCE_SECONDS", 0)
    base(api, **OLD)
    # Quick on base and commit, slow with the old test beside the new code.
    slow = f"test -e src/tax && grep -q name tests/a.t && sleep 30; {PROFILE['command']}"
    rule(api, "base_tests", command=slow)
    tests = "price:grep -q 10 src/price\ntax:true\n"
    run = judge(api, context, patched(api, {"src/tax": "2\n", "tests/a.t": tests}))
    assert run["verdict"] == "green", run
    result, reason = entries(run)["base_tests"]
    assert (result, "over its budget" in reason) == ("not_measured", True)
    reasons = api.run()["promotion_reasons"]
    assert any("lacks evidence: base_tests not measured" in each for each in reasons)


def test_all_evidence_of_a_ci_run_shares_one_time_with_base_and_repeats(
    api: Api, context: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each repeat has its kind's time again, and no more than all of them have together."""
    monkeypatch.setattr(CiCommand, "all_evidence_seconds", lambda _: 1)
    base(api, **OLD)
    slow = f"test -e src/tax && grep -q name tests/a.t && sleep 30; {PROFILE['command']}"
    rule(api, "base_tests", "fails_before", command=slow, retries=5)
    tests = "price:grep -q 10 src/price\ntax:true\n"
    run = judge(api, context, patched(api, {"src/tax": "2\n", "tests/a.t": tests}))
    assert run["verdict"] == "green", run
    over = ("not_measured", "over the time for all evidence of 1 seconds")
    assert entries(run) == {"base_tests": over, "fails_before": over}


CODE = {"src/limit.sh": 'if [ "$1" -gt 3 ]; then exit 1; fi\necho "within 3"\n'}


def test_a_gate_that_notices_seeded_faults_passes_and_names_them(
    api: Api, context: AppContext
) -> None:
    base(api, **OLD)
    rule(api, "seeded_faults")
    test = "limit:sh src/limit.sh 3 && ! sh src/limit.sh 4\n"
    run = judge(api, context, patched(api, {**CODE, "tests/limit.t": test}))
    assert run["verdict"] == "green", run
    [found] = run["evidence"]
    assert (found["kind"], found["result"]) == ("seeded_faults", "passed")
    assert "src/limit.sh:1 negate_comparison: noticed" in found["checks"]
    assert found["counts"]["noticed"] >= 2
    assert api.run()["promotion_eligible_to_main"], api.run()["promotion_reasons"]


@pytest.mark.parametrize(("deaf_gate", "verdict"), [("warn", "green"), ("red", "red")])
def test_a_gate_that_notices_no_seeded_fault_is_deaf(
    api: Api, context: AppContext, deaf_gate: str, verdict: str
) -> None:
    base(api, **OLD)
    rule(api, "seeded_faults", ci={"deaf_gate": deaf_gate, "seeded_faults": 2})
    run = judge(api, context, patched(api, {**CODE, "tests/limit.t": "limit:test -e src\n"}))
    assert run["verdict"] == verdict
    result, reason = entries(run)["seeded_faults"]
    assert result == ("warned" if verdict == "green" else "failed")
    assert "deaf_gate: the command is green with each of 2 seeded faults: src/limit.sh:1" in reason
    if verdict == "green":
        warnings = api.client.get("/runs/run-001/promotion").json()["warnings"]
        assert any("deaf_gate" in each for each in warnings)
        assert "src/limit.sh:1" in api.file("run-001", "pull_request.md")
    assert "deaf_gate" in api.file("run-001", "phases", "phase_0_P0.0.md")


def test_a_fault_that_makes_the_command_hang_is_noticed(
    api: Api, context: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autopack.domain.ruleset.MIN_EVIDENCE_SECONDS", 2)
    monkeypatch.setattr("autopack.services.evidence.hang_seconds", lambda _: 0.5)
    base(api, **OLD)
    rule(api, "seeded_faults", evidence_budget=0.1, ci={"seeded_faults": 1})
    code = 'if [ "$1" -eq 3 ]; then exit; fi\nsleep 30\n'
    files = {"src/wait.sh": code.replace("30", "${2:-60}"), "tests/w.t": "w:sh src/wait.sh 3\n"}
    run = judge(api, context, patched(api, files))
    assert entries(run)["seeded_faults"] == ("passed", "1 of 1 seeded faults noticed"), run


def test_only_the_lines_that_the_phase_wrote_get_faults(api: Api, context: AppContext) -> None:
    old = 'test "$1" -lt 9 || exit 1\n'
    base(api, **OLD, **{"src__limit.sh": old})
    rule(api, "seeded_faults")
    run = judge(api, context, patched(api, {"src/limit.sh": f"{old}test $1 -ne 4 || exit 1\n"}))
    checks = run["evidence"][0]["checks"]
    assert checks
    assert all(check.startswith("src/limit.sh:2 ") for check in checks)


def test_a_phase_without_code_needs_no_faults(api: Api, context: AppContext) -> None:
    base(api, **OLD)
    rule(api, "seeded_faults")
    run = judge(api, context, patched(api, {"docs.md": "x == 3\n", "tests/b.t": "b:true\n"}))
    assert run["verdict"] == "green"
    assert entries(run)["seeded_faults"][0] == "not_needed"


def test_the_examples_of_the_documentation_work(api: Api) -> None:
    ruleset, phase = (
        json.loads(each.partition("```")[0]) for each in DOCUMENT.read_text().split("```json\n")[1:]
    )
    response = api.client.put("/project/ruleset", json={"project_id": "Autopack", **ruleset})
    assert response.status_code == 200, response.text
    plan = {**api.plan(), "phases": [{**phase, "tier_id": "T0", "complexity": "high"}]}
    response = api.client.post("/runs/start", json=plan)
    assert response.status_code == 201, response.text
    item = api.client.post("/runs/run-001/claim", json={"role": "builder", "agent": "a"}).json()
    assert item["gate"]["evidence"] == ["baseline", "base_tests", "fails_before", "seeded_faults"]
    assert item["gate"]["must_fail_before"]
    words = write_prompt(WorkItemAnswer.model_validate(item), is_staged=False, answer="answer.json")
    assert "At least one test must fail without your change" in words


def test_a_weakened_test_sends_the_next_try_to_review_and_green_resolves_it(
    api: Api, context: AppContext
) -> None:
    base(api, **OLD)
    rule(api, "base_tests")
    weak = {"src/price": "11\n", "tests/a.t": "price:true\nname:true\n"}
    assert judge(api, context, patched(api, weak))["verdict"] == "red"
    item = api.client.post("/runs/run-001/claim", json={"role": "builder", "agent": "a"}).json()
    assert "1 weakened test: tests/a.t.price (red)" in item["history"][0]["log_tail"]
    assert item["open_issues"][0]["issue_key"] == "weakened_test__tests/a.t.price"
    start = api.repo.git("rev-parse", "HEAD")
    api.repo.git("checkout", "--quiet", "--detach", item["repository"]["base_commit"])
    mended = patched(api, {"src/price": "10\n", "tests/a.t": OLD["tests__a.t"]})
    api.repo.git("checkout", "--quiet", "--detach", start)
    answer = api.result(patch=mended, lease_token=item["lease"]["token"])
    assert answer.json()["phase_state"] == "GATE", answer.text
    path = "/runs/run-001/phases/P0.0/auditor_result"
    answer = api.client.post(path, json={"recommendation": "approve"})
    assert answer.json()["phase_state"] == "CI_RUNNING", answer.text
    work_all(context)
    run = api.run()
    assert (run["state"], run["major_issues_count"]) == ("DONE_SUCCESS", 0)
    assert run["promotion_eligible_to_main"], run["promotion_reasons"]
    verdict = check(str(api.repo.path), "run-001", "autonomous/run-001", "main")
    assert verdict["eligible"], verdict["reasons"]
