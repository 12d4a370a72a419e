"""A tar in object storage of which only the headers are read, so that its index needs no download."""

from __future__ import annotations

import io
from bisect import bisect_right
from threading import Event
from typing import Any

from shards.errors import CallError
from shards.headers import jpeg_size
from shards.slices import BLOCK_BYTES
from shards.stores.client import Part
from shards.stores.patient import PatientStore
from shards.stores.store import Store, StoreError
from shards.versions import hash_of_version

# Bytes that are read at least, wherever something is looked at: the header of a member and, behind it, the size of an
# image, or a meta.json and the header of the next sample's first member. One request for both is cheaper than two.
WINDOW = 4 << 10
HEADS = ("color.jpg", "color.png", "depth.png", "depth.zst", "meta.json")  # members that say what is in the index
_MOST_OF_A_HEAD = 1 << 20  # a phone's JPEG has pictures and profiles before its size


class HeadersOfTar(io.RawIOBase):
    """A file to read from here and there, forwards mostly; what was read stays.

    Attributes:
        digest: that stands for the sha256 of the tar, as `shards.versions` makes it.
    """

    def __init__(self, store: Store, name: str, ended: Event) -> None:
        """Read its first bytes.

        Args:
            ended: set where nobody wants any more of it: whoever reads on gets a StoreError.

        Raises:
            CallError: the tar is in a folder, or its storage does not tell versions apart.
            StoreError: storage refused or failed.
        """
        super().__init__()
        if not isinstance(store, PatientStore):
            raise CallError(f"{store.url}: is a folder, where tars are read for nothing; leave out --headers-only")
        self._store, self._name, self._ended = store, name, ended
        self._position = 0
        self._starts: list[int] = []
        self._windows: list[bytes] = []
        self._version: str | None = None
        self._size = 0
        self._read_window(0, WINDOW)
        if self._version is None and self._size:
            raise CallError(
                f"{store.url}/{name}: its storage gives no ETag, so nothing would tell when it changes; "
                "leave out --headers-only"
            )
        self.digest: bytes = hash_of_version(name, self._version or "", self._size)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(self._size)
        i = bisect_right(self._starts, start) - 1
        if i < 0 or self._starts[i] + len(self._windows[i]) < stop:
            self._read_window(start, max(WINDOW, stop - start))
            i = bisect_right(self._starts, start) - 1
        return self._windows[i][start - self._starts[i] : stop - self._starts[i]]

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        data = self[self._position : self._position + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read_window(self, start: int, length: int) -> None:
        if self._ended.is_set():
            raise StoreError(f"{self._store.url}/{self._name}: not read to its end; index the tars again")
        part = Part(start, length, version=self._version)  # all of one version, or storage says so
        self._store.fill(self._name, part)
        self._version, self._size = part.version, part.size_bytes or 0
        i = bisect_right(self._starts, start)
        if i and self._starts[i - 1] == start:  # the longer one of two
            i -= 1
            del self._starts[i], self._windows[i]
        self._starts.insert(i, start)
        self._windows.insert(i, b"".join(part.pieces))


class HeadersOfSample:
    """The bytes of a sample in such a tar, read where they are looked at."""

    def __init__(self, tar: HeadersOfTar, start: int, stop: int) -> None:
        self._tar, self._start, self._stop = tar, start, stop

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(len(self))
        return self._tar[self._start + start : self._start + stop]

    def head(self, name: str, offset: int, size: int) -> bytes:
        """As much of a member as the index needs: of an image so much that its size can be told, meta.json whole."""
        if name == "meta.json":
            return self[offset : offset + size]
        head = min(size, BLOCK_BYTES)
        data = self[offset : offset + head]
        while name == "color.jpg" and jpeg_size(data) is None and head < min(size, _MOST_OF_A_HEAD):
            head = min(4 * head, size)
            data = self[offset : offset + head]
        return data
