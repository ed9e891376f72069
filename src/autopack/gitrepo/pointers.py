"""Content that a commit only points to: submodules, and files in Git LFS.

Neither is fetched for agents or CI, since the address is in `.gitmodules` or `.lfsconfig`, which
any author of a commit can change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..domain.changes import MODE_SUBMODULE
from ..domain.listing import listed
from .errors import GitFailedError, GitTimeoutError, PatchTooLargeError
from .objects import TreeDraft
from .process import GitResult

_LFS_HEAD = "version https://git-lfs.github.com/spec/"
_MAX_BYTES = 100_000  # the largest file that names them
_MAX_PATTERNS = 100


@dataclass(frozen=True, slots=True)
class Pointers:
    """Paths whose content is not in the repository."""

    submodules: tuple[str, ...] = ()
    lfs_files: tuple[str, ...] = ()

    def warnings(self) -> list[str]:
        """Return for each kind one sentence on what agents and CI find instead."""
        found = []
        if self.submodules:
            names, is_one = _names(self.submodules), len(self.submodules) == 1
            what = "is a submodule" if is_one else "are submodules"
            found.append(f"{names} {what}: agents and CI find an empty folder there")
        if self.lfs_files:
            names, is_one = _names(self.lfs_files), len(self.lfs_files) == 1
            what = "is a file of Git LFS" if is_one else "are files of Git LFS"
            found.append(f"{names} {what}: agents and CI find a pointer, not the content")
        return found


def find_pointers(
    commit: str,
    tree: str,
    read: Callable[[str], bytes],
    git: Callable[..., GitResult],
) -> Pointers:
    """Find pointers by the top `.gitmodules` and `.gitattributes`; else no process runs."""
    draft = TreeDraft(tree, read)

    def content(path: bytes) -> bytes:
        entry = draft.lookup(path)
        return read(entry[1])[:_MAX_BYTES] if entry is not None else b""

    paths = dict.fromkeys(_submodule_paths(content(b".gitmodules")))
    submodules = tuple(path for path in paths if _is_submodule(draft, path))
    patterns = list(_lfs_patterns(content(b".gitattributes")))
    files = _lfs_files(commit, patterns[:_MAX_PATTERNS], git) if patterns else ()
    return Pointers(tuple(map(_text, submodules)), tuple(files))


def _submodule_paths(modules: bytes) -> Iterator[bytes]:
    for line in modules.splitlines():
        name, _, value = line.partition(b"=")
        if name.strip() == b"path":
            yield value.strip().strip(b'"').rstrip(b"/")


def _lfs_patterns(attributes: bytes) -> Iterator[bytes]:
    for line in attributes.splitlines():
        text = line.strip()
        if text.startswith(b'"'):  # a name with blanks
            pattern, _, rest = text[1:].partition(b'"')
        else:
            pattern, _, rest = text.replace(b"\t", b" ").partition(b" ")
        if b"filter=lfs" in rest.split() and not pattern.startswith(b"#"):
            yield pattern


def _is_submodule(draft: TreeDraft, path: bytes) -> bool:
    entry = draft.lookup(path) if path and not path.startswith(b"/") else None
    return entry is not None and entry[0] == MODE_SUBMODULE


def _lfs_files(commit: str, patterns: list[bytes], git: Callable[..., GitResult]) -> Iterator[str]:
    # A pattern without a slash matches a name at any depth, as in .gitignore.
    globs = (
        pattern.removeprefix(b"/") if b"/" in pattern.rstrip(b"/") else b"**/" + pattern
        for pattern in patterns
    )
    options = ("grep", "-l", "-z", "-F", "-e", _LFS_HEAD, commit, "--")
    try:
        result = git(*options, *(f":(top,glob){_text(each)}" for each in globs), allowed=(0, 1))
    except (GitFailedError, GitTimeoutError, PatchTooLargeError):
        return  # the result is only a warning, so a failure is ignored
    for line in result.stdout.split(b"\0")[:-1]:
        yield _text(line.partition(b":")[2])


def _names(paths: tuple[str, ...]) -> str:
    return listed([path.encode(errors="backslashreplace").decode() for path in paths], 3)


def _text(path: bytes) -> str:
    return path.decode(errors="surrogateescape")
