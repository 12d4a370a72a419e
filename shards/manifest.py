"""The files that make shards a dataset: manifest.json, the shard table shards.bin, and an .idx beside each tar."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from shards.doors.json_text import parse_json
from shards.doors.text import shown
from shards.errors import ShardError
from shards.schema import FORMAT_VERSION, MAX_PATH_BYTES

MANIFEST_NAME = "manifest.json"
TABLE_NAME = "shards.bin"
PACKING_NAME = "packing.json"  # there while a dataset is being packed, gone once it has a manifest
_MAX_COUNT = 1 << 50  # of samples, and of bytes: sums of them stay within 64 bits
_MAX_LINE_BYTES = MAX_PATH_BYTES + 2 * len("\t1125899906842624") + len("\t01234567\n")  # of an index: key, counts, crc
_KEY = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+")
SampleKind = Literal["frames", "scenes"]  # RGB-D views, or whole point clouds
_ROW = np.dtype([("num_samples", "<u8"), ("size_bytes", "<u8"), ("sha256", "u1", (32,))])


def shard_name(shard_index: int) -> str:
    """Name of a shard's tar."""
    return f"shard-{shard_index:06d}.tar"


def index_name(shard_index: int) -> str:
    """Name of a shard's sample index."""
    return f"shard-{shard_index:06d}.idx"


def source_name(shard_index: int) -> str:
    """Name of the fingerprint of the raw files a shard was made of; there while a dataset is being packed."""
    return f"shard-{shard_index:06d}.source"


@dataclass(frozen=True)
class Manifest:
    """What a dataset is. Written last: without it there is no dataset.

    Attributes:
        format_version: version of samples, table and index.
        num_samples: in all shards.
        num_shards: rows of the shard table.
        size_bytes: bytes of all tars.
        label_names: name of every class id that semantic images use, by id; empty without labels.
        provenance: where it came from and how: format, source, options, versions.
        shards_sha256: hex digest of shards.bin, and so, through it, of every tar.
        sample_kind: what every sample is.
    """

    format_version: int
    num_samples: int
    num_shards: int
    size_bytes: int
    label_names: tuple[str, ...]
    provenance: Mapping[str, Any]
    shards_sha256: str
    sample_kind: SampleKind = "frames"

    def encode(self) -> bytes:
        """The bytes of manifest.json."""
        fields = {**self.__dict__, "label_names": list(self.label_names), "provenance": dict(self.provenance)}
        return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode("ascii")

    @classmethod
    def decode(cls, data: bytes, where: str) -> "Manifest":
        """Read manifest.json.

        Raises:
            ShardError: malformed, or of another format version.
        """
        try:
            fields = parse_json(data)
            version = fields["format_version"]
            if version != FORMAT_VERSION:
                raise ShardError(
                    f"{where}: format version {shown(repr(version), 40)}, this program reads {FORMAT_VERSION}; use the "
                    "program version that packed it, or pack again"
                )
            sample_kind = fields.get("sample_kind", "frames")  # the only kind at first, when no manifest said so
            if sample_kind not in get_args(SampleKind):
                raise ShardError(
                    f"{where}: samples are {shown(repr(sample_kind), 40)}, this program reads "
                    f"{' and '.join(get_args(SampleKind))}; use the program version that packed it"
                )
            return cls(
                format_version=FORMAT_VERSION,
                num_samples=_count(fields, "num_samples"),
                num_shards=_count(fields, "num_shards"),
                size_bytes=_count(fields, "size_bytes"),
                label_names=_names(fields["label_names"]),
                provenance=dict(fields["provenance"]),
                shards_sha256=str(fields["shards_sha256"]),
                sample_kind=sample_kind,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(
                f"{where}: not a dataset manifest ({type(error).__name__}: {shown(error)}); pack the dataset again"
            ) from error


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"label_names is {shown(value, 40)}, wanted a list of text")
    return tuple(value)


