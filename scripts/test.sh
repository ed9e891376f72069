#!/usr/bin/env bash
# Runs the tests on all cores; arguments go to pytest. Starts its own Postgres. Some tests take
# minutes: run long campaigns with `-m campaigns`, those of the bash probes with `-m probes`, those
# in a browser with `-m browser`.
# scripts/agents.sh runs those of real agents.
set -euo pipefail
python=$(bash "$(dirname "$0")/venv.sh" requirements-dev.txt)
cd "$(dirname "$0")/.."
# Each process compiles 260 files of tests, with pytest's assertions, if Python may not store them.
unset PYTHONDONTWRITEBYTECODE
# One process more than cores: tests also wait, for Postgres, timers and disks.
exec "$python" -m pytest tests/ --numprocesses="$("$python" -c 'import os; print((os.cpu_count() or 1) + 1)')" --dist=worksteal -m "not campaigns and not probes and not agents and not browser" "$@"
