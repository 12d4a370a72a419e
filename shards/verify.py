"""Re-read a whole dataset and name every broken sample.

Every shard is read once. Its sha256, size, index and every sample's crc32c are checked, every image is decoded and
held against its numbers, its row in the index against what the tar says, its number of voxels counted again, and
webdataset's own reader then reads the same bytes as an independent witness: it must find the same samples with the
same members.
"""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from shards.doors.text import shown
from shards.errors import ShardError
from shards.manifest import VOXELS_NAME
from shards.ordered_map import ordered_map
from shards.packing.piece import ShardPiece
from shards.reader import ChangedTarError, DatasetReader, check_slice
from shards.rows import DESCRIBED, HAS_CRC, ROW, SampleRows, ShardIndex, bare_rows, sealed_row
from shards.sample import Sample, check_sample, row_of_sample, sample_from_members
from shards.slices import archive_end, layout_of_slice, members_of_slice, samples_of_tar, spans_of_tar
from shards.stores.store import MissingObjectError, StoreError, take_faults

_MemberChecksums = dict[str, tuple[int, int]]  # size in bytes and crc32c, by member name


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        object_name: the shard or index it was found in.
        key: the broken sample; None when the problem is of the object and not of one sample.
        message: what was found and what was wanted.
    """

    object_name: str
    key: str | None
    message: str


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        url: place of the dataset.
        num_samples: that the manifest promises.
        num_shards: that the manifest promises.
        size_bytes: that the manifest promises.
        problems: in the order of the shards; none means that every byte is as packed and every sample usable.
        storage_faults: what storage did wrong on the way and was put right by asking again, by cause.
        num_without_checksum: samples of tars of which only the headers were indexed: they are usable, but of their
            bytes nobody knows what they were then.
    """

    url: str
    num_samples: int
    num_shards: int
    size_bytes: int
    problems: tuple[Problem, ...]
    storage_faults: Mapping[str, int] = field(default_factory=dict)
    num_without_checksum: int = 0

    @property
    def broken_keys(self) -> tuple[str, ...]:
        """Every broken sample, once, in the order of the dataset."""
        return tuple(dict.fromkeys(problem.key for problem in self.problems if problem.key is not None))


def verify(
    url: str,
    *,
    num_workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    on_whole: Callable[[ShardPiece], None] | None = None,
) -> VerifyReport:
    """Check every byte and every sample of a dataset.

    Args:
        url: folder or s3:// prefix.
        num_workers: processes, one shard each at a time (each holds that shard in memory).
        on_progress: called with (shards done, shards in all).
        on_whole: called with what each shard without a problem says of itself, in order: its rows with checksums,
            whether the index has them or not, its voxel counts and its hash.

    Raises:
        CallError: no dataset there.
        ShardError: its manifest or shard table is damaged: then nothing else can be trusted.
        StoreError: storage refused or failed.
    """
    dataset = DatasetReader(url)
    num_shards = dataset.manifest.num_shards
    problems: list[Problem] = []
    fingerprints: list[NDArray[np.uint64]] = []
    rebuilt_keys: dict[int, tuple[str, ...]] = {}
    voxels: list[NDArray[np.uint16]] = []
    faults = take_faults(dataset.store)
    with closing(
        ordered_map(partial(_check_shard, dataset, on_whole is not None), range(num_shards), num_workers)
    ) as results:
        for done, result in enumerate(results, start=1):
            problems.extend(result.problems)
            faults.update(result.faults)
            fingerprints.append(result.key_fingerprints)
            voxels.append(result.voxels)
            if on_whole is not None and result.piece is not None:
                on_whole(result.piece)
            if result.rebuilt_keys:
                rebuilt_keys[done - 1] = result.rebuilt_keys
            if on_progress is not None:
                on_progress(done, num_shards)
    problems.extend(_repeated_keys(dataset, fingerprints, rebuilt_keys))
    problems.extend(_wrong_counts(dataset, voxels))
    faults.update(take_faults(dataset.store))
    manifest = dataset.manifest
    unsummed = int(dataset.table.num_samples[~dataset.table.is_hashed].sum())
    return VerifyReport(
        dataset.url, manifest.num_samples, num_shards, manifest.size_bytes, tuple(problems), faults, unsummed
    )


@dataclass(frozen=True, eq=False)
class _ShardResult:
    problems: tuple[Problem, ...]
    key_fingerprints: NDArray[np.uint64]  # 8 bytes a key: a hundred million keys must fit in memory to be compared
    rebuilt_keys: tuple[str, ...] = ()  # where the index is damaged and cannot be asked for a key again
    voxels: NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))  # of the samples
    faults: Counter[str] = field(default_factory=Counter)  # of the storage, in this worker
    piece: ShardPiece | None = None  # of a shard without problems, where it is asked for


