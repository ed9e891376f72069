#!/usr/bin/env bash
# Probes CI and promotion of a running service: brings runs to their end with CI as the project's
# ruleset sets it (none, external, local), checks verdicts, the reasons against promotion and the
# record on the branch, and runs the checker on it. Adds files below autopack-probe/ on
# branches of its own, which are never merged.
#   API_URL=http://localhost:8000 AUTONOMOUS_RUNS_DIR=.autonomous_runs bash scripts/autonomous_probe_ci_promotion.sh
# AUTOPACK_REPO_PATH: the repository that is served (.), unless PROBE_FILES=skip.
# PROBE_CI_SECONDS: how long a CI of the service's own may take (300).
# More switches and the exit codes: scripts/probe_lib.sh.
# shellcheck source=scripts/probe_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/probe_lib.sh"

REPO="${AUTOPACK_REPO_PATH:-.}"
CHECKER="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/check_promotion.py"
PROBE_CI_SECONDS="${PROBE_CI_SECONDS:-300}"
NO_COMMIT=$(printf '0%.0s' {1..40})

start() { # run id, complexity: high makes the phase strict
    ask "a run starts" POST /runs/start 201 "$(
        cat <<EOF
{"run": {"run_id": "$1", "safety_profile": "normal"},
 "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First"}],
 "phases": [{"phase_id": "P1", "phase_index": 0, "tier_id": "T1", "name": "Only",
             "task_category": "docs", "complexity": "$2"}]}
EOF
    )"
}

build() { # run id, name of a file: leaves the commit in COMMIT
    ask "a patch is applied" POST "/runs/$1/phases/P1/builder_result" 200 \
        "{\"status\": \"success\", \"patch_content\": $(new_file "autopack-probe/$1/$2" text)}"
    COMMIT=$(value_at "the commit" commit_sha)
}

verdict() { # name, run id, expected status, verdict, commit, [more fields]
    ask "$1" POST "/runs/$2/phases/P1/ci_result" "$3" \
        "{\"verdict\": \"$4\", \"commit_sha\": \"$5\"${6-}}"
}

judge() { # run id, a profile that is not its phase's: brings the phase to its end
    case "$MODE" in
        none) verdict "no phase waits for a verdict" "$1" 409 green "$COMMIT" ;;
        local) wait_for_verdict "$1" ;;
        external)
            ask "the phase waits to be judged" GET "/runs/$1" 200
            expect "the phase waits to be judged" 'tiers[0].phases[0].state' CI_RUNNING
            verdict "a verdict on another commit is refused" "$1" 409 green "$NO_COMMIT"
            expect "a verdict on another commit is refused" code wrong_commit
            verdict "a verdict of another profile is refused" "$1" 409 green "$COMMIT" \
                ", \"profile\": \"$2\""
            expect "a verdict of another profile is refused" code wrong_profile
            verdict "a run of no test" "$1" 200 green "$COMMIT" ', "tests": {"total": 0}'
            expect "a run of no test" verdict red
            expect "red costs a try" phase_state QUEUED
            build "$1" mended.txt
            verdict "a green verdict" "$1" 200 green "$COMMIT" ', "tests": {"total": 1, "passed": 1}'
            expect "green completes the phase" phase_state COMPLETE
            ;;
    esac
}

wait_for_verdict() { # run id: until the service's own CI has judged
    local end=$((SECONDS + PROBE_CI_SECONDS)) state
    while :; do
        ask "the phase is judged" GET "/runs/$1" 200 >/dev/null
        state=$(value_at "the run" state)
        case "$state" in DONE_* | PHASE_QUEUEING) break ;; esac
        [ $SECONDS -lt $end ] || cannot "$1 is $state for $PROBE_CI_SECONDS s (PROBE_CI_SECONDS)"
        sleep 1
    done
    [ "$state" = DONE_SUCCESS ] || cannot "the project's own CI is not green: $(
        value_at "the phase" 'tiers[0].phases[0].failure_reason'
    )"
    expect "the service's own CI has judged" 'tiers[0].phases[0].verdict' green
}

promotion_is() { # name, run id, eligible, how many reasons, how many warnings
    ask "$1" GET "/runs/$2/promotion" 200
    expect "$1" eligible "$3"
    expect "$1: reasons" 'reasons.#' "$4"
    expect "$1: warnings" 'warnings.#' "$5"
    expect "$1: the pull request's branch" pull_request.head "autonomous/$2"
}

checker_says() { # name, run id, exit code, text that it must print; after promotion_is
    has_files "$1" || return 0
    local code=0 base
    base=$(value_at "$1" pull_request.base)
    (cd "$REPO" && "$PYTHON" -I "$CHECKER" --run-id "$2" --branch "autonomous/$2" --base "$base") \
        >"$SCRATCH/checked" 2>&1 || code=$?
    [ "$code" = "$3" ] ||
        failed "$1" "the checker ended with $code: $(head -c 500 "$SCRATCH/checked")"
    grep -qF -- "$4" "$SCRATCH/checked" ||
        failed "$1" "the checker does not say '$4': $(head -c 500 "$SCRATCH/checked")"
    passed "$1: the checker finds so by the branch's record"
}

need_service
[ "$PROBE_FILES" = skip ] || git -C "$REPO" rev-parse --git-dir >/dev/null 2>&1 || cannot \
    "'$REPO' is not the repository that is served: set AUTOPACK_REPO_PATH, or PROBE_FILES=skip"
ask "the ruleset says who judges" GET /project/ruleset 200
MODE=$(value_at "the ruleset" ci.mode)
passed "CI is $MODE"

start "$RUN-normal" low
promotion_is "a run that goes on is not eligible" "$RUN-normal" false 1 0
expect_text "the reason is its state" 'reasons[0]' RUN_CREATED
build "$RUN-normal" one.txt
judge "$RUN-normal" strict
ask "the run is over" GET "/runs/$RUN-normal" 200
expect "the run is over" state DONE_SUCCESS
warnings=0
[ "$MODE" != none ] || warnings=1 # nothing verified the phase
promotion_is "a run whose phases are done is eligible" "$RUN-normal" true 0 $warnings
checker_says "a run whose phases are done is eligible" "$RUN-normal" 0 "$RUN-normal"

start "$RUN-strict" high
build "$RUN-strict" one.txt
judge "$RUN-strict" normal
if [ "$MODE" = none ]; then
    promotion_is "a strict phase without a verdict is not eligible" "$RUN-strict" false 1 0
    expect_text "the reason is the phase" 'reasons[0]' "strict phase 'P1' has no green verdict"
    checker_says "a strict phase without a verdict is not eligible" "$RUN-strict" 1 "strict phase 'P1'"
else
    promotion_is "a strict phase with a green verdict is eligible" "$RUN-strict" true 0 0
    checker_says "a strict phase with a green verdict is eligible" "$RUN-strict" 0 "$RUN-strict"
fi
verdict "a verdict after the end is refused" "$RUN-strict" 409 red "$NO_COMMIT"
expect_chain "the events" "$RUN-strict"

start "$RUN-failed" low
cancel_run "$RUN-failed"
promotion_is "a run that failed is not eligible" "$RUN-failed" false 1 0
checker_says "a run that failed is not eligible" "$RUN-failed" 1 DONE_FAILED_REQUIRES_HUMAN_REVIEW
finish "CI and promotion"
