"""The offline check of a run's branch: standard library and git, no service, no setting."""
