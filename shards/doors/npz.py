"""The one way in and out for npz archives: what one announces is held against its size before anything is allocated."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from shards.doors.text import shown

MAX_BYTES = 512 << 20  # of all arrays of an archive: 25 million points with colours and labels
_END_BYTES = 22
_END_MARK = b"PK\x05\x06"
_LOCATOR_64 = b"PK\x06\x07"
_MAX_HEADER = 4096
_PIECE_BYTES = 1 << 20
_ROWS_AT_ONCE = 1 << 16
# What zipfile and zlib raise, and numpy where it takes a header for Python: it tokenizes and evaluates it.
_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy's; others take memory as their files say


class NpzError(ValueError):
    """Bytes that are not the archive of arrays that they should be; says what is wrong, the caller says where."""


@dataclass(frozen=True, eq=False)
class RepeatedRows:
    """The array (N, ...) whose row i is `rows[row_of[i]]`: it is written without being there as a whole.

    Attributes:
        rows: (R, ...).
        row_of: (N,) integer.
    """

    rows: NDArray[Any]
    row_of: NDArray[np.integer]


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any] | RepeatedRows]) -> None:
    """Write an archive of arrays as np.savez does, uncompressed.

    Raises:
        OSError: it cannot be written.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                if isinstance(values, np.ndarray):
                    np.lib.format.write_array(file, values, allow_pickle=False)
                    continue
                shape = (len(values.row_of), *values.rows.shape[1:])
                descr = np.lib.format.dtype_to_descr(values.rows.dtype)
                header = {"descr": descr, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(values.row_of), _ROWS_AT_ONCE):
                    file.write(values.rows[values.row_of[start : start + _ROWS_AT_ONCE]].tobytes())


def read_npz(
    data: bytes,
    names: Collection[str],
    dtypes: Collection[np.dtype[Any]],
    max_bytes: int = MAX_BYTES,
    *,
    max_others: int = 0,
) -> dict[str, NDArray[Any]]:
    """The arrays of an archive, by name. Nothing is ever unpickled.

    Args:
        data: the archive, as np.savez writes it.
        names: that may stand in it; none has to.
        dtypes: that they may have.
        max_bytes: of all arrays together.
        max_others: so many arrays of other names are passed over unread.

    Raises:
        NpzError: no archive, an array of another name or type, larger than `max_bytes`, or of another size than its
            shape says.
    """
    if data[:2] != b"PK":
        raise NpzError(f"not an npz archive: {len(data)} bytes starting with {data[:8]!r}")
    try:
        # The directory is looked at before zipfile lists it: it may name millions of files.
        num_files, directory_bytes = _directory(data)
        most = len(names) + max_others
        if num_files > most or directory_bytes > 1024 * most:
            raise NpzError(f"an archive of {num_files} files, wanted at most {most}: {', '.join(names)}")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if max_others:
                entries = [entry for entry in entries if entry.filename.removesuffix(".npy") in names]
            found = [entry.filename.removesuffix(".npy") for entry in entries]
            if strange := sorted({name for name in found if name not in names or found.count(name) > 1}):
                raise NpzError(f"the array '{shown(strange[0])}' is unknown or there twice; wanted {', '.join(names)}")
            if any(entry.compress_type not in _COMPRESSIONS for entry in entries):
                raise NpzError("not an npz archive as numpy writes it: compressed in another way than deflate")
            if (total := sum(entry.file_size for entry in entries)) > max_bytes:
                raise NpzError(f"arrays of {total} bytes, wanted at most {max_bytes}")
            arrays = {}
            for name, entry in zip(found, entries, strict=True):
                with archive.open(entry) as file:
                    arrays[name] = _read_array(file, entry.file_size, name, dtypes)
            return arrays
    except NpzError:
        raise
    except _ERRORS as error:
        raise NpzError(f"not an npz archive ({type(error).__name__}: {shown(error)})") from error


def _directory(data: bytes) -> tuple[int, int]:
    """How many files the end of the archive announces, and the bytes of their list."""
    end = data[-_END_BYTES:]
    before = data[-_END_BYTES - 20 : -_END_BYTES]
    if end[:4] != _END_MARK or before[:4] == _LOCATOR_64:
        raise NpzError(f"not an npz archive as numpy writes it: {len(data)} bytes without its end")
    num_files, directory_bytes = struct.unpack_from("<HI", end, 10)
    return num_files, directory_bytes


def _read_array(file: IO[bytes], size_bytes: int, name: str, dtypes: Collection[np.dtype[Any]]) -> NDArray[Any]:
    """One array of a file whose size is known, from its header on."""
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise NpzError(f"{name} is an array of format {version}, wanted 1.0 or 2.0")
    shape, is_fortran, dtype = read_header(file, max_header_size=_MAX_HEADER)
    if dtype not in dtypes:
        raise NpzError(f"{name} holds {dtype}, wanted {', '.join(map(str, dtypes))}; nothing is ever unpickled")
    rest = size_bytes - file.tell()
    wanted = math.prod(shape) * dtype.itemsize  # of Python's integers: no product is too large to be compared
    if rest != wanted or min(shape, default=0) < 0:
        raise NpzError(f"{name} has the shape {shape} of {dtype}, which are {wanted} bytes, and {rest} bytes follow")
    content = np.empty(wanted, np.uint8)
    filled = 0
    while piece := file.read(min(_PIECE_BYTES, wanted - filled) or 1):
        content[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
    if filled != wanted:
        raise NpzError(f"{name}: {filled} bytes came, wanted {wanted}")
    return content.view(dtype).reshape(shape, order="F" if is_fortran else "C")
