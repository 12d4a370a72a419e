"""The errors of launching."""

from t4p.errors import RunError


class LaunchError(RunError):
    """A launched job failed, or its Ray did. The message names the rank and the cause. Exit status 1."""
