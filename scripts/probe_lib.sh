# shellcheck shell=bash
# Common functions of the probes; sourced by them, not run.
#
#   API_URL               the service to test (http://localhost:8000)
#   AUTONOMOUS_RUNS_DIR   its runs directory, to check the files (.autonomous_runs)
#   AUTOPACK_API_KEY      an operator's key, if the service needs one; or
#   AUTOPACK_API_KEY_FILE a file of mode 600 with that key
#   PROBE_AUDITOR_KEY_FILE, PROBE_CI_KEY_FILE
#                         such files for reviews and for verdicts, which a key must not give to its own work
#   PROBE_FILES           `skip` if that directory is not reachable from here (check)
#   PYTHON                a Python 3, to read JSON (python3)
#
# One line for each check. The first error is named and ends the probe: 1 when the service is wrong,
# 2 when it cannot be reached. Ids are new each time, so a probe can be repeated.
set -euo pipefail

API_URL="${API_URL:-http://localhost:8000}"
API_URL="${API_URL%/}"
AUTONOMOUS_RUNS_DIR="${AUTONOMOUS_RUNS_DIR:-.autonomous_runs}"
PROBE_FILES="${PROBE_FILES:-check}"
PYTHON="${PYTHON:-python3}"
# shellcheck disable=SC2034  # for the probes
RUN="probe-$(date -u +%Y%m%d-%H%M%S)-$$-$RANDOM"
SCRATCH="$(mktemp -d)"
ANSWER="$SCRATCH/answer" # the body of the last answer
CHECKS=0
SKIPPED=0
# A probe that failed would leave its runs open, and agents would claim them.
clean_up() {
    local list="$SCRATCH/left" id
    local arguments=(--silent --max-time 10 --header "@$HEADERS")
    if curl "${arguments[@]}" --fail --output "$list" "$API_URL/runs?live=true&text=$RUN"; then
        for _ in 1 2 3 4 5 6 7 8 9 10; do
            [ "$(json_at "$list" 'runs.#')" != 0 ] || break
            id=$(json_at "$list" 'runs[0].run_id')
            curl "${arguments[@]}" --fail --output /dev/null --request POST \
                --header 'Content-Type: application/json' \
                --data '{"reason": "the probe ended early"}' "$API_URL/runs/$id/cancel" || break
            curl "${arguments[@]}" --fail --output "$list" \
                "$API_URL/runs?live=true&text=$RUN" || break
        done
    fi
    rm -rf "$SCRATCH"
}
trap 'clean_up 2>/dev/null || true' EXIT
# A header file, as every process of the machine can read what curl's arguments are.
HEADERS="$SCRATCH/headers"
: >"$HEADERS"

passed() {
    CHECKS=$((CHECKS + 1))
    echo "ok    $1"
}

failed() { # name, what is wrong
    echo "FAIL  $1: $2" >&2
    exit 1
}

cannot() { # why nothing can be said
    echo "autopack probe: $1" >&2
    exit 2
}

finish() { # name of the probe
    local skipped=""
    if [ "$SKIPPED" -gt 0 ]; then
        skipped=", $SKIPPED checks of files skipped (PROBE_FILES=skip)"
    fi
    echo "PASS  $1: $CHECKS checks of $API_URL$skipped"
}

put_key() { # header file, key, file with the key where none is given
    local key="$2" file="$3"
    if [ -z "$key" ] && [ -n "$file" ]; then
        [ -r "$file" ] || cannot "$file cannot be read, which should have a key"
        case "$(ls -ldL -- "$file")" in
            ????------*) ;;
            *) cannot "others may read $file: chmod 600 $file" ;;
        esac
        key=$(cat -- "$file")
    fi
    [ -z "$key" ] || printf 'Authorization: Bearer %s\n' "$key" >"$1"
}

need_keys() { # put the keys, where there are any, into header files
    put_key "$HEADERS" "${AUTOPACK_API_KEY:-}" "${AUTOPACK_API_KEY_FILE:-}"
    cp "$HEADERS" "$HEADERS.auditor_result"
    cp "$HEADERS" "$HEADERS.ci_result"
    put_key "$HEADERS.auditor_result" "" "${PROBE_AUDITOR_KEY_FILE:-}"
    put_key "$HEADERS.ci_result" "" "${PROBE_CI_KEY_FILE:-}"
}

need_tools() {
    local tool
    for tool in curl "$PYTHON"; do
        command -v "$tool" >/dev/null || cannot "$tool is needed and is not there"
    done
    need_keys
    case "$PROBE_FILES" in
        check | skip) ;;
        *) cannot "PROBE_FILES is '$PROBE_FILES': use check or skip" ;;
    esac
}

need_files() {
    [ "$PROBE_FILES" = skip ] || [ -d "$AUTONOMOUS_RUNS_DIR" ] || cannot \
        "the runs directory '$AUTONOMOUS_RUNS_DIR' cannot be reached from here: set \
AUTONOMOUS_RUNS_DIR, or PROBE_FILES=skip to do without the files"
}

# The JSON value at a place such as `tiers[0].state`; `#` is a length, and after `?` comes a key that
# may hold dots. Strings are printed as they are, all else as JSON.
READ_JSON='
import json, re, sys
file, place = sys.argv[1:3]
try:
    with open(file, encoding="utf-8") as opened:
        value = json.load(opened)
except ValueError:
    sys.exit("no JSON: " + open(file, encoding="utf-8", errors="replace").read(200))
