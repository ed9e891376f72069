"""One byte of a recorded run changed, and its branch is refused with a reason that fits.

Each case takes a copy of one recorded run. `Forger` makes it easy on purpose: whatever a forger
without the signing key can make right again, it makes right.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.conftest import with_remote

from autopack.checker.branch import check_branch
from autopack.config import Settings
from autopack.domain.changes import MODE_FILE
from autopack.domain.closed_paths import closed_problem
from autopack.domain.naming import STATEMENT
from autopack.domain.record_text import RecordSubject
from autopack.domain.statement import payload_of, write_envelope
from autopack.gitrepo import Repository, RepositoryUnusableError
from autopack.services.rebuilding import require_objects
from autopack.store import runs

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Api
    from tests.conftest import GitRepo

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

RUN = "run-001"
BRANCH = f"autonomous/{RUN}"
FOLDER = f".autonomous_runs/{RUN}"
SIGNERS = ".github/autopack_allowed_signers"
Json = dict[str, Any]


def check(repository: str, run_id: str, branch: str, base: str) -> Json:
    subject = RecordSubject(run_id=run_id, branch=branch, base_branch=base)
    return check_branch(repository, subject)


class Forger:
    """A copy of the repository, and a forger who may write to it."""

    def __init__(self, repo: GitRepo) -> None:
        self.git = repo.git
        self.path = repo.path
        self.head = self.git("rev-parse", BRANCH)
        self.record: Json = json.loads(self.git("show", f"{BRANCH}:{FOLDER}/run.json"))
        self.named = [each["sha"] for each in self.record["commits"]]

    def commit(self, like: str, **changes: str) -> str:
        """Write a commit like another one, with some of its header lines changed."""
        head, _, message = self.git("cat-file", "commit", like).partition("\n\n")
        lines = []
        for line in head.split("\n"):
            name = line.partition(" ")[0]
            lines.append(f"{name} {changes.pop(name)}" if name in changes else line)
        message = changes.pop("message", message)
        lines += [f"{name} {value}" for name, value in changes.items()]
        text = "\n".join([*lines, "", message])
        if not text.endswith("\n"):
            text += "\n"
        options = ("-t", "commit", "-w", "--stdin")
        return self.git("hash-object", *options, stdin=text.encode(errors="surrogateescape"))

    def move(self, commit: str, branch: str = BRANCH) -> None:
        self.git("update-ref", f"refs/heads/{branch}", commit)

    def rebase(self, commits: list[str], onto: str) -> str:
        """Put commits on another one as they are, trees and all."""
        for commit in commits:
            onto = self.commit(commit, parent=onto)
        return onto

    def tree(self, of: str, **files: bytes | str | None) -> str:
        """Return a commit's tree with files changed; a path is written with `__` for `/`."""
        self.git("read-tree", of)
        for name, content in files.items():
            self.set(name.replace("__", "/"), content)
        return self.git("write-tree")

    def set(self, path: str, content: bytes | str | None, mode: str = "100644") -> None:
        if content is None:
            self.git("rm", "--quiet", "--cached", "--", path)
            return
        blob = self.git("hash-object", "-w", "--stdin", stdin=content)
        self.git("update-index", "--add", "--cacheinfo", f"{mode},{blob},{path}")

    def amend(self, path: str, content: bytes | str | None, mode: str = "100644") -> None:
        """Change a file of the record in the record's own commit, and say nothing."""
        self.git("read-tree", BRANCH)
        self.set(f"{FOLDER}/{path}", content, mode)
        self.head = self.commit(self.head, tree=self.git("write-tree"))
        self.move(self.head)

    def file(self, path: str) -> bytes:
        return self.git("show", f"{BRANCH}:{FOLDER}/{path}").encode(errors="surrogateescape")

    def rewrite(self, content: bytes | None = None, parent: str | None = None) -> None:
        """Put another `run.json` into the record, with a commit that fits it."""
        content = json.dumps(self.record).encode() if content is None else content
        self.amend("run.json", content)
        message = self.git("cat-file", "commit", self.head).partition("\n\n")[2]
        trailer = "Autopack-Record-SHA256: "
        sealed = message.partition(trailer)[2][:64]
        message = message.replace(sealed, hashlib.sha256(content).hexdigest())
        changes = {"parent": parent} if parent else {}
        self.move(self.commit(self.head, message=message, **changes))

    def restate(self) -> None:
        """Write the statement that fits the changed record, without a signature."""
        data = write_envelope(payload_of(self.record), [])
        self.amend(STATEMENT, data)
        for file in self.record["files"]:
            if file["path"] == STATEMENT:
                file["sha256"] = hashlib.sha256(data).hexdigest()

    def reseal(self) -> None:
        """Seal the events anew, so that their chain is whole again."""
        previous = "0" * 64
        for event in self.record["events"]:
            event["previous_hash"] = previous
            document = {name: value for name, value in event.items() if name != "hash"}
            text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            event["hash"] = previous = hashlib.sha256(text.encode()).hexdigest()

    def event(self, kind: str) -> Json:
        found: Json = next(each for each in self.record["events"] if each["kind"] == kind)
        return found


