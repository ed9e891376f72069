#!/usr/bin/env bash
# Runs this project's checks until they are green or have used all tries. Needs no other file: copy
# it into any project's scripts/. Arguments go to pytest.
#   CI_PROFILE=normal|strict MAX_ATTEMPTS=3 BACKOFF_SECONDS=5 bash scripts/preflight_gate.sh
#
#   CI_PROFILE          normal (the default): what is marked unit or integration, and what is marked
#                       neither e2e nor safety_critical; strict: everything
#   MAX_ATTEMPTS        how often to try (3)
#   BACKOFF_SECONDS     how long to wait between tries (5)
#   PREFLIGHT_COMMAND   run this by bash instead of pytest; its exit code counts
#   PREFLIGHT_JUNIT     where to leave the last try's JUnit XML; a command of your own may write it
#   PREFLIGHT_REPORT    where to leave the outcome as JSON, in the words of `ci_result`
#   PYTHON              the project's Python (.venv, venv, then python3)
#
# Exit codes: 0 green, 1 red (no test at all is red), 2 wrong use, 127 what should run is not there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CI_PROFILE=${CI_PROFILE:-normal}
MAX_ATTEMPTS=${MAX_ATTEMPTS:-3}
BACKOFF_SECONDS=${BACKOFF_SECONDS:-5}
COMMAND=${PREFLIGHT_COMMAND:-}
REPORT=${PREFLIGHT_REPORT:-}
export CI_PROFILE

say() { echo "preflight: $*" >&2; }

wrong() {
    say "$1"
    exit 2
}

case $CI_PROFILE in normal | strict) ;; *) wrong "CI_PROFILE is '$CI_PROFILE': use normal or strict" ;; esac
[[ $MAX_ATTEMPTS =~ ^[1-9][0-9]{0,2}$ ]] || wrong "MAX_ATTEMPTS is '$MAX_ATTEMPTS': use 1 to 999"
[[ $BACKOFF_SECONDS =~ ^[0-9]{1,4}$ ]] || wrong "BACKOFF_SECONDS is '$BACKOFF_SECONDS': use 0 to 9999"

find_python() {
    local candidate
    if [ -z "${PYTHON:-}" ] && [ -f src/autopack/__init__.py ]; then # Autopack's own checkout
        bash scripts/venv.sh requirements-dev.txt
        return
    fi
    for candidate in ${PYTHON:+"$PYTHON"} .venv/bin/python venv/bin/python python3 python; do
        if "$candidate" -c '' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
JUNIT=${PREFLIGHT_JUNIT:-$scratch/junit.xml}
export PREFLIGHT_JUNIT=$JUNIT # for a command of the project's own
python=$(find_python)

# Reads a JUnit file: "total passed failed skipped", then the name of each test that failed.
COUNT='
import sys
from xml.etree import ElementTree
counts = {"failed": 0, "skipped": 0, "passed": 0}
names = []
for case in ElementTree.parse(sys.argv[1]).getroot().iter("testcase"):
    found = {child.tag for child in case}
    outcome = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
    counts[outcome] += 1
    if outcome == "failed":
        name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        names.append("".join(c if c.isprintable() else "?" for c in name)[:400] or "?")
print(sum(counts.values()), counts["passed"], counts["failed"], counts["skipped"])
print("\n".join(dict.fromkeys(names)))
'
WRITE='
import json, sys
profile, verdict, summary, counts, flaky, checks, target = sys.argv[1:]
report = {"profile": profile, "verdict": verdict, "summary": summary, "flaky": flaky == "true"}
report["failing_checks"] = checks.split("\n")[:200] if checks else []
if counts:
    names = ("total", "passed", "failed", "skipped")
    report["tests"] = dict(zip(names, map(int, counts.split())))
with open(target, "w", encoding="utf-8") as opened:
    print(json.dumps(report), file=opened)
'

counts=  # of the last try, where it left a JUnit file
failing= # its failed tests, a line each

finish() { # exit code, verdict, summary, [flaky], [failing checks]
    say "$2: $3"
    if [ -n "$REPORT" ]; then
        if [ -z "$python" ]; then
            say "no report in $REPORT: it needs Python"
        else
            "$python" -I -c "$WRITE" "$CI_PROFILE" "$2" "$3" "$counts" "${4:-false}" "${5:-}" "$REPORT"
        fi
    fi
    exit "$1"
}

cannot() { finish 127 did_not_run "$1"; }

run_checks() {
    if [ -n "$COMMAND" ]; then
        bash -c "$COMMAND"
        return
    fi
    local arguments=(--junitxml="$JUNIT")
    if [ "$CI_PROFILE" = normal ]; then
        arguments+=(-m "unit or integration or not (e2e or safety_critical)")
    fi
    "$python" -m pytest "${arguments[@]}" "$@"
}

read_junit() {
    counts= failing=
    if [ -n "$python" ] && [ -s "$JUNIT" ]; then
        local found
        found=$("$python" -I -c "$COUNT" "$JUNIT" 2>/dev/null) || return 0 # a broken file counts nothing
        counts=${found%%$'\n'*}
        failing=${found#"$counts"}
        failing=${failing#$'\n'}
    fi
}

ran_nothing() { # of the counts: nothing passed, nothing failed
    [[ $counts =~ ^[0-9]+\ 0\ 0\ [0-9]+$ ]]
}

if [ -z "$COMMAND" ]; then
    [ -n "$python" ] || cannot "no Python is there: name it in PYTHON, or set PREFLIGHT_COMMAND"
    "$python" -c 'import pytest' 2>/dev/null ||
        cannot "$python has no pytest: install it, or set PREFLIGHT_COMMAND"
fi

flaky= # what failed in a try before the last
for ((attempt = 1; ; attempt++)); do
    say "profile $CI_PROFILE, try $attempt of $MAX_ATTEMPTS"
    rm -f "$JUNIT"
    status=0
    run_checks "$@" || status=$?
    read_junit
    if [ -n "$COMMAND" ] && { [ $status = 126 ] || [ $status = 127 ]; }; then
        cannot "the command cannot be run (exit code $status)"
    elif { [ -z "$COMMAND" ] && [ $status = 5 ]; } || { [ $status = 0 ] && ran_nothing; }; then
        finish 1 red "no test ran"
    elif [ $status = 0 ] && [ -z "$COMMAND" ] && [ -z "$counts" ]; then
        finish 1 red "the tests left no JUnit file, so nothing says that any ran"
    elif [ $status = 0 ]; then
        break
    fi
    if [ -n "$failing" ]; then
        say "failed: ${failing//$'\n'/, }"
        flaky+=$failing$'\n'
    fi
    if [ -z "$COMMAND" ] && [ $status = 4 ]; then
        finish 1 red "pytest refused how it was called or set up"
    elif [ "$attempt" -ge "$MAX_ATTEMPTS" ]; then
        finish 1 red "never green in $attempt tries (exit code $status)" false "$failing"
    fi
    sleep "$BACKOFF_SECONDS"
done

if [ "$attempt" = 1 ]; then
    finish 0 green "on the first try"
fi
flaky=$(printf '%s' "$flaky" | sort -u)
say "flaky: ${flaky:-the command, which named no test}"
finish 0 green "flaky: green only on try $attempt" true "${flaky:-preflight}"
