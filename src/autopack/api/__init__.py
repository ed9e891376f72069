"""The HTTP API: parse, authorise, call one service, return a view."""
