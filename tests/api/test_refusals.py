"""What a wrong request gets: one status, one sentence, and nothing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from autopack.config import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

JSON = {"Content-Type": "application/json"}
BODY_PATHS = (
    "/runs/start",
    "/runs/run-001/phases/P0.0/update_status",
    "/runs/run-001/phases/P0.0/record_issue",
    "/runs/run-001/phases/P0.0/builder_result",
)
RESULT_TEXTS = ("notes", "agent", "model", "lease_token", "patch_content", "patch_content_base64")
BAD_BODIES = [
    (b"", "Field required"),
    (b"[]", "body"),
    (b"3", "body"),
    (b"null", ""),
    (b'"text"', "body"),
    (b"{", "not JSON"),
    (b"{'a': 1}", "not JSON"),
    (b'{"a": NaN}', "NaN"),
    (b'{"a": -Infinity}', "-Infinity"),
    (b'{"a": 0x10}', "not JSON"),
    (b'{"a": "\x00"}', "not JSON"),
    (b'{"a": "\xff"}', "not UTF-8"),
    ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    ('{"a": 1}'.encode("utf-16-le"), "not JSON"),
    (b"\xef\xbb\xbf{}", "BOM"),
    (b'{"a": ' + b"[" * 1_000 + b"]" * 1_000 + b"}", "deeper than 32"),
    (b"[" * 1_000_000, "deeper than 32"),
    (b'{"a":' * 100_000, "deeper than 32"),
    (b'{"a": ' + b"9" * 5_000 + b"}", "thousands of digits"),
    (b'"' + b'\\"' * 500_000, "not JSON"),
    (b'"' * 500_001, "not JSON"),
]
BAD_NUMBERS = [
    b"1e999",
    b"-1e999",
    b"18446744073709551616",
    b"9007199254740992",
    b"-1",
    b"1.5",
    b'"1"',
    b"true",
    b"[1]",
    b"9" * 4_000,
    b"1" + b"0" * 400 + b".0",
]
BAD_IDS = [
    "--upload-pack=x",
    "a..b",
    "x.lock",
    "x.LOCK",
    "x.",
    ".hidden",
    "_x",
    "a b",
    "a\nb",
    "run\n",
    "a\0b",
    "é",
    "a@{1}",
    "a~1",
    "a:b",
    "a\\b",
    "x" * 65,
    "%2e%2e",
    "‮evil",
]
GOOD_IDS = ["a", "0", "HEAD", "main", "con", "A.b_c-D", "x" * 64, "start", "run-001.locks"]
BAD_PLANS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda plan: plan["tiers"].clear(), "tiers"),
    (lambda plan: plan["phases"].clear(), "phases"),
    (lambda plan: plan["run"].update(max_phases=1), "phases"),
    (lambda plan: plan["run"].update(run_scope="single_tier"), "tiers"),
    (lambda plan: plan["phases"][1].update(tier_id="T9"), "phases[1].tier_id"),
    (lambda plan: plan["phases"][1].update(phase_id="p0.0"), "phases[1].phase_id"),
    (lambda plan: plan["phases"][1].update(phase_index=0), "phases[1].phase_index"),
    (lambda plan: plan["tiers"][1].update(tier_id="t0"), "tiers[1].tier_id"),
    (lambda plan: plan["tiers"][1].update(tier_index=0), "tiers[1].tier_index"),
    (lambda plan: plan["tiers"][1].update(tier_id="debt"), "tiers[1].tier_id"),
    (lambda plan: plan["run"].update(token_cap=0), "run.token_cap"),
    (lambda plan: plan["run"].update(token_cap="5"), "run.token_cap"),
    (lambda plan: plan["run"].update(token_cap=2**53), "run.token_cap"),
    (lambda plan: plan["run"].update(token_cap=-1), "run.token_cap"),
    (lambda plan: plan["run"].update(token_cap=1.5), "run.token_cap"),
    (lambda plan: plan["run"].update(token_cap=True), "run.token_cap"),
    (lambda plan: plan["run"].update(max_duration_minutes=10**6), "max_duration_minutes"),
    (lambda plan: plan["run"].update(safety_profile="brave"), "run.safety_profile"),
    (lambda plan: plan["phases"][0].update(complexity="huge"), "phases[0].complexity"),
    (lambda plan: plan["phases"][0].update(name=""), "phases[0].name"),
    (lambda plan: plan["phases"][0].update(name="a\nb"), "phases[0].name"),
    (lambda plan: plan["phases"][0].update(description="x" * 20_001), "description"),
    (lambda plan: plan["phases"][0].pop("phase_index"), "phases[0].phase_index"),
]
RESERVED_IDS = ["project_issue_backlog.json", "project_ruleset_Autopack.json"]


class TestWhatIsNotThere:
    def test_an_unknown_run_or_phase_is_404_everywhere(self, api: Api) -> None:
        api.start()
        for run_id, phase_id, named in (("nope", "P0.0", "'nope'"), ("run-001", "P9", "'P9'")):
            for response in (
                api.result(run_id, phase_id),
                api.issue("k", run_id, phase_id),
                api.status("EXECUTING", run_id, phase_id),
            ):
                api.refused(response, 404, "not_found", named)
        api.refused(api.client.get("/runs/nope"), 404, "not_found", "'nope'")
        api.refused(api.client.get("/runs/nope/issues/index"), 404, "not_found", "'nope'")

    def test_a_run_is_found_by_its_exact_name_only(self, api: Api) -> None:
        api.start("Run-1")
        api.refused(api.client.get("/runs/run-1"), 404, "not_found", "'run-1'")

    def test_an_unknown_path_names_itself(self, api: Api) -> None:
        api.refused(api.client.get("/runz"), 404, "not_found", "/runz")
        api.refused(api.client.get("/runs/a%2fb"), 404, "not_found")

    def test_a_wrong_method_is_405_and_says_which_is_right(self, api: Api) -> None:
        for method, path in (
            ("PUT", "/runs"),
            ("DELETE", "/runs/run-001"),
            ("GET", "/runs/run-001/phases/P0.0/record_issue"),
            ("OPTIONS", "/runs/start"),
            ("TRACE", "/"),
            ("BREW", "/runs"),
        ):
            response = api.client.request(method, path)
            api.refused(response, 405, "method_not_allowed", method)
            assert response.headers["allow"]


class TestStartingARun:
    def test_the_same_plan_again_is_200_and_the_run(self, api: Api) -> None:
        first = api.start()
        again = api.client.post("/runs/start", json=api.plan())
        assert again.status_code == 200
        assert again.json() == first

    def test_the_same_plan_written_otherwise_is_the_same_plan(self, api: Api) -> None:
        first = api.start()
        plan = api.plan()
        plan["phases"][0]["allow_empty"] = False  # the default, said aloud
        shuffled = json.dumps({key: plan[key] for key in ("phases", "tiers", "run")}, indent=3)
        again = api.client.post(
            "/runs/start", content=shuffled, headers={"Content-Type": "application/json"}
        )
        assert (again.status_code, again.json()) == (200, first)

    def test_another_plan_of_a_known_run_is_409_and_changes_nothing(self, api: Api) -> None:
        first = api.start()
        other = api.client.post("/runs/start", json=api.plan(phases=2))
        api.refused(other, 409, "run_exists", "'run-001'")
        assert api.run() == first

    def test_an_id_that_differs_only_by_case_is_409(self, api: Api) -> None:
        api.start("Run-A")
        other = api.client.post("/runs/start", json=api.plan("rUN-a"))
        api.refused(other, 409, "run_exists", "'Run-A'")
        assert not (api.runs_dir / "rUN-a").exists()

    def test_a_branch_of_that_name_made_by_hand_is_409_and_no_run_is_left(self, api: Api) -> None:
        api.repo.git("branch", "autonomous/run-001")
        response = api.client.post("/runs/start", json=api.plan())
        api.refused(response, 409, "branch_exists", "refs/heads/autonomous/run-001")
        api.refused(api.client.get("/runs/run-001"), 404)
        assert not (api.runs_dir / "run-001").exists()

    def test_a_branch_whose_name_blocks_all_runs_is_409(self, api: Api) -> None:
        api.repo.git("branch", "autonomous")
        response = api.client.post("/runs/start", json=api.plan())
        api.refused(response, 409, "branch_exists", "refs/heads/autonomous")

    @pytest.mark.parametrize("left", ["", "/tier-T0/phase-P0.0", "/tier-X/phase-Y"])
    @pytest.mark.parametrize("is_packed", [False, True])
    def test_snapshots_of_another_service_are_409_before_the_run_not_at_its_first_phase(
        self, api: Api, left: str, is_packed: bool
    ) -> None:
        api.repo.git("tag", f"autonomous/run-001{left}")
        if is_packed:
            api.repo.git("pack-refs", "--all")
        response = api.client.post("/runs/start", json=api.plan())
        api.refused(response, 409, "branch_exists", "refs/tags/autonomous/run-001")
        api.refused(api.client.get("/runs/run-001"), 404)

    def test_a_plan_that_cannot_run_is_422_naming_the_field_and_leaves_nothing(
        self, api: Api
    ) -> None:
        for spoil, place in BAD_PLANS:
            plan = api.plan(tiers=2, phases=2, run_scope="multi_tier")
            spoil(plan)
            problem = api.refused(api.client.post("/runs/start", json=plan), 422)
            assert any(place in each["loc"] for each in problem["errors"])
        assert api.client.get("/runs").json()["runs"] == []
        assert not (api.runs_dir / "run-001").exists()
        assert api.repo.git("branch", "--list", "autonomous/*") == ""

    def test_an_oversized_plan_says_into_how_many_runs_to_split_it(self, api: Api) -> None:
        response = api.client.post("/runs/start", json=api.plan(phases=60))
        api.refused(response, 422, "invalid_plan", "max_phases 25", "3 runs")

    def test_the_name_of_a_file_beside_the_runs_is_no_run_id(self, api: Api) -> None:
        for run_id in RESERVED_IDS:
            response = api.client.post("/runs/start", json=api.plan(run_id))
            api.refused(response, 422, None, run_id)
            api.refused(api.client.get(f"/runs/{run_id}"), 404)


class TestIdentifiers:
    def test_a_name_that_git_or_a_file_system_could_misread_starts_no_run(self, api: Api) -> None:
        places = ("tiers", "tier_id"), ("phases", "phase_id"), ("phases", "tier_id")
        for name in BAD_IDS:
            response = api.client.post("/runs/start", json=api.plan(name))
            api.refused(response, 422, None, "run.run_id")
            for noun, field in places:
                plan = api.plan()
                plan[noun][0][field] = name
                response = api.client.post("/runs/start", json=plan)
                api.refused(response, 422, None, f"{noun}[0].{field}")
        assert api.client.get("/runs").json()["runs"] == []

    def test_every_path_refuses_such_names_by_every_method(self, api: Api) -> None:
        checked = 0
        schema = api.client.get("/openapi.json").json()
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                for name in [p["name"] for p in operation.get("parameters", ()) if is_id(p)]:
                    for bad in ("a..b", "x.lock", "--x", "a%00b", "%ff", "x" * 65):
                        url = path.replace(f"{{{name}}}", bad)
                        url = url.replace("{run_id}", "run-001").replace("{phase_id}", "P0.0")
                        body = example_of(operation)
                        response = api.client.request(method.upper(), url, json=body)
                        api.refused(response, 422, "invalid_request", name)
                        checked += 1
        assert checked > 50

    def test_a_good_name_goes_all_the_way_whatever_it_means_to_git(self, api: Api) -> None:
        for name in GOOD_IDS:
            api.start(name)
            response = api.result(name)
            assert response.status_code == 200, response.text
            assert api.head(name) == response.json()["commit_sha"]
            assert name in api.file(name, "run_summary.md")

    def test_a_body_that_names_another_run_or_phase_than_the_path_is_422(self, api: Api) -> None:
        api.start()
        for field in ("run_id", "phase_id"):
            body = {"status": "success", field: "other"}
            path = "/runs/run-001/phases/P0.0/builder_result"
            response = api.client.post(path, json=body)
            api.refused(response, 422, None, field, "'other'")


def test_a_patch_may_not_change_more_files_than_the_builder_mode_allows(api: Api) -> None:
    api.start(phase={"builder_mode": "tweak_light"})
    files = [api.new_file(f"src/{name}.txt") for name in "abc"]
    problem = api.refused(api.result(patch="".join(files)), 422, "patch_policy")
    assert "changes 3 files; at most 2 are accepted" in json.dumps(problem)
    assert api.result(patch="".join(files[:2])).status_code == 200


class TestStates:
    def test_an_illegal_transition_is_409_with_the_legal_ones(self, api: Api) -> None:
        before = api.start()
        for wanted in ("COMPLETE", "GATE", "CI_RUNNING", "FAILED"):
            response = api.status(wanted)
            problem = api.refused(response, 409, "illegal_transition", wanted, "QUEUED")
            assert problem["allowed"] == ["EXECUTING", "SKIPPED"]
        assert api.run() == before

    def test_the_state_it_has_already_is_no_change(self, api: Api) -> None:
        before = api.start()
        response = api.status("QUEUED")
        assert response.status_code == 200
        assert api.run() == before

    def test_a_phase_cannot_overtake_another(self, api: Api) -> None:
        api.start(phases=2)
        for response in (api.status("EXECUTING", phase_id="P0.1"), api.result(phase_id="P0.1")):
            problem = api.refused(response, 409, "phase_not_next", "'P0.0'")
            assert problem["allowed"] == ["P0.0"]

    def test_a_run_that_is_over_accepts_nothing_more(self, api: Api) -> None:
        api.start()
        api.result()
        over = api.run()
        assert over["state"] == "DONE_SUCCESS"
        late = api.new_file("late.txt")
        for response in (api.result(patch=late), api.issue(), api.status("QUEUED")):
            api.refused(response, 409, "run_over", "DONE_SUCCESS")
        assert api.run() == over

    def test_an_unknown_state_is_422_naming_the_field(self, api: Api) -> None:
        api.start()
        path = "/runs/run-001/phases/P0.0/update_status"
        for state in ("DONE", "executing", "", 3, None, ["EXECUTING"]):
            response = api.client.post(path, json={"state": state})
            api.refused(response, 422, "invalid_request", "state")


class TestPatches:
    def test_a_patch_that_does_not_apply_is_409_with_gits_reason_and_costs_one_try(
        self, api: Api
    ) -> None:
        api.start()
        base = api.head()
        other = (
            "diff --git a/src/app.py b/src/app.py\n--- a/src/app.py\n+++ b/src/app.py\n"
            "@@ -1 +1 @@\n-VALUE = 7\n+VALUE = 8\n"
        )

        problem = api.refused(api.result(patch=other), 409, "patch_conflict", "src/app.py")

        assert "patch does not apply" in problem["git_reason"]
        phase = api.phase()
        assert (phase["state"], phase["builder_attempts_used"]) == ("QUEUED", 1)
        assert (api.head(), api.run()["head_commit"]) == (base, base)
        assert phase["commit"] is None
        assert "Conflict" in api.file("run-001", "phases", "phase_0_P0.0.md").title()

    def test_what_is_no_patch_is_422_and_costs_one_try(self, api: Api) -> None:
        for number, patch in enumerate(
            ("hello", "\n", "diff --git a/x b/x\n", "diff --git a/x\0 b/x\0\n", "\u00e9", "@@")
        ):
            run_id = f"run-{number}"
            api.start(run_id)
            problem = api.refused(api.result(run_id, patch=patch), 422)
            assert problem["code"] in ("patch_malformed", "patch_empty")
            assert api.phase(run_id)["builder_attempts_used"] == 1
            assert api.commits(run_id) == []

    def test_a_request_that_cannot_be_parsed_costs_nothing(self, api: Api) -> None:
        before = api.start()
        for fields in (
            {"status": "great"},
            {"patch_content_base64": "!!"},
            {"tokens_used": -1},
            {"base_commit": "HEAD"},
            {"lease_token": 3},
        ):
            body = {"status": "success", "patch_content": None, **fields}
            path = "/runs/run-001/phases/P0.0/builder_result"
            api.refused(api.client.post(path, json=body), 422, None, next(iter(fields)))
        assert api.run() == before

    def test_a_patch_over_a_limit_is_413_and_changes_nothing(self, api: Api) -> None:
        before = api.start()
        for patch in (
            api.new_file("big.txt", "x" * 100_001),
            api.new_file("big.txt", *["x" * 99_000] * 102),
            "".join(api.new_file(f"files/{number}") for number in range(2_001)),
            api.new_file("/".join(["d"] * 61)),
        ):
            problem = api.refused(api.result(patch=patch), 413, "patch_too_large")
            assert any(sign.isdigit() for sign in problem["detail"])
        assert api.run() == before
        assert api.commits() == []


class TestBodies:
    """Each of these is sent to each endpoint that takes a body; none is a 500 and none is slow."""

    def test_what_is_no_json_object_is_422_at_once(self, api: Api) -> None:
        for body, word in BAD_BODIES:
            for path in BODY_PATHS:
                response = api.client.post(path, content=body, headers=JSON)
                api.refused(response, 422, None, word)

    def test_a_number_outside_0_to_2_53_is_422_naming_its_field(self, api: Api) -> None:
        before = api.start()
        for value in BAD_NUMBERS:
            for field in ("tokens_used", "cost_usd"):
                if field == "cost_usd" and value in (b"1.5", b'"1"'):
                    continue  # money has six places, and may come as a decimal string
                body = b'{"status": "failed", "%b": %b}' % (field.encode(), value)
                response = api.client.post(BODY_PATHS[3], content=body, headers=JSON)
                api.refused(response, 422, "invalid_request", field)
        assert api.run() == before

    def test_nul_and_half_characters_are_422_in_every_text(self, api: Api) -> None:
        before = api.start()
        issue = {"issue_key": "k", "source": "s", "category": "c"}
        result = {"status": "failed"}
        issue_texts = [*issue, "description", "task_category"]
        for text in ("a\\u0000b", "\\ud800", "\\udc00\\ud800"):
            for path, base, field in (
                *((BODY_PATHS[2], issue, field) for field in issue_texts),
                *((BODY_PATHS[3], result, field) for field in RESULT_TEXTS),
            ):
                if field == "patch_content" and "0000" in text:
                    continue  # a NUL in a patch is judged as a patch
                body = json.dumps({**base, field: "@"}).replace("@", text)
                response = api.client.post(path, content=body, headers=JSON)
                api.refused(response, 422, None, field)
            for path, base, field in (
                (BODY_PATHS[2], issue, "evidence_refs"),
                (BODY_PATHS[3], result, "files_changed"),
            ):
                body = json.dumps({**base, field: ["@"]}).replace("@", text)
                response = api.client.post(path, content=body, headers=JSON)
                api.refused(response, 422, None, f"{field}[0]")
        assert api.run() == before

    def test_what_is_no_base64_is_422_wherever_a_patch_may_be(self, api: Api) -> None:
        before = api.start()
        phase = "/runs/run-001/phases/P0.0"
        for text in ("\\ud800", "ü", "a=b", "%"):
            patch = '{"patch_content_base64": "@"}'.replace("@", text)
            for path, body in (
                (f"{phase}/builder_result", f'{{"status": "success", {patch[1:]}'),
                (
                    f"{phase}/auditor_result",
                    f'{{"recommendation": "approve", "suggested_patches": [{patch}]}}',
                ),
                ("/runs/run-001/patch_check", patch),
            ):
                response = api.client.post(path, content=body.encode(), headers=JSON)
                api.refused(response, 422, None, "patch_content_base64", "not valid base64")
        assert api.run() == before

    def test_odd_names_of_fields_are_422_and_not_sent_back_in_full(self, api: Api) -> None:
        for name in ("\\ud800", "\\u0000", "k" * 1_000_000, "'; DROP TABLE runs; --", ""):
            body = f'{{"{name}": 1}}'
            for path in BODY_PATHS:
                response = api.client.post(path, content=body, headers=JSON)
                api.refused(response, 422)

    def test_a_hundred_thousand_brackets_within_a_text_are_text(self, api: Api) -> None:
        api.start()
        brackets = "[{" * 10_000
        assert api.issue(description=brackets).status_code == 201
        notes = api.result(patch=api.new_file("brackets.txt", "[" * 90_000), notes=brackets)
        assert notes.status_code == 200

    def test_an_unknown_field_is_named_first_with_the_nearest_known_one(self, api: Api) -> None:
        for path, wrong, right in (
            (BODY_PATHS[0], "runs", "run"),
            (BODY_PATHS[1], "status", "state"),
            (BODY_PATHS[2], "issuekey", "issue_key"),
            (BODY_PATHS[3], "patch", "patch_content"),
        ):
            problem = api.refused(api.client.post(path, json={wrong: 1}), 422, "invalid_request")
            assert problem["detail"].startswith(f"{wrong}: unknown field")
            assert f"'{right}'" in problem["detail"]

    def test_an_unknown_field_within_a_list_is_named_by_its_place(self, api: Api) -> None:
        plan = api.plan(phases=2)
        plan["phases"][1]["tierid"] = "T0"
        problem = api.refused(api.client.post("/runs/start", json=plan), 422, None)
        assert problem["detail"].startswith("phases[1].tierid: ")
        assert "'tier_id'" in problem["detail"]

    def test_a_body_of_another_content_type_is_415_naming_the_right_one(self, api: Api) -> None:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            headers = {"Content-Type": kind} if kind else {}
            for path in BODY_PATHS:
                response = api.client.post(path, content=b"{}", headers=headers)
                api.refused(response, 415, "unsupported_media_type", "application/json", kind)

    def test_any_json_name_is_accepted(self, api: Api) -> None:
        kinds = "application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json"
        for number, kind in enumerate(kinds):
            body = json.dumps(api.plan(f"run-{number}"))
            headers = {"Content-Type": kind}
            assert api.client.post("/runs/start", content=body, headers=headers).status_code == 201

    def test_a_body_over_the_limit_is_413_announced_or_not(
        self, api: Api, settings: Settings
    ) -> None:
        limit = settings.max_body_bytes
        announced = api.client.post("/runs/start", content=b" " * (limit + 1), headers=JSON)
        api.refused(announced, 413, "too_large", str(limit), "AUTOPACK_MAX_BODY_BYTES")
        pieces = (b" " * 1_000_000 for _ in range(limit // 1_000_000 + 1))
        streamed = api.client.post("/runs/start", content=pieces, headers=JSON)
        api.refused(streamed, 413, "too_large", str(limit))

    def test_what_was_sent_is_not_sent_back(self, api: Api) -> None:
        api.start()
        secret = "hunter2-" * 20
        for response in (
            api.issue(severity=secret),
            api.issue(issue_key=secret + "x" * 200),
            api.result(tokens_used=secret),
            api.result(status=secret),
            api.result(lease_token={"value": secret}),
            api.status(secret),
            api.client.get("/runs", params={"cursor": secret, "limit": secret}),
        ):
            api.refused(response, 422)
            assert "hunter2" not in response.text


def is_id(parameter: dict[str, Any]) -> bool:
    return parameter["in"] == "path" and parameter["name"] in ("run_id", "phase_id")


def example_of(operation: dict[str, Any]) -> object:
    try:
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
    except KeyError:
        return None
    return next(iter(examples.values()))["value"]


def test_a_name_that_comes_twice_in_one_object_is_refused(api: Api) -> None:
    response = api.client.post(
        "/runs/start",
        content='{"run": {"run_id": "a", "run_id": "b"}, "tiers": [], "phases": []}',
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 422
    assert "'run_id' twice" in response.json()["detail"]


def test_what_is_unavailable_is_503_and_says_when_to_ask_again(api: Api, app: FastAPI) -> None:
    api.start()
    app.state.context.superseded.set()
    response = api.result()
    api.refused(response, 503, "superseded")
    assert response.headers["retry-after"] == "1"
    other = api.client.get("/runs/none")
    api.refused(other, 404, "not_found")
    assert "retry-after" not in other.headers


def test_a_body_whose_every_field_has_a_default_may_be_missing(api: Api) -> None:
    api.start()
    for path, status in (
        ("phases/P0.0/auditor_request", 202),
        ("cancel", 200),
        ("continue", 201),
        ("rebase", 409),  # the run failed
    ):
        response = api.client.post(f"/runs/run-001/{path}", headers=JSON)
        assert response.status_code == status, response.text
    api.refused(api.client.post("/runs/run-001.2/rollback", headers=JSON), 422, None, "body")
