#!/usr/bin/env bash
# Tests the worker and the MCP server with real agents' programs and a scripted model; takes some
# minutes. Installs the programs into the folder of AUTOPACK_TEST_AGENTS, or into a temporary one;
# needs npm, a package index and about 2 GB. Arguments go to pytest. What cannot be installed skips.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(bash scripts/venv.sh requirements-dev.txt)
folder=${AUTOPACK_TEST_AGENTS:-}
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
mkdir -p "$folder/npm"
folder=$(cd "$folder" && pwd)
for agent in codex=@openai/codex claude=@anthropic-ai/claude-code gemini=@google/gemini-cli opencode=opencode-ai; do
    [ -e "$folder/npm/node_modules/.bin/${agent%%=*}" ] ||
        npm install --prefix "$folder/npm" --no-audit --no-fund --silent "${agent#*=}" ||
        echo "${agent#*=} cannot be installed; its tests skip" >&2
done
if [ ! -x "$folder/aider/bin/aider" ]; then
    "$python" -m venv "$folder/aider" && "$folder/aider/bin/python" -m pip install -q aider-chat ||
        echo "aider-chat cannot be installed; its tests skip" >&2
fi
AUTOPACK_TEST_AGENTS=$folder "$python" -m pytest tests/agents -m agents "$@"
