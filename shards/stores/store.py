"""What a place for objects can do, and how it fails."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Protocol

from shards.doors.text import shown_message
from shards.errors import CallError, ShardError
from shards.stores.patience import Patience

CHUNK_BYTES = 1 << 20


class StoreError(ShardError):
    """Storage refused or failed; the message says where, why, and the next move. Says nothing about the data."""


class MissingObjectError(StoreError):
    """There is no object of that name."""


class MissingBucketError(StoreError, CallError):
    """There is no such bucket."""


class FaultError(StoreError):
    """Storage failed this once, and may do what was asked when it is asked again.

    Attributes:
        cause: in a word or two, as faults are counted.
    """

    def __init__(self, message: str, cause: str) -> None:
        """Say `message`, counted as `cause`."""
        super().__init__(message, cause)  # both are arguments, so that it survives pickling
        self.cause = cause

    def __str__(self) -> str:
        return shown_message(str(self.args[0]))


def take_faults(store: Store) -> Counter[str]:
    """What was put right by asking again since the last call."""
    faults = Counter(store.faults)
    store.faults.clear()
    return faults


class Store(Protocol):
    """A flat set of named objects. Implementations are picklable and survive a fork.

    Every method raises StoreError when the storage refuses, or fails for longer than `patience` lasts.

    Attributes:
        url: where it is.
        patience: how long it is asked again, and how often what looks damaged or missing is looked at.
        faults: what went wrong and was put right by asking again, counted by cause; a copy begins with none.
    """

    url: str
    patience: Patience
    faults: Counter[str]

    def read(self, name: str) -> bytes:
        """The whole object; MissingObjectError when there is none."""

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer or none past the end of the object.

        Raises:
            MissingObjectError: there is no such object.
        """

    def write(self, name: str, data: bytes | Path) -> None:
        """Create or replace an object from bytes or a local file; it appears whole or not at all."""

    def write_if_absent(self, name: str, data: bytes) -> bool:
        """Create an object unless there is one; of racing writers of different bytes exactly one gets True."""

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""

    def list(self) -> tuple[str, ...]:
        """Names of all objects, sorted."""

    def delete(self, name: str) -> None:
        """Remove an object; no error when there is none."""

    def remove_leftovers(self) -> None:
        """Remove what writes left that were killed; for the one writer of a store only."""

    def reconnect(self) -> None:
        """Whatever is asked next goes over a new connection."""
