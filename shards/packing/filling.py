"""What a dataset lacks, written later as a new generation of its manifest: voxel counts, checksums of its samples."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np

from shards.errors import CallError, ShardError
from shards.manifest import FILLED_INDEX_NAME, FILLED_TABLE_NAME, MANIFEST_NAME, VOXELS_NAME, Manifest
from shards.ordered_map import ordered_map
from shards.packing.gathered import GatheredIndex
from shards.packing.scratch import scratch_folder
from shards.reader import DatasetReader
from shards.sample import check_sample
from shards.stores.store import take_faults
from shards.verify import VerifyReport, verify

Progress = Callable[[int, int], None]


def fill(
    url: str, *, num_workers: int = 1, on_progress: Progress | None = None
) -> tuple[VerifyReport, Manifest | None]:
    """Verify a dataset and, where all of it is whole, write what was read once and is missing.

    Checksums of samples and hashes of tars get an index and a table of their own names: whoever has the manifest of
    before goes on with what it vouches for, and a call that is killed has changed nothing.

    Args:
        num_workers: as of `verify`.

    Returns:
        What verifying found, and the new manifest; None where nothing is missing, or something broken.

    Raises:
        CallError: no dataset there, or one of format 1, which has all checksums and no place for counts.
        ShardError: its manifest or shard table is damaged, or somebody else has written it meanwhile.
        StoreError: storage refused or failed.
    """
    dataset = DatasetReader(url)
    before = dataset.manifest
    if before.format_version == 1:
        raise CallError(f"{dataset.url}: is of format 1, which lacks nothing that could be filled in; pack it again")
    with scratch_folder() as scratch:
        gathered = GatheredIndex(scratch)
        report = verify(url, num_workers=num_workers, on_progress=on_progress, on_whole=gathered.add)
        if report.problems:
            return report, None
        after, table, index, voxels = gathered.finish(before)
        if (after.shards_sha256, after.index_sha256) != (before.shards_sha256, before.index_sha256):
            after = replace(after, filled_from=before.identity)
            dataset.store.write(FILLED_INDEX_NAME, index)
            dataset.store.write(FILLED_TABLE_NAME, table)
        if before.voxels_sha256 is not None or voxels is None:
            after = replace(after, voxels_sha256=before.voxels_sha256)
        else:
            dataset.store.write(VOXELS_NAME, voxels)
        if after == before:
            return report, None
        return report, _publish(dataset, after)


def count_voxels_of(url: str, *, num_workers: int = 1, on_progress: Progress | None = None) -> Manifest:
    """Add voxels.bin to a dataset: a new generation of its manifest, everything else stays.

    Raises:
        CallError: there is no dataset, one of scenes, or one of format 1.
        ShardError: a shard is damaged.
        StoreError: storage refused or failed.
    """
    dataset = DatasetReader(url)
    if dataset.manifest.format_version == 1 or dataset.manifest.sample_kind != "frames":
        raise CallError(
            f"{dataset.url}: holds {dataset.manifest.sample_kind} in format {dataset.manifest.format_version}, and "
            "voxels are counted of frames in format 2; pack it again for that"
        )
    num_shards, parts = dataset.manifest.num_shards, []
    with closing(ordered_map(partial(_count_shard, dataset), range(num_shards), num_workers)) as results:
        for done, (counts, faults) in enumerate(results, start=1):
            dataset.store.faults.update(faults)
            parts.append(counts)
            if on_progress is not None:
                on_progress(done, num_shards)
    voxels = b"".join(parts)
    # A reader that has the manifest of before knows nothing of voxels: the object goes first.
    dataset.store.write(VOXELS_NAME, voxels)
    return _publish(dataset, replace(dataset.manifest, voxels_sha256=hashlib.sha256(voxels).hexdigest()))


def _publish(dataset: DatasetReader, manifest: Manifest) -> Manifest:
    """Write the next generation of a manifest, unless there is another one by now than `dataset` was opened with.

    Raises:
        ShardError: there is.
    """
    now = DatasetReader(dataset.url).manifest
    if now != dataset.manifest:
        raise ShardError(
            f"{dataset.url}: somebody else has written generation {now.generation} of it in the meantime (this call "
            f"began with {dataset.manifest.generation}); call again"
        )
    manifest = replace(manifest, generation=dataset.manifest.generation + 1)
    dataset.store.write(MANIFEST_NAME, manifest.encode())
    return manifest


def _count_shard(dataset: DatasetReader, shard_index: int) -> tuple[bytes, Counter[str]]:
    data, rows = dataset.read_shard(shard_index), dataset.rows(shard_index)
    places = zip(dataset.keys(shard_index), rows.offsets.tolist(), rows.lengths.tolist(), strict=True)
    counts = []
    for i, (key, offset, length) in enumerate(places):
        sample = dataset.sample_from_slice(rows, i, key, data[offset : offset + length])
        counts.append(check_sample(sample, f"{dataset.url}, sample {key}"))
    return np.array(counts, "<u2").tobytes(), take_faults(dataset.store)
