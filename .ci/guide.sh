#!/usr/bin/env bash
# Does what docs tell a newcomer to do, without Docker: the database's one-liner, uvicorn on the
# application, and serve.sh called from another folder, twice. Expects .venv to be made.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=$(bash scripts/venv.sh requirements-dev.txt)
scratch=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; wait; rm -rf "$scratch"' EXIT
unset DATABASE_URL

free_port() { "$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# get PORT PATH: prints the answer, asking for up to 30 seconds while nobody listens.
get() {
    "$python" - "$@" <<'PYTHON'
import sys, time, urllib.error, urllib.request
for _ in range(300):
    try:
        print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}{sys.argv[2]}", timeout=5).read().decode())
        break
    except urllib.error.HTTPError as error:
        sys.exit(f"{sys.argv[2]}: {error} {error.read().decode()}")
    except OSError:
        time.sleep(0.1)
else:
    sys.exit(f"nobody answers on port {sys.argv[1]}")
PYTHON
}

stop() { kill -TERM "$server"; wait "$server" || true; server=; }

echo "== init_db, then uvicorn src.autopack.main:app"
export AUTOPACK_HOME="$scratch/home" AUTONOMOUS_RUNS_DIR="$scratch/runs"
"$python" -c "from src.autopack.database import init_db; init_db()"
port=$(free_port)
"$python" -m uvicorn src.autopack.main:app --host 127.0.0.1 --port "$port" &
server=$!
get "$port" /health | grep '"healthy"'
get "$port" /docs | grep -i swagger-ui >/dev/null
get "$port" /openapi.json >/dev/null
stop
unset AUTOPACK_HOME AUTONOMOUS_RUNS_DIR

echo "== serve.sh from another folder, twice"
git init --quiet --initial-branch=main "$scratch/project"
cd "$scratch/project"
git -c user.name=CI -c user.email=ci@example.org commit --quiet --allow-empty --message Start
for _ in first second; do
    port=$(free_port)
    bash "$root/scripts/serve.sh" --port "$port" &
    server=$!
    get "$port" /health | grep '"healthy"'
    stop
done
[ -z "$(git status --porcelain)" ]
