"""The bytes of one sample in a tar: how they are made, and read back; the only importer of webdataset."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

from shards.doors.text import shown
from shards.errors import ShardError, needs_extra

BLOCK_BYTES = 512
_OCTAL = re.compile(rb"[0-7]{1,12}")
RECORD_BYTES = 20 * BLOCK_BYTES  # tar pads an archive to whole records, after at least two empty blocks


def sample_slice(key: str, members: Mapping[str, bytes]) -> bytes:
    """The exact bytes of one sample in a tar: headers, contents, padding, members in sorted order.

    webdataset's TarWriter makes them (into a tar of their own, of which the end is cut off), so that what we write
    is what webdataset would write. USTAR, owner 0, mode 0444 and mtime 0 make equal input equal bytes; its default, a
    float mtime, adds a PAX header of 1 KiB per member and is never the same twice.
    """
    with needs_extra("storage", "webdataset", "packing"):
        from webdataset.writer import TarWriter  # loads torch: a second and 300 MB that only packing pays

    buffer = io.BytesIO()
    with TarWriter(
        buffer, user="", group="", mode=0o444, mtime=0, format="USTAR_FORMAT", encoder=False, compress=False
    ) as writer:
        writer.write({"__key__": key, **members})
        length = writer.tarstream.offset
    return buffer.getvalue()[:length]


def samples_of_tar(name: str, stream: IO[bytes]) -> Iterator[dict[str, Any]]:
    """What webdataset's own reader finds in a tar: members by their names, and `__key__` beside them.

    Args:
        name: name of the tar, for its messages.

    Raises:
        tarfile.TarError, ValueError, OSError: it cannot read on.
    """
    with needs_extra("storage", "webdataset", "reading with webdataset's own reader, as verifying does,"):
        from webdataset.tariterators import group_by_keys, tar_file_expander  # loads torch
    return iter(group_by_keys(tar_file_expander([{"url": name, "stream": stream}])))


def archive_end(length: int) -> bytes:
    """The empty blocks that end a tar whose samples take `length` bytes."""
    return bytes(2 * BLOCK_BYTES + -(length + 2 * BLOCK_BYTES) % RECORD_BYTES)


def members_of_slice(data: bytes, where: str) -> dict[str, bytes]:
    """Cut a sample's bytes (crc32c already checked) into its members, by the name after the key.

    Raises:
        ShardError: the bytes are not tar members of one key.
    """
    members: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        header = data[position : position + BLOCK_BYTES]
        path = header[:100].rstrip(b"\0").decode("ascii", "replace")
        _, dot, name = path.partition(".")
        octal = header[124:136].rstrip(b"\0 ")
        if not _OCTAL.fullmatch(octal):
            raise ShardError(f"{where}: no tar header at byte {position} of the sample; pack again")
        size = int(octal, 8)
        start = position + BLOCK_BYTES
        position = start + size + -size % BLOCK_BYTES
        if header[257:262] != b"ustar" or not dot or name in members or position > len(data):
            raise ShardError(f"{where}: member '{shown(path)}' of {size} bytes is not one of this sample; pack again")
        members[name] = data[start : start + size]
    return members
