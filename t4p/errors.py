"""The errors whose message is the whole story: the command line prints them without a traceback."""

from shards.errors import UserError


class ConfigError(UserError):
    """The configuration, or a path named in it, is wrong: nothing has been started."""

    exit_status = 2


class ClipError(ConfigError):
    """A CLIP model that cannot be found, built, loaded or read densely; the message says what to change."""


class RunError(UserError):
    """A run that had started, or was about to, cannot go on."""


class NotFiniteError(RunError):
    """A loss, its gradient or the weights are not finite, on every rank at the same step."""


class CheckpointError(RunError):
    """A checkpoint is incomplete, damaged, or does not belong to this configuration."""


class DataError(RunError):
    """More samples are broken than `data.max_skip_fraction` allows."""


class HungError(RunError):
    """Nothing was done on any rank for as long as `train.step_timeout` allows."""


class LostLoaderError(DataError):
    """A loader process was killed, or did nothing, again and again."""
