#!/usr/bin/env bash
# Probes runs, tiers and phases of a running service: starts a run, moves it by hand to its end, and
# checks each answer, the state that follows and the files.
#   API_URL=http://localhost:8000 AUTONOMOUS_RUNS_DIR=.autonomous_runs bash scripts/autonomous_probe_run_state.sh
# More switches and the exit codes: scripts/probe_lib.sh.
# shellcheck source=scripts/probe_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/probe_lib.sh"

plan() { # name of the first phase
    cat <<EOF
{"run": {"run_id": "$RUN", "safety_profile": "normal", "run_scope": "multi_tier",
         "token_cap": 1000, "max_phases": 3},
 "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First"},
           {"tier_id": "T2", "tier_index": 1, "name": "Second"}],
 "phases": [{"phase_id": "P1.1", "phase_index": 0, "tier_id": "T1", "name": "$1",
             "task_category": "docs"},
            {"phase_id": "P1.2", "phase_index": 1, "tier_id": "T1", "name": "Two",
             "task_category": "docs"},
            {"phase_id": "P2.1", "phase_index": 0, "tier_id": "T2", "name": "Three",
             "task_category": "docs"}]}
EOF
}

set_state() { # name, phase, state, expected status, [more fields]
    ask "$1" POST "/runs/$RUN/phases/$2/update_status" "$4" "{\"state\": \"$3\"${5-}}"
}

run_is() { # name, state of the run, of its first tier, of its phases
    local page="$RUN/run_summary.md"
    ask "$1" GET "/runs/$RUN" 200
    expect "$1: the run" state "$2"
    expect "$1: the first tier" 'tiers[0].state' "$3"
    expect "$1: the first phase" 'tiers[0].phases[0].state' "$4"
    expect "$1: the second phase" 'tiers[0].phases[1].state' "$5"
    expect "$1: the third phase" 'tiers[1].phases[0].state' "$6"
    expect_file "$1: the run's page" "$page" "\`$2\`"
    expect_file "$1: the first tier's page" "$RUN/tiers/tier_0_T1.md" "\`$3\`"
    expect_file "$1: the first phase's page" "$RUN/phases/phase_0_P1.1.md" "\`$4\`"
    expect_file "$1: the second phase's page" "$RUN/phases/phase_1_P1.2.md" "\`$5\`"
    expect_file "$1: the third phase's page" "$RUN/phases/phase_0_P2.1.md" "\`$6\`"
}

need_service
ask "the service names itself" GET / 200
expect "the service names itself" service "Autopack Supervisor"

ask "an unknown run is not found" GET "/runs/$RUN" 404
expect "an unknown run is not found" code not_found
ask "a plan without phases is refused" POST /runs/start 422 \
    "{\"run\": {\"run_id\": \"$RUN\"}, \"tiers\": [{\"tier_id\": \"T1\", \"tier_index\": 0, \"name\": \"x\"}], \"phases\": []}"
expect "a plan without phases is refused" code invalid_plan
ask "a refused plan starts nothing" GET "/runs/$RUN" 404

ask "a run starts" POST /runs/start 201 "$(plan One)"
expect "the run starts" id "$RUN"
expect "the run starts" state RUN_CREATED
expect "the run starts on its branch" branch "autonomous/$RUN"
expect "the run starts with its cap" token_cap 1000
expect "the run starts with both tiers" 'tiers.#' 2
ask "the same plan again is the same run" POST /runs/start 200 "$(plan One)"
ask "another plan of this name is refused" POST /runs/start 409 "$(plan Another)"
expect "another plan of this name is refused" code run_exists
run_is "after the start" RUN_CREATED PENDING QUEUED QUEUED QUEUED
expect_in_file "after the start: no issues" "$RUN/run_issue_index.json" 'issues_by_key.#' 0
expect_file "after the start: the first phase's issues" "$RUN/issues/phase_0_P1.1_issues.json"
expect_file "after the start: the second tier's page" "$RUN/tiers/tier_1_T2.md"

set_state "a phase cannot start before the one ahead of it" P1.2 EXECUTING 409
expect "a phase cannot start before the one ahead of it" code phase_not_next
set_state "a queued phase cannot be complete" P1.1 COMPLETE 409
expect "a queued phase cannot be complete" code illegal_transition
expect_text "the legal states are named" allowed EXECUTING
set_state "an unknown state is refused" P1.1 DONE 422
run_is "after the refusals" RUN_CREATED PENDING QUEUED QUEUED QUEUED

set_state "the first phase starts" P1.1 EXECUTING 200 ', "tokens_used": 300'
expect "the first phase starts" phase.state EXECUTING
run_is "with a phase at work" PHASE_EXECUTION IN_PROGRESS EXECUTING QUEUED QUEUED
expect "tokens are counted in the run" tokens_used 300
expect "tokens are counted in the tier" 'tiers[0].tokens_used' 300
expect "tokens are counted in the phase" 'tiers[0].phases[0].tokens_used' 300
set_state "the first phase goes to review" P1.1 GATE 200
run_is "with a phase in review" GATE IN_PROGRESS GATE QUEUED QUEUED
set_state "the first phase is complete" P1.1 COMPLETE 200
run_is "with a phase complete" SNAPSHOT_CREATED IN_PROGRESS COMPLETE QUEUED QUEUED
expect "a complete phase leaves a snapshot" last_snapshot "autonomous/$RUN/tier-T1/phase-P1.1"
set_state "a final state stays" P1.1 QUEUED 409
set_state "setting the state that is there changes nothing" P1.1 COMPLETE 200

set_state "the second phase starts" P1.2 EXECUTING 200
set_state "the second phase returns to the queue" P1.2 QUEUED 200
run_is "with a phase returned" PHASE_QUEUEING IN_PROGRESS COMPLETE QUEUED QUEUED
expect "a returned phase has used up a try" 'tiers[0].phases[1].builder_attempts_used' 1
set_state "the second phase starts again" P1.2 EXECUTING 200
set_state "the second phase fails" P1.2 FAILED 200
run_is "with a phase failed" PHASE_QUEUEING FAILED COMPLETE FAILED QUEUED
expect "a tier with a failed phase is not clean" 'tiers[0].cleanliness' not_clean
expect_text "the reason is told" 'tiers[0].cleanliness_reasons' P1.2

set_state "the third phase passes the run's cap" P2.1 EXECUTING 200 ', "tokens_used": 701'
run_is "at the end" DONE_FAILED_BUDGET_EXHAUSTED FAILED COMPLETE FAILED SKIPPED
expect "the end has a reason" failure_code token_cap
expect_text "the reason names the cap" failure_reason 1000
expect_text "the reason names the figure" failure_reason 1001
expect "all tokens are counted" tokens_used 1001
expect "the run may not be promoted" promotion_eligible_to_main false
expect_text "completion by hand is told" promotion_reasons "P1.1' was completed by hand"
expect_file "a failed run leaves an incident" "$RUN/incident.md" token_cap
expect_in_file "a failed run leaves an incident" "$RUN/incident.json" failure_code token_cap
ask "a run that is over takes no results" POST "/runs/$RUN/phases/P2.1/builder_result" 409 \
    '{"status": "failed"}'
expect "a run that is over takes no results" code run_over
ask "the run is listed" GET "/runs?status=DONE_FAILED_BUDGET_EXHAUSTED&limit=1" 200
expect "the newest run comes first" 'runs[0].run_id' "$RUN"
expect_chain "the events tell it all" "$RUN"
finish "run state"
