"""The settings of a command that works on the repository of the current folder."""

from __future__ import annotations

from ..config import Settings, load_settings, misspelt_settings
from .terminal import hint


def read_settings(**values: object) -> Settings:
    """Read the settings, and warn about unknown names. Raises SettingsError."""
    settings = load_settings(**values)
    for line in misspelt_settings():
        hint(f"autopack: warning: {line}")
    return settings
