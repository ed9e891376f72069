"""`autopack keys`: API keys, beside the database. (docs/security.md)

The service need not run. Where it does, a change takes effect within ten seconds.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from ..config import SettingsError
from ..domain.access import AccessRole
from ..domain.errors import AutopackError
from ..domain.identifiers import identifier_problem
from ..domain.keys import NewKey, expiry
from ..domain.limits import KeyLimits
from ..gitrepo.errors import RepositoryUnusableError
from ..migrating import DatabaseError
from .command import FINE, NO, UNAVAILABLE, CommandError, command_app
from .service import wanted_project
from .settings import read_service_settings
from .terminal import JsonOption, log_warnings_alone, print_json, print_table, say

if TYPE_CHECKING:
    from ..contexts import AppContext
    from ..views.keys import KeyAnswer, SecretKeyAnswer

app = command_app()

Name = Annotated[str, typer.Argument(metavar="NAME", help="The key's name.")]


@app.command()
def create(
    name: Annotated[str, typer.Option(metavar="NAME", help="How events name the key's user.")],
    role: Annotated[
        list[AccessRole],
        typer.Option(help="viewer, builder, auditor, ci or operator; may be repeated."),
    ],
    project: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="The one project that it is for.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="LIFETIME", help="When it stops: 12h, 90d, 8w (never).")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="AUTOPACK_KEY_REQUESTS_PER_MINUTE for this key.")
    ] = None,
    streams: Annotated[
        int | None, typer.Option(min=1, help="AUTOPACK_KEY_STREAMS for this key.")
    ] = None,
    claims: Annotated[
        int | None, typer.Option(min=1, help="AUTOPACK_KEY_CLAIMS for this key.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a key and print it, this once; the database stores its digest alone."""
    from ..contexts import create_key

    if project is not None and (problem := identifier_problem(project)):
        raise CommandError(f"--project: {problem}")
    with _beside_database(project) as context:
        try:
            expires_at = None if expires is None else expiry(expires, context.now())
            wanted = NewKey(
                name=name,
                roles=tuple(role),
                project_id=project,
                expires_at=expires_at,
                limits=KeyLimits(
                    requests_per_minute=requests_per_minute, streams=streams, claims=claims
                ),
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise CommandError(f"--{first['loc'][0]}: {first['msg']}") from error
        except ValueError as error:
            raise CommandError(f"--expires {error}") from error
        made = create_key(context, wanted)
    _tell(made, as_json=json)


@app.command("list")
def list_all(json: JsonOption = False) -> None:
    """List every key that there is or was; `last used` is exact to a minute."""
    from ..contexts import list_keys

    with _beside_database() as context:
        found = list_keys(context)
    if json:
        print_json({"keys": [key.model_dump(mode="json") for key in found]})
        return
    headings = ("name", "state", "roles", "project", "created", "expires", "last used")
    print_table(headings, (_row(key) for key in found))


@app.command()
def revoke(name: Name, json: JsonOption = False) -> None:
    """End a key for good."""
    from ..contexts import revoke_key

    with _beside_database() as context:
        revoked = revoke_key(context, name)
    if json:
        print_json(revoked)
    else:
        say(f"Key '{name}' is revoked; services that run refuse it within ten seconds.")


@app.command()
def rotate(name: Name, json: JsonOption = False) -> None:
    """Give a key a new secret and print it, this once; the old one works for another hour."""
    from ..contexts import rotate_key

    with _beside_database() as context:
        made = rotate_key(context, name)
    _tell(made, as_json=json)


@app.command()
def audit(
    limit: Annotated[int, typer.Option(min=1, help="How many of the last entries.")] = 100,
    json: JsonOption = False,
) -> int:
    """Print the log of keys and policy, and check its chain of hashes.

    Ends with 1 when an entry does not follow from those before it.
    """
    from ..contexts import first_broken_entry, last_entries

    with _beside_database() as context:
        broken = first_broken_entry(context)
        entries = last_entries(context, limit)
    if json:
        shown = [entry.model_dump(mode="json") for entry in entries]
        print_json({"first_broken": broken, "entries": shown})
    else:
        rows = (
            (e.sequence, f"{e.at:%Y-%m-%d %H:%M:%S}", e.actor, e.action, e.subject) for e in entries
        )
        print_table(("", "at", "actor", "action", "subject"), rows)
        if broken is not None:
            say(f"Entry {broken} does not follow from those before it.")
    return FINE if broken is None else NO


@contextmanager
def _beside_database(project: str | None = None) -> Iterator[AppContext]:
    """Open the data of a project, by default of the chosen one. Raises CommandError."""
    log_warnings_alone()
    from ..contexts import beside_database

    try:
        settings = read_service_settings()
        with beside_database(settings, _own_name(), wanted_project(project)) as context:
            yield context
    except (SettingsError, RepositoryUnusableError) as error:
        raise CommandError(str(error)) from error
    except DatabaseError as error:
        raise CommandError(str(error), UNAVAILABLE) from error
    except AutopackError as error:
        raise CommandError(f"{error.detail} ({error.code})") from error


def _own_name() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as containers have
        user = "operator"
    return f"{user}@{socket.gethostname()}"


def _tell(made: SecretKeyAnswer, *, as_json: bool) -> None:
    """Print a new key alone on standard output, and what to do with it on standard error."""
    if as_json:
        print_json(made)
        return
    say(made.api_key)
    key = made.key
    until = f" until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else ""
    say(
        f"Key '{key.name}' ({', '.join(key.roles)}){until}. It is shown this once. Its user sets"
        " AUTOPACK_API_KEY, or runs `autopack login`.",
        is_error=True,
    )


def _row(key: KeyAnswer) -> Sequence[object]:
    moments = (key.created_at, key.expires_at, key.last_used_at)
    shown = (f"{moment:%Y-%m-%d %H:%M}" if moment else "" for moment in moments)
    return (key.name, key.state, ", ".join(key.roles), key.project_id or "any", *shown)
