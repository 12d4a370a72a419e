"""PLY files of points: every order of bytes is read, what is unknown is passed over, a hostile header is told."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from shards.doors.ply import PlyError, read_ply, write_ply

POINTS = np.array([[0.0, 1.5, -2.0], [3.25, 4.0, 5.0], [6.0, 7.0, 8.5]])
COLORS = np.array([[255, 0, 7], [8, 9, 10], [0, 128, 255]], np.uint8)
FACES = "element face 2\nproperty list uchar int vertex_indices\n"


def header(kind: str, rest: str, count: object = 3) -> bytes:
    return f"ply\nformat {kind} 1.0\ncomment made by a test\n{rest.format(count=count)}end_header\n".encode()


VERTEX = (
    "element vertex {count}\nproperty double x\nproperty float confidence\nproperty double y\nproperty double z\n"
    "property uchar red\nproperty uchar green\nproperty uchar blue\nproperty int quality\n"
)


def binary(order: str, faces_first: bool) -> bytes:
    """Vertices with properties that nobody knows, beside faces."""
    fields = [("x", "f8"), ("c", "f4"), ("y", "f8"), ("z", "f8"), ("r", "u1"), ("g", "u1"), ("b", "u1"), ("q", "i4")]
    rows = np.zeros(3, np.dtype([(name, order + kind) for name, kind in fields]))
    for column, axis in enumerate("xyz"):
        rows[axis] = POINTS[:, column]
    for column, name in enumerate("rgb"):
        rows[name] = COLORS[:, column]
    faces = b"".join(bytes([n]) + np.arange(n, dtype=order + "i4").tobytes() for n in (3, 4))
    kind = "binary_little_endian" if order == "<" else "binary_big_endian"
    if faces_first:
        return header(kind, FACES + VERTEX) + faces + rows.tobytes()
    return header(kind, VERTEX + FACES) + rows.tobytes() + faces


def text(end: str = "\n") -> bytes:
    rows = [f"{x} 0.5 {y} {z} {r} {g} {b} -1" for (x, y, z), (r, g, b) in zip(POINTS, COLORS, strict=True)]
    lines = header("ascii", VERTEX + FACES).decode() + "\n".join([*rows, "3 0 1 2", "4 0 1 2 0", ""])
    return lines.replace("\n", end).encode()


def written(folder: Path, content: bytes) -> Path:
    path = folder / "scan.ply"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [text(), text("\r\n"), binary("<", False), binary(">", False), binary("<", True), binary(">", True)],
    ids=["text", "CRLF", "little", "big", "little, faces first", "big, faces first"],
)
def test_every_order_of_bytes_is_read_and_unknown_properties_and_faces_are_passed_over(
    tmp_path: Path, content: bytes
) -> None:
    found = read_ply(written(tmp_path, content))
    np.testing.assert_array_equal(found.points, POINTS)
    np.testing.assert_array_equal(found.colors, COLORS)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "out.ply"
    write_ply(path, POINTS, COLORS, {"label": np.arange(3, dtype=np.int32)}, ("a\nb \N{EURO SIGN}",))
    found = read_ply(path)
    np.testing.assert_array_equal(found.points, POINTS)
    np.testing.assert_array_equal(found.colors, COLORS)
    assert b"comment a\\nb \\u20ac\nelement vertex 3\n" in path.read_bytes()


XYZ = "element vertex {count}\nproperty float x\nproperty float y\nproperty float z\n"
RGB = "property {0} red\nproperty {0} green\nproperty {0} blue\n"


@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        ("float", "0 0.5 1", [0, 128, 255]),
        ("float", "0 128 255", [0, 128, 255]),
        ("uchar", "0 1 1", [0, 1, 1]),
        ("ushort", "0 32768 65535", [0, 128, 255]),
        (None, "", None),
    ],
)
def test_colours_of_every_type_become_bytes(tmp_path: Path, kind: str | None, values: str, wanted: object) -> None:
    columns = XYZ + (RGB.format(kind) if kind else "")
    found = read_ply(written(tmp_path, header("ascii", columns, 1) + f"1 nan 3 {values}\n".encode()))
    assert (None if found.colors is None else found.colors[0].tolist()) == wanted
    np.testing.assert_array_equal(found.points, [[1, np.nan, 3]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^is empty$"),
        (b"PK\x03\x04", "no PLY"),
        (b"ply\n" + b"comment x\n" * 2000, "more than 1024 lines without end_header"),
        (b"ply\n" + b"c" * 5000, "a line of its header has 1024 bytes"),
        (b"ply\nformat ascii 1.0\nelement vertex 1\n", "its header has no end_header"),
        (b"ply\nelement vertex 0\nend_header\n", "no line `format"),
        (header("ascii", XYZ, -3), "the line 'element vertex -3', wanted"),
        (header("ascii", XYZ, "1e9"), "the line 'element vertex 1e9', wanted"),
        (header("ascii", XYZ, 10**18), "announces 1000000000000000000 vertices, at most 100000000"),
        (header("binary_little_endian", XYZ, 99_999_999), "which take 1199999988 bytes at least, and 0 bytes are left"),
        (header("ascii", XYZ, 99_999_999), "599999993 bytes at least, and 0 bytes are left"),
        (header("ascii", XYZ, 2) + b"1 2 3\n\n\n\n\n\n", "it ends after 1 rows where 2 were announced"),
        (header("ascii", XYZ, 1) + b"1 2 three\n", "its line 9 has 'three', wanted numbers"),
        (header("ascii", XYZ, 2) + b"1 2 3\n\n4 5 1_0\n", "its line 11 has '1_0', wanted numbers"),
        (header("ascii", XYZ, 2) + b"1 2 3\n1 2\n3 4 5 6\n", "its line 10 has 2 values, and its header names 3"),
        (header("ascii", XYZ, 1) + b"1 2 3 4\n", "a vertex has 4 values, and its header names 3 properties"),
        (header("ascii", "element face 0\n"), "no `element vertex`, only"),
        (header("ascii", "element vertex 1\nproperty float x\n"), "have no y, z"),
        (
            header("ascii", XYZ + "property list uchar int n\n", 1),
            r"its vertices have lists \(n\), wanted single numbers",
        ),
        (header("ascii", XYZ + "property float x\n", 1), "the property x twice"),
        (header("ascii", XYZ + "property half w\n", 1), "the property 'half w', wanted"),
        (header("ascii", XYZ + "element vertex 1\n", 1), "the element vertex twice"),
        (header("ascii", XYZ + RGB.format("float"), 1) + b"1 2 3 0 0 300\n", "floats up to 300"),
        (header("ascii", XYZ + RGB.format("uchar"), 1) + b"1 2 3 0 0 300\n", "a colour is 300"),
        (header("binary_big_endian", FACES + XYZ) + b"\xff" + bytes(80), "has 255 entries, and 80 bytes are left"),
        (header("binary_big_endian", "element f 9999999999\nproperty list int int n\n" + XYZ), "39999999996 bytes"),
    ],
)
def test_a_header_that_does_not_hold_together_is_told_before_it_takes_memory(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = written(tmp_path, content)
    tracemalloc.start()
    with pytest.raises(PlyError, match=message):
        read_ply(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
