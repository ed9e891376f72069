"""The cost of a patch, from its bytes to the moved ref, compared with bare git plumbing.

    python benchmarks/apply.py [--patches 100]

Each column is a generated repository; each figure the median of milliseconds for a patch. The floor
does only the indispensable work, with all inputs known beforehand: one `git apply --cached` on the
two index entries of the patch, the same objects written and fsynced, one compare-and-swap of the
ref. Set TMPDIR to the file system to measure. `src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from autopack.config import Settings
from autopack.domain.path_policy import PathPolicy, check_changes
from autopack.gitrepo import ChangeSet, RefUpdate, Repository
from autopack.gitrepo.index import write_index
from autopack.gitrepo.objects import encode_loose

AT = datetime(2026, 1, 1, tzinfo=UTC)
LINES = 40
TREE_BYTES = 3_600  # a folder of a hundred files
SLOW_PATCHES = 5
RUNS = 8
CLEAN = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
IDENTITY = {
    f"GIT_{role}_{part}": value
    for role in ("AUTHOR", "COMMITTER")
    for part, value in (("NAME", "A"), ("EMAIL", "a@localhost"))
}


def git(folder: Path, *arguments: str, stdin: bytes = b"", **environment: str) -> str:
    """Run git as a plain process."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        input=stdin,
        env={**CLEAN, **IDENTITY, **environment},
        check=True,
        capture_output=True,
    )
    return done.stdout.decode().strip()


def path_of(number: int) -> str:
    return f"part{number // 10_000}/unit{number // 100 % 100:02}/file{number % 100:02}.txt"


