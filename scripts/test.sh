#!/usr/bin/env bash
# Runs the tests on all cores; arguments go to pytest. Starts its own Postgres. The tests of the
# bash probes take minutes: run them with `-m probes`.
set -euo pipefail
python=$(bash "$(dirname "$0")/venv.sh" requirements-dev.txt)
cd "$(dirname "$0")/.."
exec "$python" -m pytest tests/ --numprocesses=auto --dist=worksteal -m "not probes" "$@"
