"""`autopack doctor`: what is wrong with a set-up, and how to repair it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..ci.sandbox import Bubblewrap
from ..client import ApiError, Autopack, ClientError, UnreachableError
from ..client.connection import named_url
from ..config import Settings, SettingsError, load_settings, misspelt_settings, repository_top
from ..database import open_database
from ..domain.errors import AutopackError
from ..domain.gate_proof import ProofResult
from ..domain.ruleset import CiRules
from ..domain.terms import CiMode, CiProfile, Verdict
from ..gitrepo.errors import RepositoryUnusableError
from ..gitrepo.repository import Base, Repository
from ..gitrepo.signing import Signer
from ..gitrepo.tracked import require_untracked
from ..gitrepo.workspace import WorkspaceError
from ..migrating import DatabaseError
from ..setup.project import PROMOTION, SCRIPTS
from .command import FINE, NO, command_app
from .db import exists
from .proving import Prover
from .terminal import (
    JsonOption,
    UrlOption,
    busy,
    is_terminal,
    log_warnings_alone,
    print_json,
    print_table,
    say,
)
from .trial import RulesetError, Trial, read_ruleset, reading_repository

LITTLE_SPACE = 1_000_000_000
NO_SPACE = 100_000_000
CLOCK_SECONDS = 5.0
PROBE_SECONDS = 10.0
RUN_BRANCHES = "autonomous/"

app = command_app()


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check; `mend` says what to do about it."""

    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    mend: str = ""
    lines: Sequence[str] = ()  # the last ones of an output


@app.command()
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not run the CI command.")] = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> int:
    """Find what is wrong with the set-up of the current folder, and say how to repair it.

    Runs the CI command on the base commit, and on broken ones. Changes nothing. Exits with 0 when
    the service can work, 1 when it cannot.
    """
    log_warnings_alone()
    findings = list(_examine(url, is_quick=quick))
    if json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
        for each in findings:
            if each.lines:
                say("", f"{each.check}: the last lines", *(f"  {line}" for line in each.lines))
    return NO if any(each.status == "fail" for each in findings) else FINE


def _print(findings: Sequence[Finding]) -> None:
    """Print a table; on a terminal with the advice below what was found, for 80 columns."""
    if not is_terminal():
        rows = [(each.check, each.status, each.detail, each.mend) for each in findings]
        print_table(("check", "", "what was found", "what to do"), rows)
        return
    lines: list[tuple[str, str, str]] = []
    for each in findings:
        lines.append((each.check, each.status, each.detail))
        if each.mend:
            lines.append(("", "", f"to do: {each.mend}"))
    print_table(("check", "", "what was found"), lines)


def _examine(url: str | None, *, is_quick: bool) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    try:
        settings = load_settings()
    except SettingsError as error:
        mend = "Correct it in the environment, or in the file of AUTOPACK_ENV_FILE."
        yield Finding("settings", "fail", str(error), mend)
        return
    file = f" and {settings.env_file}" if settings.env_file else ""
    yield Finding("settings", "ok", f"read from the environment{file}")
    for line in misspelt_settings():
        yield Finding("settings", "warn", line, "Correct or remove it: it has no effect.")
    yield from _door(settings)
    yield from _repository(settings)
    yield from _database(settings)
    yield from _folders(settings)
    yield from _ruleset(settings, is_quick=is_quick)
    yield from _service(settings, url)


def _door(settings: Settings) -> Iterator[Finding]:
    is_local = settings.host in {"::1", "localhost"} or settings.host.startswith("127.")
    if settings.auth == "loopback" and not is_local:
        yield Finding(
            "access",
            "warn",
            f"{settings.host} is reached from elsewhere, and a proxy on this machine that adds no "
            "header looks like a local caller",
            "Set AUTOPACK_AUTH=required, or AUTOPACK_HOST=127.0.0.1 and no proxy in front.",
        )
    if settings.auth == "disabled" and not is_local:
        yield Finding(
            "access",
            "warn",
            f"every caller that reaches {settings.host} is answered",
            "Set AUTOPACK_AUTH=required, and make keys by `autopack keys create`.",
        )


def _repository(settings: Settings) -> Iterator[Finding]:
    try:
        require_untracked(settings)
        with reading_repository(settings) as repository:
            base = repository.base()
            yield Finding("repository", "ok", f"{repository.path}, base {base.branch}")
            yield from _behind(repository, base)
            for warning in repository.pointers(base.commit).warnings():
                yield Finding("contents", "warn", warning, "Do not plan phases that need them.")
            yield from _checked_out(repository)
            yield from _laid_out(repository, base)
    except RepositoryUnusableError as error:
        mend = "AUTOPACK_REPO_PATH and AUTOPACK_BASE_BRANCH select it."
        yield Finding("repository", "fail", str(error), mend)
        return
    # A temporary home, since checks must not change the real one.
    with tempfile.TemporaryDirectory(prefix="autopack-doctor-") as home:
        yield _remote(settings.model_copy(update={"home": Path(home), "signing_key": None}))
    if settings.signing_key is not None:
        yield _signing(settings)


