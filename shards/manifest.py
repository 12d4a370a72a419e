"""What a dataset is: manifest.json, which vouches for itself and for every other object of the dataset."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from shards.doors.json_text import parse_json
from shards.doors.text import shown
from shards.errors import ShardError
from shards.schema import READ_VERSIONS

MANIFEST_NAME = "manifest.json"
TABLE_NAME, FILLED_TABLE_NAME = "shards.bin", "shards-filled.bin"
INDEX_NAME, FILLED_INDEX_NAME = "index.bin", "index-filled.bin"
VOXELS_NAME = "voxels.bin"
PACKING_NAME = "packing.json"  # there while a dataset is being packed, gone once it has a manifest
MAX_COUNT = 1 << 50  # of samples, and of bytes: sums of them stay within 64 bits
SampleKind = Literal["frames", "scenes"]  # RGB-D views, or whole point clouds
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TAR_NAME = re.compile(r"[^/\\\x00-\x1f\x7f-\x9f.][^/\\\x00-\x1f\x7f-\x9f]*\.tar")
_UP_AXES = tuple(sign + axis for sign in "+-" for axis in "xyz")
_OLD_FIELDS = {
    "generation": 1,
    "licence": "",
    "up_axis": None,
    "datasets": [],
    "voxels_sha256": None,
    "tar_names": [],
    "tars_url": None,
}


def shard_name(shard_index: int) -> str:
    """Name of a shard's tar."""
    return f"shard-{shard_index:06d}.tar"


