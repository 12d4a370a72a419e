"""Encoded images as far as their headers and marks tell: sizes, and whether they are whole. Nothing is decoded."""

from __future__ import annotations

import re
import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# SOF0 to SOF15 of JPEG; C4, C8 and CC among them mean something else.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END = 0xDA, 0xD9
# Within a scan FF 00 is the byte FF, and D0 to D7 are marks to restart from.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that the header of a JPEG announces; None where there is none."""
    position = 2
    while data[:3] == b"\xff\xd8\xff" and position + 9 <= len(data):
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position] != 0xFF:
            return None
        if marker == 0xFF:  # padding
            position += 1
        elif marker in _FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        else:
            position += 2 + length
    return None


def png_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that the header of a PNG announces; None where there is none."""
    if data[:8] != PNG_SIGNATURE or data[12:16] != b"IHDR" or len(data) < 24:
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def check_png_chunks(data: bytes) -> None:
    """Raise ValueError unless every chunk up to the end mark has its CRC; Pillow does not look at those of pixels."""
    position = len(PNG_SIGNATURE)
    while True:
        if position + 12 > len(data):
            raise ValueError(f"cut short in the chunk at byte {position}")
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        kind = data[position + 4 : position + 8]
        if end + 4 > len(data):
            raise ValueError(f"cut short in the chunk {kind!r} at byte {position}")
        if zlib.crc32(memoryview(data)[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"the chunk {kind!r} at byte {position} does not have its CRC: the bytes are damaged")
        if kind == b"IEND":
            return
        position = end + 4


def check_jpeg_markers(data: bytes) -> None:
    """Raise ValueError unless the parts of a JPEG follow one another up to its end mark, a frame and a scan among them.

    What is behind the end mark, as phones put a second image there, is not looked at.
    """
    position, seen = 2, set()
    while True:
        if position + 4 > len(data) and data[position : position + 2] != bytes((0xFF, _END)):
            raise ValueError(f"cut short at byte {len(data)}, before its end mark")
        if data[position] != 0xFF:
            raise ValueError(f"no mark of a part at byte {position}: the bytes are damaged")
        marker = data[position + 1]
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker == _END:
            break
        seen.add(marker)
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _SCAN:
            following = _NEXT_MARKER.search(data, position)
            if following is None:
                raise ValueError("cut short within its pixels")
            position = following.start()
    if not (seen & _FRAME_MARKERS and _SCAN in seen):
        raise ValueError("without pixels")
