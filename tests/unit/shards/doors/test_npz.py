"""Archives of arrays: what numpy writes is read, what does not hold together is refused before it takes memory."""

import contextlib
import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile_datasets import npy_header, npz, with_size
from hypothesis import given
from hypothesis import strategies as st

from shards.doors.npz import NpzError, RepeatedRows, read_npz, write_npz

NAMES = ("xyz", "rgb")
TYPES = (np.dtype(np.float32), np.dtype(np.uint8))
XYZ = np.arange(12, dtype=np.float32).reshape(4, 3)


def read(data: bytes, max_bytes: int = 1 << 20) -> dict[str, np.ndarray]:
    return read_npz(data, NAMES, TYPES, max_bytes)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("array", [XYZ, XYZ[:0], XYZ.T, np.asfortranarray(XYZ), XYZ[0], np.uint8(3)])
def test_what_numpy_writes_is_read_bit_for_bit_and_can_be_written_to(save, array) -> None:
    buffer = io.BytesIO()
    save(buffer, xyz=array, rgb=np.zeros((4, 3), np.uint8))
    found = read(buffer.getvalue())["xyz"]
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (np.asarray(array).dtype, np.shape(array))
    assert found.flags.writeable


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an npz archive: 0 bytes"),
        (b"\x93NUMPY", "not an npz archive: 6 bytes starting with"),
        (b"PK" + bytes(100), "without its end"),
        (npz({"xyz": XYZ})[:-1], "without its end"),
        (npz({"xyz": XYZ, "rgb": XYZ, "more": XYZ}), "an archive of 3 files, wanted at most 2: xyz, rgb"),
        (npz({"a\x1b": XYZ}), r"the array 'a\\x1b' is unknown"),
        (npz({"xyz": np.zeros(3)}), "xyz holds float64, wanted float32, uint8"),
        (npz({"xyz": np.array([None])}), "xyz holds object, .*nothing is ever unpickled"),
        (npz({"xyz": np.zeros(1 << 20, np.uint8)}), "arrays of 10487.. bytes, wanted at most 1048576"),
        (npz({"xyz": npy_header((10**11, 3))}), r"the shape \(100000000000, 3\) of float32, which are 1200000000000"),
        (npz({"xyz": npy_header((-1, -3)) + bytes(12)}), r"the shape \(-1, -3\)"),
        (npz({"xyz": npy_header((2, 3)) + bytes(25)}), "which are 24 bytes, and 25 bytes follow"),
        (npz({"xyz": npy_header((2, 3)) + bytes(23)}), "which are 24 bytes, and 23 bytes follow"),
        (npz({"xyz": b"\x93NUMPY\x03\x00" + bytes(9)}), r"format \(3, 0\), wanted 1.0 or 2.0"),
        (npz({"xyz": b"\x93NUMPY\x02\x00" + struct.pack("<I", 10**8) + b" " * 9}), "not an npz archive"),
        (npz({"xyz": b""}), "not an npz archive"),
        (with_size(npz({"xyz": XYZ}), 10), "not an npz archive|bytes follow"),
        (with_size(npz({"xyz": npy_header((1000, 3))}), 12128), "bytes came, wanted 12000|bytes follow"),
    ],
)
def test_what_does_not_hold_together_is_told(data: bytes, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(NpzError, match=message):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_two_files_of_one_name_are_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("xyz.npy", npy_header((0, 3)))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("xyz.npy", npy_header((0, 3)))
    with pytest.raises(NpzError, match="'xyz' is unknown or there twice"):
        read(buffer.getvalue())


GOOD_HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }"


@pytest.mark.parametrize(
    "header",
    [
        "(((",
        "'''abc",
        "  x\n y",
        "{[]: 1}",
        "-" * 3900 + "1",
        GOOD_HEADER.replace("(1,)", "(True,)"),
        GOOD_HEADER.replace("(1,)", "(01,)"),
        GOOD_HEADER.replace("'shape'", "b'shape'"),
    ],
)
def test_a_header_that_numpy_stumbles_over_is_told(header: str) -> None:
    text = header.encode() + b"\n"
    with pytest.raises(NpzError, match=r"not an npz archive|holds"):
        read(npz({"xyz": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(4)}))


@given(st.lists(st.tuples(st.integers(0, len(GOOD_HEADER)), st.sampled_from("{}[]()',: \\\n01-+.bjLTO#")), max_size=4))
def test_whatever_stands_in_a_header_is_an_array_or_told(typed: list[tuple[int, str]]) -> None:
    text = GOOD_HEADER
    for at, letter in typed:
        text = text[:at] + letter + text[at:]
    data = text.encode() + b"\n"
    with contextlib.suppress(NpzError):
        read(npz({"xyz": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data + bytes(4)}))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_numpy_does_not_write_is_refused_unread(compression: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("xyz.npy", npy_header((1, 3)) + bytes(12))
    with pytest.raises(NpzError, match="in another way than deflate"):
        read(buffer.getvalue())


@pytest.mark.parametrize("num_rows", [0, 1, 70_000, 200_000])
def test_repeated_rows_are_written_as_the_array_that_they_stand_for(tmp_path: Path, num_rows: int) -> None:
    rows = np.arange(30, dtype=np.float16).reshape(10, 3)
    row_of = np.random.default_rng(0).integers(-10, 10, num_rows)
    write_npz(tmp_path / "made.npz", {"xyz": XYZ, "scores": RepeatedRows(rows, row_of), "names": np.array(["a", "bc"])})
    with np.load(tmp_path / "made.npz") as found:
        assert found["scores"].dtype == np.float16
        np.testing.assert_array_equal(found["scores"], rows[row_of])
        np.testing.assert_array_equal(found["xyz"], XYZ)
        assert found["names"].tolist() == ["a", "bc"]
    assert set(read_npz((tmp_path / "made.npz").read_bytes(), ("xyz",), TYPES, 1 << 20, max_others=2)) == {"xyz"}


def test_what_repeated_rows_stand_for_is_never_there_as_a_whole(tmp_path: Path) -> None:
    tracemalloc.start()
    repeated = RepeatedRows(np.zeros((2, 100), np.float32), np.zeros(300_000, np.int8))
    write_npz(tmp_path / "made.npz", {"scores": repeated})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300_000 * 100 * 4 / 2
