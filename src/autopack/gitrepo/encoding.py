"""The bytes of commits and tags: pure functions of what they say."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from .objects import encode_loose

IDENTITY = "Autopack <autopack@localhost>"


def commit_lines(parents: Sequence[str], tree: str, at: datetime) -> list[str]:
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents)]
    return [*lines, *(f"{role} {_by(at)}" for role in ("author", "committer"))]


def tag_lines(name: str, commit: str, at: datetime) -> list[str]:
    return [f"object {commit}", "type commit", f"tag {name}", f"tagger {_by(at)}"]


def encode_commit(
    parents: Sequence[str], tree: str, message: str, at: datetime, signature: str | None
) -> tuple[str, bytes]:
    """Return a commit's id and the bytes of its file."""
    lines = commit_lines(parents, tree, at)
    if signature:
        lines += f"gpgsig {signature}".rstrip("\n").replace("\n", "\n ").split("\n")
    return _encode("commit", lines, message)


def encode_tag(
    name: str, commit: str, message: str, at: datetime, signature: str | None
) -> tuple[str, bytes]:
    """Return an annotated tag's id and the bytes of its file."""
    signed = message.rstrip("\n") + "\n" + (signature or "")
    return _encode("tag", tag_lines(name, commit, at), signed)


def object_text(lines: list[str], message: str) -> bytes:
    text = "\n".join([*lines, "", message.rstrip("\n"), ""])
    return text.encode(errors="surrogateescape")


def _encode(kind: str, lines: list[str], message: str) -> tuple[str, bytes]:
    if "\0" in message or any("\n" in line for line in lines):
        raise ValueError(f"a {kind} cannot contain a NUL, nor its header a newline")
    return encode_loose(kind, object_text(lines, message))


def _by(at: datetime) -> str:
    if at.tzinfo is None:
        raise ValueError("a commit's time must have a time zone")
    return f"{IDENTITY} {int(at.timestamp())} +0000"
