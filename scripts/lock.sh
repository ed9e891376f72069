#!/usr/bin/env bash
# Writes requirements.txt and requirements-dev.txt from pyproject.toml: one file for every platform
# and Python from 3.11 on, with hashes. `bash scripts/lock.sh --upgrade` updates all pins. Extras
# stay: else an older pip takes `coverage[toml]` for unpinned, once there is a newer coverage.
set -euo pipefail
cd "$(dirname "$0")/.."

lock() {
    "${UV:-uv}" pip compile pyproject.toml --quiet --universal --python-version 3.11 \
        --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-strip-extras "$@"
}

lock "$@" --output-file requirements.txt
lock "$@" --extra dev --extra otel --constraint requirements.txt --output-file requirements-dev.txt
