#!/usr/bin/env bash
# Probes the results of Builders and Auditors at a running service: patches that are applied,
# pending, refused and sent again, reviews that approve, return and escalate; checks the answers,
# the branch and the files. Adds files below autopack-probe/ on branches of its own, which are never
# merged. Needs the default rules of the categories `docs` and `schema_contract_change`.
#   API_URL=http://localhost:8000 AUTONOMOUS_RUNS_DIR=.autonomous_runs bash scripts/autonomous_probe_builder_auditor.sh
# More switches and the exit codes: scripts/probe_lib.sh.
# shellcheck source=scripts/probe_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/probe_lib.sh"

FOLDER="autopack-probe/$RUN"

build() { # name, phase, expected status, patch as JSON or null, [more fields], [header]
    ask "$1" POST "/runs/$RUN/phases/$2/builder_result" "$3" \
        "{\"status\": \"${STATUS:-success}\", \"tokens_used\": 10, \"patch_content\": $4${5-}}" \
        ${6+"$6"}
}

review() { # name, phase, expected status, recommendation, [more fields]
    ask "$1" POST "/runs/$RUN/phases/$2/auditor_result" "$3" \
        "{\"recommendation\": \"$4\", \"tokens_used\": 5${5-}}"
}

phase_is() { # name, index of the phase, state, Builder tries, Auditor tries
    ask "$1" GET "/runs/$RUN" 200
    expect "$1" "tiers[0].phases[$2].state" "$3"
    expect "$1: Builder tries" "tiers[0].phases[$2].builder_attempts_used" "$4"
    expect "$1: Auditor tries" "tiers[0].phases[$2].auditor_attempts_used" "$5"
    expect_file "$1" "$RUN/phases/phase_$2_P$(($2 + 1)).md" "\`$3\`"
}

branch_is() { # name, commits ahead
    ask "$1" GET "/runs/$RUN/integration_status" 200
    expect "$1" commits_ahead_of_main "$2"
    expect "$1: git and the record agree" current_commit "$(value_at "$1" recorded_commit)"
}

need_service
ask "a run starts" POST /runs/start 201 "$(
    cat <<EOF
{"run": {"run_id": "$RUN", "run_scope": "multi_tier", "safety_profile": "normal"},
 "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First"}],
 "phases": [{"phase_id": "P1", "phase_index": 0, "tier_id": "T1", "name": "Applied at once",
             "task_category": "docs"},
            {"phase_id": "P2", "phase_index": 1, "tier_id": "T1", "name": "Held for review",
             "task_category": "schema_contract_change"},
            {"phase_id": "P3", "phase_index": 2, "tier_id": "T1", "name": "Escalated",
             "task_category": "docs"},
            {"phase_id": "P4", "phase_index": 3, "tier_id": "T1", "name": "Nothing to do",
             "task_category": "docs", "allow_empty": true}]}
EOF
)"
BASE=$(value_at "the run" base_commit)
expect "docs are applied at once" 'tiers[0].phases[0].auto_apply' true
expect "contracts wait for a review" 'tiers[0].phases[1].auto_apply' false
branch_is "the branch is there, with nothing on it" 0
expect "the branch is there" exists true

ONE=$(new_file "$FOLDER/one.txt" one)
ask "a patch can be looked at before" POST "/runs/$RUN/patch_check" 200 "{\"patch_content\": $ONE}"
expect "it would apply" applies true
build "a result that names another run is refused" P1 422 "$ONE" ', "run_id": "another"'
build "a phase whose turn has not come is refused" P2 409 "$ONE"
expect "the order is named" code phase_not_next
phase_is "those cost no try" 0 QUEUED 0 0

build "a malformed patch is refused" P1 422 '"this is no patch"'
expect "a malformed patch is refused" code patch_malformed
phase_is "a malformed patch costs a try" 0 QUEUED 1 0
branch_is "nothing of it is on the branch" 0
build "a patch is applied" P1 200 "$ONE" ', "agent": "probe"' "Idempotency-Key: $RUN-one"
COMMIT=$(value_at "the commit" commit_sha)
expect "the phase is complete" phase_state COMPLETE
build "the same result again gets the same answer" P1 200 "$ONE" ', "agent": "probe"' \
    "Idempotency-Key: $RUN-one"
expect "the same result again" commit_sha "$COMMIT"
phase_is "it costs no second try" 0 COMPLETE 2 0
branch_is "one commit is on the branch" 1
expect "the head is that commit" current_commit "$COMMIT"
expect "the snapshot is taken" last_snapshot "autonomous/$RUN/tier-T1/phase-P1"
expect_text "the file is there" files_changed "$FOLDER/one.txt"

