"""What goes wrong with shards and their sources; every error of this package is one of these."""

from __future__ import annotations


class ShardError(Exception):
    """Something about a source, a shard or a dataset is wrong; the message names it and the next move."""


class CallError(ShardError):
    """What was asked for cannot be meant: a path, format, key or option that does not exist (exit status 2)."""
