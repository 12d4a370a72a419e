"""The one way in and out for PLY files of points: what a header announces is held against the size of the file."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from shards.doors.files import open_file
from shards.doors.text import shown

MAX_POINTS = 100_000_000
_MAX_LINE = 1024  # bytes of a line of the header
_MAX_LINES = 1024
_ROWS_AT_ONCE = 1 << 18
_MAX_TEXT_ROW = 1 << 14  # bytes of a row of an ASCII file
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_NAMES_OF_TYPES = {
    "i1": ("char", "int8"),
    "u1": ("uchar", "uint8"),
    "i2": ("short", "int16"),
    "u2": ("ushort", "uint16"),
    "i4": ("int", "int32"),
    "u4": ("uint", "uint32"),
    "f4": ("float", "float32"),
    "f8": ("double", "float64"),
}
_TYPES = {name: kind for kind, names in _NAMES_OF_TYPES.items() for name in names}
_COLOR_NAMES = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))


class PlyError(ValueError):
    """A file that is not the PLY of points that it should be; says what is wrong, the caller says where."""


@dataclass(frozen=True, eq=False)
class PlyPoints:
    """The vertices of a file.

    Attributes:
        points: (N, 3) float64, as they stand there: unit and axes are the writer's; may hold NaN.
        colors: (N, 3) uint8, None where a vertex has none.
    """

    points: NDArray[np.float64]
    colors: NDArray[np.uint8] | None


@dataclass(frozen=True)
class _Property:
    """A column: `kind` as numpy spells it, `count_kind` of the length in front of a list, None where it is no list."""

    name: str
    kind: str
    count_kind: str | None


@dataclass(frozen=True)
class _Element:
    """A table of the file."""

    name: str
    num_rows: int
    properties: tuple[_Property, ...]

    @property
    def has_lists(self) -> bool:
        return any(column.count_kind for column in self.properties)

    @property
    def least_bytes(self) -> int:
        """Bytes that a row has in a binary file, at least: lists may be empty."""
        return sum(np.dtype(column.count_kind or column.kind).itemsize for column in self.properties)


def read_ply(path: Path, max_points: int = MAX_POINTS) -> PlyPoints:
    """The vertices of a PLY: ASCII, or binary of either byte order.

    Properties other than x, y, z and the colour are passed over, and so are other elements, faces for example. Colours
    are integers, or floats in [0, 1] or [0, 255].

    Args:
        max_points: that it may have.

    Raises:
        PlyError: no PLY, a header that is malformed or announces what the file does not hold, no x, y and z, or lists
            among the vertices.
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        order, elements = _read_header(file)
        vertex = next((element for element in elements if element.name == "vertex"), None)
        if vertex is None:
            raise PlyError(f"its header has no `element vertex`, only {[shown(each.name, 40) for each in elements]}")
        columns = _columns_of(vertex)
        if vertex.num_rows > max_points:
            raise PlyError(f"its header announces {vertex.num_rows} vertices, at most {max_points} are read")
        for element in elements[: elements.index(vertex)]:
            _pass_over(file, element, order)
        _check_room(file, vertex, order)
        blocks = _text_blocks(file, vertex) if order == "" else _binary_blocks(file, vertex, order)
        return _gather(blocks, vertex, columns)


def write_ply(
    path: Path,
    points: NDArray[np.floating],
    colors: NDArray[np.uint8],
    more: Mapping[str, NDArray[Any]],
    comments: tuple[str, ...] = (),
) -> None:
    """Write points as a binary PLY, little-endian.

    Args:
        points: (N, 3), written as float.
        colors: (N, 3), as uchar red, green and blue.
        more: further properties of a point, (N,) int32 or float32 each.
        comments: lines of the header; what is no printable ASCII in them is spelled out.
    """
    kinds = {name: values.dtype.str[1:] for name, values in more.items()}
    fields = [*((axis, "<f4") for axis in "xyz"), *((name, "u1") for name in _COLOR_NAMES[0])]
    fields += [(name, f"<{kind}") for name, kind in kinds.items()]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {shown(text).encode('ascii', 'backslashreplace').decode()}" for text in comments),
        f"element vertex {len(points)}",
        *(f"property float {axis}" for axis in "xyz"),
        *(f"property uchar {name}" for name in _COLOR_NAMES[0]),
        *(f"property {_NAMES_OF_TYPES[kind][0]} {name}" for name, kind in kinds.items()),
        "end_header",
    ]
    with path.open("wb") as file:
        file.write("\n".join(header).encode("ascii") + b"\n")
        for start in range(0, len(points), _ROWS_AT_ONCE):
            here = slice(start, start + _ROWS_AT_ONCE)
            rows = np.empty(len(points[here]), np.dtype(fields))
            for column, axis in enumerate("xyz"):
                rows[axis] = points[here, column]
            for column, name in enumerate(_COLOR_NAMES[0]):
                rows[name] = colors[here, column]
            for name, values in more.items():
                rows[name] = values[here]
            file.write(rows.tobytes())