def _check_shard(dataset: DatasetReader, is_asked: bool, shard_index: int) -> _ShardResult:
    result = _verify_shard(dataset, shard_index, is_asked=is_asked)
    return replace(result, faults=take_faults(dataset.store))


def _verify_shard(dataset: DatasetReader, shard_index: int, *, is_asked: bool = False) -> _ShardResult:
    """`is_asked`: for the piece of a shard without problems."""
    tar = dataset.manifest.tar_name(shard_index)
    problems: list[Problem] = []
    try:
        data = dataset.read_shard(shard_index)
    except (MissingObjectError, ChangedTarError) as error:
        data = b""
        problems.append(Problem(tar, None, str(error)))
    digest, wanted_digest = hashlib.sha256(data).digest(), dataset.table.sha256[shard_index].tobytes()
    is_tar = dataset.is_tar(shard_index, data)
    if data and not is_tar:
        problems.append(
            Problem(
                tar,
                None,
                f"sha256 is {digest.hex()} ({len(data)} bytes), the shard table says {wanted_digest.hex()} "
                f"({dataset.table.size_bytes[shard_index]} bytes)",
            )
        )
    rebuilt_keys: tuple[str, ...] = ()
    try:
        index = dataset.index(shard_index)
    except ShardError as error:
        if isinstance(error, StoreError) and not isinstance(error, MissingObjectError):
            raise  # says nothing about the data
        name = dataset.index_name(shard_index)
        problems.append(Problem(name, None, str(error)))
        if is_tar:  # as packed, so it tells what the index should be
            index = _rebuild_index(data, shard_index)
            rebuilt_keys = index.keys
            problems += (
                Problem(name, index.keys[i], f"what the index says of sample {index.keys[i]} is missing or altered")
                for i in dataset.altered(index)
            )
        else:
            problems.append(Problem(tar, None, "tar and index are both damaged: none of its samples can be read"))
            return _ShardResult(tuple(problems), np.empty(0, dtype=np.uint64))
    of_samples, voxels = _verify_samples(dataset, data, index)
    problems += of_samples
    piece = None if problems or not is_asked else _piece(dataset, data, index, voxels, digest)
    return _ShardResult(tuple(problems), _fingerprints(index.keys), rebuilt_keys, voxels, piece=piece)


def _piece(
    dataset: DatasetReader, data: bytes, index: ShardIndex, voxels: NDArray[np.uint16], sha256: bytes
) -> ShardPiece:
    """What a whole shard says of itself, checksums included."""
    table = index.rows.table.copy()
    first_row = int(dataset.table.first_row[index.rows.shard_index])
    table["flags"] |= HAS_CRC
    rows = []
    for i, (offset, length) in enumerate(zip(index.offsets.tolist(), index.lengths.tolist(), strict=True)):
        table["crc32c"][i] = google_crc32c.value(data[offset : offset + length])
        rows.append(sealed_row(table[i].tobytes(), offset, first_row + i))
    return ShardPiece.of_samples(
        first_row=first_row,
        size_bytes=len(data),
        sha256=sha256,
        fingerprint=bytes(32),
        rows=rows,
        voxels=voxels.tolist(),
        keys=index.keys,
    )


def _verify_samples(dataset: DatasetReader, data: bytes, index: ShardIndex) -> tuple[list[Problem], NDArray[np.uint16]]:
    """Check every slice, decode every sample, and let webdataset read what is intact; voxels are 0 where it is not."""
    tar = dataset.manifest.tar_name(index.rows.shard_index)
    problems: list[Problem] = []
    intact: dict[str, _MemberChecksums] = {}  # and not the members: a worker holds its shard once, not three times
    spans: list[tuple[int, int]] = []
    voxels = np.zeros(len(index.keys), np.uint16)
    end = 0
    for i, (key, offset, length) in enumerate(
        zip(index.keys, index.offsets.tolist(), index.lengths.tolist(), strict=True)
    ):
        where, piece, end = f"{tar}, sample {key}", data[offset : offset + length], offset + length
        try:
            check_slice(piece, index.rows, i, where)
            members = members_of_slice(piece, where)
            intact[key] = _checksums(members)
            spans.append((offset, end))
            sample = sample_from_members(dataset.manifest.sample_kind, key, members)
            voxels[i] = check_sample(sample, where)
            if index.rows.table["flags"][i] & DESCRIBED:
                _check_row(sample, index.rows, i, piece, dataset.manifest.datasets, where)
        except ShardError as error:
            problems.append(Problem(tar, key, str(error)))
    if len(spans) == len(index.keys):
        if data[end:] != archive_end(end):
            problems.append(Problem(tar, None, f"the tar does not end as it should after byte {end}"))
    else:
        # A damaged header ends webdataset's reading early or, without an error, loses samples that are fine. So the
        # witness is heard on the intact ones.
        data = b"".join(data[start:stop] for start, stop in spans)
        data += archive_end(len(data))
    problems.extend(_hear_witness(tar, data, intact))
    return problems, voxels


