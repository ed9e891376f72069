"""Submit a repository's first-parent history through the service, and compare every tree.

    python benchmarks/history.py [REPOSITORY] [--commits 400] [--seed 1]

Each commit's diff becomes a Builder's result, posted over HTTP to a service on a bare clone; the
tree of the resulting commit is compared with the original's. Without a REPOSITORY one is generated
that has commits of every kind. The built-in protected paths are opened by the ruleset; what the
policy still refuses (submodules, secrets, links that lead outside), or what passes a limit, is
counted by its reason, and a new run continues from the commit itself. `src/autopack` must
be importable.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from autopack.domain.path_policy import DEFAULT_PROTECTED

PHASES_A_RUN = 100
BASE = "history-base"
EMPTY_BLOB = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
LARGE = 500_000
Tree = dict[bytes, tuple[bytes, bytes]]  # path: mode and content

FILE, EXECUTABLE, LINK = b"100644", b"100755", b"120000"


def git(folder: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(
        ["git", *arguments], cwd=folder, input=stdin, capture_output=True, check=True
    ).stdout


# A repository of all kinds.


def text(rng: random.Random, lines: int, end: bytes = b"\n") -> bytes:
    return b"".join(b"line %d of %d%b" % (row, rng.getrandbits(30), end) for row in range(lines))


def edited(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True) or [b"first\n"]
    lines[rng.randrange(len(lines))] = b"changed %d\n" % rng.getrandbits(30)
    return b"".join(lines)


def change(rng: random.Random, tree: Tree, number: int) -> None:
    """Make a change of the next kind, so that all kinds are equally frequent."""
    files = [path for path, (mode, _) in tree.items() if mode != LINK]
    some = rng.choice(files)
    mode, content = tree[some]
    new = b"part%d/new%d" % (number % 7, number)
    match number % 20:
        case 0:
            tree[new + b".txt"] = (FILE, text(rng, 30))
        case 1:
            tree[some] = (mode, edited(rng, content))
        case 2:
            del tree[some]
        case 3:
            tree[new + b".moved"] = tree.pop(some)
        case 4:
            tree[new + b".copy"] = (mode, edited(rng, content))
            tree[some] = (mode, content + b"copied\n")
        case 5:
            tree[some] = (EXECUTABLE if mode == FILE else FILE, content)
        case 6:
            tree[b"part%d/link%d" % (number % 7, number)] = (LINK, b"new-target-%d" % number)
        case 7:
            tree[new + b".bin"] = (FILE, rng.randbytes(3_000))
        case 8:
            tree[b"image.bin"] = (FILE, b"\0" + text(rng, 40) + rng.randbytes(20))
        case 9:
            tree[new + b".crlf"] = (FILE, text(rng, 12, b"\r\n"))
        case 10:
            tree[new + b".noeol"] = (FILE, text(rng, 3) + b"no end")
        case 11:
            tree['größe \t"q" \\ %d.txt'.encode().replace(b"%d", b"%d" % number)] = (
                FILE,
                text(rng, 4),
            )
        case 12:
            tree[b"latin-\xe9\xff-%d.txt" % number] = (FILE, text(rng, 4))
        case 13:
            tree[new + b".latin"] = (FILE, b"caf\xe9 \xfc\n" + text(rng, 2))
        case 14:
            tree[new + b".empty"] = (EXECUTABLE if number % 3 else FILE, b"")
        case 15:  # a file turns into a folder, or back
            if b"shape" in tree:
                del tree[b"shape"]
                tree[b"shape/within/it.txt"] = (FILE, text(rng, 5))
            else:
                for path in [path for path in tree if path.startswith(b"shape/")]:
                    del tree[path]
                tree[b"shape"] = (FILE, text(rng, 5))
        case 16:
            tree[b"large%d.txt" % (number % 3)] = (FILE, text(rng, 25_000))
        case 17:  # a file becomes a link, or back
            is_link = tree.get(b"switch", (LINK, b""))[0] == LINK
            tree[b"switch"] = (FILE, text(rng, 2)) if is_link else (LINK, b"image.bin")
        case 18:
            for path in rng.sample(files, min(8, len(files))):
                tree[path] = (tree[path][0], edited(rng, tree[path][1]))
        case _:
            tree[b"deep/" * 12 + b"%d.txt" % number] = (FILE, text(rng, 3))
            del tree[some]


def generate(folder: Path, commits: int, seed: int) -> None:
    """Write a repository whose first-parent history has commits of every kind, merges too."""
    rng = random.Random(seed)  # noqa: S311 - the same repository every time
    git(folder.parent, "init", "-q", "-b", "main", str(folder))
    tree: Tree = {b"start%d.txt" % n: (FILE, text(rng, 20)) for n in range(30)}
    stream: list[bytes] = []
    write_commit(stream, tree, "refs/heads/main", mark=1, when=1)
    for number in range(1, commits):
        parents = [number * 10 - 9]
        if number % 15 == 0:  # its first-parent diff is the changes of the other branch
            change(rng, tree, rng.randrange(20))
            write_commit(stream, tree, "refs/heads/side", number * 10, number, parents)
            parents.append(number * 10)
        else:
            change(rng, tree, number)
        write_commit(stream, tree, "refs/heads/main", number * 10 + 1, number, parents)
    git(folder, "fast-import", "--quiet", stdin=b"".join(stream))


def write_commit(
    stream: list[bytes], tree: Tree, ref: str, mark: int, when: int, parents: Sequence[int] = ()
) -> None:
    links = [b"from" if not place else b"merge" for place in range(len(parents))]
    stream.append(
        b"commit %b\nmark :%d\ncommitter A <a@localhost> %d +0000\ndata 6\nchange\n"
        % (ref.encode(), mark, 1_000_000_000 + when)
    )
    stream += [b"%b :%d\n" % (link, at) for link, at in zip(links, parents, strict=True)]
    stream.append(b"deleteall\n")
    for path, (mode, content) in tree.items():
        quoted = path.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\t", b"\\t")
        stream.append(b'M %b inline "%b"\ndata %d\n' % (mode, quoted, len(content)))
        stream += [content, b"\n"]


# What a commit changes.


@dataclass(frozen=True)
class Step:
    """A commit of the history, as a patch from its first parent."""

    commit: str
    tree: str
    patch: bytes
    kinds: frozenset[str]


def history(repository: Path, most: int) -> tuple[str, list[Step]]:
    """Return the commit to start from, and the steps after it, oldest first."""
    shown = git(repository, "log", "--first-parent", f"-{most + 1}", "--format=%H %T %P", BASE)
    commits = [line.split() for line in shown.decode().splitlines()][::-1]
    steps = []
    for (parent, *_), (commit, tree, *parents) in itertools.pairwise(commits):
        options = ("-r", "-M", "-C", "--full-index", "--binary")
        patch = git(repository, "diff-tree", "-p", *options, parent, commit)
        raw = git(repository, "diff-tree", "--raw", "-z", *options[:4], parent, commit)
        steps.append(Step(commit, tree, patch, frozenset(kinds_of(patch, raw, len(parents)))))
    return commits[0][0], steps


def kinds_of(patch: bytes, raw: bytes, parents: int) -> Iterator[str]:
    if parents > 1:
        yield "merge (first-parent diff)"
    words = iter(raw.split(b"\0"))
    gone: set[bytes] = set()
    come: set[bytes] = set()
    for head in words:
        if not head:
            break
        old_mode, new_mode, _, new_oid, status = head.lstrip(b":").decode().split(" ")
        path = next(words)
        if status[0] in "RC":
            yield "rename" if status[0] == "R" else "copy"
            path = next(words)
        names = {"A": "add", "D": "delete", "M": "change", "T": "file becomes link or back"}
        if status in names:
            yield names[status]
        (gone if status == "D" else come).add(path)
        if status == "M" and old_mode != new_mode:
            yield "mode"
        if "120000" in (old_mode, new_mode):
            yield "symbolic link"
        if "160000" in (old_mode, new_mode):
            yield "submodule"
        if new_oid == EMPTY_BLOB:
            yield "empty file"
        try:
            path.decode()
        except UnicodeDecodeError:
            yield "name not UTF-8"
    if any(
        new.startswith(old + b"/") or old.startswith(new + b"/") for old in gone for new in come
    ):
        yield "file becomes folder or back"
    for kind, sign in (
        ("binary", b"\nGIT binary patch\n"),
        ("CRLF", b"\r\n"),
        ("no newline at end", b"\n\\ No newline"),
        ("quoted name", b'diff --git "'),
    ):
        if sign in patch:
            yield kind
    if len(patch) > LARGE:
        yield "large (over 500 kB)"
    try:
        patch.decode()
    except UnicodeDecodeError:
        yield "content not UTF-8 (base64)"


# The service.


@contextmanager
def serve(folder: Path, repository: Path) -> Iterator[httpx.Client]:
    """Serve a repository from another process, with every protected path opened."""
    runs_dir = folder / "runs"
    runs_dir.mkdir()
    ruleset = {"project_id": "Autopack", "paths": {"opened": {"default": DEFAULT_PROTECTED}}}
    (runs_dir / "project_ruleset_Autopack.json").write_text(json.dumps(ruleset))
    log = folder / "service.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "autopack", "serve", "--port", "0"],
            cwd=repository,
            env=os.environ
            | {
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "AUTOPACK_REPO_PATH": str(repository),
                "AUTOPACK_HOME": str(folder / "home"),
                "AUTOPACK_BASE_BRANCH": BASE,
                "AUTONOMOUS_RUNS_DIR": str(runs_dir),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while "  API " not in log.read_text():
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"the service did not start:\n{log.read_text()}")
            time.sleep(0.05)
        url = log.read_text().partition("  API ")[2].split()[0]
        with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=60)


@dataclass
class Outcome:
    same: Counter[str] = field(default_factory=Counter)
    different: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    runs: int = 0
    empty: int = 0


class Walk:
    """One history, commit by commit: one run after another, each from the end of the last."""

    def __init__(self, client: httpx.Client, repository: Path) -> None:
        self.client = client
        self.repository = repository
        self.outcome = Outcome()
        self._run = ""
        self._phase = PHASES_A_RUN

    def start_from(self, commit: str) -> None:
        """Use a new run, which starts from a commit, for the next patch."""
        git(self.repository, "update-ref", f"refs/heads/{BASE}", commit)
        self._phase = PHASES_A_RUN

    def step(self, step: Step) -> None:
        outcome = self.outcome
        if not step.patch:
            outcome.empty += 1
            return
        if self._phase == PHASES_A_RUN:
            self._start_run()
        response = self._submit(step.patch)
        all_kinds = [*step.kinds, "ALL"]
        if response.status_code != 200:
            problem = response.json()
            rules = sorted({each["rule"] for each in problem.get("violations", ())})
            outcome.reasons[f"{problem['code']} {' '.join(rules)}".strip()] += 1
            outcome.refused.update(all_kinds)
            if problem["code"] not in ("patch_policy", "patch_too_large"):
                outcome.troubles.append(f"{step.commit}: {problem['detail'][:300]}")
            self.start_from(step.commit)
            return
        commit = response.json()["commit_sha"]
        tree = git(self.repository, "rev-parse", f"{commit}^{{tree}}").decode().strip()
        if tree == step.tree:
            outcome.same.update(all_kinds)
            if self._phase == PHASES_A_RUN:
                self.start_from(commit)
        else:
            outcome.different.update(all_kinds)
            outcome.troubles.append(f"{step.commit}: tree {tree}, not {step.tree}")
            self.start_from(step.commit)

    def _start_run(self) -> None:
        self.outcome.runs += 1
        self._run, self._phase = f"history-{self.outcome.runs:04}", 0
        plan: dict[str, Any] = {
            "run": {"run_id": self._run, "max_phases": PHASES_A_RUN},
            "tiers": [{"tier_id": "T", "tier_index": 0, "name": "History"}],
            "phases": [
                {"phase_id": f"P{n}", "phase_index": n, "tier_id": "T", "name": f"Commit {n}"}
                for n in range(PHASES_A_RUN)
            ],
        }
        self.client.post("/runs/start", json=plan).raise_for_status()

    def _submit(self, patch: bytes) -> httpx.Response:
        body: dict[str, Any] = {"status": "success"}
        try:
            body["patch_content"] = patch.decode()
        except UnicodeDecodeError:
            body["patch_content_base64"] = base64.b64encode(patch).decode()
        path = f"/runs/{self._run}/phases/P{self._phase}/builder_result"
        began = time.perf_counter()
        response = self.client.post(path, json=body)
        self.outcome.milliseconds.append((time.perf_counter() - began) * 1e3)
        self._phase += 1
        return response


def report(outcome: Outcome, title: str) -> None:
    print(f"\n{title}")
    print(f"{'kind':32}{'commits':>9}{'same tree':>11}{'refused':>9}{'different':>11}")
    counts = outcome.same + outcome.refused + outcome.different
    for kind, count in sorted(counts.items(), key=lambda item: (item[0] == "ALL", -item[1])):
        print(
            f"{kind:32}{count:9}{outcome.same[kind]:11}{outcome.refused[kind]:9}"
            f"{outcome.different[kind]:11}"
        )
    print(f"\n{outcome.runs} runs; {outcome.empty} commits change nothing and were left out")
    if outcome.milliseconds:
        times = sorted(outcome.milliseconds)
        print(
            f"ms a result over HTTP: median {statistics.median(times):.1f},"
            f" 95th of a hundred {times[len(times) * 95 // 100]:.1f}"
        )
    for reason, count in outcome.reasons.most_common():
        print(f"refused {count:5}  {reason}")
    for trouble in outcome.troubles[:20]:
        print(f"look at {trouble}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("repository", nargs="?", type=Path)
    parser.add_argument("--commits", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autopack-history-") as name:
        folder = Path(name)
        source = options.repository
        if source is None:
            source = folder / "generated"
            generate(source, options.commits + 1, options.seed)
        clone = folder / "clone.git"
        git(folder, "clone", "-q", "--bare", "--no-hardlinks", str(source.absolute()), str(clone))
        git(clone, "update-ref", f"refs/heads/{BASE}", "HEAD")
        first, steps = history(clone, options.commits)
        with serve(folder, clone) as client:
            walk = Walk(client, clone)
            walk.start_from(first)
            for step in steps:
                walk.step(step)
        report(walk.outcome, f"{options.repository or 'generated'}: {len(steps)} commits")
    return 1 if walk.outcome.different or walk.outcome.troubles else 0


if __name__ == "__main__":
    sys.exit(main())