def piece_name(shard_index: int) -> str:
    """Name of what packing notes of a finished shard, until the dataset is published: rows, keys, fingerprint."""
    return f"shard-{shard_index:06d}.idx"


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
        shards_sha256: hex digest of shards.bin and so, through it, of every tar and of all keys.
        sample_kind: what every sample is.
        index_sha256: hex digest of index.bin; "" in format 1.
        index_bytes: its size.
        voxels_sha256: hex digest of voxels.bin; None where nobody has counted.
        generation: counts from 1 how often the manifest was written, as when counts are added.
        licence: terms of the data, in a line.
        up_axis: of the world that poses lead to: "+z", "-y", ...; None where the source does not know.
        datasets: names that the rows of the index choose from, of where a sample came from.
        tar_names: of the tars that hold the shards; empty for shard-000000.tar, shard-000001.tar, ...
        tars_url: place of the tars; None where they lie beside the manifest.
        filled_from: shards_sha256 of before, where checksums were filled in that an index by headers alone had not:
            index and table have another name then, so that a reader of the generation before goes on; else None.
    """

    format_version: int
    num_samples: int
    num_shards: int
    size_bytes: int
    label_names: tuple[str, ...]
    provenance: Mapping[str, Any]
    shards_sha256: str
    sample_kind: SampleKind = "frames"
    index_sha256: str = ""
    index_bytes: int = 0
    voxels_sha256: str | None = None
    generation: int = 1
    licence: str = ""
    up_axis: str | None = None
    datasets: tuple[str, ...] = ()
    tar_names: tuple[str, ...] = ()
    tars_url: str | None = None
    filled_from: str | None = None

    @property
    def table_name(self) -> str:
        """The object that is the shard table."""
        return TABLE_NAME if self.filled_from is None else FILLED_TABLE_NAME

    @property
    def index_name(self) -> str:
        """The object that is the index."""
        return INDEX_NAME if self.filled_from is None else FILLED_INDEX_NAME

    @property
    def identity(self) -> str:
        """Hex digest that says which samples these are, and stays when their checksums are filled in."""
        return self.filled_from or self.shards_sha256

    def tar_name(self, shard_index: int) -> str:
        """Name of a shard's tar."""
        return self.tar_names[shard_index] if self.tar_names else shard_name(shard_index)

    def encode(self) -> bytes:
        """The bytes of manifest.json, format 2."""
        lists = {name: list(getattr(self, name)) for name in ("label_names", "datasets", "tar_names")}
        fields = {**self.__dict__, **lists, "provenance": dict(self.provenance)}
        if self.filled_from is None:  # as manifests were written before it could be anything else
            del fields["filled_from"]
        return _spelt({**fields, "sha256": hashlib.sha256(_spelt(fields)).hexdigest()})

    @classmethod
    def decode(cls, data: bytes, where: str) -> "Manifest":
        """Read manifest.json.

        Raises:
            ShardError: malformed, altered, or of another format version.
        """
        try:
            fields = parse_json(data)
            _check_hash(fields, data, where)
            version = fields["format_version"]
            if version not in READ_VERSIONS:
                raise ShardError(
                    f"{where}: format version {shown(repr(version), 40)}, this program reads "
                    f"{' and '.join(map(str, READ_VERSIONS))}; use the program version that packed it, or pack again"
                )
            if version == 1:
                fields = {**fields, **_OLD_FIELDS, "index_sha256": "", "index_bytes": 0}
            elif "sha256" not in fields:
                raise ValueError("it does not vouch for itself: sha256 is missing")
            sample_kind = fields.get("sample_kind", "frames")  # the only kind at first, when no manifest said so
            if sample_kind not in get_args(SampleKind):
                raise ShardError(
                    f"{where}: samples are {shown(repr(sample_kind), 40)}, this program reads "
                    f"{' and '.join(get_args(SampleKind))}; use the program version that packed it"
                )
            voxels_sha256, up_axis = fields["voxels_sha256"], fields["up_axis"]
            filled_from = fields.get("filled_from")  # no manifest had it at first
            if up_axis is not None and up_axis not in _UP_AXES:
                raise ValueError(f"up_axis is {shown(repr(up_axis), 40)}, wanted one of {', '.join(_UP_AXES)}")
            return cls(
                format_version=version,
                num_samples=_count(fields, "num_samples"),
                num_shards=_count(fields, "num_shards"),
                size_bytes=_count(fields, "size_bytes"),
                label_names=_names(fields, "label_names"),
                provenance=dict(fields["provenance"]),
                shards_sha256=_digest(fields["shards_sha256"]),
                sample_kind=sample_kind,
                index_sha256="" if version == 1 else _digest(fields["index_sha256"]),
                index_bytes=0 if version == 1 else _count(fields, "index_bytes"),
                voxels_sha256=None if voxels_sha256 is None else _digest(voxels_sha256),
                generation=_count(fields, "generation"),
                licence=str(fields["licence"]),
                up_axis=up_axis,
                datasets=_names(fields, "datasets"),
                tar_names=_tar_names(fields),
                tars_url=None if fields["tars_url"] is None else str(fields["tars_url"]),
                filled_from=None if filled_from is None else _digest(filled_from),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(
                f"{where}: not a dataset manifest ({type(error).__name__}: {shown(error)}); pack the dataset again"
            ) from error


def _spelt(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode("ascii")


def _check_hash(fields: Any, data: bytes, where: str) -> None:
    """Raise ShardError unless a manifest that vouches for itself has the very bytes that were written."""
    if not isinstance(fields, dict) or "sha256" not in fields:
        return
    digest = hashlib.sha256(_spelt({name: value for name, value in fields.items() if name != "sha256"})).hexdigest()
    if digest != fields["sha256"] or _spelt(fields) != data:
        raise ShardError(
            f"{where}: its content has the sha256 {digest}, it says {shown(fields['sha256'])}: the manifest is damaged "
            "or was edited; restore it, or pack the dataset again"
        )


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{shown(repr(value), 80)} is no sha256 in hex")
    return value


def _names(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields[name]
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValueError(f"{name} is {shown(value, 40)}, wanted a list of text")
    return tuple(value)


def _tar_names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    names = _names(fields, "tar_names")
    if strange := [name for name in names if not _TAR_NAME.fullmatch(name)]:
        raise ValueError(f"'{shown(strange[0], 40)}' is no name of a tar beside others")
    if names and len(names) != fields["num_shards"]:
        raise ValueError(f"{len(names)} names of tars, and num_shards is {shown(fields['num_shards'], 40)}")
    return names


def _count(fields: Mapping[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or not 0 < value < MAX_COUNT:
        raise ValueError(f"{name} is {shown(repr(value), 40)}, wanted a whole number above 0")
    return value
