"""Text files of other people's tools: marks, comments, line ends and separators of all kinds, read in one way."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.doors.json_text import parse_json
from shards.doors.text import shown
from shards.errors import ShardError
from shards.sources.raw_files import MAX_FILE_BYTES, read_bytes

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),  # as PowerShell writes what is sent into a file
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")


def read_text(path: Path) -> str:
    """The whole file, a byte order mark at its head taken off.

    Raises:
        ShardError: it cannot be read, or is neither UTF-8 nor marked as UTF-16.
    """
    data = read_bytes(path)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: not a text file ({error.reason} at byte {error.start}); save it as UTF-8") from error


def content_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of the lines that say something: no blank ones, no comments, no white space around."""
    for number, line in enumerate(text.splitlines(), start=1):
        if (stripped := line.strip()) and not stripped.startswith("#"):
            yield number, stripped


def columns_of(line: str, where: str) -> list[str]:
    """The columns of a line, between white space, commas or semicolons.

    Raises:
        ShardError: commas stand where points should: which numbers are meant cannot be known.
    """
    pieces = re.split(r"[\s;]+", line.strip())
    if len(pieces) > 1 and (comma := next((one for one in pieces if _DECIMAL_COMMA.fullmatch(one)), None)):
        raise ShardError(
            f"{where}: '{shown(comma)}' has a decimal comma; wanted numbers with a decimal point (the tool that wrote "
            "them may take it from the language of the system: LC_ALL=C)"
        )
    return [one for one in re.split(r"[\s,;]+", line.strip()) if one]


def read_matrix(path: Path) -> NDArray[np.float64]:
    """A matrix of numbers separated by white space, commas or semicolons.

    Raises:
        ShardError: not a rectangle of numbers.
    """
    rows = [columns_of(line, f"{path}, line {number}") for number, line in content_lines(read_text(path))]
    try:
        matrix = np.array([[float(number) for number in row] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise ShardError(f"{path}: not a matrix of numbers ({error})") from error
    if matrix.ndim != 2:
        raise ShardError(f"{path}: empty, wanted a matrix of numbers")
    return matrix


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ShardError: it cannot be read, or is no JSON.
    """
    try:
        return parse_json(read_text(path), max_bytes=MAX_FILE_BYTES)
    except ValueError as error:
        raise ShardError(f"{path}: not JSON ({error}); write it again") from error


def is_number(text: str) -> bool:
    """Whether a column holds a finite number."""
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
