"""What stands in the shard table for the sha256 of a tar of which only the headers were read."""

from __future__ import annotations

import hashlib

# No sha256 begins like this but for one in 2^128, so nothing takes one for the other.
_MARK = b"t4p: a version\0\0"


def hash_of_version(name: str, version: str, size_bytes: int) -> bytes:
    """32 bytes: the mark, and half a hash of what storage says of an object, its bytes unread.

    Args:
        name: of the tar beside others: what a server calls a version may be a time, and two tars have the same.
        version: its ETag, with quotes or without.
        size_bytes: of the tar.
    """
    told = "\n".join((name, version.strip('"'), str(size_bytes)))
    return _MARK + hashlib.sha256(told.encode()).digest()[: len(_MARK)]


def is_of_version(digest: bytes) -> bool:
    """Whether `hash_of_version` made it, and it says nothing of what is in the tar."""
    return digest.startswith(_MARK)
