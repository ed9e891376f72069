#!/usr/bin/env bash
# Probes issues of a running service at their three levels (phase, run, project): counts, ages, what
# happens to an aged issue, and an operator's changes; checks the answers and the files. Needs
# the default thresholds of the profile `normal` (3 runs or 2 tiers).
#   API_URL=http://localhost:8000 AUTONOMOUS_RUNS_DIR=.autonomous_runs bash scripts/autonomous_probe_issues.sh
# More switches and the exit codes: scripts/probe_lib.sh.
# shellcheck source=scripts/probe_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/probe_lib.sh"

KEY="${RUN//-/_}"
BACKLOG=project_issue_backlog.json

start() { # run id
    ask "run $1 starts" POST /runs/start 201 "$(
        cat <<EOF
{"run": {"run_id": "$1", "safety_profile": "normal", "run_scope": "multi_tier"},
 "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First"},
           {"tier_id": "T2", "tier_index": 1, "name": "Second"}],
 "phases": [{"phase_id": "P1", "phase_index": 0, "tier_id": "T1", "name": "One",
             "task_category": "docs", "expected_issues": ["${KEY}_expected"]},
            {"phase_id": "P2", "phase_index": 1, "tier_id": "T1", "name": "Two"},
            {"phase_id": "P3", "phase_index": 0, "tier_id": "T2", "name": "Three"}]}
EOF
    )"
}

report() { # name, run, phase, issue, category, [more fields]
    ask "$1" POST "/runs/$2/phases/$3/record_issue" 201 \
        "{\"issue_key\": \"${KEY}_$4\", \"source\": \"probe\", \"category\": \"$5\"${6-}}"
}

counts_are() { # name, run, minor and major of the run, of the first tier, of the first phase
    ask "$1" GET "/runs/$2" 200
    expect "$1: in the run" minor_issues_count "$3"
    expect "$1: in the run" major_issues_count "$4"
    expect "$1: in the tier" 'tiers[0].minor_issues_count' "$5"
    expect "$1: in the tier" 'tiers[0].major_issues_count' "$6"
    expect "$1: in the phase" 'tiers[0].phases[0].minor_issues_count' "$7"
    expect "$1: in the phase" 'tiers[0].phases[0].major_issues_count' "$8"
    expect_in_file "$1" "$2/issues/phase_0_P1_issues.json" minor_issue_count "$7"
    expect_in_file "$1" "$2/issues/phase_0_P1_issues.json" major_issue_count "$8"
}

aged() { # name, issue, age in runs, in tiers, occurrences, status
    local entry="project_backlog_entry"
    expect "$1" $entry.age_in_runs "$3"
    expect "$1" $entry.age_in_tiers "$4"
    expect "$1" $entry.total_occurrences "$5"
    expect "$1" $entry.status "$6"
    expect_in_file "$1" "$BACKLOG" "issues_by_key.${KEY}_$2.age_in_runs" "$3"
    expect_in_file "$1" "$BACKLOG" "issues_by_key.${KEY}_$2.age_in_tiers" "$4"
    expect_in_file "$1" "$BACKLOG" "issues_by_key.${KEY}_$2.total_occurrences" "$5"
    expect_in_file "$1" "$BACKLOG" "issues_by_key.${KEY}_$2.status" "$6"
}

need_service
start "$RUN-1"
ask "an unknown phase is not found" POST "/runs/$RUN-1/phases/P9/record_issue" 404 \
    "{\"issue_key\": \"${KEY}_slow\", \"source\": \"probe\", \"category\": \"test_failure\"}"
ask "an issue without a key is refused" POST "/runs/$RUN-1/phases/P1/record_issue" 422 \
    '{"source": "probe", "category": "test_failure"}'
counts_are "nothing was counted" "$RUN-1" 0 0 0 0 0 0

report "an issue is recorded" "$RUN-1" P1 slow test_failure ', "evidence_refs": ["a", "b"]'
expect_text "the answer names the phase's file" phase_file "$RUN-1/issues/phase_0_P1_issues.json"
expect "a category without a default is minor" run_index_entry.severity minor
aged "the first sighting" slow 1 1 1 open
counts_are "after one report" "$RUN-1" 1 0 1 0 1 0
report "the same issue again" "$RUN-1" P1 slow test_failure ', "evidence_refs": ["b", "c"]'
expect "a report counts" run_index_entry.occurrence_count 2
aged "a second report in the same run and tier changes no age" slow 1 1 2 open
counts_are "the same key counts once" "$RUN-1" 1 0 1 0 1 0
FILE="$RUN-1/issues/phase_0_P1_issues.json"
expect_in_file "the phase's state" "$FILE" issue_state has_minor_issues
expect_in_file "evidence is merged without doubles" "$FILE" 'issues[0].evidence_refs' '["a","b","c"]'
expect_in_file "reports are counted" "$FILE" 'issues[0].occurrence_count' 2

