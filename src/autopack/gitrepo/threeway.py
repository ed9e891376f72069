"""Merge a patch into a newer head: find the commit that it was made against, and merge.

It does not use `git apply -3`, which can write into a work tree in spite of `--cached`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .apply import RefusedError, apply_to_tree
from .errors import PatchMalformedError, PatchPolicyError
from .patch import ScannedPatch
from .quarantine import Quarantine

# An agent's work is not older than that; reading all of a long history takes minutes.
_MAX_COMMITS = 2_000
_COMMIT_ID = re.compile(r"[0-9a-f]{7,40}")
_ABSENT = "0" * 40


@dataclass(frozen=True, slots=True)
class Merge:
    """The result of a merge: the tree if it was clean, else git's messages about the conflicts.

    `base` is the commit that the patch was made against, if one was found.
    """

    base: str | None
    tree: str | None
    problems: tuple[str, ...]


def merge(
    quarantine: Quarantine, head: str, scanned: ScannedPatch, base_commit: str | None
) -> Merge:
    """Merge the patch with the head, in quarantine.

    The merge base is the commit of the head's history whose files have the ids on the patch's
    `index` lines; else `base_commit`, if that is in the head's history.
    """
    problems = []
    by_index = _commit_of_index_lines(quarantine, head, scanned)
    if by_index is None:
        problems.append("Its `index` lines, if any, match no commit of the branch's history.")
    given = _commit_in_history(quarantine, head, base_commit) if base_commit else None
    if given is None:
        problems.append(
            f"base_commit {base_commit} is not a commit of the branch's history."
            if base_commit
            else "No base_commit was given."
        )
    for base in dict.fromkeys(commit for commit in (by_index, given) if commit is not None):
        try:
            _, result = apply_to_tree(quarantine, scanned, tree_of(quarantine, base))
        except (RefusedError, PatchPolicyError, PatchMalformedError) as error:
            problems.append(f"The patch does not apply to its base {base} either: {error}")
            continue
        theirs, trees = result.write()
        quarantine.store(trees)
        return _merge_trees(quarantine, base, tree_of(quarantine, head), theirs)
    return Merge(None, None, tuple(problems))


def tree_of(quarantine: Quarantine, commit: str) -> str:
    return quarantine.read(commit)[1][5:45].decode()


def recent_commits(quarantine: Quarantine, head: str) -> list[str]:
    """Return the revision arguments that limit git to a head's recent history."""
    options = ("--verify", "--quiet", "--end-of-options")
    oldest = quarantine.git("rev-parse", *options, f"{head}~{_MAX_COMMITS}", allowed=(0, 1, 128))
    return [head, f"^{oldest.stdout.decode().strip()}"] if oldest.status == 0 else [head]


def _merge_trees(quarantine: Quarantine, base: str, ours: str, theirs: str) -> Merge:
    # `merge-tree` needs commits and finds their merge base by itself, so three commits are made
    # with exactly that history.
    root = write_commit(quarantine, tree_of(quarantine, base))
    head = write_commit(quarantine, ours, root)
    patch = write_commit(quarantine, theirs, root)
    result = quarantine.git(
        "merge-tree", "--write-tree", "--messages", "-z", head, patch, allowed=(0, 1)
    )
    tree, _, rest = result.stdout.partition(b"\0")
    if result.status == 0:
        return Merge(base, tree.decode(), ())
    _, _, messages = rest.partition(b"\0\0")
    texts = messages.decode(errors="backslashreplace").split("\0")
    problems = (text.strip() for text in texts if text.startswith("CONFLICT"))
    return Merge(
        base,
        None,
        tuple(text.replace(head, "the branch").replace(patch, "the patch") for text in problems),
    )


def write_commit(quarantine: Quarantine, tree: str, *parents: str) -> str:
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents)]
    lines += [f"{role} Autopack <autopack@localhost> 0 +0000" for role in ("author", "committer")]
    return quarantine.write("commit", "\n".join([*lines, "", "Merge", ""]).encode())


def _commit_in_history(quarantine: Quarantine, head: str, commit: str) -> str | None:
    """Return the full id of a commit that the head descends from.

    No other commit may be a base: its content would be shown in the repair ticket.
    """
    if not _COMMIT_ID.fullmatch(commit):
        return None
    options = ("--verify", "--quiet", "--end-of-options")
    found = quarantine.git("rev-parse", *options, f"{commit}^{{commit}}", allowed=(0, 1, 128))
    if found.status:
        return None
    full = found.stdout.decode().strip()
    ancestry = quarantine.git("merge-base", "--is-ancestor", full, head, allowed=(0, 1, 128))
    return full if ancestry.status == 0 else None


def _commit_of_index_lines(quarantine: Quarantine, head: str, scanned: ScannedPatch) -> str | None:
    """Return the latest commit before the head whose files all have the ids in the patch's headers.

    An abbreviated id counts only if it matches exactly one version of its file.
    """
    wanted = _versions_before(scanned)
    if not wanted:
        return None
    at_head = quarantine.draft(tree_of(quarantine, head))
    versions = {path: (at_head.lookup(path) or (0, _ABSENT))[1] for path in wanted}
    seen = {path: {oid} for path, oid in versions.items()}
    base = None
    # Going back, the log entry of a commit gives the versions of its files in its parent.
    for parent, changes in _walk(_log_of(quarantine, head, wanted)):
        for path, old in changes:
            if path in wanted:  # and not a file beneath it, where it was a folder for a while
                versions[path] = old
                seen[path].add(old)
        if base is None and all(versions[path].startswith(oid) for path, oid in wanted.items()):
            base = parent
    for path, oid in wanted.items():
        if sum(version.startswith(oid) for version in seen[path]) != 1:
            return None
    return base


def _versions_before(scanned: ScannedPatch) -> dict[bytes, str]:
    """Return the id, maybe abbreviated, that each file had before the patch; new files have none.

    Empty if a file with hunks has no id: then nothing identifies the base.
    """
    wanted: dict[bytes, str] = {}
    for file in scanned.files:
        is_new = file.old_path is None
        path = file.new_path if is_new else file.old_path
        oid = _ABSENT if is_new else file.index_old
        if file.hunks and not is_new and (oid is None or not oid.strip("0")):
            return {}
        if path is not None and oid is not None and b"\n" not in path:
            wanted.setdefault(path, oid)  # a later patch of the same file starts from an earlier
    return wanted


def _log_of(quarantine: Quarantine, head: str, paths: Iterable[bytes]) -> bytes:
    """Return the log of a head's recent commits that changed some paths, for `_walk`."""
    revisions = "\n".join([*recent_commits(quarantine, head), "--", ""]).encode()
    return quarantine.git(
        "--literal-pathspecs",
        "log",
        *("--first-parent", "-m", "--raw", "--no-abbrev", "--no-renames", "-z"),
        *("--format=%P", "--stdin"),
        stdin=revisions + b"".join(path + b"\n" for path in paths),
        allowed=(0, 128),
    ).stdout


def _walk(log: bytes) -> Iterator[tuple[str, list[tuple[bytes, str]]]]:
    """Yield for each commit of a log its parent, and its changed files' ids in that parent."""
    words = iter(log.split(b"\0"))
    parent: str | None = None
    changes: list[tuple[bytes, str]] = []
    for word in words:
        if word.startswith((b":", b"\n:")):
            changes.append((next(words), word.split(b" ")[2].decode()))
            continue
        if parent:
            yield parent, changes
        parent, changes = word.partition(b" ")[0].decode(), []
