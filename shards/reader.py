"""Samples of a packed dataset by position: sliced out of the tars by the index, length and checksum checked."""

import hashlib
from functools import partial
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from shards.doors.json_text import MAX_BYTES
from shards.errors import CallError, ShardError
from shards.manifest import (
    MANIFEST_NAME,
    PACKING_NAME,
    TABLE_NAME,
    Manifest,
    SampleKind,
    ShardIndex,
    ShardTable,
    index_name,
    shard_name,
)
from shards.scene import Scene, scene_from_members
from shards.schema import Frame, escape_id, frame_from_members
from shards.slices import archive_end, members_of_slice
from shards.stores.place import open_store
from shards.stores.second_look import believed
from shards.stores.store import MissingObjectError, Store

_MAX_CACHED_INDEXES = 512  # of 256 MiB shards: about 130 GiB of samples, 100 MB of index


class DatasetReader:
    """Random access to the samples of one dataset. Picklable and fork-safe.

    Nothing is called damaged, and nothing that the shard table lists is called missing, before it was read again.

    Attributes:
        url: folder or s3:// prefix.
        manifest: what the dataset is.
        table: its shards.
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
        read = partial(self.store.read_range, TABLE_NAME, 0, ShardTable.encoded_size(self.manifest.num_shards) + 1)
        table = believed(self.store, read, self._is_table)
        self.table = ShardTable.decode(table, self.manifest, f"{self.url}/{TABLE_NAME}")
        self._indexes: dict[int, ShardIndex] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": {}}

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return self.manifest.num_samples

    @property
    def samples_per_shard(self) -> NDArray[np.int64]:
        """(S,) samples of each shard."""
        return self.table.num_samples

    def index(self, shard_index: int) -> ShardIndex:
        """The sample index of a shard, fetched at first use.

        Raises:
            ShardError: damaged, or not the index of the shard in the shard table.
        """
        cached = self._indexes.get(shard_index)
        if cached is not None:
            return cached
        where = f"{self.url}/{index_name(shard_index)}"
        if not 0 <= shard_index < self.manifest.num_shards:
            raise ShardError(f"{self.url}: no shard {shard_index}, the dataset has {self.manifest.num_shards}")
        most = ShardIndex.largest_size(int(self.table.num_samples[shard_index]))
        read = partial(self.store.read_range, index_name(shard_index), 0, most + 1)
        index = ShardIndex.decode(believed(self.store, read, ShardIndex.is_whole), where)
        if len(index.keys) != self.table.num_samples[shard_index]:
            raise ShardError(
                f"{where}: {len(index.keys)} samples, the shard table says {self.table.num_samples[shard_index]}; "
                "pack the dataset again"
            )
        check_layout(index, int(self.table.size_bytes[shard_index]), where)
        if len(self._indexes) >= _MAX_CACHED_INDEXES:
            self._indexes.pop(next(iter(self._indexes)), None)
        self._indexes[shard_index] = index
        return index

    def key(self, shard_index: int, sample_index: int) -> str:
        """The key of a sample; IndexError outside the shard."""
        return self.index(shard_index).keys[sample_index]

    def read_members(self, shard_index: int, sample_index: int) -> dict[str, bytes]:
        """The files of a sample, by member name: one ranged read.

        Raises:
            ShardError: the bytes are not those that were packed.
        """
        index = self.index(shard_index)
        key, offset = index.keys[sample_index], int(index.offsets[sample_index])
        length, crc32c = int(index.lengths[sample_index]), int(index.crc32c[sample_index])
        read = partial(self.store.read_range, shard_name(shard_index), offset, length)
        data = believed(self.store, read, partial(_is_slice, length, crc32c))
        where = f"{self.url}/{shard_name(shard_index)}, sample {key}"
        check_slice(data, length, crc32c, where)
        return members_of_slice(data, where)

    def read_shard(self, shard_index: int) -> bytes:
        """The whole tar, or what there is instead of it, of no more bytes than one above the tar's: its hash tells.

        Raises:
            MissingObjectError: there is none.
        """
        wanted = self.table.sha256[shard_index].tobytes()
        most = int(self.table.size_bytes[shard_index])
        read = partial(self.store.read_range, shard_name(shard_index), 0, most + 1)
        return believed(self.store, read, lambda data: hashlib.sha256(data).digest() == wanted)

    def read_frame(self, shard_index: int, sample_index: int) -> Frame:
        """The sample as a Frame; its images stay encoded. Raises as `read_members`; CallError where it is a scene."""
        self._require_kind("frames")
        return frame_from_members(self.key(shard_index, sample_index), self.read_members(shard_index, sample_index))

    def read_scene(self, shard_index: int, sample_index: int) -> Scene:
        """The sample as a Scene. Raises as `read_members`; CallError where it is a frame."""
        self._require_kind("scenes")
        return scene_from_members(self.key(shard_index, sample_index), self.read_members(shard_index, sample_index))

    def find(self, key: str) -> tuple[int, int]:
        """Position (shard_index, sample_index) of a key, SCENE/FRAME, escaped or as the ids were. Reads every index.

        Raises:
            CallError: no such sample, or ids that can be cut into scene and frame in several ways.
        """
        spellings = _spellings(key)
        matches: dict[str, tuple[int, int]] = {}
        for shard_index in range(self.manifest.num_shards):
            for sample_index, found in enumerate(self.index(shard_index).keys):
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
            f"{self.index(last).keys[-1]}"
        )

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


def check_layout(index: ShardIndex, size_bytes: int, where: str) -> None:
    """Raise ShardError unless the samples of an index fill a tar of `size_bytes` without gap or overlap."""
    ends = index.offsets + index.lengths
    end = int(ends[-1]) if len(ends) else 0
    contiguous = np.array_equal(index.offsets, [0, *ends[:-1]]) and bool((index.lengths > 0).all())
    if not contiguous or end + len(archive_end(end)) != size_bytes:
        raise ShardError(
            f"{where}: its samples do not fill the {size_bytes} bytes of the shard one after the other (the last ends "
            f"at byte {end}); it is not the index of this shard, run verify, then pack again"
        )


def check_slice(data: bytes, length: int, crc32c: int, where: str) -> None:
    """Raise ShardError unless `data` is what the index recorded."""
    if len(data) != length:
        raise ShardError(f"{where}: found {len(data)} bytes, wanted {length}; the shard is cut short, pack it again")
    found = google_crc32c.value(data)
    if found != crc32c:
        raise ShardError(f"{where}: crc32c is {found:08x}, wanted {crc32c:08x}; the bytes are damaged, pack it again")


def _is_slice(length: int, crc32c: int, data: bytes) -> bool:
    return len(data) == length and google_crc32c.value(data) == crc32c


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