def _read_header(file: IO[bytes]) -> tuple[str, list[_Element]]:
    """The byte order, "" for text, and the tables in the order in which they stand."""
    first = file.readline(_MAX_LINE)
    if not first:
        raise PlyError("is empty")
    if first.strip() != b"ply":
        raise PlyError(f"no PLY: its first line is {first[:20]!r}, wanted b'ply'")
    order: str | None = None
    elements: list[_Element] = []
    for _ in range(_MAX_LINES):
        line = file.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise PlyError(
                f"a line of its header has {_MAX_LINE} bytes or more" if line else "its header has no end_header"
            )
        words = line.decode("ascii", "replace").split()
        if words == ["end_header"]:
            if order is None:
                raise PlyError("its header has no line `format ...`")
            return order, elements
        match words:
            case [] | ["comment" | "obj_info", *_]:
                pass
            case ["format", name, "1.0"] if name in _ORDERS and order is None:
                order = _ORDERS[name]
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) < 20:
                if name in (element.name for element in elements):
                    raise PlyError(f"its header has the element {shown(name, 40)} twice")
                elements.append(_Element(name, int(count), ()))
            case ["property", *column] if elements:
                last = elements.pop()
                elements.append(_Element(last.name, last.num_rows, (*last.properties, _property_of(column, last))))
            case _:
                raise PlyError(
                    f"its header has the line {shown(line.decode('ascii', 'replace').strip(), 80)!r}, wanted "
                    f"`format {'|'.join(_ORDERS)} 1.0`, `element NAME COUNT`, `property TYPE NAME`, `comment ...` or "
                    "`end_header`"
                )
    raise PlyError(f"its header has more than {_MAX_LINES} lines without end_header")


def _property_of(words: list[str], element: _Element) -> _Property:
    match words:
        case ["list", count_kind, kind, name] if _TYPES.get(count_kind, "f")[0] != "f" and kind in _TYPES:
            found = _Property(name, _TYPES[kind], _TYPES[count_kind])
        case [kind, name] if kind in _TYPES:
            found = _Property(name, _TYPES[kind], None)
        case _:
            raise PlyError(f"its header has the property {shown(' '.join(words), 80)!r}, wanted {', '.join(_TYPES)}")
    if found.name in (column.name for column in element.properties):
        raise PlyError(f"its element {shown(element.name, 40)} has the property {shown(found.name, 40)} twice")
    return found


def _columns_of(vertex: _Element) -> tuple[int, ...]:
    """Which columns are x, y and z, and then red, green and blue where they are all there."""
    if lists := [shown(column.name, 40) for column in vertex.properties if column.count_kind]:
        raise PlyError(f"its vertices have lists ({', '.join(lists)}), wanted single numbers, as MeshLab writes them")
    place = {column.name: index for index, column in enumerate(vertex.properties)}
    if missing := [axis for axis in "xyz" if axis not in place]:
        raise PlyError(f"its vertices have no {', '.join(missing)}, only {[shown(name, 40) for name in place]}")
    colors = next((names for names in _COLOR_NAMES if all(name in place for name in names)), ())
    return tuple(place[name] for name in (*"xyz", *colors))


