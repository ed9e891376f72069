"""A Builder by script: reads its work item, edits files, and gets the first phase wrong once."""

import json
import os
import sys
import time
from pathlib import Path

item = json.loads(Path(os.environ["AUTOPACK_WORK_ITEM"]).read_text())
prompt = sys.stdin.read()
assert item["task"]["description"] in prompt

stall = os.environ.get("STALL")
if stall:  # the test will kill this process
    Path(stall).write_text(str(os.getpid()))
    time.sleep(1000)

greet = 'def greet(name):\n    return f"Hello {name}"\n'
was_judged = any(attempt["outcome"] == "applied" for attempt in item["history"])
if was_judged:
    assert "AssertionError: 'Hello Ada' != 'Hello, Ada!'" in prompt, "CI's last words are missing"
if was_judged or item["phase_id"] == "P1.2":
    greet = 'def greet(name):\n    return f"Hello, {name}!"\n'
if item["phase_id"] == "P1.2":
    greet = 'def greet(name, greeting="Hello"):\n    return f"{greeting}, {name}!"\n'
    with Path("test_greeter.py").open("a") as tests:
        tests.write(
            "\n    def test_the_greeting_is_the_callers(self):\n"
            '        self.assertEqual(greet("Ada", "Hi"), "Hi, Ada!")\n'
        )
Path("greeter.py").write_text(greet)
Path(os.environ["AUTOPACK_RESULT"]).write_text(
    json.dumps({"tokens_used": 1200, "model": "script", "notes": f"Did {item['phase_id']}."})
)