def _remote(settings: Settings) -> Finding:
    try:
        remote = Repository.open(settings).remote
        if remote is None:
            return Finding("remote", "ok", "none: branches stay here (AUTOPACK_GIT_REMOTE)")
        remote.check()
    except AutopackError as error:
        return Finding("remote", "fail", error.detail, "See docs/remote.md: address, keys.")
    return Finding("remote", "ok", remote.url)


def _signing(settings: Settings) -> Finding:
    try:
        Signer.open(settings)
    except RepositoryUnusableError as error:
        mend = "ssh-keygen -t ed25519 -N '' -f FILE makes such a key."
        return Finding("signing", "fail", str(error), mend)
    return Finding("signing", "ok", f"{settings.signing_key} signs")


def _behind(repository: Repository, base: Base) -> Iterator[Finding]:
    """Check that runs do not start from an old commit, according to the last fetch."""
    there = repository.remote_base(base)
    if there is None or not repository.has_commit(there):
        return
    ahead, behind = repository.ahead_behind(base.commit, there)
    if behind:
        commits = "1 commit" if behind == 1 else f"{behind} commits"
        apart = f", and {ahead} ahead" if ahead else ""
        yield Finding(
            "base",
            "warn",
            f"{base.branch} is {commits} behind origin/{base.branch}{apart}: runs start from there",
            f"git switch {base.branch} && git pull --ff-only",
        )


def _checked_out(repository: Repository) -> Iterator[Finding]:
    for branch, folder in repository.checked_out().items():
        if branch.startswith(RUN_BRANCHES):
            yield Finding(
                "checkout",
                "fail",
                f"{branch} is checked out in {folder}, so its run cannot continue",
                f"git -C {folder} switch --detach",
            )


def _database(settings: Settings) -> Iterator[Finding]:
    if not exists(settings):
        yield Finding("database", "ok", f"the first start creates one in {settings.home}")
        return
    try:
        with open_database(settings) as database:
            status = database.status()
    except DatabaseError as error:
        yield Finding(
            "database", "fail", str(error), "Start it, or correct DATABASE_URL; see docs."
        )
        return
    if status.is_current:
        yield Finding("database", "ok", f"Postgres {status.server_version}, {status.revision}")
    else:
        yield Finding(
            "database",
            "warn",
            f"its schema is at {status.revision}, this version's is {status.head}",
            "autopack db upgrade (autopack serve does it, too)",
        )
    apart = abs((status.now - datetime.now(UTC)).total_seconds())
    if apart > CLOCK_SECONDS:
        yield Finding(
            "clock",
            "warn",
            f"the clocks of this machine and the database differ by {apart:.0f} s",
            "Synchronize both with a time server: leases and budgets depend on it.",
        )


def _folders(settings: Settings) -> Iterator[Finding]:
    folders = {"runs directory": settings.autonomous_runs_dir, "home": settings.home}
    variables = {"runs directory": "autonomous_runs_dir", "home": "home"}
    for name, folder in folders.items():
        place = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(place).free
        variable = Settings.variable(variables[name])
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            mend = f"Make it writable for this account, or set {variable}."
            yield Finding(name, "fail", f"{place} cannot be written to", mend)
        elif free < LITTLE_SPACE:
            status: Literal["warn", "fail"] = "fail" if free < NO_SPACE else "warn"
            detail = f"{free / 1_000_000:,.0f} MB are free on the disk of {place}"
            yield Finding(name, status, detail, f"Free space, or set {variable} to another disk.")
        else:
            yield Finding(name, "ok", f"{folder}, {free / 1_000_000_000:,.0f} GB free")


def _ruleset(settings: Settings, *, is_quick: bool) -> Iterator[Finding]:
    try:
        file, ruleset = read_ruleset(settings)
    except RulesetError as error:
        mend = "Correct it, or move it away to get the defaults again."
        yield Finding("ruleset", "fail", str(error), mend if error.is_readable else "See its mode.")
        return
    if ruleset is None:
        yield Finding("ruleset", "ok", "the defaults; the first start writes them")
        return
    yield Finding("ruleset", "ok", f"{file}, version {ruleset.version}, CI {ruleset.ci.mode}")
    if ruleset.ci.mode is CiMode.LOCAL:
        sandbox = _sandbox(settings)
        yield sandbox
        if not is_quick and sandbox.status != "fail":
            yield from _trial(settings, ruleset.ci)
    if ruleset.ci.mode is CiMode.EXTERNAL and settings.git_remote is None:
        yield Finding(
            "ci", "fail", "CI is external and there is no remote", "Set AUTOPACK_GIT_REMOTE."
        )


