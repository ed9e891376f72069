#!/usr/bin/env bash
# Probes ruleset, strategy and budgets of a running service: the caps of each task category under
# the default rules, which plans are refused, and what happens to a run that passes its cap. The
# project's own ruleset is only read.
#   API_URL=http://localhost:8000 AUTONOMOUS_RUNS_DIR=.autonomous_runs bash scripts/autonomous_probe_strategy.sh
# More switches and the exit codes: scripts/probe_lib.sh.
# shellcheck source=scripts/probe_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/probe_lib.sh"

# Category, CI, Builder tries, Auditor tries, incident cap, auto_apply, Auditor profile.
TABLE="cross_cutting_refactor strict 2 2 1000000 false refactor_review
index_registry_change strict 2 2 800000 false index_review
schema_contract_change strict 2 3 1000000 false schema_review
bulk_multi_file_operation strict 1 2 1500000 false bulk_review
security_auth_change strict 2 3 800000 false security_review
feature_scaffolding normal 3 2 500000 true null
docs normal 2 1 200000 true null
tests normal 3 1 300000 true null
debt_cleanup normal 2 1 400000 false debt_cleanup_review
anything_else normal 3 2 500000 true null"

plan() { # run id, category, [more fields of the run], [more fields of the phase]
    cat <<EOF
{"run": {"run_id": "$1"${3-}},
 "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First"}],
 "phases": [{"phase_id": "P1", "phase_index": 0, "tier_id": "T1", "name": "One",
             "task_category": "$2"${4-}}]}
EOF
}

under_defaults() { # plan: asks for its strategy under a ruleset in which all is default
    local defaults="{\"project_id\": \"$PROJECT\"}"
    printf '%s' "${1%\}}, \"ruleset\": $defaults}"
}

dry_run() { # name, plan
    ask "$1" POST /strategy/dry_run 200 "$(under_defaults "$2")"
}

need_service
ask "the ruleset can be read" GET /project/ruleset 200
PROJECT=$(value_at "the ruleset" project_id)
MAX_PHASES=$(value_at "the ruleset" run.max_phases)
cp "$ANSWER" "$SCRATCH/ruleset"
RULES="project_ruleset_$PROJECT.json"
expect_in_file "the ruleset's file is the ruleset" "$RULES" project_id "$PROJECT"
expect_in_file "the ruleset's file is the ruleset" "$RULES" run "$(json_at "$SCRATCH/ruleset" run)"

while read -r category ci builder auditor cap auto profile; do
    phase="strategy.phases.P1"
    dry_run "the strategy of $category" "$(plan "$RUN-dry" "$category")"
    expect "$category" $phase.ci_profile "$ci"
    expect "$category" $phase.max_builder_attempts "$builder"
    expect "$category" $phase.max_auditor_attempts "$auditor"
    expect "$category" $phase.incident_token_cap "$cap"
    expect "$category" $phase.auto_apply "$auto"
    expect "$category" $phase.auditor_profile "$profile"
    expect "$category: three times its phases" strategy.tiers.T1.token_cap "$((3 * cap))"
done <<<"$TABLE"
dry_run "the strategy of an alias" "$(plan "$RUN-dry" schema_change)"
expect "an alias is its category" strategy.phases.P1.task_category schema_contract_change
expect "the run's cap" strategy.token_cap 5000000
expect "the run's phases" strategy.max_phases 25
expect "the run's minutes" strategy.max_duration_minutes 120
expect "minor issues in all" strategy.max_minor_issues_total 3
expect "minor issues of a tier" strategy.tiers.T1.minors_tolerated 2
expect_text "strict phases and no CI are warned of" strategy.warnings promotion
dry_run "the strategy of high complexity" "$(plan "$RUN-dry" docs '' ', "complexity": "high"')"
expect "high complexity is strict" strategy.phases.P1.ci_profile strict
dry_run "the strategy of a light tweak" "$(plan "$RUN-dry" tests '' ', "builder_mode": "tweak_light"')"
expect "a light tweak has two tries" strategy.phases.P1.max_builder_attempts 2
expect "a light tweak has two files" strategy.phases.P1.max_patch_files 2
dry_run "the strategy of safety_critical" \
    "$(plan "$RUN-dry" docs ', "safety_profile": "safety_critical"')"
