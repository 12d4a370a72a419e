"""What a place for objects can do, and how it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from shards.errors import CallError, ShardError

CHUNK_BYTES = 1 << 20


class StoreError(ShardError):
    """Storage refused or failed; the message says where, why, and the next move."""


class MissingObjectError(StoreError):
    """There is no object of that name."""


class MissingBucketError(StoreError, CallError):
    """There is no such bucket."""


class Store(Protocol):
    """A flat set of named objects. Implementations are picklable and survive a fork.

    Every method raises StoreError when the storage refuses or fails.
    """

    url: str

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
        """Create an object unless there is one; of racing writers exactly one gets True."""

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""

    def list(self) -> tuple[str, ...]:
        """Names of all objects, sorted."""

    def delete(self, name: str) -> None:
        """Remove an object; no error when there is none."""

    def remove_leftovers(self) -> None:
        """Remove what writes left that were killed; for the one writer of a store only."""
