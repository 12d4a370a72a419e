"""The one way in for JSON: bounded in size and depth, every number finite and of a size that numpy holds."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from shards.doors.text import shown

MAX_BYTES = 16 << 20
MAX_DEPTH = 32
_MAX_INTEGER = 1 << 64
_BRACKET_OR_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?+|[\[\]{}]', re.DOTALL)


class JsonError(ValueError):
    """Text that is no JSON, or not of the kind that is read here; says what is wrong, the caller says where."""


def parse_json(data: bytes | str, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """The value that `data` spells.

    Args:
        data: text, or UTF-8.
        max_bytes: that it may have (characters, of text).
        max_depth: of lists and mappings within one another.

    Raises:
        JsonError: too long, too deep, not UTF-8, malformed, or a number is not finite or beyond 64 bits.
    """
    if len(data) > max_bytes:
        raise JsonError(f"{len(data)} bytes of JSON, wanted at most {max_bytes}")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 ({error.reason} at byte {error.start})") from error
    _check_depth(text, max_depth)
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_bounded)
    except JsonError:
        raise
    except ValueError as error:
        raise JsonError(f"no JSON: {shown(error)}") from error


def _check_depth(text: str, max_depth: int) -> None:
    # Most texts have fewer brackets than that, and counting them is quick.
    if text.count("[") + text.count("{") <= max_depth:
        return
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(text):
        if match[0] in "[{":
            depth += 1
            if depth > max_depth:
                raise JsonError(f"lists and mappings more than {max_depth} deep, at character {match.start()}")
        elif match[0] in "]}":
            depth -= 1


def _refuse(constant: str) -> NoReturn:
    raise JsonError(f"{constant} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise JsonError(f"the number {shown(digits, 40)} is not finite")
    return number


def _bounded(digits: str) -> int:
    if len(digits) > 21 or abs(number := int(digits)) >= _MAX_INTEGER:
        raise JsonError(f"the number {shown(digits, 40)} is beyond 64 bits")
    return number
