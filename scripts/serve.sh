#!/usr/bin/env bash
# Serves the git repository of the current folder.
#   bash /path/to/autopack/scripts/serve.sh [--host HOST] [--port PORT] [--demo]
# Needs Python 3.11 or newer with venv, and git; installs the rest into .venv of this checkout.
set -euo pipefail
python=$(bash "$(dirname "$0")/venv.sh" requirements.txt)
exec "$python" -P -m autopack serve "$@"
