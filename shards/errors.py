"""What goes wrong with shards and their sources; every error of this package is one of these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shards.doors.text import shown_message


class UserError(Exception):
    """An error whose message is the whole story: what was found, what was wanted, where, and the next move.

    Names out of data stand in it: nothing of it acts on a terminal or a log, whoever prints it.

    Attributes:
        exit_status: what a command ends with: 1 where a job failed, 2 where the call was wrong.
    """

    exit_status = 1

    def __str__(self) -> str:
        return shown_message(super().__str__())


class ShardError(UserError):
    """Something about a source, a shard or a dataset is wrong; the message names it and the next move."""


class CallError(ShardError):
    """What was asked for cannot be meant: a path, format, key or option that does not exist."""

    exit_status = 2


class ResultError(UserError):
    """A file that a command was asked for cannot be written."""


class MissingExtraError(CallError, ImportError):
    """What was asked for needs a package that a light installation leaves out; the message names the extra."""


@contextmanager
def needs_extra(extra: str, package: str, what: str) -> Iterator[None]:
    """Around the import of an optional package, in the one file that imports it.

    Args:
        extra: extra of this project, which brings the package.
        what: needs it, as the beginning of a sentence.

    Raises:
        MissingExtraError: the package is missing, or does not import.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs {package}, which does not import here ({error}); install it with "
            f"`pip install 'text4point[{extra}]'`, in a checkout `pip install -c constraints.txt '.[{extra}]'`"
        ) from error
