"""Autopack: a supervisor for zero-intervention autonomous builds."""

__version__ = "0.1.0"
