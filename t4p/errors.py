"""The errors whose message is the whole story: the command line prints them without a traceback."""


class ConfigError(Exception):
    """The configuration, or a path named in it, is wrong: nothing has been started. Exit status 2."""


class RunError(Exception):
    """A run that had started, or was about to, cannot go on. Exit status 1."""


class CheckpointError(RunError):
    """A checkpoint is incomplete, damaged, or does not belong to this configuration."""


class DataError(RunError):
    """More samples are broken than `data.max_skip_fraction` allows."""
