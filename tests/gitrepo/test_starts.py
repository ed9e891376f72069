"""Clones as they come: detached, old, with submodules and Git LFS; what is missing is named."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autopack.gitrepo import Repository, RepositoryUnusableError
from autopack.gitrepo.pointers import Pointers

if TYPE_CHECKING:
    from tests.conftest import GitRepo
    from tests.gitrepo.conftest import OpenRepository

pytestmark = pytest.mark.integration

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 12345\n".format("0" * 64)


def pointers(repository: Repository) -> Pointers:
    return repository.pointers(repository.base().commit)


def add_submodule(repo: GitRepo, path: str) -> None:
    """Record a submodule as a clone holds it that never fetched it."""
    commit = repo.git("rev-parse", "HEAD")
    repo.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    with (repo.path / ".gitmodules").open("a") as modules:
        modules.write(f'[submodule "{path}"]\n\tpath = {path}\n\turl = ../lib.git\n')
    repo.git("add", ".gitmodules")
    repo.git("commit", "--quiet", "--message", f"Add {path}")


def test_a_detached_head_leaves_the_base_what_it_was(
    git_repo: GitRepo, open_repository: OpenRepository
) -> None:
    git_repo.git("switch", "--quiet", "--detach")
    assert open_repository(git_repo.path).base().branch == "main"


@pytest.mark.parametrize("branch", ["master", "trunk"])
def test_a_detached_head_without_a_main_is_served_from_the_default_branch_of_its_origin(
    git_repo: GitRepo, open_repository: OpenRepository, tmp_path: Path, branch: str
) -> None:
    git_repo.git("branch", "--move", branch)
    git_repo.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = type(git_repo)(tmp_path / "clone")
    clone.git("switch", "--quiet", "--detach")
    assert open_repository(clone.path).base().branch == branch


def test_a_detached_head_on_no_known_branch_says_what_to_set(
    git_repo: GitRepo, open_repository: OpenRepository
) -> None:
    git_repo.git("branch", "--move", "trunk")
    git_repo.git("switch", "--quiet", "--detach")
    with pytest.raises(RepositoryUnusableError, match="AUTOPACK_BASE_BRANCH"):
        open_repository(git_repo.path)


def test_a_repository_of_another_owner_is_served(
    git_repo: GitRepo, open_repository: OpenRepository
) -> None:
    if os.geteuid() != 0:
        pytest.skip("to give a repository away takes a privileged account")
    subprocess.run(["chown", "-R", "12345", git_repo.path], check=True)
    assert open_repository(git_repo.path).base().branch == "main"


def test_submodules_are_named(git_repo: GitRepo, open_repository: OpenRepository) -> None:
    for path in ("lib/one", "two"):
        add_submodule(git_repo, path)
    found = pointers(open_repository(git_repo.path))
    assert found.submodules == ("lib/one", "two")
    assert found.warnings() == [
        "lib/one, two are submodules: agents and CI find an empty folder there"
    ]


def test_files_of_git_lfs_are_found_by_their_content_and_not_only_by_the_pattern(
    git_repo: GitRepo, open_repository: OpenRepository
) -> None:
    git_repo.commit(
        {
            ".gitattributes": "# *.txt filter=lfs\n*.bin filter=lfs diff=lfs merge=lfs -text\n"
            '"a b/*.dat" filter=lfs\n/top/** filter=lfs\n*.md text\n',
            "deep/er/one.bin": POINTER,
            "two.bin": b"\0the content itself, committed as it is",
            "a b/three.dat": POINTER,
            "top/x/four": POINTER,
            "notes.txt": POINTER,
        }
    )
    found = pointers(open_repository(git_repo.path))
    assert sorted(found.lfs_files) == ["a b/three.dat", "deep/er/one.bin", "top/x/four"]
    assert found.warnings() == [
        "a b/three.dat, deep/er/one.bin, top/x/four are files of Git LFS:"
        " agents and CI find a pointer, not the content"
    ]


def test_many_pointers_are_counted_and_none_is_no_warning(
    git_repo: GitRepo, open_repository: OpenRepository
) -> None:
    assert pointers(open_repository(git_repo.path)).warnings() == []
    git_repo.commit({".gitattributes": "*.bin filter=lfs\n", "one.bin": "no pointer"})
    assert pointers(open_repository(git_repo.path)).warnings() == []
    git_repo.commit({f"{number}.bin": POINTER for number in range(5)})
    (warning,) = pointers(open_repository(git_repo.path)).warnings()
    assert warning.startswith("0.bin, 1.bin, 2.bin and 2 more are files of Git LFS")