build "a workflow may not be touched" P2 422 "$(new_file .github/workflows/probe.yml x)"
expect "a workflow may not be touched" code patch_policy
phase_is "policy costs a try" 1 QUEUED 1 0
TWO=$(new_file "$FOLDER/two.txt" two)
build "a contract's patch is pending" P2 200 "$TWO"
expect "a contract's patch is pending" commit_sha null
expect "an audit is next" next.action audit
phase_is "it waits in the gate" 1 GATE 2 0
branch_is "a pending patch is on no branch" 1
ask "a review is asked for" POST "/runs/$RUN/phases/P2/auditor_request" 202 \
    "{\"review_focus\": \"the contract\", \"tier_id\": \"T1\"}"
expect "the profile comes from the strategy" auditor_profile schema_review
AUDIT=$(value_at "the audit" audit_id)
build "a phase in review takes no Builder's result" P2 409 "$TWO" ', "notes": "again"'
expect "a phase in review takes no Builder's result" code wrong_state
review "a fix-up that does not apply is refused" P2 409 approve \
    ", \"suggested_patches\": [{\"patch_content\": $ONE}]"
phase_is "it costs the Auditor a try" 1 GATE 2 1
branch_is "of pending patch and fix-up none is applied" 1
review "an approval with a fix-up" P2 200 approve \
    ", \"audit_id\": $AUDIT, \"suggested_patches\": [{\"patch_content\": $(new_file "$FOLDER/fix.txt" fix)}]"
expect "both patches are applied" patches_applied 2
expect "the phase is complete" phase_state COMPLETE
phase_is "the approval counts" 1 COMPLETE 2 2
branch_is "three commits are on the branch" 3
review "a review of a final phase is advisory" P2 200 escalate
expect "an advisory review changes nothing" phase_state COMPLETE
ask "attempts can be read" GET "/runs/$RUN/phases/P2/attempts" 200
expect "every attempt is there" 'attempts.#' 5
expect "the refused attempt" 'attempts[0].outcome' refused
expect "the pending attempt is applied" 'attempts[1].outcome' applied
expect "the refused review" 'attempts[2].outcome' conflict
expect "the approval" 'attempts[3].outcome' approved
expect "the advice" 'attempts[4].outcome' advisory

THREE=$(new_file "$FOLDER/three.txt" three)
STATUS=needs_review build "a Builder asks for a review" P3 200 "$THREE"
expect "its patch is applied already" phase_state GATE
branch_is "its patch is applied already" 4
review "the Auditor sends it back" P3 200 revise
expect "it is the Builder's again" phase_state QUEUED
THREE=$(new_file "$FOLDER/three-again.txt" again)
STATUS=needs_review build "the Builder asks again" P3 409 "$(new_file "$FOLDER/one.txt" other)"
phase_is "a conflict costs the last try: no Auditor try is left" 2 FAILED 2 1
branch_is "what a failed phase applied is undone by a commit" 5
ask "the branch's files" GET "/runs/$RUN/integration_status" 200
expect "what a failed phase applied is undone" files_changed \
    "[\"$FOLDER/fix.txt\",\"$FOLDER/one.txt\",\"$FOLDER/two.txt\"]"

build "an empty result of a phase that allows it" P4 200 null
expect "an empty result of a phase that allows it" phase_state COMPLETE
expect "nothing is next" next.action none
ask "the run is over" GET "/runs/$RUN" 200
expect "the run is over" state DONE_FAILED_REQUIRES_HUMAN_REVIEW
expect "the failed phase is the reason" failure_code phase_failed
expect "all tokens are counted" tokens_used 85
expect "the base is as it was" base_commit "$BASE"
expect_file "the run's page" "$RUN/run_summary.md" "\`DONE_FAILED_REQUIRES_HUMAN_REVIEW\`"
expect_in_file "the incident" "$RUN/incident.json" failure_code phase_failed
ask "a late result is refused" POST "/runs/$RUN/phases/P3/auditor_result" 409 \
    "{\"recommendation\": \"approve\", \"suggested_patches\": [{\"patch_content\": $THREE}]}"
ask "the operator goes back to a snapshot" POST "/runs/$RUN/rollback" 200 \
    '{"to_phase": "P1", "reason": "the probe tries it"}'
branch_is "going back is a commit, and so is the record of each end" 8
expect "one file is left" files_changed "[\"$FOLDER/one.txt\"]"
expect_chain "the events" "$RUN"
finish "builder and auditor"