expect "safety_critical is strict" strategy.phases.P1.ci_profile strict
expect "safety_critical halves what is tolerated" strategy.tiers.T1.minors_tolerated 1
ask "a dry run starts nothing" GET "/runs/$RUN-dry" 404

ask "a ruleset with a wrong value is refused" POST /strategy/dry_run 422 \
    "$(plan "$RUN-dry" docs | sed "s/}\]}\$/}], \"ruleset\": {\"project_id\": \"$PROJECT\", \"run\": {\"token_cap\": -1}}}/")"
expect "a ruleset with a wrong value is refused" code invalid_ruleset
expect_text "the field is named" detail run.token_cap
ask "the ruleset of another project is refused" POST /strategy/dry_run 422 \
    "$(plan "$RUN-dry" docs | sed 's/}\]}$/}], "ruleset": {"project_id": "another-project"}}/')"
expect_text "the project is named" detail another-project

PHASES=$(for ((i = 0; i <= MAX_PHASES; i++)); do
    printf '%s{"phase_id": "P%d", "phase_index": %d, "tier_id": "T1", "name": "x"}' \
        "$([ "$i" = 0 ] || echo ,)" "$i" "$i"
done)
ask "a plan over max_phases is refused" POST /runs/start 422 \
    "{\"run\": {\"run_id\": \"$RUN-big\"}, \"tiers\": [{\"tier_id\": \"T1\", \"tier_index\": 0, \"name\": \"x\"}], \"phases\": [$PHASES]}"
expect "a plan over max_phases is refused" code invalid_plan
expect_text "it says into how many runs to split it" detail "2 runs"

ask "a run starts under the project's rules" POST /runs/start 201 \
    "$(plan "$RUN" docs ', "token_cap": 1000')"
VERSION=$(value_at "the run" strategy_version)
CAP=$(value_at "the run" 'tiers[0].phases[0].incident_token_cap')
STRATEGY="$RUN/project_implementation_strategy_v$VERSION.json"
expect_in_file "the strategy is kept with the run" "$STRATEGY" token_cap 1000
expect_in_file "the strategy is kept with the run" "$STRATEGY" phases.P1.incident_token_cap "$CAP"
ask "tokens up to the cap are taken" POST "/runs/$RUN/phases/P1/update_status" 200 \
    '{"state": "EXECUTING", "tokens_used": 1000}'
ask "the run goes on" GET "/runs/$RUN" 200
expect "a cap that is reached ends nothing" state PHASE_EXECUTION
PATCH=$(new_file "autopack-probe/$RUN.txt" "probe")
ask "a result that passes the cap is taken" POST "/runs/$RUN/phases/P1/builder_result" 200 \
    "{\"status\": \"success\", \"tokens_used\": 1, \"patch_content\": $PATCH}"
expect "its patch is not applied" commit_sha null
expect "the run is over" run_state DONE_FAILED_BUDGET_EXHAUSTED
ask "the run is over" GET "/runs/$RUN" 200
expect "the budget is named" failure_code token_cap
expect_text "the cap is named" failure_reason 1000
expect_text "the figure is named" failure_reason 1001
expect "the tokens are counted" tokens_used 1001
expect "it may not be promoted" promotion_eligible_to_main false
ask "nothing was applied" GET "/runs/$RUN/integration_status" 200
expect "nothing was applied" files_changed "[]"
expect_file "it leaves an incident" "$RUN/incident.md" token_cap
expect_chain "the events" "$RUN"

ask "the run judged again by the same rules" POST /strategy/backtest 200 \
    "{\"ruleset\": $(cat "$SCRATCH/ruleset"), \"run_ids\": [\"$RUN\"]}"
expect "nothing would change" changed_count 0
expect "nothing would part" 'runs[0].parted_at' null
finish "strategy"
