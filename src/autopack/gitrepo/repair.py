"""From the text that an agent sent to a patch for git: unchanged, or repaired and reported.

A patch that the strict scanner accepts is not changed. A patch with an error is repaired only if it
has exactly one possible meaning; the answer reports each repair. Repairs of the whole text are in
`repair_text.py`, those of headers and hunks in `repair_files.py`, and those of a well-formed patch
that does not apply to the head in `fit.py`. Where a repair could hide that the patch was cut off,
the ids on its `index` lines decide (`prove`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..config import Settings
from ..domain.changes import FileChange, Repair, RepairKind
from .errors import PatchMalformedError
from .formats import refuse_other_format
from .head import HeadFiles
from .hunks import images, split_lines
from .objects import path_bytes
from .patch import PatchText, Proof, ScannedFile, ScannedPatch
from .repair_files import FileRepairs
from .repair_text import TEXT_REPAIRS
from .scan import require_limit, scan_patch


def read_patch(patch: bytes, limits: Settings, head: HeadFiles) -> ScannedPatch:
    """Read a patch for a head, and repair it if it has only one possible meaning.

    Raises PatchTooLargeError with the limit and the figure, PatchMalformedError with the line in
    the text that was sent, and what to do.
    """
    require_limit(limits, "max_patch_bytes", len(patch), "bytes")
    require_limit(limits, "max_patch_lines", patch.count(b"\n"), "lines")
    text = PatchText.of(patch)
    is_trimmed = not patch.endswith(b"\n")
    if is_trimmed:
        text = _end_binary_content(text)
    try:
        scanned = scan_patch(text, limits)
    except PatchMalformedError as refusal:
        scanned = _mend(text, limits, head, refusal)
    return _note_final_newline(scanned) if is_trimmed else scanned


def prove(scanned: ScannedPatch, changes: Iterable[FileChange]) -> None:
    """Check repairs by the ids on the `index` lines.

    Raises the refusal of the first repair that the ids refute or, where a proof is required, do not
    confirm.
    """
    by_path = {path_bytes(change.path): change for change in changes}
    for proof in scanned.proofs:
        sections = [file for file in scanned.files if proof.path in (file.new_path, file.old_path)]
        verdict = None
        if len(sections) == 1 and proof.path in by_path:
            verdict = _is_proven(sections[0], by_path[proof.path])
        if verdict is False or (verdict is None and proof.is_required):
            raise proof.refusal


def refuse_unproven(scanned: ScannedPatch) -> None:
    """Refuse a patch that does not apply after an unproven repair: the repair may be the cause."""
    for proof in scanned.proofs:
        if proof.is_required:
            raise proof.refusal


def _is_proven(file: ScannedFile, change: FileChange) -> bool | None:
    """Return whether a file has the new id of its `index` line; None if it had not the old id."""
    before, after = file.index_old, file.index_new
    if before is None or after is None or not (change.old_oid or "0" * 40).startswith(before):
        return None
    return (change.new_oid or "0" * 40).startswith(after)


def _mend(
    text: PatchText, limits: Settings, head: HeadFiles, refusal: PatchMalformedError
) -> ScannedPatch:
    repairs: list[Repair] = []
    mended = text
    for repair in TEXT_REPAIRS:
        found = repair(mended)
        if found is not None:
            mended = found[0]
            repairs.append(found[1])
    refuse_other_format(mended)
    mended = _end_binary_content(mended)
    by_file = FileRepairs(mended, head)
    mended = by_file.run()
    repairs += by_file.repairs
    if not repairs:
        raise refusal
    scanned = scan_patch(mended, limits)
    scanned = replace(scanned, repairs=tuple(repairs), proofs=tuple(by_file.proofs))
    if any(repair.kind is RepairKind.LINE_ENDS for repair in repairs):
        scanned = _keep_line_ends(scanned, limits, head)
    return scanned


def _keep_line_ends(scanned: ScannedPatch, limits: Settings, head: HeadFiles) -> ScannedPatch:
    """Restore the removed CR in lines of files that have CR LF."""
    edits: dict[int, list[bytes]] = {}
    for file in scanned.files:
        content = head.read(file.old_path) if file.old_path is not None else None
        if content is None or not _needs_carriage_returns(file, set(split_lines(content))):
            continue
        for hunk in file.hunks:
            for at, line in enumerate(hunk.body, hunk.at + 1):
                after = hunk.body[at - hunk.at] if at - hunk.at < len(hunk.body) else b""
                is_without_end = after.startswith(b"\\")
                if not line.startswith(b"\\") and not is_without_end:
                    edits[at] = [line + b"\r"]
    if not edits:
        return scanned
    detail = "Lines of files that have CR LF kept it."
    kept = Repair(RepairKind.LINE_ENDS, detail, scanned.text.numbers[min(edits)])
    again = scan_patch(scanned.text.edited(edits), limits)
    return replace(again, repairs=(*scanned.repairs, kept), proofs=scanned.proofs)


def _needs_carriage_returns(file: ScannedFile, now: set[bytes]) -> bool:
    """Return whether a file has the old lines with CR LF, and not all of them with LF."""
    old = {line for hunk in file.hunks for line in images(hunk).old}
    with_returns = {line.removesuffix(b"\n") + b"\r\n" for line in old if line.endswith(b"\n")}
    return not old <= now and with_returns | {each for each in old if each[-1:] != b"\n"} <= now


def _end_binary_content(text: PatchText) -> PatchText:
    """Restore the blank line that ends binary content."""
    last = len(text.lines) - 1
    if last < 0 or not text.lines[last] or b"GIT binary patch" not in text.lines:
        return text
    return text.edited({last: [text.lines[last], b""]})


def _note_final_newline(scanned: ScannedPatch) -> ScannedPatch:
    """Report that the last newline was restored; an added last line may have been cut off."""
    last, text = scanned.files[-1], scanned.text
    repair = Repair(
        RepairKind.FINAL_NEWLINE, "The newline at the patch's end was restored.", text.numbers[-1]
    )
    proofs = scanned.proofs
    if text.lines[last.end - 1].startswith(b"+"):
        refusal = PatchMalformedError(
            "The patch ends within this line: its file's `index` line names other content.",
            line=text.numbers[last.end - 1],
        )
        proofs += (Proof(last.new_path or last.old_path or b"", False, refusal),)
    return replace(scanned, repairs=(*scanned.repairs, repair), proofs=proofs)
