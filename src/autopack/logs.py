"""The log lines and the traces of a process."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack, suppress

import structlog

from . import tracing
from .config import Settings
from .domain.keys import without_keys
from .domain.printable import lines_of


class _Output:
    """Writes log lines; ignores write errors (a closed pipe, a full disk), so that work goes on."""

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            sys.stdout.write(f"{lines_of(without_keys(message))}\n")
            sys.stdout.flush()

    debug = info = warning = error = critical = exception = msg


def configure_logging(settings: Settings) -> None:
    """Write log lines in the shape that the settings name."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, repr_native_str=True)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=lambda *_: _Output(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


def trace(settings: Settings, stack: ExitStack) -> None:
    """Trace until the stack is closed, if the settings name a collector."""
    if settings.otlp_endpoint is not None:
        stack.callback(tracing.start(settings.otlp_endpoint, "autopack"))
