"""The symbolic links of a tree, and where they lead. The rule is about the tree, not a change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from .paths import Names, fixed_part, globs, names_of

_MAX_HOPS = 40  # as many as Linux follows
_LONGEST_TARGET = 4095


class LinkProblemError(Exception):
    """A link's target is refused; the message is the end of a sentence."""


class LinkTable:
    """All links of one tree: paths (as in FileChange), and the targets in their blobs.

    Links are followed name by name, as an operating system would, through other links of the tree.
    Two names are the same if any supported file system reads them as the same (`paths.names_of`).
    """

    def __init__(self, targets: Mapping[str, bytes] | None = None) -> None:
        self.targets = targets or {}
        self._paths = {names_of(path): path for path in self.targets}
        self._ends: dict[str, Names | str] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def link_at(self, names: Names) -> str | None:
        """Return the path of the link that has these names."""
        return self._paths.get(names)

    def end_of(self, path: str) -> Names | None:
        """Return the names at which a link finally ends; None where that is refused."""
        end = self._resolved(path)
        return None if isinstance(end, str) else end

    def problem_of(self, path: str) -> str | None:
        """Return why a link is refused, as the end of a sentence; None: it stays inside."""
        end = self._resolved(path)
        return end if isinstance(end, str) else None

    def follow(self, names: Names) -> Names:
        """Return the path that these names lead to when every link on the way is followed.

        Raises LinkProblemError.
        """
        place: list[str] = []
        ahead = list(reversed(names))
        hops = 0
        while ahead:
            name = ahead.pop()
            if name == "..":
                if not place:
                    raise LinkProblemError("is a link that leads out of the repository")
                place.pop()
                continue
            if name in ("", "."):
                continue
            place.append(name)
            if name == ".git":
                raise LinkProblemError("is a link that leads into a git directory")
            link = self._paths.get(tuple(place))
            if link is None:
                continue
            hops += 1
            if hops > _MAX_HOPS:
                raise LinkProblemError("is a link that leads back to itself")
            target = self.targets[link]
            _check_target(target)
            place.pop()
            ahead += reversed(names_of(target.decode(errors="surrogateescape")))
        return tuple(place)

    def _resolved(self, path: str) -> Names | str:
        known = self._ends.get(path)
        if known is None:
            try:
                known = self.follow(names_of(path))
            except LinkProblemError as problem:
                known = str(problem)
            self._ends[path] = known
        return known


NO_LINKS = LinkTable()


def link_problems(
    before: LinkTable, after: LinkTable, problem_at: Callable[[Names], str | None]
) -> Iterator[tuple[str, str]]:
    """Yield each link that a change makes lead where it must not: path, end of a sentence.

    A link is checked if its end differs from before, also where the change touches only a link on
    its way. `problem_at` says why no link may end at these names, in words that follow a comma.
    (docs/paths.md)
    """
    for path in after if after is not before else ():
        is_new = after.targets[path] != before.targets.get(path)
        problem, end = after.problem_of(path), after.end_of(path)
        if problem is not None and (is_new or problem != before.problem_of(path)):
            yield path, problem
        elif end is not None and (is_new or end != before.end_of(path)):
            why = problem_at(end)
            if why is not None:
                yield path, f"is a link to {'/'.join(end)}, {why}"


def _check_target(target: bytes) -> None:
    if not target or b"\0" in target or len(target) > _LONGEST_TARGET:
        raise LinkProblemError("is a link whose target is empty, too long, or has a NUL character")
    if target.startswith(b"/") or b"\\" in target or target[1:2] == b":":
        raise LinkProblemError(
            "is a link to an absolute or a Windows path; only relative targets are accepted"
        )


@lru_cache(maxsize=128)
def seen_through(links: LinkTable, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Return patterns, and the patterns that they also mean through links of the tree.

    With `.github/workflows` a link to `../ci`, `ci/**` is what `.github/workflows/**` protects.
    """
    found = dict.fromkeys(patterns)
    fresh = tuple(found) if links else ()
    while fresh:
        wanted = [*_moved(links, fresh), *_linked(links, fresh)]
        fresh = tuple(dict.fromkeys(each for each in wanted if each not in found))
        found |= dict.fromkeys(fresh)
    return tuple(found)


def _moved(links: LinkTable, patterns: tuple[str, ...]) -> Iterator[str]:
    """Yield the patterns whose fixed first part leads elsewhere through a link."""
    for pattern in patterns:
        fixed, rest = fixed_part(pattern)
        try:
            end = links.follow(fixed)
        except LinkProblemError:
            continue
        if end and end != fixed:
            yield "/".join(end + rest)


def _linked(links: LinkTable, patterns: tuple[str, ...]) -> Iterator[str]:
    """Yield a pattern for everything below each link that the patterns match."""
    meant = globs(patterns)
    for path in links:
        end = links.end_of(path)
        if end and meant.match(names_of(path)):
            yield "/".join([*end, "**"])