def plant(forger: Forger, path: str, content: str, mode: str) -> None:
    """Put a file into the first patch's commit by hand: git itself would not take such names."""
    blob = forger.git("hash-object", "-w", "--stdin", stdin=content)
    *folders, name = path.split("/")
    entry = f"{mode} blob {blob}\t{name}"
    for folder in reversed(folders):
        tree = forger.git("mktree", "-z", stdin=f"{entry}\0")
        entry = f"040000 tree {tree}\t{folder}"
    top = forger.git("ls-tree", forger.named[0]).splitlines()
    tree = forger.git("mktree", "-z", stdin="\0".join([*top, entry, ""]))
    forged = [forger.commit(forger.named[0], tree=tree)]
    for commit in forger.named[1:]:
        forged.append(forger.commit(commit, parent=forged[-1]))
    text = json.dumps(forger.record).replace(forger.record["commits"][0]["tree"], tree)
    for before, after in zip(forger.named, forged, strict=True):
        text = text.replace(before, after)
    forger.record = json.loads(text)
    forger.reseal()
    forger.rewrite(parent=forged[-1])


PLANTED = {
    ".git/config": "leads into a git dir",
    "src/.GIT/hooks/pre-commit": "leads into a git dir",
    "GIT~1/config": "leads into a git dir",
    ".g\u200cit/config": "leads into a git dir",
    ".git . /config": "leads into a git dir",
    ".git::$INDEX_ALLOCATION/config": "leads into a git dir",
    "a\\..\\.git": "leads into a git dir",
    ".autonomous_runs/other/run.json": "which no patch may",
    ".Autonomous_Runs/run-001/run.json": "which no patch may",
    ".autopack/env": "which no patch may",
    ".AUTOPACK./env": "which no patch may",
    ".github/autopack_allowed_signers": "which no patch may",
    ".GitHub/Autopack_Allowed_Signers": "which no patch may",
}
LINKED = {
    ("src/link", "../.git"): "which is a link that leads into a git dir",
    ("link", "src/../.AutoPack/x"): "is a link to .autopack/x, which no patch may",
    (".github", "src"): "a link in the place of a folder of .github/autopack_allowed_signers",
    ("link", "../.."): "a link that leads out of the repository",
    ("link", "/etc"): "is a link to an absolute or a Windows path",
    ("link", "link"): "is a link that leads back to itself",
}


def red_before_green(forger: Forger) -> None:
    """What the service itself records where its CI is green at the second try."""
    events = forger.record["events"]
    green = forger.event("CiVerdictReceived")
    red = {**green, "data": {**green["data"], "verdict": "red", "is_repeated": True}}
    events.insert(events.index(green), red)
    for number, event in enumerate(events, start=1):
        event["sequence"] = number
    forger.reseal()
    forger.restate()
    forger.rewrite()


def another_message(forger: Forger) -> None:
    first = forger.commit(forger.named[0], message="Another message\n")
    forger.move(forger.rebase([*forger.named[1:], forger.head], first))


def another_author(forger: Forger) -> None:
    first = forger.commit(forger.named[0], author="Eve <eve@localhost> 1 +0000")
    forger.move(forger.rebase([*forger.named[1:], forger.head], first))


