"""Post CI's verdict on a run's commit to the Autopack service: the last step of the preflight jobs.

Uses only the standard library, and reads everything from the environment:
  AUTOPACK_URL     the service's address: https://autopack.example.org
  AUTOPACK_API_KEY a key of the service with the role `ci`, if the service needs one; or
  AUTOPACK_API_KEY_FILE, a file of mode 600 with that key
  COMMIT           the commit that was judged
  COMMIT_MESSAGE   its message, whose trailers name run and phase
  NORMAL, STRICT   the `needs` of the two preflight jobs, as JSON; a skipped STRICT does not count
  PAGE             the address of the log

Exit codes: 0 posted, or no phase waits for it; 1 the verdict could not be posted.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

TRIES = 5
FIRST_WAIT_SECONDS = 2.0
TIMEOUT_SECONDS = 30
_TRAILER = re.compile(r"^Autopack-(Run|Phase): ([A-Za-z0-9][A-Za-z0-9._-]{0,63})$", re.MULTILINE)


def names(message: str) -> tuple[str, str] | None:
    """Return run and phase of a commit, by its message's last paragraph; None: it has none."""
    found = dict(_TRAILER.findall(message.replace("\r", "").strip().rpartition("\n\n")[2]))
    return (found["Run"], found["Phase"]) if len(found) == 2 else None


def outcome(profile: str, job: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a preflight job in the form of `ci_result`.

    The gate's own report, unless the gate failed without one (it hung) or was never reached.
    """
    outputs = job.get("outputs", {})
    gate = outputs.get("gate")
    report: dict[str, Any] = {}
    try:
        report = dict(json.loads(outputs.get("report") or "{}"))
    except (ValueError, TypeError):
        report = {}
    if report.get("verdict") == "green" and gate != "success":
        report = {}
    if "verdict" not in report:
        if gate == "failure":
            report = {"verdict": "red", "summary": "the gate ended without a report"}
        else:
            report = {"verdict": "did_not_run", "summary": "the gate was not reached"}
    return {**report, "profile": profile}


def post(url: str, key: str, path: str, body: bytes) -> tuple[int, str]:
    """Send the verdict once; redirects are not followed. Raises OSError."""
    address = urlsplit(url)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        connection.request("POST", address.path.rstrip("/") + path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(2_000).decode(errors="replace")
    except http.client.HTTPException as error:
        raise OSError(f"it does not answer in HTTP: {error!r}") from error
    finally:
        connection.close()


def key_of(environment: Mapping[str, str]) -> str:
    """Return the key to send, or "". Raises ValueError that names what is wrong, not the key."""
    key, file = environment.get("AUTOPACK_API_KEY", ""), environment.get("AUTOPACK_API_KEY_FILE")
    if not key and file:
        with open(file, encoding="ascii", errors="replace") as opened:
            if os.fstat(opened.fileno()).st_mode & 0o077:
                raise ValueError(f"others may read {file}: chmod 600 {file}")
            key = opened.read(20_000)  # a token of an issuer is longer than a key
    key = key.strip()
    if not re.fullmatch(r"[!-~]*", key):  # http.client would tell it in its error
        raise ValueError("the key has a character that a header must not have")
    return key


def main() -> int:
    environment = os.environ
    url = environment["AUTOPACK_URL"]
    if not re.fullmatch(r"https?://[!-~]+", url):
        print(f"AUTOPACK_URL is not an address: {url!r}")
        return 1
    named = names(environment["COMMIT_MESSAGE"])
    if named is None:
        print("The commit names no phase: no phase waits for its verdict.")
        return 0
    strict = json.loads(environment["STRICT"])
    if strict["result"] == "skipped":
        report = outcome("normal", json.loads(environment["NORMAL"]))
    else:
        report = outcome("strict", strict)
    try:
        key = key_of(environment)
    except (OSError, ValueError) as error:
        print(f"No key can be sent: {error}")
        return 1
    report |= {"commit_sha": environment["COMMIT"], "url": environment["PAGE"]}
    body = json.dumps(report).encode()
    path = "/runs/{}/phases/{}/ci_result".format(*named)
    for attempt in range(1, TRIES + 1):
        try:
            status, text = post(url, key, path, body)
        except OSError as error:
            status, text = 0, str(error)
        print(f"POST {path}: {status or 'no answer'} {json.dumps(text)}")
        if 200 <= status < 300:
            return 0
        if status == 409:
            print("The service does not wait for this verdict (any more).")
            return 0
        if status and status < 500 and status != 429:
            return 1
        if attempt < TRIES:
            time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
    return 1


if __name__ == "__main__":
    sys.exit(main())
