"""`autopack projects`: the projects of one service. (docs/projects.md)"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .command import command_app
from .service import asking
from .terminal import JsonOption, UrlOption, print_json, print_table, say

if TYPE_CHECKING:
    from ..views.projects import ProjectAnswer

app = command_app()

Name = Annotated[str, typer.Argument(metavar="NAME", help="The project's name.")]
Repository = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Its git repository, on the service's machine.")
]
BaseBranch = Annotated[
    str | None, typer.Option(metavar="BRANCH", help="Branch that runs start from.")
]
Remote = Annotated[
    str | None,
    typer.Option(metavar="REMOTE", help="The repository's remote that branches are pushed to."),
]


@app.command("list")
def list_all(json: JsonOption = False, url: UrlOption = None) -> None:
    """List the projects that the caller may see, closed ones too."""
    with asking(url) as client:
        answer = client.list_projects()
    if json:
        print_json(answer)
        return
    print_table(
        ("name", "state", "repository", "problem"),
        (
            (
                f"{each.name} (default)" if each.is_default else each.name,
                each.state,
                each.repository,
                each.problem or "",
            )
            for each in answer.projects
        ),
    )


@app.command()
def create(
    name: Name,
    repository: Repository,
    base_branch: BaseBranch = None,
    git_remote: Remote = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Add a project, with a database and folders of its own; it is served at once."""
    wanted = {"name": name, **_wanted(repository, base_branch, git_remote)}
    with asking(url) as client:
        made = client.create_project(wanted)
    if json:
        print_json(made)
        return
    say(f"Project '{name}' is served from {made.repository}.")
    say(f"Its keys: autopack keys create --project {name}", is_error=True)


@app.command()
def change(
    name: Name,
    repository: Repository,
    base_branch: BaseBranch = None,
    git_remote: Remote = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Give a project this folder of its repository, base branch and remote."""
    with asking(url) as client:
        changed = client.change_project(name, _wanted(repository, base_branch, git_remote))
    _tell(changed, as_json=json)


@app.command()
def close(name: Name, json: JsonOption = False, url: UrlOption = None) -> None:
    """Stop serving a project without live runs; what it has is kept."""
    with asking(url) as client:
        closed = client.close_project(name)
    _tell(closed, as_json=json)


@app.command()
def reopen(name: Name, json: JsonOption = False, url: UrlOption = None) -> None:
    """Serve a closed project again."""
    with asking(url) as client:
        opened = client.reopen_project(name)
    _tell(opened, as_json=json)


def _wanted(
    repository: Path, base_branch: str | None, git_remote: str | None
) -> dict[str, str | None]:
    folder = str(repository.expanduser().absolute())
    return {"repository": folder, "base_branch": base_branch, "git_remote": git_remote}


def _tell(project: ProjectAnswer, *, as_json: bool) -> None:
    if as_json:
        print_json(project)
    else:
        say(f"Project '{project.name}' is {project.state}: {project.repository}.")
