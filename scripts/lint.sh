#!/usr/bin/env bash
# Checks style, types, imports, that the checker equals its modules, the workflows, and that the
# migrations produce the models' schema.
set -euo pipefail
python=$(bash "$(dirname "$0")/venv.sh" requirements-dev.txt)
cd "$(dirname "$0")/.."
bin=$(dirname "$python")

step() { echo "== $*"; "$@"; }

step "$bin/ruff" check .
step "$bin/black" --check --quiet .
step "$bin/mypy"
step "$bin/lint-imports" --no-cache
step "$python" scripts/bundle_checker.py --check
step "$bin/check-jsonschema" --builtin-schema vendor.github-workflows .github/workflows/*.yml \
    src/autopack/setup/files/.github/workflows/*.yml

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
migrations() { env -u DATABASE_URL AUTOPACK_HOME="$scratch/home" "$bin/alembic" "$@"; }
step migrations upgrade head
step migrations check
step migrations downgrade base
