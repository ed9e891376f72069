"""Patches that do not apply to the head: merged, there already, or answered with a repair ticket.

The corpus drifts files in the ways that files drift while an agent works. It plays the agent too:
the second try is made from the ticket and the agent's own patch alone.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from autopack.gitrepo import Repository
from autopack.gitrepo.apply import ChangeSet
from autopack.gitrepo.errors import PatchAlreadyAppliedError, PatchConflictError

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

State = Mapping[str, bytes | None]
Ticket = dict[str, Any]
FUNCTION = """def step_{n}(value):
    # Step {n} of the way.
    total = value + {n}
    if total > {n}00:
        raise ValueError("too much in step {n}")
    return total

"""
STEPS = "src/steps.py"
SOURCE = "".join(FUNCTION.format(n=n) for n in range(12)).encode()


class Branch:
    """A branch that goes on while an agent works on what it was at `base`."""

    def __init__(self, repository: Repository, repo: GitRepo) -> None:
        self._repository = repository
        self._repo = repo
        self.start({STEPS: SOURCE, "src/other.py": SOURCE})

    def start(self, files: State) -> None:
        """Make a commit and let the agent begin from it."""
        self.base = self.head = self.commit(files)

    def drift(self, files: State) -> None:
        """Commit on the branch what the agent does not know of."""
        self.head = self.commit(files)

    def commit(self, files: State) -> str:
        return self._repo.put_commits("refs/heads/main", files)[0]

    def commit_aside(self, files: State, after: str) -> str:
        """Commit after another commit than the branch's head."""
        return self._repo.put_commits("refs/heads/aside", files, after=after)[0]

    def commit_elsewhere(self, files: State) -> str:
        """Commit on a branch that shares no history with this one."""
        alone = self._repo.git("commit-tree", "-m", "Start anew", f"{self.head}^{{tree}}")
        return self.commit_aside(files, alone)

    def patch(self, files: State, *options: str) -> bytes:
        """What the agent sends, having changed these files."""
        work = self.commit_aside(files, self.base)
        patch = self._repo.git("diff", "-M", *options, self.base, work)
        return patch.encode(errors="surrogateescape") + b"\n"

    def apply(self, patch: bytes, base_commit: str | None = None) -> tuple[bool, State]:
        """Return whether it took a merge, and the files that the patch changes on the branch."""
        files: dict[str, bytes | None] = {}

        def read(changes: ChangeSet) -> None:
            for change in changes.files:
                oid = change.new_oid
                files[change.path] = None if oid is None else changes.read(oid)

        applied = self._repository.dry_apply(self.head, patch, read, base_commit=base_commit)
        return applied.merged, files

    def ticket(self, patch: bytes, base_commit: str | None = None) -> Ticket:
        with pytest.raises(PatchConflictError) as caught:
            self.apply(patch, base_commit)
        return sent(caught.value)


@pytest.fixture
def branch(repository: Repository, git_repo: GitRepo) -> Branch:
    return Branch(repository, git_repo)


def sent(error: PatchConflictError) -> Ticket:
    """The problem document's members, after their way through JSON."""
    ticket: Ticket = json.loads(json.dumps({"detail": error.detail, **error.extra}))
    return ticket


def changed(source: bytes, *pairs: tuple[str, str]) -> bytes:
    for old, new in pairs:
        assert source.count(old.encode()) == 1, old
        source = source.replace(old.encode(), new.encode())
    return source


EDIT = ("total = value + 4\n", "total = value + 40\n")
SAME_LINE = ("total = value + 4\n", "total = value - 4\n")
LINE_ABOVE = ("# Step 4 of the way.\n", "# The fourth step.\n")
TWO_ABOVE = ("def step_4(", "def step_four(")
FURTHER_DOWN = ("total = value + 9\n", "total = value + 90\n")


def without_index(patch: bytes) -> bytes:
    """As most models write a patch: they do not know the ids."""
    return re.sub(rb"(?m)^index .*\n", b"", patch)


# Merging


