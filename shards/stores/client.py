"""What a client of remote storage can do: one request at a time, nothing repeated, so that one policy repeats."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass
class Part:
    """An object, or a range of it, as far as it has come.

    Attributes:
        offset: first byte that is wanted.
        length: bytes that are wanted; None for all to the end.
        pieces: what came, from the first on, in the pieces in which it came.
        num_received: bytes in them.
        version: of the object, once an answer named it: the rest must be of the same.
        size_bytes: of the whole object, once an answer said it.
        num_asked: requests that were made for it, counted by who repeats them.
    """

    offset: int
    length: int | None
    pieces: list[bytes] = field(default_factory=list)
    num_received: int = 0
    version: str | None = None
    size_bytes: int | None = None
    num_asked: int = 0

    def add(self, piece: bytes) -> None:
        """Append what came next; nothing beyond what is wanted."""
        if self.remaining is not None and len(piece) > self.remaining:
            piece = piece[: self.remaining]
        self.pieces.append(piece)
        self.num_received += len(piece)

    @property
    def position(self) -> int:
        """First byte that has not come."""
        return self.offset + self.num_received

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are here, whatever else was announced."""
        wanted = self.length is not None and self.num_received >= self.length
        return wanted or (self.size_bytes is not None and self.position >= self.size_bytes)

    @property
    def remaining(self) -> int | None:
        """Bytes still to come; None where nobody knows."""
        ends = [self.offset + self.length] if self.length is not None else []
        ends += [self.size_bytes] if self.size_bytes is not None else []
        return max(min(ends) - self.position, 0) if ends else None


class Prefixed:
    """The objects under one prefix of a bucket, and how they are called.

    Attributes:
        url: SCHEME://bucket/prefix; an empty prefix is the bucket itself.
    """

    def __init__(self, scheme: str, bucket: str, prefix: str) -> None:
        """Hold the objects SCHEME://bucket/prefix/NAME."""
        self.bucket = bucket
        self.prefix = prefix
        self.url = f"{scheme}://{bucket}/{prefix}" if prefix else f"{scheme}://{bucket}"

    def _key(self, name: str) -> str:
        """Of an object in the bucket."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def _where(self, name: str) -> str:
        """An object, or all of them, in messages."""
        return f"{self.url}/{name}" if name else self.url


class Client(Protocol):
    """Objects under one prefix of some remote storage. Picklable; survives a fork.

    Every method makes one request, raises FaultError where asking again may help, StoreError where it will not.
    """

    url: str

    def fetch(self, name: str, part: Part) -> None:
        """Add to `part` what comes of the rest of it, in order; what came before a fault stays.

        Raises:
            MissingObjectError: there is no such object.
            StoreError: it is of another version than what came before.
        """

    def put(self, name: str, data: bytes | Path) -> None:
        """Create or replace an object."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create an object unless there is one: whether this request did."""

    def exists(self, name: str) -> bool:
        """Whether there is an object of that name."""

    def list_page(self, token: str | None) -> tuple[list[str], str | None]:
        """Names of objects, and the token of the next page; None after the last."""

    def delete(self, name: str) -> None:
        """Remove an object; no error when there is none."""

    def reconnect(self) -> None:
        """Close all connections: the next request opens one."""