def _count(fields: Mapping[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or not 0 < value < _MAX_COUNT:
        raise ValueError(f"{name} is {shown(repr(value), 40)}, wanted a whole number above 0")
    return value


@dataclass(frozen=True)
class ShardRow:
    """One shard in the table: samples, bytes and sha256 of its tar."""

    num_samples: int
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, eq=False)
class ShardTable:
    """All shards of a dataset, by shard index.

    Attributes:
        num_samples: (S,) int64.
        size_bytes: (S,) int64.
        sha256: (S, 32) uint8.
    """

    num_samples: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    sha256: NDArray[np.uint8]

    @staticmethod
    def encoded_size(num_shards: int) -> int:
        """Bytes of the table of so many shards."""
        return num_shards * _ROW.itemsize

    @classmethod
    def from_rows(cls, rows: Sequence[ShardRow]) -> "ShardTable":
        """Stack rows."""
        return cls(
            num_samples=np.array([row.num_samples for row in rows], dtype=np.int64),
            size_bytes=np.array([row.size_bytes for row in rows], dtype=np.int64),
            sha256=np.frombuffer(b"".join(row.sha256 for row in rows), dtype=np.uint8).reshape(-1, 32),
        )

    def encode(self) -> bytes:
        """The bytes of shards.bin: one fixed-width row per shard."""
        rows = np.empty(len(self.num_samples), dtype=_ROW)
        rows["num_samples"], rows["size_bytes"], rows["sha256"] = self.num_samples, self.size_bytes, self.sha256
        return rows.tobytes()

    @classmethod
    def decode(cls, data: bytes, manifest: Manifest, where: str) -> "ShardTable":
        """Read shards.bin.

        Raises:
            ShardError: not the bytes that the manifest vouches for.
        """
        digest = hashlib.sha256(data).hexdigest()
        if digest != manifest.shards_sha256:
            raise ShardError(
                f"{where}: sha256 is {digest} ({len(data)} bytes), the manifest says {manifest.shards_sha256} "
                f"({cls.encoded_size(manifest.num_shards)} bytes); the shard table is damaged, pack the dataset again"
            )
        if len(data) != cls.encoded_size(manifest.num_shards):
            raise ShardError(f"{where}: {len(data)} bytes are not the {manifest.num_shards} rows of the manifest")
        rows = np.frombuffer(data, dtype=_ROW)
        counts = np.concatenate([rows["num_samples"], rows["size_bytes"]])
        if counts.min() < 1 or counts.max() >= _MAX_COUNT:
            raise ShardError(f"{where}: a shard without samples, or with more than there are; pack the dataset again")
        table = cls(rows["num_samples"].astype(np.int64), rows["size_bytes"].astype(np.int64), rows["sha256"].copy())
        totals = (int(table.num_samples.sum()), int(table.size_bytes.sum()))
        if totals != (manifest.num_samples, manifest.size_bytes):
            raise ShardError(
                f"{where}: rows add up to {totals[0]} samples and {totals[1]} bytes, the manifest says "
                f"{manifest.num_samples} and {manifest.size_bytes}; pack the dataset again"
            )
        return table


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where each sample of one shard lies in its tar.

    Attributes:
        keys: keys of the samples, in the order of the tar.
        offsets: (n,) int64, bytes from the start of the tar to the sample's first header.
        lengths: (n,) int64, bytes of all headers, contents and padding of the sample.
        crc32c: (n,) uint32, over exactly those bytes.
    """

    keys: tuple[str, ...]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    crc32c: NDArray[np.uint32]

    def encode(self) -> bytes:
        """The bytes of the .idx: a line per sample, and a last line with the crc32c of all lines before it."""
        rows = zip(self.keys, self.offsets.tolist(), self.lengths.tolist(), self.crc32c.tolist(), strict=True)
        body = "".join(f"{key}\t{offset}\t{length}\t{crc:08x}\n" for key, offset, length, crc in rows).encode("ascii")
        return body + b"#crc32c\t%08x\n" % google_crc32c.value(body)

    @staticmethod
    def largest_size(num_samples: int) -> int:
        """Bytes that the .idx of so many samples has at most."""
        return (num_samples + 1) * _MAX_LINE_BYTES

    @staticmethod
    def is_whole(data: bytes) -> bool:
        """Whether the last line of an .idx is the crc32c of those before it."""
        body, marker, last = data.rpartition(b"#crc32c\t")
        return bool(marker) and last == b"%08x\n" % google_crc32c.value(body)

    @classmethod
    def decode(cls, data: bytes, where: str) -> "ShardIndex":
        """Read an .idx.

        Raises:
            ShardError: truncated, altered or malformed.
        """
        body, marker, last = data.rpartition(b"#crc32c\t")
        if not cls.is_whole(data):
            found = google_crc32c.value(body)
            wanted = shown(last.strip().decode("ascii", "replace"), 20) if marker else "a last line '#crc32c ...'"
            raise ShardError(
                f"{where}: the index is damaged: crc32c {found:08x} of {len(data)} bytes, wanted {wanted}; "
                "run verify, then pack again"
            )
        try:
            rows = [line.split("\t") for line in body.decode("ascii").splitlines()]
            if strange := [key for key, _, _, _ in rows if not _KEY.fullmatch(key)]:
                raise ValueError(f"'{shown(strange[0])}' is no key: letters, digits, '-', '_' and one '/'")
            return cls(
                keys=tuple(key for key, _, _, _ in rows),
                offsets=np.array([int(offset) for _, offset, _, _ in rows], dtype=np.int64),
                lengths=np.array([int(length) for _, _, length, _ in rows], dtype=np.int64),
                crc32c=np.array([int(crc, 16) for _, _, _, crc in rows], dtype=np.uint32),
            )
        except (ValueError, OverflowError) as error:
            raise ShardError(f"{where}: malformed index line ({shown(error)}); pack the dataset again") from error
