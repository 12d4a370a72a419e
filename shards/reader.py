"""Samples of a packed dataset by position: sliced out of the tars by the index, length and checksum checked."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from shards.described import frame_of_row
from shards.doors.json_text import MAX_BYTES
from shards.doors.text import shown
from shards.errors import CallError, ShardError
from shards.first_format import LineIndexes
from shards.index import IndexFile
from shards.manifest import (
    MANIFEST_NAME,
    PACKING_NAME,
    VOXELS_NAME,
    Manifest,
    SampleKind,
)
from shards.rows import DESCRIBED, HAS_CRC, SampleRows, ShardIndex
from shards.sample import Sample, sample_from_members
from shards.scene import Scene
from shards.schema import Frame, escape_id, is_key
from shards.slices import key_of_slice, members_of_slice
from shards.stores.client import Part
from shards.stores.patient import PatientStore
from shards.stores.place import open_store
from shards.stores.second_look import believed
from shards.stores.store import MissingObjectError, Store
from shards.table import ShardTable
from shards.versions import hash_of_version


class ChangedTarError(ShardError):
    """A tar without checksums is not, or cannot be shown to be, the object that was indexed."""


class DatasetReader:
    """Random access to the samples of one dataset. Picklable and fork-safe.

    Nothing is called damaged, and nothing that the shard table lists is called missing, before it was read again.

    Attributes:
        url: folder or s3:// prefix.
        manifest: what the dataset is.
        table: its shards.
        tars: the store that holds the tars, under the names that the manifest has.
    """

    def __init__(self, url: str) -> None:
        """Open the dataset at `url`: two small reads.

        Raises:
            CallError: no dataset there.
            ShardError: its manifest or shard table is damaged.
            StoreError: storage refused or failed.
        """
        self.store: Store = open_store(url)
        self.url = self.store.url
        self.manifest = _read_manifest(self.store)
        # One byte more than wanted is enough to tell that it is another file, however large.
        read = partial(self.store.read_range, self.manifest.table_name, 0, ShardTable.encoded_size(self.manifest) + 1)
        table = believed(self.store, read, self._is_table)
        self.table = ShardTable.decode(table, self.manifest, f"{self.url}/{self.manifest.table_name}")
        self._connect()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_index", "tars")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return self.manifest.num_samples

    @property
    def samples_per_shard(self) -> NDArray[np.int64]:
        """(S,) samples of each shard."""
        return self.table.num_samples

    def index(self, shard_index: int) -> ShardIndex:
        """Keys and rows of all samples of a shard. Raises as `rows`."""
        return ShardIndex(self.keys(shard_index), self.rows(shard_index))

    def index_name(self, shard_index: int) -> str:
        """The object that holds the rows of a shard."""
        return self._index.name_of(shard_index)

    def rows(self, shard_index: int, start: int = 0, stop: int | None = None) -> SampleRows:
        """What the index says of consecutive samples of a shard: one ranged read, or none.

        Args:
            shard_index: the shard.
            start: the first of them; IndexError outside the shard.
            stop: the one after the last of them; None for all to the end.

        Raises:
            ShardError: damaged, or not those of the shard in the shard table.
        """
        num_samples = self._samples_of(shard_index)
        stop = num_samples if stop is None else stop
        if not 0 <= start <= stop <= num_samples:
            raise IndexError(f"samples {start} to {stop} of a shard of {num_samples}")
        return self._index.rows(shard_index, start, stop)

    def keys(self, shard_index: int) -> tuple[str, ...]:
        """The keys of the samples of a shard, in the order of its tar. Raises as `rows`."""
        self._samples_of(shard_index)
        return self._index.keys(shard_index)

    def key(self, shard_index: int, sample_index: int) -> str:
        """The key of a sample; IndexError outside the shard."""
        return self.keys(shard_index)[sample_index]

    def altered(self, rebuilt: ShardIndex) -> list[int]:
        """Positions of the samples of a shard of which its damaged index does not say what the tar does."""
        return self._index.altered(rebuilt)

    def voxel_counts(self) -> NDArray[np.uint16] | None:
        """(N,) occupied cells of 2.5 cm of every frame (`shards.voxels`), in the order of the shards; 0 is not counted.

        None where nobody has counted.

        Raises:
            ShardError: they are damaged.
        """
        digest = self.manifest.voxels_sha256
        if digest is None:
            return None
        size = 2 * self.num_samples
        read = partial(self.store.read_range, VOXELS_NAME, 0, size + 1)
        data = believed(self.store, read, lambda found: hashlib.sha256(found).hexdigest() == digest)
        found = hashlib.sha256(data).hexdigest()
        if found != digest or len(data) != size:
            raise ShardError(
                f"{self.url}/{VOXELS_NAME}: sha256 is {found} ({len(data)} bytes), the manifest says {digest} ({size} "
                f"bytes); count again with `t4p shards index {self.url} --counts`"
            )
        return np.frombuffer(data, "<u2").astype(np.uint16, copy=False)

    def read_slice(self, shard_index: int, sample_index: int) -> bytes:
        """The bytes of a sample in its tar, checked: one ranged read.

        Raises:
            ShardError: the bytes are not those that were packed.
        """
        rows = self._row(shard_index, sample_index)
        data = self._read_tar(shard_index, int(rows.offsets[0]), int(rows.lengths[0]), partial(_is_slice, rows, 0))
        if not _is_slice(rows, 0, data):
            check_slice(data, rows, 0, self._where(rows, 0, None))
        return data

    def read_members(self, shard_index: int, sample_index: int) -> dict[str, bytes]:
        """The files of a sample, by member name. Raises as `read_slice`."""
        data = self.read_slice(shard_index, sample_index)
        return members_of_slice(data, f"{self._tar(shard_index)}, sample {sample_index}")

    def sample_from_slice(self, rows: SampleRows, i: int, key: str | None, data: bytes) -> Sample:
        """The sample in a slice of a tar that somebody has read: checked, and built from the row and the slice.

        Args:
            rows: of this dataset, the sample's among them.
            i: position of its row in `rows`.
            key: of the sample; None takes that of the slice, which the checksum covers.
            data: the slice.

        Raises:
            ShardError: the bytes are not those that were packed, or no sample of this dataset.
        """
        if not _is_slice(rows, i, data):
            check_slice(data, rows, i, self._where(rows, i, key))
        return self._built(rows, i, key, data)

    def read_sample(self, shard_index: int, sample_index: int) -> Sample:
        """The sample, of the dataset's kind. Raises as `read_slice`."""
        data = self.read_slice(shard_index, sample_index)
        return self._built(self._row(shard_index, sample_index), 0, None, data)

    def read_keyed(self, shard_index: int, sample_index: int) -> tuple[str, Sample]:
        """The sample and its key. Raises as `read_slice`."""
        data, rows = self.read_slice(shard_index, sample_index), self._row(shard_index, sample_index)
        key = self.key_of_slice(rows, 0, data)
        return key, self._built(rows, 0, key, data)

    def key_of_slice(self, rows: SampleRows, i: int, data: bytes) -> str:
        """The key of the sample in a checked slice, of which `rows` has the row at i; ShardError where it is none."""
        key = key_of_slice(data) if self.manifest.format_version > 1 else self.key(rows.shard_index, rows.start + i)
        if not is_key(key):
            raise ShardError(
                f"{self._where(rows, i, None)}: its first member is '{shown(key)}', which is no key: letters, "
                "digits, '-', '_' and one '/'; pack again"
            )
        return key

    def read_frame(self, shard_index: int, sample_index: int) -> Frame:
        """The sample as a Frame; its images stay encoded. Raises as `read_slice`; CallError where it is a scene."""
        self._require_kind("frames")
        frame = self.read_sample(shard_index, sample_index)
        assert isinstance(frame, Frame)
        return frame

    def read_scene(self, shard_index: int, sample_index: int) -> Scene:
        """The sample as a Scene. Raises as `read_slice`; CallError where it is a frame."""
        self._require_kind("scenes")
        scene = self.read_sample(shard_index, sample_index)
        assert isinstance(scene, Scene)
        return scene

    def read_shard(self, shard_index: int) -> bytes:
        """The whole tar, or what there is instead of it, of no more bytes than one above the tar's: `is_tar` tells.

        Raises:
            MissingObjectError: there is none.
            ChangedTarError: only the headers were indexed, and there is another object now.
        """
        most = int(self.table.size_bytes[shard_index])
        return self._read_tar(shard_index, 0, most + 1, partial(self.is_tar, shard_index))

    def is_tar(self, shard_index: int, data: bytes) -> bool:
        """Whether these are the bytes of a tar, as far as anybody knows: by its hash, else by its size."""
        if not self.table.is_hashed[shard_index]:
            return len(data) == self.table.size_bytes[shard_index]
        return hashlib.sha256(data).digest() == self.table.sha256[shard_index].tobytes()

    def check_version(self, shard_index: int, part: Part) -> None:
        """Raise ChangedTarError where a part is not of the object whose headers were indexed.

        Of a tar that has a hash nothing is asked: its samples have checksums.

        Args:
            part: of the tar, as an answer of storage filled it.
        """
        if self.table.is_hashed[shard_index] or self._is_version(shard_index, part):
            return
        raise ChangedTarError(
            f"{self._tar(shard_index)}: is another object than the one whose headers were indexed, of "
            f"{self.table.size_bytes[shard_index]} bytes: now {part.size_bytes}, ETag {shown(str(part.version))}; "
            "put the tar of then back, or remove manifest.json and index the tars again"
        )

    def find(self, key: str) -> tuple[int, int]:
        """Position (shard_index, sample_index) of a key, SCENE/FRAME, escaped or as the ids were. Reads every index.

        Raises:
            CallError: no such sample, or ids that can be cut into scene and frame in several ways.
        """
        spellings = _spellings(key)
        matches: dict[str, tuple[int, int]] = {}
        for shard_index in range(self.manifest.num_shards):
            for sample_index, found in enumerate(self.keys(shard_index)):
                if found == key:  # as `info` and `verify` spell it: no other reading is meant
                    return shard_index, sample_index
                if found in spellings:
                    matches[found] = (shard_index, sample_index)
        if len(matches) > 1:
            raise CallError(
                f"{self.url}: {key!r} can be any of the samples {', '.join(sorted(matches))}; give one of these"
            )
        if matches:
            return next(iter(matches.values()))
        last = self.manifest.num_shards - 1
        raise CallError(
            f"{self.url}: no sample {key!r} among {self.num_samples}; the first is {self.key(0, 0)}, the last "
            f"{self.keys(last)[-1]}"
        )

    def _connect(self) -> None:
        """Make what reads through the store of this copy; it keeps nothing yet."""
        self.tars = self.store
        if self.manifest.tars_url is not None:
            self.tars = open_store(self.manifest.tars_url)
            self.tars.faults = self.store.faults  # one count
        self._index: IndexFile | LineIndexes
        if self.manifest.format_version == 1:
            self._index = LineIndexes(self.store, self.table)
        else:
            self._index = IndexFile(self.store, self.manifest, self.table)

    def _read_tar(self, shard_index: int, offset: int, length: int, is_whole: Callable[[bytes], bool]) -> bytes:
        """A part of a tar, believed; where the tar has no hash it is one of the object that was indexed."""
        name = self.manifest.tar_name(shard_index)
        if self.table.is_hashed[shard_index]:
            return believed(self.tars, partial(self.tars.read_range, name, offset, length), is_whole)
        store = self.tars
        if not isinstance(store, PatientStore):
            raise ChangedTarError(
                f"{self._tar(shard_index)}: only its headers were indexed, in object storage, and in a folder nothing "
                "tells whether it is that tar; remove manifest.json and index the tars here"
            )
        part = Part(offset, length)

        def read() -> bytes:
            nonlocal part
            part = Part(offset, length)
            store.fill(name, part)
            return b"".join(part.pieces)

        data = believed(store, read, lambda data: self._is_version(shard_index, part) and is_whole(data))
        self.check_version(shard_index, part)
        return data

    def _is_version(self, shard_index: int, part: Part) -> bool:
        name, wanted = self.manifest.tar_name(shard_index), self.table.sha256[shard_index].tobytes()
        return hash_of_version(name, part.version or "", part.size_bytes or 0) == wanted

    def _tar(self, shard_index: int) -> str:
        return f"{self.tars.url}/{self.manifest.tar_name(shard_index)}"

    def _samples_of(self, shard_index: int) -> int:
        if not 0 <= shard_index < self.manifest.num_shards:
            raise ShardError(f"{self.url}: no shard {shard_index}, the dataset has {self.manifest.num_shards}")
        return int(self.table.num_samples[shard_index])

    def _row(self, shard_index: int, sample_index: int) -> SampleRows:
        """The row of one sample, cut out of those of its whole shard, which are kept."""
        rows = self.rows(shard_index)
        if not 0 <= sample_index < len(rows):
            raise IndexError(f"sample {sample_index} of a shard of {len(rows)}")
        return rows.part(sample_index, sample_index + 1)

    def _built(self, rows: SampleRows, i: int, key: str | None, data: bytes) -> Sample:
        """A sample of a slice whose length and checksum are right."""
        if key is None:
            key = self.key_of_slice(rows, i, data)
        if self.manifest.sample_kind == "frames" and rows.table["flags"][i] & DESCRIBED:
            return frame_of_row(rows, i, key, data, self.manifest.datasets, f"sample {key}")
        members = members_of_slice(data, f"{self._tar(rows.shard_index)}, sample {key}")
        return sample_from_members(self.manifest.sample_kind, key, members)

    def _where(self, rows: SampleRows, i: int, key: str | None) -> str:
        """Names a sample in messages: by its key, which is read for that, or by its position where it cannot be."""
        position = rows.start + i
        if key is None:
            try:
                key = self.key(rows.shard_index, position)
            except ShardError:
                key = str(position)
        return f"{self._tar(rows.shard_index)}, sample {key}"

    def _is_table(self, data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() == self.manifest.shards_sha256

    def _require_kind(self, kind: SampleKind) -> None:
        if self.manifest.sample_kind != kind:
            source_format = self.manifest.provenance.get("source_format")
            raise CallError(
                f"{self.url}: holds {self.manifest.sample_kind} (packed with {source_format}), wanted {kind}; give a "
                "dataset of these"
            )


def spread(samples_per_shard: NDArray[np.int64], count: int) -> list[tuple[int, int]]:
    """So many (shard, sample) pairs or fewer, spread evenly over all samples, the first and the last included.

    Args:
        samples_per_shard: (S,) samples of each shard.
    """
    stops = np.cumsum(samples_per_shard)
    num_samples = int(samples_per_shard.sum())
    count = min(count, num_samples)
    positions = np.unique(np.linspace(0, num_samples - 1, count).astype(int)).tolist() if count else []
    shards = [int(np.searchsorted(stops, position, side="right")) for position in positions]
    return [
        (shard, int(position - stops[shard] + samples_per_shard[shard]))
        for position, shard in zip(positions, shards, strict=True)
    ]


def check_slice(data: bytes, rows: SampleRows, i: int, where: str) -> None:
    """Raise ShardError unless `data` is what row i records."""
    length, crc32c = int(rows.table["length"][i]), int(rows.table["crc32c"][i])
    if len(data) != length:
        raise ShardError(f"{where}: found {len(data)} bytes, wanted {length}; the shard is cut short, pack it again")
    if rows.table["flags"][i] & HAS_CRC and (found := google_crc32c.value(data)) != crc32c:
        raise ShardError(f"{where}: crc32c is {found:08x}, wanted {crc32c:08x}; the bytes are damaged, pack it again")


def _is_slice(rows: SampleRows, i: int, data: bytes) -> bool:
    row = rows.table[i]
    if len(data) != row["length"]:
        return False
    return not row["flags"] & HAS_CRC or bool(google_crc32c.value(data) == row["crc32c"])


def _spellings(key: str) -> set[str]:
    """The keys that ids joined by "/" may have: the ids themselves may hold a "/", so every one can be the border."""
    cuts = [i for i, letter in enumerate(key) if letter == "/" and 0 < i < len(key) - 1]
    return {f"{escape_id(key[:i])}/{escape_id(key[i + 1 :])}" for i in cuts}


def _read_manifest(store: Store) -> Manifest:
    try:
        data = believed(store, partial(store.read_range, MANIFEST_NAME, 0, MAX_BYTES + 1), None)
    except MissingObjectError as error:
        if store.exists(PACKING_NAME):
            raise CallError(
                f"{store.url}: packing was never finished; run the same `t4p shards pack` again, it resumes"
            ) from error
        raise CallError(
            f"{store.url}: no dataset here ({MANIFEST_NAME} is missing); make one with `t4p shards pack`"
        ) from error
    return Manifest.decode(data, f"{store.url}/{MANIFEST_NAME}")
