#!/usr/bin/env bash
# Runs all probes, or the named ones, and prints the result of each.
#   bash scripts/autonomous_probe_complete.sh               starts a service on a temporary repository
#   API_URL=http://localhost:8000 AUTONOMOUS_RUNS_DIR=.autonomous_runs bash scripts/autonomous_probe_complete.sh
#   bash scripts/autonomous_probe_complete.sh run_state issues
# That service runs on PYTHON, if that has Autopack, else on .venv of this checkout. More switches:
# scripts/probe_lib.sh. Exit codes: 0 no error, 1 a probe found an error, 2 a probe or the service
# could not run.
set -euo pipefail
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
names=("$@")
[ $# -gt 0 ] || names=(run_state issues strategy builder_auditor ci_promotion)
for name in "${names[@]}"; do
    if [[ ! $name =~ ^[a-z_]+$ || $name = complete || ! -f $scripts/autonomous_probe_$name.sh ]]; then
        echo "autopack probe: there is no probe '$name'" >&2
        exit 2
    fi
done

scratch=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server" 2>/dev/null || true; wait "$server" || true; }; rm -rf "$scratch"' EXIT

serve() { # on a temporary repository, with its own settings and data
    local python line
    python=${PYTHON:-}
    if [ -z "$python" ] || ! "$python" -c 'import autopack, uvicorn' 2>/dev/null; then
        python=$(bash "$scripts/venv.sh" requirements.txt) || exit 2
    fi
    git init --quiet --initial-branch=main "$scratch/project"
    git -C "$scratch/project" -c user.name=Probe -c user.email=probe@localhost -c core.hooksPath=/dev/null \
        -c commit.gpgSign=false commit --quiet --allow-empty --message Start
    (
        unset -v DATABASE_URL AUTONOMOUS_RUNS_DIR TESTING ${!AUTOPACK_*}
        cd "$scratch/project"
        exec "$python" -m autopack serve --port 0
    ) >"$scratch/log" 2>&1 &
    server=$!
    for _ in {1..600}; do
        line=$(grep -m 1 '^  API ' "$scratch/log") && break
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    if [ -z "${line:-}" ]; then
        echo "autopack probe: the service did not start: $(tail -n 5 "$scratch/log")" >&2
        exit 2
    fi
    export API_URL=${line##* }
    export AUTONOMOUS_RUNS_DIR=$scratch/project/.autonomous_runs AUTOPACK_REPO_PATH=$scratch/project
    export PYTHON=$python no_proxy=127.0.0.1
    echo "A service of our own: $API_URL"
}

[ -n "${API_URL:-}" ] || serve
worst=0
for name in "${names[@]}"; do
    status=0
    bash "$scripts/autonomous_probe_$name.sh" >"$scratch/said" || status=$?
    # The lines before the first error show where it happened.
    if [ "$status" = 0 ]; then tail -n 1 "$scratch/said"; else tail -n 3 "$scratch/said"; fi
    if [ "$status" != 0 ] && [ "$worst" != 1 ]; then worst=$status; fi
done
exit "$worst"
