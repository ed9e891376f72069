#!/usr/bin/env bash
# Prepares Autopack's own Python in .venv of this checkout and prints the interpreter's path.
#   bash scripts/venv.sh requirements.txt        what the service needs
#   bash scripts/venv.sh requirements-dev.txt    that, and what tests and lint need
# Does nothing, quickly, when the same requirements are installed already.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
requirements=$1
venv=$root/.venv

stamp() { echo "$root $(cksum <"$1")"; }

is_ready() { # the larger set will do for the smaller
    local file
    [ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null || return 1
    for file in "$requirements" requirements-dev.txt; do
        [ "$(cat "$venv/$file.stamp" 2>/dev/null)" = "$(stamp "$file")" ] && return 0
    done
    return 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            if ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
                echo "autopack: $candidate lacks the venv module: install it (Debian: apt install python3-venv)." >&2
                exit 2
            fi
            echo "$candidate"
            return
        fi
    done
    echo "autopack: Python 3.11 or newer is needed: install it, or name it in PYTHON." >&2
    exit 2
}

prepare() {
    local python
    is_ready && return # another process did it during the wait
    if ! { [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
        python=$(find_python)
        echo "autopack: making $venv" >&2
        "$python" -m venv --clear "$venv" >&2
    fi
    echo "autopack: installing $requirements (only after it changed)" >&2
    "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check --no-input \
        --require-hashes -r "$requirements" >&2
    # Like `pip install -e .`, but without fetching a build tool.
    "$venv/bin/python" - "$root/src" <<'PYTHON'
import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "autopack-checkout.pth").write_text(sys.argv[1] + "\n")
PYTHON
    printf '#!/bin/sh\nexec "%s/bin/python" -P -m autopack "$@"\n' "$venv" >"$venv/bin/autopack"
    chmod +x "$venv/bin/autopack"
    rm -f "$venv"/*.stamp
    stamp "$requirements" >"$venv/$requirements.stamp"
}

if ! is_ready; then
    if ! mkdir -p "$venv" 2>/dev/null || ! [ -w "$venv" ]; then
        echo "autopack: cannot write $venv: make the checkout writable for $(id -un)." >&2
        exit 2
    fi
    (
        # One at a time, where the system has flock (macOS does not).
        if command -v flock >/dev/null; then flock 9; fi
        prepare
    ) 9>"$root/.venv.lock"
fi
echo "$venv/bin/python"
