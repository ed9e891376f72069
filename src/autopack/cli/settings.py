"""The settings of a command that works on the repository of the current folder."""

from __future__ import annotations

from ..config import Settings, SettingsError, load_settings, misspelt_settings
from .terminal import chosen_project, hint


def read_settings(**values: object) -> Settings:
    """Read the settings, and warn about unknown names. Raises SettingsError.

    They are those of the default project, so `autopack --project` is refused.
    """
    if (project := chosen_project()) is not None:
        raise SettingsError(
            f"--project {project}: this command works on the default project; the option is for"
            " commands that ask the service, for `autopack keys`, and for all of `autopack db` but"
            " `upgrade`"
        )
    return read_service_settings(**values)


def read_service_settings(**values: object) -> Settings:
    """Do what `read_settings` does for a command that may be about any project of the service."""
    settings = load_settings(**values)
    for line in misspelt_settings():
        hint(f"autopack: warning: {line}")
    return settings