def another_tree(forger: Forger) -> None:
    first = forger.commit(forger.named[0], tree=forger.tree(forger.named[0], evil="evil\n"))
    forger.move(forger.rebase([*forger.named[1:], forger.head], first))


def another_tree_throughout(forger: Forger) -> None:
    """All that names the last commit of the work is made to name the forged one."""
    last = forger.record["commits"][-1]
    before = last["sha"]
    tree = forger.tree(before, evil="evil\n")
    after = forger.commit(before, tree=tree)
    text = json.dumps(forger.record).replace(before, after).replace(last["tree"], tree)
    forger.record = json.loads(text)
    forger.reseal()
    content = json.dumps(forger.record)
    forger.set("evil", "evil\n")
    forger.git("read-tree", forger.head)
    forger.set("evil", "evil\n")
    forger.head = forger.commit(forger.head, tree=forger.git("write-tree"))
    forger.move(forger.head)
    forger.rewrite(content.encode(), parent=after)


def a_patch(forger: Forger) -> None:
    name = f"patches/{forger.record['commits'][0]['patch_sha256']}.patch"
    forger.amend(name, forger.file(name).replace(b"This", b"THis") + b"\n")


def a_patch_throughout(forger: Forger) -> None:
    old = forger.record["commits"][0]["patch_sha256"]
    content = forger.file(f"patches/{old}.patch").replace(b"This", b"THis") + b"\n"
    new = hashlib.sha256(content).hexdigest()
    forger.record = json.loads(json.dumps(forger.record).replace(old, new))
    forger.reseal()
    forger.amend(f"patches/{old}.patch", None)
    forger.amend(f"patches/{new}.patch", content)
    forger.rewrite()


def a_page(forger: Forger) -> None:
    forger.amend("run_summary.md", forger.file("run_summary.md") + b"And all is well.\n")


def a_figure(forger: Forger) -> None:
    forger.record["budgets"]["tokens_used"] += 1
    forger.amend("run.json", json.dumps(forger.record))


def a_figure_throughout(forger: Forger) -> None:
    forger.record["budgets"]["tokens_used"] += 1
    forger.rewrite()


def an_event(forger: Forger) -> None:
    forger.event("PhaseCompleted")["reason"] += "!"
    forger.rewrite()


def no_event(forger: Forger) -> None:
    forger.record["events"].remove(forger.event("PatchApplied"))
    forger.rewrite()


def a_verdict(forger: Forger) -> None:
    forger.record["phases"][0]["verdict"] = "red"
    forger.rewrite()


def a_verdict_in_the_events(forger: Forger) -> None:
    forger.event("CiVerdictReceived")["data"]["verdict"] = "red"
    forger.reseal()
    forger.rewrite()


def a_verdict_on_another_commit(forger: Forger) -> None:
    forger.event("CiVerdictReceived")["data"]["commit"] = forger.named[1]
    forger.reseal()
    forger.rewrite()


def a_move_that_no_rule_allows(forger: Forger) -> None:
    events = forger.record["events"]
    forger.event("PhaseGated")["to_state"] = "COMPLETE"
    for number, event in enumerate(events, start=1):
        event["sequence"] = number
    forger.reseal()
    forger.rewrite()


def the_verdict_of_the_record(forger: Forger) -> None:
    forger.record["promotion"] = {"eligible": False, "reasons": ["because"], "warnings": []}
    forger.rewrite()


def a_commit_too_many(forger: Forger) -> None:
    extra = forger.commit(forger.named[-1], parent=forger.named[-1], message="Slip in\n")
    forger.move(forger.commit(forger.head, parent=extra))


def a_commit_too_few(forger: Forger) -> None:
    forger.move(forger.rebase([forger.named[0], forger.head], forger.record["base_commit"]))


def another_order(forger: Forger) -> None:
    forger.record["commits"].reverse()
    forger.rewrite()


def a_commit_after_the_record(forger: Forger) -> None:
    tree = forger.tree(forger.head, evil="evil\n")
    forger.move(forger.commit(forger.head, parent=forger.head, tree=tree, message="Add\n"))


def a_second_record(forger: Forger) -> None:
    forger.move(forger.commit(forger.head, parent=forger.head))