@pytest.mark.parametrize("knows", ["index", "base_commit"])
def test_a_change_near_the_branchs_own_is_merged(branch: Branch, knows: str) -> None:
    patch = branch.patch({STEPS: changed(SOURCE, EDIT)})
    branch.drift({STEPS: changed(SOURCE, TWO_ABOVE)})
    if knows == "index":
        merged, files = branch.apply(patch)
    else:
        merged, files = branch.apply(without_index(patch), branch.base)
    assert merged
    assert files == {STEPS: changed(SOURCE, EDIT, TWO_ABOVE)}


def test_a_patch_that_fits_needs_no_merge(branch: Branch) -> None:
    patch = branch.patch({STEPS: changed(SOURCE, EDIT)})
    branch.drift({STEPS: changed(SOURCE, FURTHER_DOWN)})
    merged, files = branch.apply(patch)
    assert not merged
    assert files == {STEPS: changed(SOURCE, EDIT, FURTHER_DOWN)}


def test_a_renamed_file_is_followed(branch: Branch) -> None:
    patch = branch.patch({STEPS: changed(SOURCE, EDIT)})
    branch.drift({STEPS: None, "lib/walk.py": changed(SOURCE, FURTHER_DOWN)})
    assert branch.apply(patch)[1] == {"lib/walk.py": changed(SOURCE, EDIT, FURTHER_DOWN)}


def test_a_half_applied_patch_is_finished(branch: Branch) -> None:
    patch = branch.patch({STEPS: changed(SOURCE, EDIT, FURTHER_DOWN), "new": b"new\n"})
    branch.drift({STEPS: changed(SOURCE, EDIT), "new": b"new\n"})
    merged, files = branch.apply(patch)
    assert merged
    assert files == {STEPS: changed(SOURCE, EDIT, FURTHER_DOWN)}


@pytest.mark.parametrize("knows", ["index", "base_commit", "nothing"])
def test_a_patch_that_the_branch_has_is_recognised(branch: Branch, knows: str) -> None:
    files: State = {
        STEPS: changed(SOURCE, EDIT),
        "src/other.py": None,
        "new.txt": b"new\n",
    }
    patch = branch.patch(files)
    branch.drift(files)
    branch.drift({"unrelated.txt": b"x\n"})
    if knows != "index":
        patch = without_index(patch)
    with pytest.raises(PatchAlreadyAppliedError):
        branch.apply(patch, branch.base if knows == "base_commit" else None)


def test_the_base_is_the_commit_that_the_index_lines_name(branch: Branch) -> None:
    """The file went back and forth; only at one commit do both files have these ids."""
    branch.start({STEPS: changed(SOURCE, ("# Step 1 of", "# Step one of"))})
    patch = branch.patch({STEPS: changed(SOURCE, ("# Step 1 of", "# STEP of"), EDIT)})
    branch.drift({STEPS: changed(SOURCE, ("total = value + 4\n", "total = value - 4\n"))})
    ticket = branch.ticket(patch)
    assert ticket["base"] == branch.base


def test_of_several_commits_with_these_ids_the_latest_is_the_base(branch: Branch) -> None:
    patch = branch.patch({STEPS: changed(SOURCE, EDIT)})
    branch.drift({STEPS: changed(SOURCE, FURTHER_DOWN)})
    branch.drift({STEPS: SOURCE})
    latest = branch.head
    branch.drift({STEPS: changed(SOURCE, SAME_LINE)})
    assert branch.ticket(patch)["base"] == latest != branch.base


def test_the_base_of_a_series_is_that_of_its_first_patch(branch: Branch) -> None:
    start, first = branch.base, changed(SOURCE, EDIT)
    one = branch.patch({STEPS: first})
    branch.base = branch.commit_aside({STEPS: first}, start)
    other = branch.patch({STEPS: changed(first, FURTHER_DOWN)})
    branch.drift({STEPS: changed(SOURCE, SAME_LINE)})
    assert branch.ticket(one + other)["base"] == start


