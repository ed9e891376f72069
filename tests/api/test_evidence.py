"""Evidence of verdicts, with real git and real commands: from the ruleset to promotion."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from autopack.services import baseline, ci
from autopack.services.context import AppContext

from .test_local_ci import context, runs_of_ci, take
from .test_tampering import check

if TYPE_CHECKING:
    from tests.api.conftest import Api

__all__ = ["context"]

pytestmark = pytest.mark.integration

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