def a_record_edited_later(forger: Forger) -> None:
    before = forger.head
    forger.record["failure_reason"] = None
    forger.rewrite()
    forged = forger.git("rev-parse", BRANCH)
    forger.move(forger.commit(forged, parent=before))


def a_merge(forger: Forger) -> None:
    parents = f"{forger.named[-1]}\nparent {forger.record['base_commit']}"
    forger.move(forger.commit(forger.head, parent=parents))


def a_record_with_more(forger: Forger) -> None:
    forger.move(forger.commit(forger.head, tree=forger.tree(forger.head, evil="evil\n")))


def a_file_too_many(forger: Forger) -> None:
    forger.amend("evil.md", "evil\n")


def a_file_too_few(forger: Forger) -> None:
    forger.amend("run_summary.md", None)


def a_link_for_a_file(forger: Forger) -> None:
    forger.amend("run_summary.md", "/etc/passwd", "120000")


def replaced(forger: Forger) -> None:
    """git would show the true record in the place of the forged one."""
    a_commit_after_the_record(forger)
    forger.git("replace", BRANCH, forger.head)


def grafted(forger: Forger) -> None:
    a_commit_too_many(forger)
    head = forger.git("rev-parse", BRANCH)
    grafts = forger.path / ".git" / "info" / "grafts"
    grafts.parent.mkdir(exist_ok=True)
    grafts.write_text(f"{head} {forger.named[-1]}\n")


def a_base_rewritten(forger: Forger) -> None:
    base = forger.git("rev-parse", "main")
    tree = forger.git("rev-parse", "main^{tree}")
    forger.git("update-ref", "refs/heads/main", forger.commit(base, tree=tree, message="New\n"))


def another_base(forger: Forger) -> None:
    forger.record["base_commit"] = forger.named[0]
    forger.rewrite()


def no_text(forger: Forger) -> None:
    forger.rewrite(b"\xff{}")


def nested(forger: Forger) -> None:
    forger.rewrite(b"[" * 200_000 + b"]" * 200_000)


def a_huge_number(forger: Forger) -> None:
    forger.rewrite(b'{"schema_version": 1' + b"0" * 100_000 + b"}")


def said_twice(forger: Forger) -> None:
    forger.rewrite(b'{"run_id": "run-001", "run_id": "run-002"}')


def of_another_kind(forger: Forger) -> None:
    forger.record["phases"][0]["state"] = {"-x": ["--evil"]}
    forger.rewrite()


def options_for_names(forger: Forger) -> None:
    forger.record["base_commit"] = forger.record["commits"][0]["sha"] = "--upload-pack=evil"
    forger.rewrite()


def events_of_nothing(forger: Forger) -> None:
    forger.event("PhaseCompleted")["phase_id"] = "P9"
    forger.reseal()
    forger.rewrite()


CASES: dict[Callable[[Forger], None], str] = {
    another_message: "which the record names, is not on the branch",
    another_author: "which the record names, is not on the branch",
    another_tree: "is on the branch, but the record does not name it",
    another_tree_throughout: "does not give its tree",
    a_patch: ".patch of the record was changed",
    a_patch_throughout: "does not give its tree",
    a_page: "run_summary.md of the record was changed",
    a_figure: "run.json is not what the record's commit says",
    a_figure_throughout: "the run: tokens_used is 21 in the record, 20 by its events",
    an_event: "(PhaseCompleted) was changed: the chain of hashes breaks there",
    no_event: "is missing, or out of its place",
    a_verdict: "phase 'P0.0': verdict is red in the record, green by its events",
    a_verdict_in_the_events: "phase 'P0.0': verdict is green in the record, red by its events",
    a_verdict_on_another_commit: "which is not the commit of phase 'P0.0'",
    a_move_that_no_rule_allows: "from EXECUTING to COMPLETE, which no rule allows",
    the_verdict_of_the_record: "the record's own verdict is not what its figures give",
    a_commit_too_many: "is on the branch, but the record does not name it",
    a_commit_too_few: "which the record names, is not on the branch",
    another_order: "the record names the branch's commits in another order",
    a_commit_after_the_record: "something was committed after it",
    a_second_record: "is on the branch, but the record does not name it",
    a_record_edited_later: "is on the branch, but the record does not name it",
    a_merge: "has 2 parents: the branch has to be one line",
    a_record_with_more: f"changes more than the record's folder {FOLDER}",
    a_file_too_many: "the record does not name its file evil.md",
    a_file_too_few: "run_summary.md is missing from the record",
    a_link_for_a_file: "run_summary.md of the record is no plain file",
    replaced: "something was committed after it",
    grafted: "is on the branch, but the record does not name it",
    a_base_rewritten: "which is not in the history of 'main'",
    another_base: "the events tell of a run from another base",
    no_text: "run.json cannot be read: 'utf-8' codec",
    nested: "run.json cannot be read: maximum recursion depth",
    a_huge_number: "run.json cannot be read: it has a number of too many digits",
    said_twice: "run.json cannot be read: it names a member twice",
    of_another_kind: "run.json: phases[0]: state is",
    options_for_names: "does not lead back to the recorded base --upload-pack=evil",
    events_of_nothing: "the events cannot be replayed: KeyError('P9')",
}