def _trial(settings: Settings, rules: CiRules) -> Iterator[Finding]:
    """Run the CI command on the base commit, and where that is green on what must not be."""
    try:
        with reading_repository(settings) as repository:
            base = repository.base()
            prover = Prover(settings, repository, base, rules, CiProfile.NORMAL)
            with busy(f"the CI command runs on {base.branch}"):
                trial = prover.try_base()
            where = f"on {base.branch} ({base.commit[:12]})"
            if trial.outcome.verdict is Verdict.GREEN:
                yield Finding("ci", "ok", f"green {where}")
                with busy("the CI command runs on broken commits"):
                    yield from _proved(prover, trial)
                return
    except RepositoryUnusableError:
        return  # the check of the repository tells it
    outcome = trial.outcome
    yield Finding(
        "ci",
        # A run may be there to repair the base, but no run can succeed with a command that does
        # not run.
        "warn" if outcome.verdict is Verdict.RED else "fail",
        f"{outcome.verdict} {where}: {outcome.reason}",
        f"Set {trial.hint}" if trial.hint else "`autopack ci try --log` shows the whole log.",
        lines=trial.last_lines,
    )


def _proved(prover: Prover, base: Trial) -> Iterator[Finding]:
    """Check that the CI command is not green whatever the commit is."""
    try:
        proofs = list(prover.proofs(base))
    except (AutopackError, WorkspaceError, OSError) as error:
        why = error.detail if isinstance(error, AutopackError) else str(error)
        yield Finding("gate", "warn", f"not proved: {why}", "Try `autopack gate prove`.")
        return
    against = [proof.detail for proof in proofs if proof.result is ProofResult.FAILED]
    if against:
        mend = "`autopack gate prove` repeats this after a change of the command."
        yield Finding("gate", "warn", "; ".join(against), mend)
    else:
        told = [proof.detail for proof in proofs[1:] if proof.result is ProofResult.PASSED]
        yield Finding("gate", "ok", "; ".join(told) or "nothing here to prove it by")


def _sandbox(settings: Settings) -> Finding:
    problem = Bubblewrap(settings).problem
    if problem is None:
        return Finding("sandbox", "ok", "CI commands run in bubblewrap")
    if settings.ci_sandbox == "none":
        return Finding("sandbox", "ok", "CI commands run without a sandbox, by AUTOPACK_CI_SANDBOX")
    is_required = settings.ci_sandbox == "required"
    return Finding(
        "sandbox",
        "fail" if is_required else "warn",
        f"CI commands {'cannot run' if is_required else 'run without one'}: {problem}",
        "Install bubblewrap and util-linux, and allow user namespaces to this account.",
    )


def _laid_out(repository: Repository, base: Base) -> Iterator[Finding]:
    """Check that the files of `autopack init` are on the base branch."""
    wanted = (*SCRIPTS, PROMOTION)
    missing = sorted({*wanted} - repository.files_in(base.commit, wanted))
    uncommitted = [name for name in missing if (repository_top(repository.path) / name).is_file()]
    if not missing:
        detail = f"preflight gate, checker and workflow are on {base.branch}"
        yield Finding("promotion", "ok", detail)
    elif missing == uncommitted:
        detail = f"not committed on {base.branch}: {', '.join(missing)}"
        mend = f"git add {' '.join(missing)} && git commit: runs start from there."
        yield Finding("promotion", "warn", detail, mend)
    else:
        detail = f"not on {base.branch}: {', '.join(missing)}"
        yield Finding("promotion", "warn", detail, "autopack init, then commit what it wrote.")


def _service(settings: Settings, url: str | None) -> Iterator[Finding]:
    """Check the service that the client would ask, else the port of the settings."""
    is_any = settings.host in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    host = "localhost" if is_any else settings.host
    shown_host = f"[{host}]" if ":" in host else host
    try:
        named = url or named_url()
    except ClientError as error:
        yield Finding("service", "fail", str(error), "Correct that file, or remove it.")
        return
    address = named or f"http://{shown_host}:{settings.port}"
    if named is None and not _answers(host, settings.port):
        yield Finding("service", "ok", f"not running; port {settings.port} is free")
        return
    try:
        with Autopack(address, retries=0, timeout=PROBE_SECONDS) as client:
            client.service()
            health = client.health()
    except UnreachableError as error:
        yield Finding("service", "fail", str(error), "Start it, or give another address by --url.")
        return
    except ClientError as error:
        if isinstance(error, ApiError) and error.status == 401:
            mend = "Run `autopack login`, or set AUTOPACK_API_KEY: the checks below need a key."
            yield Finding("service", "warn", f"{address}: {error}", mend)
            return
        mend = "Stop that program, or choose another port by --port or AUTOPACK_PORT."
        yield Finding("service", "fail", f"{address} is not Autopack: {error}", mend)
        return
    yield Finding("service", "ok", f"runs at {address}")
    for name, check in health.checks.items():
        status: dict[str, Literal["ok", "warn", "fail"]] = {"ok": "ok", "degraded": "warn"}
        mend = "" if check.status == "ok" else "See its log."
        found = status.get(check.status, "fail")
        yield Finding(f"service: {name}", found, check.detail or "well", mend)
    for node in health.nodes:
        if node.is_alive and node.lacking_runs:
            said = f"{node.place} cannot show {node.lacking_runs} runs: {node.lacks[0]}"
            yield Finding("service: node", "warn", said, "See docs/replicas.md.")


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False
