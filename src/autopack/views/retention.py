"""What retention removed, or would remove."""

from __future__ import annotations

from . import Shape, WireTime


class RetentionAnswer(Shape):
    """`bytes` is the size of the details before Postgres compresses them; `kept` is by reason."""

    before: WireTime
    is_dry_run: bool
    runs: int
    bytes: int
    kept_not_settled: int
    kept_without_record: int
    kept_in_use: int