def test_an_abbreviated_id_of_several_versions_names_no_base(branch: Branch) -> None:
    patch = branch.patch({STEPS: changed(SOURCE, EDIT)})
    full = blob_id(SOURCE)
    alike = next(
        text
        for text in (b"# %d\n" % n + SOURCE for n in range(10**6))
        if blob_id(text)[:4] == full[:4]
    )
    branch.drift({STEPS: alike})
    branch.drift({STEPS: changed(SOURCE, SAME_LINE)})
    short = re.sub(rb"(?m)^index [0-9a-f]+", b"index " + full[:4].encode(), patch)
    assert branch.ticket(patch)["base"] == branch.base
    assert branch.ticket(short)["base"] is None


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def test_a_commit_outside_the_branchs_history_is_no_base(branch: Branch) -> None:
    patch = without_index(branch.patch({STEPS: changed(SOURCE, EDIT)}))
    branch.drift({STEPS: changed(SOURCE, SAME_LINE)})
    elsewhere = branch.commit_elsewhere({STEPS: SOURCE, "secret.txt": b"key\n"})
    for commit in (elsewhere, "f" * 40, "HEAD", "--all", "main", ""):
        assert branch.ticket(patch, commit)["base"] is None
    problems = branch.ticket(patch, elsewhere)["merge_problems"]
    assert f"base_commit {elsewhere} is not a commit of the branch's history." in problems


# The ticket


def test_the_ticket_names_the_head_the_place_and_both_sides(branch: Branch) -> None:
    patch = branch.patch({STEPS: changed(SOURCE, EDIT)})
    theirs = changed(SOURCE, ("total = value + 4\n", "total = value - 4\n"))
    branch.drift({STEPS: b"# new\n" * 5 + theirs})
    ticket = branch.ticket(patch)
    assert ticket["head"] == branch.head
    assert branch.head in ticket["detail"]
    assert ticket["base"] == branch.base
    assert any("CONFLICT" in problem for problem in ticket["merge_problems"])
    (file,) = ticket["files"]
    assert (file["path"], file["path_now"], file["status"]) == (
        STEPS,
        STEPS,
        "refused",
    )
    (hunk,) = file["hunks"]
    assert (hunk["old_start"], hunk["found_start"], hunk["moved_by"]) == (28, 33, 5)
    assert "total = value + 4" in hunk["reason"]
    assert hunk["now_start"] == 30
    lines = (b"# new\n" * 5 + theirs).splitlines(keepends=True)
    assert hunk["now"] == b"".join(lines[29 : 29 + 13]).decode()
    assert "<<<<<<< branch\n    total = value - 4\n" in hunk["conflict"]
    assert "||||||| base\n    total = value + 4\n" in hunk["conflict"]
    assert "=======\n    total = value + 40\n>>>>>>> patch\n" in hunk["conflict"]


def test_each_hunk_has_its_own_verdict(branch: Branch) -> None:
    first = ("total = value + 1\n", "total = value + 10\n")
    last = ("total = value + 9\n", "total = value + 90\n")
    patch = branch.patch({STEPS: changed(SOURCE, first, EDIT, last)})
    branch.drift({STEPS: changed(SOURCE, first, (EDIT[0], "total = value - 4\n"))})
    (file,) = branch.ticket(patch)["files"]
    statuses = [hunk["status"] for hunk in file["hunks"]]
    assert statuses == ["already_applied", "refused", "applied"]
    assert file["reason"] == "1 of 3 hunks do not apply."


@pytest.mark.parametrize(
    ("drift", "says"),
    [
        ({STEPS: None}, "was deleted by commit"),
        ({STEPS: None, "src/steps.py/inner": b"x\n"}, "is a folder"),
        (
            {STEPS: None, "src/other.py": None, "src/app.py": None, "src": b"x\n"},
            "src is a file on the branch",
        ),
        ({STEPS: None, "src/walk.py": SOURCE}, "The file is src/walk.py since commit"),
    ],
)
def test_a_missing_file_is_reported_with_its_deletion_or_new_name(
    branch: Branch, drift: State, says: str
) -> None:
    patch = without_index(branch.patch({STEPS: changed(SOURCE, EDIT)}))
    branch.drift(drift)
    (file,) = branch.ticket(patch)["files"]
    assert file["status"] == "refused"
    assert says in file["reason"]