report "an alias of a high-risk category" "$RUN-1" P1 leak security_auth
expect "such an issue is major by default" run_index_entry.effective_severity major
report "a severity that is given counts" "$RUN-1" P1 small schema_contract_change ', "severity": "minor"'
expect "a severity that is given counts" run_index_entry.severity minor
counts_are "two keys more" "$RUN-1" 2 1 2 1 2 1
expect_in_file "the phase's state" "$FILE" issue_state has_major_issues
report "an expected issue of the plan" "$RUN-1" P1 expected test_failure ', "expected_fail": true'
expect "an expected issue has no place in the backlog" project_backlog_entry null
report "an issue that only claims to be expected" "$RUN-1" P2 claimed test_failure ', "expected_fail": true'
aged "a claim alone is no expectation" claimed 1 1 1 open
counts_are "the expected one is not counted" "$RUN-1" 3 1 3 1 2 1

report "the same issue in another phase of the tier" "$RUN-1" P2 slow test_failure
aged "another phase of the tier changes no age" slow 1 1 3 open
report "the same issue in another tier" "$RUN-1" P3 slow test_failure
aged "a second tier makes it old" slow 1 2 4 needs_cleanup
counts_are "an issue that ages while the run lives stays minor in it" "$RUN-1" 3 1 3 1 2 1
ask "the run's index" GET "/runs/$RUN-1/issues/index" 200
expect "the run's index" "issues_by_key.${KEY}_slow.occurrence_count" 4
expect "the run's index" "issues_by_key.${KEY}_slow.phases" '["P1","P2","P3"]'
expect "the run's index" "issues_by_key.${KEY}_slow.tiers" '["T1","T2"]'
expect_in_file "the run's index" "$RUN-1/run_issue_index.json" \
    "issues_by_key.${KEY}_slow.occurrence_count" 4

start "$RUN-2"
report "the aged issue in a later run" "$RUN-2" P1 slow test_failure
expect "it stays minor by itself" run_index_entry.severity minor
expect "it counts as major now" run_index_entry.effective_severity major
aged "a second run" slow 2 2 5 needs_cleanup
report "a younger issue in a later run" "$RUN-2" P1 claimed test_failure
aged "a younger issue in its second run" claimed 2 1 2 open
counts_are "in the later run" "$RUN-2" 1 1 1 1 1 1
start "$RUN-3"
report "a younger issue in its third run" "$RUN-3" P1 claimed test_failure
aged "a third run makes it old" claimed 3 1 3 needs_cleanup

ask "an operator resolves the issue" POST "/project/issues/${KEY}_slow/resolve" 200
expect "the resolved issue" status resolved
expect_in_file "the resolved issue" "$BACKLOG" "issues_by_key.${KEY}_slow.status" resolved
ask "an operator opens it again" POST "/project/issues/${KEY}_slow/reopen" 200
expect "the issue is open again" status open
expect "the issue keeps its age" age_in_runs 2
ask "an operator resolves another" POST "/project/issues/${KEY}_small/resolve" 200
expect "another is resolved" status resolved
report "a new sighting of the resolved issue" "$RUN-3" P1 small schema_contract_change ', "severity": "minor"'
aged "a new sighting opens it again" small 2 1 2 open
ask "an unknown issue cannot be resolved" POST "/project/issues/${KEY}_unknown/resolve" 404
ask "the backlog can be asked by status" GET "/project/issues/backlog?status=needs_cleanup&limit=1000" 200
expect "the backlog can be asked by status" "issues_by_key.${KEY}_claimed.status" needs_cleanup

for number in 1 2 3; do
    cancel_run "$RUN-$number"
    expect_chain "the events of run $number" "$RUN-$number"
done
for issue in slow leak small claimed; do
    ask "the probe leaves no issue open" POST "/project/issues/${KEY}_$issue/resolve" 200
done
finish "issues"
