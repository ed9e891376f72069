"""The service's settings, read once from environment and file. No other code reads them there."""

from __future__ import annotations

import difflib
import json
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

from .domain.identifiers import identifier_problem
from .domain.naming import ruleset_name
from .domain.oidc import ProjectClaims, RoleClaims
from .domain.retention import read_retention

MEGABYTE = 1_000_000
# The project of every service that was not given another name, before folders gave them names.
FORMER_PROJECT = "Autopack"
# In the service's home: the name under which its data are.
PROJECT_FILE = "project_id"
# Names that the client, the worker, CI commands and the container use.
_OTHER_VARIABLES = frozenset(
    f"AUTOPACK_{name}"
    for name in (
        *(
            "API_KEY",
            "API_KEY_FILE",
            "DB_PASSWORD",
            "URL",
            "PROJECT",
            "WORKER_HOME",
            "WORK_ITEM",
            "RESULT",
            "REPO",
            "UID",
            "GID",
        ),
        *("RUN_ID", "PHASE_ID", "COMMIT", "CI_ATTEMPT", "CI_RUN", "TEST_DATABASE_URL"),
        *("PUSH_USERNAME", "PUSH_PASSWORD"),
    )
)


def _decoded(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("is not JSON") from None


class SettingsError(Exception):
    """A setting has a wrong value. The message is one line that names it."""


class Settings(BaseSettings):
    """All settings of the service. The guide's names have no prefix, others begin with AUTOPACK_.

    Relative `home` and runs directory start at the top of the served repository, so that a start
    from any folder inside it finds the same data.
    """

    model_config = SettingsConfigDict(
        env_prefix="AUTOPACK_",
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        env_ignore_empty=True,
    )

    env_file: Path | None = Field(
        default=None,
        description="File of further settings, one `NAME=value` a line; unset: `.env` beside"
        " Autopack's own code, if it runs from a checkout. The environment wins over it.",
    )
    # Before `home` and `autonomous_runs_dir`, which are relative to it.
    repo_path: Path = Field(default=Path("."), description="The git repository for runs.")
    database_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("DATABASE_URL"),
        description="Postgres connection string; unset: the embedded Postgres.",
    )
    autonomous_runs_dir: Path = Field(
        default=Path(".autonomous_runs"),
        validation_alias=AliasChoices("AUTONOMOUS_RUNS_DIR"),
        description="Folder that mirrors every run as files.",
    )
    testing: bool = Field(
        default=False,
        validation_alias=AliasChoices("TESTING"),
        description="`1` skips the database's migration at start.",
    )

    home: Path = Field(
        default=Path(".autopack"),
        description="Folder for the embedded Postgres, logs and temporary files.",
    )
    project_id: str = Field(
        default=FORMER_PROJECT,
        description="Name of the project, in every run; unset: the one of the data that are there,"
        " else that of the repository's folder.",
    )
    base_branch: str | None = Field(
        default=None,
        description="Branch that runs start from; unset: `main`, else the repository's default.",
    )
    auth: Literal["loopback", "required", "disabled"] = Field(
        default="loopback",
        description="Which callers are answered: those on this machine only, those with an API key,"
        " or all. More in docs/security.md.",
    )
    oidc_issuer: str | None = Field(
        default=None,
        description="Issuer of OpenID Connect tokens that are accepted in place of a key, such as"
        " `https://token.actions.githubusercontent.com`; unset: none. More in docs/security.md.",
    )
    oidc_audience: str | None = Field(
        default=None, description="Audience that such a token must be for; needed with an issuer."
    )
    oidc_claims: Annotated[RoleClaims | None, NoDecode] = Field(
        default=None,
        description="JSON: for each role the claims that a token must have; needed with an issuer.",
        validate_default=True,
    )
    oidc_project_claims: Annotated[ProjectClaims | None, NoDecode] = Field(
        default=None,
        description="JSON: the same for each further project, by its name, as"
        ' `{"shop": {"ci": {"repository": "acme/shop"}}}`.',
    )
    key_requests_per_minute: int = Field(
        default=1_200,
        gt=0,
        description="Most requests a minute of an API key that has no limit of its own; each"
        " service counts alone.",
    )
    key_streams: int = Field(
        default=50,
        gt=0,
        description="Most open event streams of such a key; each service counts alone.",
    )
    key_claims: int = Field(
        default=50, gt=0, description="Most leases that such a key holds at a time."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("localhost", "127.0.0.1", "[::1]"),
        description="Host names the service answers to, separated by commas.",
    )
    git_remote: SecretStr | None = Field(
        default=None,
        description="Where runs' branches and tags are pushed: an address, or the name of a remote"
        " of the repository; unset: nowhere. More in docs/remote.md.",
    )
    ssh_auth_sock: Path | None = Field(
        default=None,
        validation_alias=AliasChoices("SSH_AUTH_SOCK"),
        description="Socket of the ssh agent that pushes use, beside the keys in `~/.ssh`.",
    )
    commit_run_record: bool = Field(
        default=True,
        description="Whether a run that ends is recorded by a commit on its branch. More in"
        " docs/promotion.md.",
    )
    jobs: Literal["inside", "outside"] = Field(
        default="inside",
        description="Where background work is done: in the service's own process, or in processes"
        " of their own, `autopack jobs`.",
    )
    processes: int = Field(
        default=1,
        gt=0,
        le=64,
        description="Processes that answer requests; more than one use more processors, and leave"
        " background work to one beside them. More in docs/operations.md.",
    )
    ci_workers: int | None = Field(
        default=None,
        gt=0,
        description="Most CI runs of a process at a time; unset: one for every two cores.",
    )
    signing_key: Path | None = Field(
        default=None,
        description="File of the private SSH key that signs records and snapshots; unset: they are"
        " not signed.",
    )
    public_url: str | None = Field(
        default=None,
        description="Address at which people reach the service, for links in notifications; unset:"
        " that of AUTOPACK_HOST and AUTOPACK_PORT.",
    )
    github_token: SecretStr | None = Field(
        default=None,
        description="Token by which webhooks of the format `github` start promotion.yml; unset:"
        " none. More in docs/webhooks.md.",
    )
    github_api: str = Field(
        default="https://api.github.com", description="Address of GitHub's API."
    )
    webhook_private: bool = Field(
        default=False,
        description="Whether webhooks may go to private and loopback addresses, and by `http://`."
        " More in docs/webhooks.md.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="Collector of OpenTelemetry for traces, by OTLP over HTTP (extra `otel`).",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Shape of the log lines."
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on.")

    max_body_bytes: int = Field(default=20 * MEGABYTE, gt=0, description="Largest request body.")
    max_header_bytes: int = Field(
        default=64_000, gt=0, description="Most bytes of a request's line and header fields."
    )
    max_header_fields: int = Field(default=100, gt=0, description="Most header fields.")
    stalled_seconds: int = Field(
        default=30, gt=0, description="Longest time without progress in a request's head or body."
    )
    max_connections: int | None = Field(
        default=None,
        gt=0,
        description="Most connections of clients; unset: as the limit of open files allows.",
    )
    max_json_depth: int = Field(default=32, gt=0, description="Deepest nesting of a JSON body.")
    max_json_values: int = Field(default=300_000, gt=0, description="Most values in a JSON body.")
    max_list_items: int = Field(
        default=200,
        gt=0,
        description="Most items of a list in a body that has no limit of its own, most names of an"
        " object.",
    )
    max_evidence_refs: int = Field(default=100, gt=0, description="Most references of an issue.")
    max_suggested_issues: int = Field(
        default=200, gt=0, description="Most issues that one result reports."
    )
    max_plan_phases: int = Field(default=500, gt=0, description="Most phases in one plan.")
    max_plan_tiers: int = Field(default=100, gt=0, description="Most tiers in one plan.")
    max_patch_bytes: int = Field(default=10 * MEGABYTE, gt=0, description="Largest patch.")
    max_patch_files: int = Field(
        default=2_000, gt=0, description="Most files in a patch, or in the list of them."
    )
    max_patch_hunks: int = Field(default=20_000, gt=0, description="Most hunks in a patch.")
    max_patch_lines: int = Field(default=1_000_000, gt=0, description="Most lines in a patch.")
    max_patch_line_bytes: int = Field(default=100_000, gt=0, description="Longest line in a patch.")
    max_patch_steps: int = Field(
        default=1_000_000_000,
        gt=0,
        description="Most steps of git to apply a patch: lines compared, bytes copied.",
    )
    max_path_bytes: int = Field(default=1_000, gt=0, description="Longest path in a patch.")
    max_path_depth: int = Field(default=60, gt=0, description="Deepest path in a patch.")
    max_binary_bytes: int = Field(
        default=50 * MEGABYTE,
        gt=0,
        description="Declared size of a patch's binary literals and delta results together.",
    )
    git_timeout_seconds: int = Field(default=30, gt=0, description="Longest run of a git process.")
    git_push_timeout_seconds: int = Field(
        default=600, gt=0, description="Longest push of a branch to the remote."
    )
    git_memory_bytes: int = Field(
        default=1024**3, gt=0, description="Most memory of a git process."
    )
    max_streams: int = Field(default=1_000, gt=0, description="Most event streams at a time.")
    ci_sandbox: Literal["auto", "required", "none"] = Field(
        default="auto",
        description="Whether CI commands run in bubblewrap: where it works, always (else they"
        " do not run), or never.",
    )
    ci_readable_paths: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Folders that CI commands may read beside `/usr` and `/opt`, separated by"
        " commas; their `bin` comes first on the PATH. More in docs/ci.md.",
    )
    ci_memory_bytes: int = Field(
        default=4 * 1024**3, gt=0, description="Most memory of a CI command, all its processes."
    )
    ci_processes: int = Field(
        default=512, gt=2, description="Most processes of a CI command at one time."
    )
    ci_disk_bytes: int = Field(
        default=4 * 1024**3, gt=0, description="Largest size of a CI command's work tree."
    )
    ci_log_bytes: int = Field(
        default=5 * MEGABYTE,
        gt=0,
        description="Longest log of a CI command that is kept whole; of a longer one its beginning"
        " and end are.",
    )
    sql_timeout_seconds: int = Field(default=15, gt=0, description="Longest SQL statement.")
    retention: Annotated[timedelta | None, NoDecode] = Field(
        default=None,
        description="How long the details of a settled run are kept, such as `90d` or `12w`; unset:"
        " for ever. More in docs/backup.md.",
    )

    @field_validator("retention", mode="before")
    @classmethod
    def _retention(cls, value: object) -> object:
        return read_retention(value) if isinstance(value, str) else value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().lower() for part in value.split(",") if part.strip())
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https://[^/]|http://(127\.|localhost)", value):
            raise ValueError("must begin with https://")
        return value

    @field_validator("oidc_claims", mode="before")
    @classmethod
    def _claims(cls, value: object, info: ValidationInfo) -> object:
        """Check the settings of OpenID Connect, which need one another."""
        if info.data.get("oidc_issuer") is None:
            return None
        if not info.data.get("oidc_audience"):
            raise ValueError("needs AUTOPACK_OIDC_AUDIENCE beside it")
        if not value:
            raise ValueError("is needed with an issuer")
        return _decoded(value)

    @field_validator("oidc_project_claims", mode="before")
    @classmethod
    def _project_claims(cls, value: object, info: ValidationInfo) -> object:
        if value is not None and info.data.get("oidc_issuer") is None:
            raise ValueError("needs AUTOPACK_OIDC_ISSUER beside it")
        return _decoded(value)

    @field_validator("ci_readable_paths", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("ci_readable_paths")
    @classmethod
    def _closed_paths(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        paths = tuple(path.expanduser() for path in value)
        if not all(path.is_absolute() and len(path.parts) > 1 for path in paths):
            raise ValueError("must be absolute paths, none of them /")
        return paths

    @field_validator("database_url")
    @classmethod
    def _psycopg2_url(cls, value: str | None) -> str | None:
        """SQLAlchemy 2.1 reads `postgresql://` as psycopg 3; the service uses psycopg2."""
        if value is None:
            return None
        scheme, separator, rest = value.partition("://")
        if not separator or not re.fullmatch(r"postgres(ql)?(\+psycopg2)?", scheme):
            raise ValueError("must begin with postgresql://")
        return f"postgresql+psycopg2://{rest}"

    @field_validator("project_id")
    @classmethod
    def _project_id(cls, value: str) -> str:
        problem = identifier_problem(value)
        if problem:
            raise ValueError(problem)
        return value

    @field_validator("repo_path")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("autonomous_runs_dir", "home", "signing_key")
    @classmethod
    def _from_the_repository(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        repo_path: Path | None = info.data.get("repo_path")
        if repo_path is None or value is None:  # the other field is wrong itself, and reported
            return value
        return repository_top(repo_path) / value.expanduser()

    @classmethod
    def variable(cls, field_name: str) -> str:
        """Return the environment variable that sets a field."""
        alias = cls.model_fields[field_name].validation_alias
        if isinstance(alias, AliasChoices):
            return str(alias.choices[0])
        return f"{cls.model_config['env_prefix']}{field_name}".upper()


def repository_top(folder: Path) -> Path:
    """Return the repository at or above `folder`, a bare one too, else `folder` itself."""
    return next((top for top in (folder, *folder.parents) if _is_repository(top)), folder)


def load_settings(**values: object) -> Settings:
    """Read the environment and the operator's file; `values` win over both.

    Files of the served repository are not read: else every author of a commit could decide which
    callers are answered and how CI is confined. At start, `gitrepo` refuses a settings file or
    folder that the repository tracks.

    Raises SettingsError with one line for all wrong settings.
    """
    file = _settings_file()
    try:
        # The values have any type on purpose: they are validated here.
        settings = Settings(_env_file=file, env_file=file, **values)  # type: ignore[arg-type]
    except ValidationError as error:
        raise SettingsError("; ".join(_problem(item) for item in error.errors())) from error
    if "project_id" not in settings.model_fields_set:
        settings = settings.model_copy(update={"project_id": _project_of(settings)})
        settings.model_fields_set.discard("project_id")  # it is not the operator's word
    if settings.project_id in (settings.oidc_project_claims or {}):
        raise SettingsError(
            f"AUTOPACK_OIDC_PROJECT_CLAIMS: has '{settings.project_id}', the default project, whose"
            " claims are in AUTOPACK_OIDC_CLAIMS"
        )
    unread = settings.home / ".env"
    if unread.is_file() and not (file and file.samefile(unread)):
        raise SettingsError(
            f"{unread} is not read: name it by AUTOPACK_ENV_FILE={unread}, or remove it"
        )
    return settings


def _project_of(settings: Settings) -> str:
    """Return the name of the project: data keep theirs, also when their folder is renamed.

    An earlier version wrote no name into its home, nor a ruleset of another name.
    """
    try:
        known = (settings.home / PROJECT_FILE).read_text().strip()
    except (OSError, UnicodeDecodeError):
        known = ""
    if known and identifier_problem(known) is None:
        return known
    former = settings.autonomous_runs_dir / ruleset_name(FORMER_PROJECT)
    if former.exists() or (settings.home / ".gitignore").exists():
        return FORMER_PROJECT
    name = repository_top(settings.repo_path).name.removesuffix(".git")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64].rstrip(".")
    return FORMER_PROJECT if identifier_problem(name) else name


def misspelt_settings() -> list[str]:
    """Return a line for each unknown AUTOPACK_ name in the environment or the file.

    Only for names similar to a known one, as other programs may have such names.
    """
    file = _settings_file()
    in_file = DotEnvSettingsSource(Settings, env_file=file).env_vars if file else ()
    given = {*os.environ, *(name.upper() for name in in_file)}
    known = {Settings.variable(name) for name in Settings.model_fields} | _OTHER_VARIABLES
    prefix = str(Settings.model_config["env_prefix"])
    ours = {name.removeprefix(prefix): name for name in known if name.startswith(prefix)}
    lines = []
    for name in sorted(given - known):
        if name.upper().startswith(prefix):
            word = name.upper().removeprefix(prefix)
            if near := difflib.get_close_matches(word, ours, n=1, cutoff=0.75):
                lines.append(f"{name} is not a setting; the nearest known one is {ours[near[0]]}")
    return lines


def settings_in_environment() -> list[str]:
    """Return the names of the settings that this process's environment sets, except the file."""
    names = {Settings.variable(name) for name in Settings.model_fields}
    return sorted(name for name in names - {Settings.variable("env_file")} if os.environ.get(name))


def _settings_file() -> Path | None:
    """Return the file with settings; None without one. Raises SettingsError."""
    variable = Settings.variable("env_file")
    named = os.environ.get(variable)
    if named:
        file = Path(named).expanduser().absolute()
        if not file.is_file():
            raise SettingsError(f"{variable} ({named!r}): the file does not exist")
        return file
    source = Path(__file__).resolve().parents[1]
    file = source.parent / ".env"
    return file if source.name == "src" and file.is_file() else None


def _is_repository(folder: Path) -> bool:
    return (folder / ".git").exists() or (
        (folder / "HEAD").is_file() and (folder / "objects").is_dir()
    )


def _problem(item: ErrorDetails) -> str:
    name = str(item["loc"][0])
    variable = name if name.isupper() else Settings.variable(name)
    reason = item["msg"].removeprefix("Value error, ")
    shown = "" if variable == "DATABASE_URL" else f" ({item['input']!r})"  # it contains a password
    return f"{variable}{shown}: {reason[0].lower()}{reason[1:]}"