def test_a_file_that_never_was_is_said_to_be_none(branch: Branch) -> None:
    patch = without_index(branch.patch({STEPS: changed(SOURCE, EDIT)}))
    (file,) = branch.ticket(patch.replace(b"steps.py", b"stops.py"))["files"]
    assert "is not on the branch" in file["reason"]


def test_content_that_is_not_utf8_still_makes_a_ticket(branch: Branch) -> None:
    source = SOURCE.replace(b"Step 4", "Schritt ä".encode("latin-1"))
    branch.start({STEPS: source})
    patch = branch.patch({STEPS: changed(source, EDIT)})
    branch.drift({STEPS: changed(source, (EDIT[0], "total = value - 4\n"))})
    ticket = branch.ticket(patch)
    assert "Schritt \\xe4" in ticket["files"][0]["hunks"][0]["now"]


def test_a_binary_file_is_reported_by_its_id(branch: Branch) -> None:
    branch.start({"logo.png": bytes(range(256))})
    patch = branch.patch({"logo.png": bytes(range(255))}, "--binary")
    branch.drift({"logo.png": bytes(range(254))})
    (file,) = branch.ticket(patch)["files"]
    assert "The binary file is " in file["reason"]


def test_the_texts_of_a_ticket_are_together_within_their_bound(
    branch: Branch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there now and its merge count alike; a hunk without room has its place alone."""
    monkeypatch.setattr("autopack.gitrepo.ticket._MAX_TEXT_BYTES", 1_000)
    edits = [(f"total = value + {n}\n", f"total = value + {n}5\n") for n in (0, 3, 6, 9)]
    theirs = [(old, old.replace("+", "-")) for old, _ in edits]
    patch = branch.patch({STEPS: changed(SOURCE, *edits)})
    branch.drift({STEPS: changed(SOURCE, *theirs)})
    (file,) = branch.ticket(patch)["files"]
    texts = [hunk[name] for hunk in file["hunks"] for name in ("now", "merged", "conflict")
             if hunk.get(name)]  # fmt: skip
    assert 500 < sum(map(len, texts)) <= 1_000
    cut = [hunk for hunk in file["hunks"] if hunk.get("is_truncated")]
    assert cut
    assert all(hunk["now_start"] > 0 for hunk in cut)


def test_a_ticket_stays_small_however_large_the_patch(branch: Branch) -> None:
    source = b"".join(b"line %d\n" % n for n in range(20_000))
    branch.start({f"big{n}.txt": source for n in range(3)})
    edited = re.sub(rb"(?m)^(line \d*5)$", rb"\1 new", source)
    patch = branch.patch({f"big{n}.txt": edited for n in range(3)})
    drifted = re.sub(rb"(?m)^(line \d*5)$", rb"\1 old", source)
    branch.drift({f"big{n}.txt": drifted for n in range(3)})
    ticket = branch.ticket(patch)
    assert len(json.dumps(ticket)) < 1_000_000
    assert all(file["status"] == "refused" for file in ticket["files"])
    assert ticket["files"][0]["omitted_hunks"] > 0


# The corpus


@dataclass(frozen=True)
class Case:
    """What an agent changed, what the branch did meanwhile, and how the patch fares.

    `informed` is the outcome where the patch names its base, `ignorant` where it does not.
    """

    name: str
    agent: State
    drift: tuple[State, ...]
    informed: str
    ignorant: str = "second try"


EDITED = changed(SOURCE, EDIT)
CONFLICTING = changed(SOURCE, SAME_LINE)
BLOCK = FUNCTION.format(n=4).encode()
END = b"# The end.\n"
CASES = [
    Case("lines above", {STEPS: EDITED}, ({STEPS: END * 9 + SOURCE},), "fits", "fits"),
    Case(
        "moved code",
        {STEPS: EDITED},
        ({STEPS: SOURCE.replace(BLOCK, b"") + BLOCK},),
        "fits",
        "fits",
    ),
    Case("edited nearby", {STEPS: EDITED}, ({STEPS: changed(SOURCE, TWO_ABOVE)},), "merged"),
    Case("edited beside", {STEPS: EDITED}, ({STEPS: changed(SOURCE, LINE_ABOVE)},), "second try"),
    Case("same line", {STEPS: EDITED}, ({STEPS: CONFLICTING},), "second try"),
    Case(
        "several commits",
        {STEPS: EDITED},
        (
            {STEPS: changed(SOURCE, TWO_ABOVE)},
            {STEPS: changed(SOURCE, TWO_ABOVE, FURTHER_DOWN)},
            {"src/other.py": EDITED},
        ),
        "merged",
    ),
    Case(
        "lines within",
        {STEPS: EDITED},
        ({STEPS: changed(SOURCE, (TWO_ABOVE[0], "#\n" * 9 + TWO_ABOVE[0]))},),
        "merged",
    ),
    Case(
        "lines beside",
        {STEPS: EDITED},
        ({STEPS: changed(SOURCE, ("    if total > 400", "    #\n" * 9 + "    if total > 400"))},),
        "second try",
    ),
    Case(
        "half applied", {STEPS: changed(EDITED, FURTHER_DOWN)}, ({STEPS: EDITED},), "merged", "fits"
    ),
    Case("half there", {STEPS: EDITED, "n": b"n\n"}, ({"n": b"n\n"},), "merged", "fits"),
    Case("all there", {STEPS: EDITED}, ({STEPS: EDITED},), "already there", "already there"),
    Case("renamed", {STEPS: EDITED}, ({STEPS: None, "lib/walk.py": SOURCE},), "merged"),
    Case(
        "renamed, same line",
        {STEPS: EDITED},
        ({STEPS: None, "lib/walk.py": CONFLICTING},),
        "second try",
    ),
    Case("deleted", {STEPS: EDITED}, ({STEPS: None},), "given up", "given up"),
    Case(
        "now a folder",
        {STEPS: EDITED, "n": b"n\n"},
        ({STEPS: None}, {f"{STEPS}/inner": b"x\n"}),
        "second try",
    ),
    Case("tabs", {STEPS: EDITED}, ({STEPS: SOURCE.replace(b"    ", b"\t")},), "second try"),
    Case("CRLF", {STEPS: EDITED}, ({STEPS: SOURCE.replace(b"\n", b"\r\n")},), "second try"),
    Case("same new file", {"n": b"a\nb\nc\n"}, ({"n": b"a\nx\nc\n"},), "second try"),
    Case("both append", {STEPS: SOURCE + BLOCK}, ({STEPS: SOURCE + END},), "second try"),
    Case("deletes what grew", {STEPS: None}, ({STEPS: SOURCE + END},), "second try"),
    Case("deletes what is gone", {STEPS: None, "n": b"n\n"}, ({STEPS: None},), "merged", "fits"),
    Case(
        "renames what changed",
        {STEPS: None, "lib/walk.py": EDITED},
        ({STEPS: CONFLICTING},),
        "second try",
    ),
    Case(
        "one file of two",
        {STEPS: EDITED, "src/other.py": EDITED},
        ({STEPS: CONFLICTING},),
        "second try",
    ),
    Case(
        "not UTF-8",
        {STEPS: EDITED, "n": b"\xe4\xff\n"},
        ({STEPS: changed(SOURCE, SAME_LINE).replace(b"Step 9", b"Step \xe4")},),
        "second try",
    ),
]


@pytest.mark.parametrize("knows", ["index", "nothing"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_drift_is_settled_by_the_second_try(branch: Branch, case: Case, knows: str) -> None:
    assert play(branch, case, knows) == (case.ignorant if knows == "nothing" else case.informed)


@pytest.mark.parametrize("knows", ["index", "nothing"])
def test_random_drifts_are_settled_by_the_second_try(branch: Branch, knows: str) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(25):
        dice = random.Random(seed)
        branch.start({STEPS: SOURCE, "seed": b"%d\n" % seed})
        case = Case("", {STEPS: edit(dice, "agent")}, ({STEPS: edit(dice, "branch")},), "", "")
        outcomes[play(branch, case, knows)] += 1
    sys.stdout.write(f"\nknowing {knows}: {dict(outcomes)}\n")
    assert set(outcomes) <= {"fits", "merged", "second try"}


def edit(dice: random.Random, word: str) -> bytes:
    """Change, add and take away lines here and there; half of the time near line 30."""
    lines = SOURCE.decode().splitlines(keepends=True)
    for _ in range(dice.randint(1, 4)):
        at = dice.choice([dice.randrange(len(lines)), dice.randint(24, 38)])
        line = f"    # {word} {dice.randrange(100)}\n"
        gone, come = dice.choice([(0, 1), (1, 1), (1, 0)])
        lines[at : at + gone] = [line] * come
    return "".join([*lines, f"# {word}\n"] if dice.randrange(4) == 0 else lines).encode()


# The agent


def play(branch: Branch, case: Case, knows: str) -> str:
    """Send a case's patch, and if need be the second try; return how it went."""
    patch = branch.patch(case.agent)
    for files in case.drift:
        branch.drift(files)
    if knows != "index":
        patch = without_index(patch)
    try:
        merged, _ = branch.apply(patch, branch.base if knows == "base_commit" else None)
    except PatchAlreadyAppliedError:
        return "already there"
    except PatchConflictError as conflict:
        second = second_try(patch, sent(conflict))
    else:
        return "merged" if merged else "fits"
    if not second:
        return "given up"
    _, files = branch.apply(second)
    result = b"".join(content for content in files.values() if content is not None)
    for line in re.findall(rb"(?m)^\+(?!\+\+ )[ \t]*([^\n]+)", second):
        assert line in result
    return "second try"


def second_try(patch: bytes, ticket: Ticket) -> bytes:
    """Make a patch from the ticket and one's own first one, knowing nothing else.

    Files that are gone are given up. Where both sides changed the same lines, the patch's side
    is kept.
    """
    sections = re.split(rb"(?m)^(?=diff --git )", patch)[1:]
    parts: list[bytes] = []
    for section, file in zip(sections, ticket["files"], strict=True):
        if file["status"] == "applied":
            parts.append(section)
        elif file["status"] == "refused" and file["path_now"] is not None and file["hunks"]:
            parts.append(second_section(section, file))
    return b"".join(parts)


def second_section(section: bytes, file: Ticket) -> bytes:
    path = target = file["path_now"]
    if file["new_path"] is None:
        lines = file["hunks"][0]["now"].splitlines(keepends=True)
        body = "".join(f"-{line}" for line in lines)
        return (
            f"diff --git a/{path} b/{path}\ndeleted file mode 100644\n--- a/{path}\n"
            f"+++ /dev/null\n@@ -1,{len(lines)} +0,0 @@\n{body}"
        ).encode()
    head = ""
    if path == file["old_path"] != file["new_path"]:
        target = file["new_path"]
        head = f"rename from {path}\nrename to {target}\n"
    parts = [f"diff --git a/{path} b/{target}\n{head}--- a/{path}\n+++ b/{target}\n".encode()]
    own_hunks = re.split(rb"(?m)^(?=@@ )", section)[1:]
    for own, hunk in zip(own_hunks, file["hunks"], strict=True):
        if hunk["status"] == "applied":
            parts.append(own)
        elif hunk["status"] == "refused":
            parts.append(second_hunk(hunk))
    return b"".join(parts)


def second_hunk(hunk: Ticket) -> bytes:
    wanted = hunk.get("merged") or re.sub(
        r"(?ms)^<<<<<<< branch\n.*?^=======\r?\n(.*?)^>>>>>>> patch\r?\n",
        lambda match: match.group(1),
        hunk["conflict"],
    )
    diff = list(difflib.unified_diff(split(hunk["now"]), split(wanted)))[2:]
    shift = hunk["now_start"] - 1

    def move(match: re.Match[str]) -> str:
        old, old_count, new, new_count = (int(digits or 1) for digits in match.groups())
        return f"@@ -{old + shift},{old_count} +{new + shift},{new_count} @@"

    head = r"(?m)^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@"
    return re.sub(head, move, "".join(diff)).encode()


def split(text: str) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+$", text)