def content(number: int, revision: int) -> bytes:
    rows = [f"file {number} line {row}" for row in range(LINES)]
    rows[LINES // 2] = f"revision {revision}"
    return ("\n".join(rows) + "\n").encode()


def make_repository(folder: Path, files: int, refs: int) -> None:
    git(folder.parent, "init", "-q", "-b", "main", str(folder))
    stream = [b"commit refs/heads/main\nmark :1\ncommitter A <a@localhost> 1 +0000\ndata 1\nx\n"]
    for number in range(files):
        data = content(number, 0)
        head = f"M 100644 inline {path_of(number)}\ndata {len(data)}\n"
        stream += head.encode(), data, b"\n"
    git(folder, "fast-import", "--quiet", stdin=b"".join(stream))
    add_refs(folder, refs)
    git(folder, "reset", "-q", "--hard")


def add_refs(folder: Path, count: int) -> None:
    """Add as many branches and as many tags, packed."""
    head = git(folder, "rev-parse", "main")
    kinds = [f"heads/b{number}" for number in range(count)]
    kinds += [f"tags/t{number}" for number in range(count)]
    commands = "".join(f"create refs/{kind} {head}\n" for kind in kinds)
    git(folder, "update-ref", "--stdin", stdin=commands.encode())
    git(folder, "pack-refs", "--all")


@dataclass(frozen=True)
class Change:
    path: str
    old_oid: str
    new: bytes


def patch_of(files: int, step: int) -> tuple[bytes, list[Change]]:
    """Return a patch with a hunk in each of two files, and those files before and after."""
    changed: list[Change] = []
    parts = []
    for number in (step % files, (step * 7919 + files // 2) % files):
        path = path_of(number)
        if changed and changed[0].path == path:
            continue
        old, new = content(number, 0), content(number, step + 1)
        changed.append(Change(path, encode_loose("blob", old)[0], new))
        middle = LINES // 2
        context = old.decode().splitlines()
        parts += [
            f"diff --git a/{path} b/{path}",
            f"--- a/{path}",
            f"+++ b/{path}",
            f"@@ -{middle - 2},7 +{middle - 2},7 @@",
            *(f" {row}" for row in context[middle - 3 : middle]),
            f"-{context[middle]}",
            f"+revision {step + 1}",
            *(f" {row}" for row in context[middle + 1 : middle + 4]),
        ]
    return ("\n".join(parts) + "\n").encode(), changed


Step = Callable[[bytes, list[Change]], None]


def by_checkout(folder: Path, scratch: Path, ref: str) -> Step:
    head = git(folder, "rev-parse", "main")

    def step(patch: bytes, changed: list[Change]) -> None:
        git(folder, "checkout", "-q", "--detach", head)
        git(folder, "apply", "-", stdin=patch)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", "x")
        git(folder, "update-ref", ref, "HEAD")

    return step


def by_full_index(folder: Path, scratch: Path, ref: str) -> Step:
    head = git(folder, "rev-parse", "main")
    index = scratch / "full"

    def step(patch: bytes, changed: list[Change]) -> None:
        git(folder, "read-tree", head, GIT_INDEX_FILE=str(index))
        git(folder, "apply", "--cached", "-", stdin=patch, GIT_INDEX_FILE=str(index))
        tree = git(folder, "write-tree", GIT_INDEX_FILE=str(index))
        git(folder, "update-ref", ref, git(folder, "commit-tree", "-p", head, "-m", "x", tree))

    return step


def by_autopack(folder: Path, scratch: Path, ref: str) -> Step:
    settings = Settings(repo_path=folder, home=scratch / "home", _env_file=None)
    repository = Repository.open(settings)
    head = repository.base().commit
    policy = PathPolicy()

    def protect(changes: ChangeSet) -> None:
        assert not check_changes(changes, policy)

    def step(patch: bytes, changed: list[Change]) -> None:
        new = repository.new_objects()
        tree = repository.apply(head, patch, protect, into=new).tree
        commit = repository.write_commit(parents=[head], tree=tree, message="x", at=AT, into=new)
        new.install()
        update = RefUpdate(ref, commit, repository.read_ref(ref))
        with repository.prepare_refs([update]) as prepared:
            prepared.commit()

    return step


def by_bare_plumbing(folder: Path, scratch: Path, ref: str) -> Step:
    """Return the floor: all inputs are known, nothing is checked, read or refused."""
    return bare_plumbing(folder, scratch)(ref)


def bare_plumbing(folder: Path, scratch: Path) -> Callable[[str], Step]:
    """Return a function that makes steps; each moves its own ref, which starts at `main`."""
    shadow = scratch / "shadow"
    git(scratch, "init", "-q", "--bare", str(shadow))
    head = git(folder, "rev-parse", "main")
    other = git(folder, "commit-tree", "-p", head, "-m", "x", f"{head}^{{tree}}")

    def on(ref: str) -> Step:
        commits = itertools.cycle([head, other])
        at = next(commits)

        def step(patch: bytes, changed: list[Change]) -> None:
            nonlocal at
            work = Path(tempfile.mkdtemp(dir=scratch))
            (work / "objects").mkdir()
            entries = {each.path.encode(): (0o100644, each.old_oid) for each in changed}
            (work / "index").write_bytes(write_index(entries))
            git(
                work,
                *("apply", "--cached", "--whitespace=nowarn", "-"),
                stdin=patch,
                GIT_DIR=str(shadow),
                GIT_INDEX_FILE=str(work / "index"),
                GIT_OBJECT_DIRECTORY=str(work / "objects"),
                GIT_ALTERNATE_OBJECT_DIRECTORIES=str(folder / ".git/objects"),
            )
            folders = {str(parent) for each in changed for parent in Path(each.path).parents}
            contents = [each.new for each in changed] + [os.urandom(TREE_BYTES)] * len(folders)
            for number, data in enumerate([*contents, b"commit"]):
                with (work / f"object{number}").open("wb") as file:
                    file.write(zlib.compress(data, 1))
                    file.flush()
                    os.fsync(file.fileno())
            new = next(commits)
            git(folder, "update-ref", "--stdin", stdin=f"update {ref} {new} {at}\n".encode())
            at = new
            shutil.rmtree(work)

        return step

    return on


WAYS: dict[str, tuple[int, Callable[[Path, Path, str], Step]]] = {
    "check out, apply, add, commit": (5, by_checkout),
    "temporary full index": (5, by_full_index),
    "Autopack": (1, by_autopack),
    "floor: the bare plumbing": (2, by_bare_plumbing),
}
REPOSITORIES = {  # files, and how many branches, and as many tags, are added to them
    "200 files": (200, 0),
    "80,000 files": (80_000, 0),
    "and 20,000 refs": (80_000, 10_000),
    "300,000 files": (300_000, 0),
    "and 100,000 refs": (300_000, 50_000),
}


def measure(folder: Path, scratch: Path, files: int, patches: int) -> dict[str, float]:
    """Return the median of each variant; the variants alternate, so that noise affects all."""
    steps = {}
    for number, (name, (_, make)) in enumerate(WAYS.items()):
        own = scratch / str(number)
        own.mkdir(parents=True)
        ref = f"refs/heads/autonomous/run{number}"
        git(folder, "update-ref", ref, "main")
        steps[name] = make(folder, own, ref)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(patches):
        patch, changed = patch_of(files, turn)
        for name, step in steps.items():
            if name.startswith(("check", "temporary")) and turn >= SLOW_PATCHES:
                continue
            start = time.perf_counter()
            step(patch, changed)
            times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(each) for name, each in times.items()}


def throughput(folder: Path, scratch: Path, files: int, patches: int) -> tuple[float, float]:
    """Return Autopack's patches a second, with one run and with eight runs in parallel."""
    steps = []
    for number in range(RUNS):
        ref = f"refs/heads/autonomous/at-once{number}"
        git(folder, "update-ref", ref, "main")
        steps.append(by_autopack(folder, scratch, ref))
    work = [(step, patch_of(files, turn)) for turn in range(patches) for step in steps]

    def run(step: Step) -> None:
        for own, patch in work:
            if own is step:
                step(*patch)

    start = time.perf_counter()
    for step, patch in work:
        step(*patch)
    serial = time.perf_counter() - start
    with ThreadPoolExecutor(RUNS) as pool:
        start = time.perf_counter()
        list(pool.map(run, steps))
    return len(work) / serial, len(work) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--patches", type=int, default=100)
    patches = parser.parse_args().patches
    results = []
    rates = []
    for files, columns in itertools.groupby(REPOSITORIES.values(), key=lambda column: column[0]):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "repository")
            make_repository(folder, files, 0)
            for number, (_, refs) in enumerate(columns):
                add_refs(folder, refs)
                scratch = Path(temporary, f"scratch{number}")
                results.append(measure(folder, scratch, files, patches))
                rates.append(throughput(folder, scratch, files, patches // 4))
    print(f"{'ms a patch, median':32}{'spawns':>8}", *(f"{each:>16}" for each in REPOSITORIES))
    for name, (spawns, _) in WAYS.items():
        print(f"{name:32}{spawns:>8}", *(f"{result[name]:16.1f}" for result in results))
    ratios = [each["Autopack"] / each["floor: the bare plumbing"] for each in results]
    print(f"{'Autopack / floor':40}", *(f"{ratio:16.2f}" for ratio in ratios))
    print(f"{'Autopack, one run, patches a second':40}", *(f"{one:16.0f}" for one, _ in rates))
    print(f"{'Autopack, eight runs at once':40}", *(f"{eight:16.0f}" for _, eight in rates))


if __name__ == "__main__":
    main()
