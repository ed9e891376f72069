"""The commits and the record in an archive of a run, checked before anything of them is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from ..domain.naming import RECORD, branch_name, branch_ref, record_folder, snapshot_ref
from ..domain.printable import one_line
from ..domain.record_check import check_copied
from ..domain.record_text import JsonObject, RecordSubject
from ..gitrepo import GitFailedError
from ..gitrepo.quarantine import Quarantine
from ..gitrepo.repository import Repository
from ..views.exports import RunManifest
from .archives import Archive, ArchiveError
from .exports import BUNDLE

MOST_RECORD_BYTES: Final = 256 << 20
MOST_RECORD_VALUES: Final = 10_000_000
#: The tags of snapshots: by name, their object and its commit.
Tags = dict[str | None, tuple[str | None, str | None]]
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Branch:
    """What the bundle has of a run's branch: its commits with their parents, and its end."""

    history: list[list[str]]  # the oldest first, each a commit's id and those of its parents
    tags: Tags
    record: bytes
    last_message: str


def check_commits(
    repository: Repository, archive: Archive, manifest: RunManifest
) -> tuple[JsonObject, Tags]:
    """Check bundle and record in a quarantine; return the record and the tags of snapshots.

    Raises ArchiveError.
    """
    try:
        with repository.quarantine() as quarantine:
            refs = _unbundle(repository, archive, manifest, quarantine)
            branch = _read_branch(quarantine, refs, manifest)
    except (GitFailedError, ValueError) as error:
        detail = getattr(error, "detail", str(error))
        raise ArchiveError(f"{BUNDLE} is not whole: {one_line(detail)[:500]}") from None
    record = _check_record(archive, branch, manifest)
    _check_history(branch, record, manifest.base_commit)
    return record, branch.tags


def _unbundle(
    repository: Repository, archive: Archive, manifest: RunManifest, quarantine: Quarantine
) -> dict[str, str]:
    """Put the bundle's objects into the quarantine; return the refs of snapshots."""
    refs = repository.bundles.read(
        archive.open(BUNDLE), into=quarantine.environment, max_bytes=archive.size(BUNDLE)
    )
    if refs.pop(branch_ref(manifest.run_id), None) != manifest.head_commit:
        raise ArchiveError(f"{BUNDLE} has no branch at {manifest.head_commit}")
    prefix = snapshot_ref(branch_name(manifest.run_id)) + "/"
    others = [ref for ref in refs if not ref.startswith(prefix)]
    if others:
        raise ArchiveError(f"{BUNDLE} has {one_line(others[0])[:100]}, which is not its run's")
    quarantine.git(  # each object is there
        *("rev-list", "--objects", "--quiet", manifest.head_commit, *refs.values()),
        f"^{manifest.base_commit}",
    )
    return refs


def _read_branch(quarantine: Quarantine, refs: dict[str, str], manifest: RunManifest) -> _Branch:
    """Read the branch, and the commits of the snapshots' refs, of which each must have one."""
    head = manifest.head_commit
    tagged = quarantine.git(
        *("cat-file", "--batch-check=%(objectname) %(objecttype)"),
        stdin="".join(f"{oid}^{{commit}}\n" for oid in refs.values()).encode(),
    ).stdout.decode()
    listed = quarantine.git("rev-list", "--parents", "--reverse", head, f"^{manifest.base_commit}")
    place = f"{head}:{record_folder(manifest.run_id)}/{RECORD}"
    size = int(quarantine.git("cat-file", "-s", place).stdout)
    if size > MOST_RECORD_BYTES:
        raise ArchiveError(f"{RECORD} of the record has {size} bytes")
    commit = quarantine.git("cat-file", "commit", head).stdout
    return _Branch(
        history=[line.split() for line in listed.stdout.decode().splitlines()],
        tags={
            ref.removeprefix(snapshot_ref("")): (oid, line.partition(" ")[0])
            for (ref, oid), line in zip(refs.items(), tagged.splitlines(), strict=True)
        },
        record=quarantine.git("cat-file", "blob", place).stdout,
        last_message=commit.partition(b"\n\n")[2].decode("utf-8", "replace"),
    )


def _check_record(archive: Archive, branch: _Branch, manifest: RunManifest) -> JsonObject:
    """Check the record by the offline checker's rules, and return it."""
    if branch.record != archive.open(RECORD).read(MOST_RECORD_BYTES + 1):
        raise ArchiveError(f"{RECORD} is not the one of the last commit")
    if not has_few_values(branch.record, MOST_RECORD_VALUES):
        raise ArchiveError(f"{RECORD} has more than {MOST_RECORD_VALUES} values")
    subject = RecordSubject(
        run_id=manifest.run_id,
        branch=branch_name(manifest.run_id),
        base_branch=manifest.base_branch,
    )
    checked = check_copied(branch.record, branch.last_message, subject)
    if checked.record is None or checked.reasons:
        raise ArchiveError(f"the record is refused: {one_line(checked.reasons[0])[:500]}")
    return checked.record


def _check_history(branch: _Branch, record: JsonObject, base_commit: str) -> None:
    """Check that the branch is one line of the record's commits, and has all snapshots."""
    at = base_commit
    for commit, *parents in branch.history:
        if parents != [at]:
            raise ArchiveError(f"the branch is not one line from {base_commit}")
        at = commit
    commits = [commit for commit, *_ in branch.history]
    named = [each["sha"] for each in record["commits"]]
    if commits[: len(named)] != named:
        raise ArchiveError("the branch has other commits than its record names")
    if not {commit for _, commit in branch.tags.values()} <= {*commits}:
        raise ArchiveError(f"{BUNDLE} has a tag of a commit that is not on the branch")


def has_few_values(text: bytes, most: int) -> bool:
    """Say whether JSON has no more than so many values; as objects they need much more memory."""
    bare = _STRING.sub(b"", text)
    return sum(map(bare.count, (b",", b"[", b"{", b":"))) <= most