def _check_row(sample: Sample, rows: SampleRows, i: int, data: bytes, datasets: tuple[str, ...], where: str) -> None:
    """Raise ShardError unless a row says of its sample what the tar says: two places that must not drift apart."""
    if sample.dataset not in datasets:
        raise ShardError(f"{where}: meta.json is of the dataset '{shown(sample.dataset)}', the manifest has none of it")
    row = row_of_sample(sample, layout_of_slice(data, where), data, datasets.index(sample.dataset))
    told, found = rows.table[i], np.frombuffer(bytearray(row), ROW)[0]
    place = ("offset", "row_crc32c")  # which a row gets when it is sealed
    if not told["flags"] & HAS_CRC:
        found["crc32c"], found["flags"] = 0, found["flags"] & ~np.uint16(HAS_CRC)
    differ = [name for name in ROW.names or () if name not in place and told[name].tobytes() != found[name].tobytes()]
    if differ:
        raise ShardError(
            f"{where}: the index says something else than the sample of {', '.join(differ)} ({shown(told[differ[0]])} "
            f"and {shown(found[differ[0]])}); pack the dataset again"
        )


def _checksums(members: Mapping[str, bytes]) -> _MemberChecksums:
    return {name: (len(data), google_crc32c.value(data)) for name, data in members.items()}


def _hear_witness(tar: str, data: bytes, expected: Mapping[str, _MemberChecksums]) -> Iterator[Problem]:
    """Differences between what we read and what webdataset's own reader reads."""
    seen: set[str] = set()
    try:
        for sample in samples_of_tar(tar, io.BytesIO(data)):
            key = sample["__key__"]
            members = {name: value for name, value in sample.items() if not name.startswith("__")}
            if key in seen or key not in expected:
                again = "again" if key in seen else "too"
                yield Problem(tar, shown(key), f"webdataset's reader finds sample {shown(key)} {again}")
            elif _checksums(members) != expected[key]:
                yield Problem(tar, key, f"webdataset's reader finds other members: {sorted(map(shown, members))}")
            seen.add(key)
    except (tarfile.TarError, ValueError, OSError) as error:
        yield Problem(tar, None, f"webdataset's reader fails: {shown(error)}")
    for key in expected:
        if key not in seen:
            yield Problem(tar, key, f"webdataset's reader does not find sample {key}")


def _rebuild_index(data: bytes, shard_index: int) -> ShardIndex:
    """Where the samples of an intact tar lie, from its headers."""
    spans = spans_of_tar(io.BytesIO(data))
    return ShardIndex(
        tuple(key for key, _, _ in spans),
        bare_rows(
            shard_index,
            [start for _, start, _ in spans],
            [stop - start for _, start, stop in spans],
            [google_crc32c.value(data[start:stop]) for _, start, stop in spans],
        ),
    )


def _wrong_counts(dataset: DatasetReader, found: list[NDArray[np.uint16]]) -> Iterator[Problem]:
    """Frames whose stored number of voxels is not that of their depth; those that are broken anyhow have none."""
    try:
        stored = dataset.voxel_counts()
    except ShardError as error:
        if isinstance(error, StoreError) and not isinstance(error, MissingObjectError):
            raise
        yield Problem(VOXELS_NAME, None, str(error))
        return
    if stored is None:
        return
    for shard_index, (first, counts) in enumerate(zip(dataset.table.first_row.tolist(), found, strict=True)):
        wrong = (counts != stored[first : first + len(counts)]) & (counts > 0)
        for i in np.flatnonzero(wrong).tolist():
            message = f"{stored[first + i]} voxels are stored, its depth has {counts[i]}; count again"
            yield Problem(VOXELS_NAME, dataset.key(shard_index, i), message)


def _fingerprints(keys: tuple[str, ...]) -> NDArray[np.uint64]:
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype=np.uint64)


def _repeated_keys(
    dataset: DatasetReader, fingerprints: list[NDArray[np.uint64]], rebuilt_keys: Mapping[int, tuple[str, ...]]
) -> Iterator[Problem]:
    """Keys that occur more than once in the dataset."""
    values, counts = np.unique(np.concatenate(fingerprints), return_counts=True)
    suspects = values[counts > 1]
    if not len(suspects):
        return
    places: Counter[str] = Counter()
    for shard_index, of_shard in enumerate(fingerprints):
        for sample_index in np.flatnonzero(np.isin(of_shard, suspects)).tolist():
            rebuilt = rebuilt_keys.get(shard_index)
            key = rebuilt[sample_index] if rebuilt else dataset.key(shard_index, sample_index)
            places[key] += 1
            if places[key] > 1:
                yield Problem(
                    dataset.manifest.tar_name(shard_index), key, f"key {key} occurs {places[key]} times in the dataset"
                )