place, _, key = place.partition("?")
steps = re.findall(r"[^.\[\]]+", place) + ([key] if key else [])
done = ""
for step in steps:
    try:
        if step == "#":
            value = len(value)
        else:
            value = value[int(step)] if isinstance(value, list) else value[step]
    except (KeyError, IndexError, ValueError, TypeError):
        sys.exit(f"there is no {step!r} in {done or file!r}")
    done += ("." if done else "") + step
print(value if isinstance(value, str) else json.dumps(value, separators=(",", ":")))
'

json_at() { # file, place
    "$PYTHON" -I -S -c "$READ_JSON" "$1" "$2"
}

ask() { # name, method, path, expected status, [body], [header]...
    local name="$1" method="$2" path="$3" expected="$4" body="${5-}" status
    shift "$(($# < 5 ? $# : 5))"
    local headers="$HEADERS.${path##*/}"
    [ -f "$headers" ] || headers="$HEADERS"
    local arguments=(--silent --show-error --max-time 60 --request "$method"
        --header "@$headers" --output "$ANSWER" --write-out '%{http_code}')
    if [ -n "$body" ]; then
        arguments+=(--header 'Content-Type: application/json' --data-binary @-)
    fi
    while [ $# -gt 0 ]; do
        arguments+=(--header "$1")
        shift
    done
    : >"$ANSWER"
    status=$(printf '%s' "$body" | curl "${arguments[@]}" "$API_URL$path" 2>"$SCRATCH/error") ||
        cannot "$method $API_URL$path: $(cat "$SCRATCH/error")"
    if [ "$status" != "$expected" ]; then
        failed "$name" "$method $path answered $status instead of $expected: $(head -c 500 "$ANSWER")"
    fi
    passed "$name ($method $path: $status)"
}

expect_in() { # name, file, place, expected value
    local found
    found=$(json_at "$2" "$3" 2>&1) || failed "$1" "$3: $found"
    [ "$found" = "$4" ] || failed "$1" "$3 is '$found' instead of '$4'"
    passed "$1: $3 is $4"
}

expect() { # name, place in the last answer, expected value
    expect_in "$1" "$ANSWER" "$2" "$3"
}

expect_text() { # name, place in the last answer, text that must stand there
    local found
    found=$(json_at "$ANSWER" "$2" 2>&1) || failed "$1" "$2: $found"
    case "$found" in
        *"$3"*) passed "$1: $2 names $3" ;;
        *) failed "$1" "$2 does not name '$3': $found" ;;
    esac
}

value_at() { # name, place in the last answer: prints the value
    local found
    found=$(json_at "$ANSWER" "$2" 2>&1) || failed "$1" "$2: $found"
    printf '%s' "$found"
}

has_files() { # name of a check of files: whether it is to be made
    if [ "$PROBE_FILES" = skip ]; then
        SKIPPED=$((SKIPPED + 1))
        echo "skip  $1 (PROBE_FILES=skip)"
        return 1
    fi
}

expect_file() { # name, file in the runs directory, [text that must stand in it]
    has_files "$1" || return 0
    local file="$AUTONOMOUS_RUNS_DIR/$2"
    [ -f "$file" ] || failed "$1" "the file $2 is missing"
    if [ $# -gt 2 ] && ! grep -qF -- "$3" "$file"; then
        failed "$1" "the file $2 does not hold '$3'"
    fi
    passed "$1: the file $2${3:+ holds $3}"
}

expect_in_file() { # name, JSON file in the runs directory, place, expected value
    has_files "$1" || return 0
    [ -f "$AUTONOMOUS_RUNS_DIR/$2" ] || failed "$1" "the file $2 is missing"
    expect_in "$1: $2" "$AUTONOMOUS_RUNS_DIR/$2" "$3" "$4"
}

need_service() {
    need_tools
    ask "the service is healthy" GET /health 200
    expect "the service is healthy" status healthy
    need_files
}

cancel_run() { # run id: a probe leaves no run open
    ask "an operator cancels $1" POST "/runs/$1/cancel" 200 '{"reason": "the probe is done"}'
    expect "the cancelled run" state DONE_FAILED_REQUIRES_HUMAN_REVIEW
}

# A patch that adds a file, as the JSON string that a body needs.
NEW_FILE='
import json, sys
path, *lines = sys.argv[1:]
print(json.dumps(
    f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
    f"@@ -0,0 +1,{len(lines)} @@\n" + "".join(f"+{line}\n" for line in lines)
))
'

new_file() { # path, line...
    "$PYTHON" -I -S -c "$NEW_FILE" "$@"
}

# The hash chain of the events, over their canonical JSON.
CHECK_EVENTS='
import hashlib, json, sys
with open(sys.argv[1], encoding="utf-8") as opened:
    events = json.load(opened)["events"]
previous = "0" * 64
for number, event in enumerate(events, start=1):
    named = "event {} ({})".format(number, event["kind"])
    seal = event.pop("hash")
    for told in ("sentence", "outcome"):  # of the view, not of the event
        event.pop(told, None)
    text = json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if event["sequence"] != number:
        sys.exit(named + " has the sequence {}".format(event["sequence"]))
    if event["previous_hash"] != previous or hashlib.sha256(text.encode()).hexdigest() != seal:
        sys.exit(named + " breaks the hash chain")
    previous = seal
print(len(events))
'

expect_chain() { # name, run id: its events are whole and none was changed
    local count
    ask "$1" GET "/runs/$2/events?limit=1000" 200
    count=$("$PYTHON" -I -S -c "$CHECK_EVENTS" "$ANSWER" 2>&1) || failed "$1" "$count"
    passed "$1: $count events, each sealed over the one before"
}
