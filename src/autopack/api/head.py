"""The limits of a request's head, which the connection and the application both check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """Most bytes of a head, and most header fields in it."""

    max_bytes: int = 64_000
    max_fields: int = 100

    def problem(self, *, size: int, fields: int) -> str | None:
        """Return why a head is refused with 431 `headers_too_large`; None: it is not."""
        if fields > self.max_fields:
            return f"more than {self.max_fields} header fields (AUTOPACK_MAX_HEADER_FIELDS)"
        if size > self.max_bytes:
            return f"a head of more than {self.max_bytes} bytes (AUTOPACK_MAX_HEADER_BYTES)"
        return None