def _left(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size - file.tell()


def _check_room(file: IO[bytes], element: _Element, order: str) -> None:
    # In a text every value has a digit, and something behind it but for the last.
    least = element.least_bytes if order else 2 * len(element.properties)
    wanted = element.num_rows * least - (0 if order else 1)
    if wanted > (left := _left(file)):
        raise PlyError(
            f"its header announces {element.num_rows} rows of {shown(element.name, 40)}, which take {wanted} bytes at "
            f"least, and {left} bytes are left: it is cut short, or its header is wrong"
        )


def _pass_over(file: IO[bytes], element: _Element, order: str) -> None:
    """Go to the end of a table that stands before the vertices."""
    _check_room(file, element, order)
    if order == "":
        for _ in _text_lines(file, element.num_rows):
            pass
    elif not element.has_lists:
        file.seek(element.num_rows * element.least_bytes, os.SEEK_CUR)
    else:
        for _ in range(element.num_rows):
            for column in element.properties:
                _pass_over_value(file, column, order)


def _pass_over_value(file: IO[bytes], column: _Property, order: str) -> None:
    size = np.dtype(column.kind).itemsize
    if column.count_kind is None:
        file.seek(size, os.SEEK_CUR)
        return
    found = file.read(np.dtype(column.count_kind).itemsize)
    try:
        (count,) = struct.unpack(order + {"1": "b", "2": "h", "4": "i"}[column.count_kind[1]], found)
    except struct.error as error:
        raise PlyError(f"it ends within the list {shown(column.name, 40)}") from error
    if column.count_kind[0] == "u":
        count %= 1 << (8 * int(column.count_kind[1]))
    if count < 0 or count * size > _left(file):
        raise PlyError(f"a list {shown(column.name, 40)} has {count} entries, and {_left(file)} bytes are left")
    file.seek(count * size, os.SEEK_CUR)


def _binary_blocks(file: IO[bytes], vertex: _Element, order: str) -> Iterator[list[NDArray[Any]]]:
    """The columns of the vertices, some rows at a time."""
    row = np.dtype([(f"c{place}", order + column.kind) for place, column in enumerate(vertex.properties)])
    for start in range(0, vertex.num_rows, _ROWS_AT_ONCE):
        wanted = min(_ROWS_AT_ONCE, vertex.num_rows - start) * row.itemsize
        data = file.read(wanted)
        if len(data) < wanted:
            raise PlyError(f"it ends within its vertices: {len(data)} bytes where {wanted} were to come")
        rows = np.frombuffer(data, row)
        yield [rows[name] for name in row.names or ()]


def _text_lines(file: IO[bytes], num_rows: int) -> Iterator[bytes]:
    """So many lines that are not blank."""
    found = 0
    while found < num_rows:
        line = file.readline(_MAX_TEXT_ROW)
        if not line:
            raise PlyError(f"it ends after {found} rows where {num_rows} were announced")
        if len(line) == _MAX_TEXT_ROW:
            raise PlyError(f"a row has {_MAX_TEXT_ROW} bytes or more")
        if line.strip():
            found += 1
            yield line


def _text_blocks(file: IO[bytes], vertex: _Element) -> Iterator[list[NDArray[Any]]]:
    lines = _text_lines(file, vertex.num_rows)
    for start in range(0, vertex.num_rows, _ROWS_AT_ONCE):
        block, begin = islice(lines, min(_ROWS_AT_ONCE, vertex.num_rows - start)), file.tell()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                rows = np.loadtxt(block, np.float64, comments=None, ndmin=2, encoding="latin-1")
        except PlyError:
            raise
        except (ValueError, UserWarning) as error:
            raise _strange_row(file, begin, vertex, error) from error
        if rows.shape[1] != len(vertex.properties):
            raise PlyError(
                f"a vertex has {rows.shape[1]} values, and its header names {len(vertex.properties)} properties"
            )
        yield list(rows.T)


def _strange_row(file: IO[bytes], begin: int, vertex: _Element, error: Exception) -> PlyError:
    """What is wrong with the first row from byte `begin` on that is not as many numbers as there are properties."""
    file.seek(0)
    number = 1
    for line in file:
        values = line.split() if file.tell() > begin else []
        if strange := [value for value in values if not _is_number(value)]:
            return PlyError(f"its line {number} has {shown(strange[0].decode('latin-1'), 40)!r}, wanted numbers")
        if values and len(values) != len(vertex.properties):
            return PlyError(
                f"its line {number} has {len(values)} values, and its header names {len(vertex.properties)} properties"
            )
        number += 1
    return PlyError(f"its vertices are no numbers: {shown(error)}")


def _is_number(value: bytes) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return b"_" not in value  # which Python allows between digits


def _gather(blocks: Iterator[list[NDArray[Any]]], vertex: _Element, columns: tuple[int, ...]) -> PlyPoints:
    points = np.empty((vertex.num_rows, 3), np.float64)
    kinds = {vertex.properties[place].kind for place in columns[3:]}
    raw = np.empty((vertex.num_rows, 3), np.uint8 if kinds == {"u1"} else np.float32) if kinds else None
    start = 0
    for block in blocks:
        here = slice(start, start + len(block[0]))
        for axis, place in enumerate(columns[:3]):
            points[here, axis] = block[place]
        for channel, place in enumerate(columns[3:]):
            assert raw is not None
            if raw.dtype == np.uint8 and not ((block[place] >= 0) & (block[place] <= 255)).all():  # of a text
                raise PlyError(f"a colour is {block[place].min():g} to {block[place].max():g}, wanted 0 to 255")
            raw[here, channel] = block[place]
        start = here.stop
    return PlyPoints(points, None if raw is None else _as_bytes(raw, kinds))


def _as_bytes(raw: NDArray[Any], kinds: set[str]) -> NDArray[np.uint8]:
    """Colours of any type as bytes: floats up to 1 are shares, 16 bits lose the lower ones, and the rest are bytes."""
    if raw.dtype == np.uint8 or not len(raw):
        return raw.astype(np.uint8)
    low, high = float(raw.min()), float(raw.max())  # NaN where there is one
    if not 0 <= low <= high <= 65535:
        raise PlyError(f"its colours lie between {low:g} and {high:g}, wanted [0, 1] or [0, 255]")
    is_share = high <= 1 and kinds <= {"f4", "f8"}
    if high > 255 and kinds <= {"f4", "f8"}:
        raise PlyError(f"its colours are floats up to {high:g}, wanted [0, 1] or [0, 255]")
    scale = 255.0 if is_share else 255 / 65535 if high > 255 else 1.0
    return np.rint(raw * np.float32(scale)).astype(np.uint8)
