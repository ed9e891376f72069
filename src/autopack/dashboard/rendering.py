"""Renders templates, with the headers that every page has.

Everything that a page shows is foreign text: Jinja escapes it, and these filters take out what a
browser would not show as text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Final

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import __version__
from ..api.credentials import SESSION_COOKIE
from ..api.guard import caller_of
from ..api.places import PATH as PROJECTS
from ..api.places import places_of
from ..domain.access import AccessRole
from ..domain.attention import BUDGET_SHARE
from ..domain.events import wire_time
from ..domain.money import short_usd
from ..domain.printable import lines_of
from ..domain.run import has_ended_early
from ..domain.state_words import PHASE_WORDS, TIER_WORDS
from ..domain.states import PhaseStatus
from ..domain.times import duration

HOME: Final = "/dashboard"
THEME_COOKIE: Final = "theme"
STATIC: Final = Path(__file__).parent / "static"
POLICY: Final = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
PARTS: Final = (
    *("icon", "state", "when", "copy", "bar", "measured", "token_kinds", "pips", "rail", "diff"),
    "share",
)
CLIPPED: Final = 20_000
_ANSI: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


@cache
def assets_version() -> str:
    """Return a digest over all static files: their address changes with any of them."""
    digest = hashlib.sha256()
    for path in sorted(STATIC.iterdir()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def clean(value: str) -> str:
    """Return foreign text without terminal sequences, and cut where it is too long."""
    if len(value) > CLIPPED:
        value = f"{value[:CLIPPED]}… ({len(value) - CLIPPED:,} more characters)"
    return lines_of(_ANSI.sub("", value))


def ago(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment is, or in how long it comes."""
    seconds = (now - moment).total_seconds()
    return f"in {duration(-seconds)}" if seconds < 0 else f"{duration(seconds)} ago"


def exact(moment: datetime) -> str:
    """Return a moment in full, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def rail_words(tiers: Sequence[Any]) -> str:
    """Return the states of all phases as one sentence, for those who cannot see the icons."""
    counts: dict[PhaseStatus, int] = {}
    for tier in tiers:
        for phase in tier.phases:
            counts[phase.state] = counts.get(phase.state, 0) + 1
    words = [f"{number} {PHASE_WORDS[state]}" for state, number in counts.items()]
    return "phases: " + (", ".join(words) or "none")


def _finalize(value: Any) -> Any:
    return clean(value) if type(value) is str else value


_WORDS: Final = dict[str, str]((*PHASE_WORDS.items(), *TIER_WORDS.items()))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or "autopack.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        n=lambda value: f"{value:,}",
        usd=lambda value: short_usd(Decimal(value)),
        iso=wire_time,
        exact=exact,
        duration=duration,
        railwords=rail_words,
        ended_early=lambda tier: has_ended_early(tier.state, tier.phases),
        percent=lambda value: "-" if value is None else f"{value:.1%}",
    )
    environment.globals.update(
        version=__version__,
        static=f"{HOME}/static/{assets_version()}",
        BUDGET_SHARE=BUDGET_SHARE,
        WORDS=_WORDS,
    )
    return environment


ENVIRONMENT: Final = _environment()


class Page:
    """What the pages of one request share: who reads them, and the address prefix of a proxy."""

    def __init__(self, request: Request, now: datetime) -> None:
        self.request = request
        self.now = now
        self.root = str(request.scope.get("root_path", "")).rstrip("/")
        caller = request.scope.get("caller")
        self.caller = caller_of(request.scope) if caller is not None else None
        self.theme = request.cookies.get(THEME_COOKIE, "")

    @property
    def may_act(self) -> bool:
        """Whether the reader may do what operators do."""
        return self.caller is not None and AccessRole.OPERATOR in self.caller.roles

    def _other_projects(self, shown: str) -> list[tuple[str, str]]:
        """Return the names and pages of the other projects that the reader may see."""
        if self.caller is None:
            return []
        service = self.root
        if (named := self.request.scope.get("project")) is not None:
            service = service.removesuffix(f"{PROJECTS}/{named}")
        places = places_of(self.request.scope)
        return [
            (name, f"{service}{'' if is_default else f'{PROJECTS}/{name}'}{HOME}")
            for name, is_default in places.names_for(self.caller)
            if name != shown
        ]

    def values(self) -> dict[str, Any]:
        """Return the values that every template gets, with the macros of parts.html."""
        settings = self.request.app.state.settings
        holder = None
        if self.caller is not None and self.caller.key is not None:
            roles = ", ".join(role for role in AccessRole if role in self.caller.roles)
            holder = f"{self.caller.key} ({roles})"
        return with_parts(
            {
                "root": self.root,
                "home": f"{self.root}{HOME}",
                "now": self.now,
                "theme": self.theme if self.theme in ("light", "dark") else "",
                "may_act": self.may_act,
                "signed_in": holder,
                "has_session": SESSION_COOKIE in self.request.cookies,
                "project": settings.project_id,
                "other_projects": self._other_projects(settings.project_id),
                "here": "",
                "bare": False,
                "json": (),
                "stream": None,
            }
        )

    def render(self, template: str, status_code: int = 200, /, **values: Any) -> HTMLResponse:
        """Return a whole page."""
        text = ENVIRONMENT.get_template(template).render(self.values() | values)
        return HTMLResponse(text, status_code, headers=dict(page_headers()))


def page_headers() -> Mapping[str, str]:
    """Return the headers of every page: nothing from elsewhere, and no copy in a cache."""
    return {
        "Content-Security-Policy": POLICY,
        "Cache-Control": "no-store",
        # With `no-referrer` browsers send `Origin: null` with our own forms, which is no origin.
        "Referrer-Policy": "same-origin",
        "Vary": "Cookie",
    }


def with_parts(values: dict[str, Any]) -> dict[str, Any]:
    """Return a template's values, and the macros of parts.html for them."""
    now = values["now"]
    values["ago"] = lambda moment: ago(moment, now)
    parts = ENVIRONMENT.get_template("parts.html").make_module(values)
    return values | {name: getattr(parts, name) for name in PARTS}


def fragment(template: str, name: str, values: Mapping[str, Any]) -> str:
    """Return one block of a template alone: the part of a page that changes while it is open."""
    found = ENVIRONMENT.get_template(template)
    return "".join(found.blocks[name](found.new_context(dict(values))))