def make_key(folder: Path, name: str) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
    subprocess.run(command, check=True)
    return folder / name


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    key = make_key(tmp_path, "key")
    return with_remote(settings, tmp_path).model_copy(update={"signing_key": key})


@pytest.fixture
def recorded(api: Api) -> GitRepo:
    """A repository with the branch of a run that is eligible."""
    ruleset = {"project_id": "Autopack", "ci": {"mode": "external"}}
    assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
    api.start(RUN, phases=2, phase={"complexity": "high"})
    for phase_id in ("P0.0", "P0.1"):
        assert api.result(RUN, phase_id, tokens_used=10).status_code == 200
        body = {"commit_sha": api.head(), "verdict": "green"}
        answer = api.client.post(f"/runs/{RUN}/phases/{phase_id}/ci_result", json=body)
        assert answer.status_code == 200, answer.text
    return api.repo


def test_each_tampering_is_refused_with_its_reason(
    recorded: GitRepo, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    verdict = check(str(recorded.path), RUN, BRANCH, "main")
    assert verdict["eligible"], verdict["reasons"]
    assert verdict["warnings"] == []
    for number, (tamper, reason) in enumerate(CASES.items()):
        with subtests.test(tamper.__name__):
            copy = replace(recorded, path=tmp_path / f"case-{number}")
            shutil.copytree(recorded.path / ".git", copy.path / ".git")
            tamper(Forger(copy))
            verdict = check(str(copy.path), RUN, BRANCH, "main")
            assert not verdict["eligible"]
            assert any(reason in each for each in verdict["reasons"]), verdict["reasons"]
            assert not any("cannot be checked" in each for each in verdict["reasons"])


def test_no_record_opens_the_paths_that_nothing_opens(
    recorded: GitRepo, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    files = {(path, "evil\n", "100644"): reason for path, reason in PLANTED.items()}
    links = {(path, target, "120000"): reason for (path, target), reason in LINKED.items()}
    for number, (planted, reason) in enumerate({**files, **links}.items()):
        with subtests.test(planted[0], target=planted[1]):
            copy = replace(recorded, path=tmp_path / f"case-{number}")
            shutil.copytree(recorded.path / ".git", copy.path / ".git")
            forger = Forger(copy)
            plant(forger, *planted)
            reasons = check(str(copy.path), RUN, BRANCH, "main")["reasons"]
            commit = f"commit {copy.git('rev-parse', BRANCH + '~2')} changes "
            assert any(each.startswith(commit) and reason in each for each in reasons), reasons


def test_nothing_but_what_is_absolute_is_closed_to_every_patch() -> None:
    for path in PLANTED:
        assert closed_problem(path, MODE_FILE) is not None, path
    for path in ("src/app.py", ".gitignore", ".github/x", "a/.gitx", "autopack/x"):
        assert closed_problem(path, MODE_FILE) is None, path


def test_a_run_that_was_green_at_the_second_try_is_eligible(recorded: GitRepo) -> None:
    red_before_green(Forger(recorded))
    assert check(str(recorded.path), RUN, BRANCH, "main")["reasons"] == []


def test_a_record_counts_only_for_its_own_run_branch_and_base(recorded: GitRepo) -> None:
    path = str(recorded.path)
    recorded.git("branch", "autonomous/run-002", BRANCH)
    for run_id, branch, base, reason in (
        ("run-002", "autonomous/run-002", "main", "holds no record of run 'run-002'"),
        (RUN, "autonomous/run-002", "main", "the record is of branch 'autonomous/run-001'"),
        (RUN, BRANCH, BRANCH, "the run started from 'main', not from 'autonomous/run-001'"),
        (RUN, "autonomous/none", "main", "there is no branch 'autonomous/none'"),
        (RUN, "--help", "main", "there is no branch '--help'"),
        (RUN, "a..b", "main", "there is no branch 'a..b'"),
        ("../..", BRANCH, "main", "'../..' is no run id"),
    ):
        reasons = check(path, run_id, branch, base)["reasons"]
        assert any(reason in each for each in reasons), reasons


def test_a_signature_is_what_the_base_branch_asks_for(
    recorded: GitRepo, app: FastAPI, tmp_path: Path
) -> None:
    signers = tmp_path / "signers"
    key = " ".join((tmp_path / "key.pub").read_text().split()[:2])
    stranger = " ".join(make_key(tmp_path, "other").with_suffix(".pub").read_text().split()[:2])
    signers.write_text(f"autopack@localhost {key}\n")
    trusting = ("-c", f"gpg.ssh.allowedSignersFile={signers}")
    recorded.git(*trusting, "verify-commit", BRANCH)
    recorded.git(*trusting, "verify-tag", f"{BRANCH}/tier-T0/phase-P0.0")

    def ask(allowed: str) -> Json:
        recorded.commit({SIGNERS: f"autopack@localhost {allowed}\n"})
        verdict: Json = check(str(recorded.path), RUN, BRANCH, "main")
        return verdict

    verdict = check(str(recorded.path), RUN, BRANCH, "main")
    assert verdict["signature"].startswith(f"the record is signed, but 'main' has no {SIGNERS}")
    verdict = ask(key)
    assert verdict["eligible"]
    assert verdict["signature"] == f"the record is signed by one of {SIGNERS} of 'main'"
    of_record, of_statement = ask(stranger)["reasons"]
    assert f"the record's signature is not by one of {SIGNERS} of 'main'" in of_record
    assert of_statement == f"the statement's signature is not by one of {SIGNERS} of 'main'"
    ask(key)
    signed = recorded.git("rev-parse", BRANCH)
    Forger(recorded).rewrite()  # which leaves the signature as it was
    (reason,) = check(str(recorded.path), RUN, BRANCH, "main")["reasons"]
    assert "the record's signature is not by one of" in reason
    head, _, message = recorded.git("cat-file", "commit", signed).partition("\n\n")
    unsigned = f"{head.partition(chr(10) + 'gpgsig ')[0]}\n\n{message}\n"
    options = ("hash-object", "-t", "commit", "-w", "--stdin")
    Forger(recorded).move(recorded.git(*options, stdin=unsigned))
    (reason,) = check(str(recorded.path), RUN, BRANCH, "main")["reasons"]
    assert reason == f"the record is not signed, and 'main' asks for it by {SIGNERS}"

    # Made again, a signed commit and a signed tag are the same, whatever becomes of the key.
    (tmp_path / "key").unlink()
    tag = recorded.git("rev-parse", f"{BRANCH}/tier-T0/phase-P0.0")
    for oid in (signed, tag):
        (recorded.path / ".git" / "objects" / oid[:2] / oid[2:]).unlink()
    context = app.state.context
    with context.reading() as session:
        require_objects(context, session, runs.get_run(session, RUN))
    assert recorded.git("cat-file", "-t", signed) == "commit"
    assert recorded.git("cat-file", "-t", tag) == "tag"


def test_a_key_that_cannot_sign_stops_the_start(settings: Settings, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(locked)], check=True
    )
    for key in (tmp_path / "none", locked):
        with pytest.raises(RepositoryUnusableError, match=r"AUTOPACK_SIGNING_KEY: .* cannot sign"):
            Repository.open(settings.model_copy(update={"signing_key": key}))
