"""What an interrupted pack left: finished shards that are whole and of the source as it is now need no packing."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import google_crc32c

from shards.errors import ShardError
from shards.manifest import ShardIndex, ShardRow, index_name, shard_name, source_name
from shards.ordered_map import ordered_map
from shards.packing.frame_tasks import FrameTask, LoadedFrame, fingerprint_of_shard, fingerprint_of_task
from shards.reader import check_layout, check_slice
from shards.slices import archive_end, sample_slice
from shards.stores.second_look import believed
from shards.stores.store import MissingObjectError, Store, take_faults


def kept_shards(
    store: Store,
    load: Callable[[FrameTask], LoadedFrame],
    tasks: Sequence[FrameTask],
    shard_size_bytes: int,
    num_workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[ShardRow]:
    """The finished shards of an interrupted run, read back and checked.

    Raises:
        ShardError: they hold other frames than the source does now.
        StoreError: storage refused or failed: that says nothing about the shards.
    """
    names = set(store.list())
    finished = 0
    while {shard_name(finished), source_name(finished), index_name(finished)} <= names:
        finished += 1
    rows: list[ShardRow] = []
    length = done = 0
    with closing(ordered_map(partial(_look_back, store), range(finished), num_workers)) as results:
        for shard, faults in results:
            store.faults.update(faults)
            if shard is None or done == len(tasks):
                break
            of_shard = tasks[done : done + len(shard.index.keys)]
            _require_same_source(f"{store.url}/{index_name(len(rows))}", shard, of_shard, load, num_workers)
            rows.append(shard.row)
            length = int(shard.index.offsets[-1] + shard.index.lengths[-1])
            done += len(of_shard)
            if on_progress is not None:
                on_progress(done, len(tasks))
    if rows and done < len(tasks):
        # The last shard of a source that has grown since was not full: a fresh run would put more into it.
        length += len(sample_slice(tasks[done].key, load(tasks[done]).members))
        if length + len(archive_end(length)) <= shard_size_bytes:
            rows.pop()
    return rows


@dataclass(frozen=True, eq=False)
class _StoredShard:
    row: ShardRow
    index: ShardIndex
    fingerprint: bytes


def _look_back(store: Store, shard_index: int) -> tuple[_StoredShard | None, Counter[str]]:
    """A finished shard, and the faults of the storage on the way. Runs in a worker, with a store of its own."""
    return _read_back(store, shard_index), take_faults(store)


def _read_back(store: Store, shard_index: int) -> _StoredShard | None:
    """A finished shard; None when it is damaged or half-written, and so to be packed again. Runs in a worker."""
    try:
        fingerprint = believed(store, partial(store.read, source_name(shard_index)), None)
        encoded = believed(store, partial(store.read, index_name(shard_index)), ShardIndex.is_whole)
        data = believed(store, partial(store.read, shard_name(shard_index)), partial(_is_shard, encoded))
    except MissingObjectError:
        return None
    if not _is_shard(encoded, data):
        return None
    index = ShardIndex.decode(encoded, "")
    return _StoredShard(ShardRow(len(index.keys), len(data), hashlib.sha256(data).digest()), index, fingerprint)


def _is_shard(encoded: bytes, data: bytes) -> bool:
    """Whether the bytes are the whole tar of an index."""
    try:
        index = ShardIndex.decode(encoded, "")
        check_layout(index, len(data), "")
        for offset, length, crc in zip(
            index.offsets.tolist(), index.lengths.tolist(), index.crc32c.tolist(), strict=True
        ):
            check_slice(data[offset : offset + length], length, crc, "")
    except ShardError:
        return False
    end = int(index.offsets[-1] + index.lengths[-1])
    return data[end:] == archive_end(end)


def _require_same_source(
    where: str,
    shard: _StoredShard,
    tasks: Sequence[FrameTask],
    load: Callable[[FrameTask], LoadedFrame],
    num_workers: int,
) -> None:
    """Raise ShardError unless a shard holds just these frames, as they are now."""
    keys = [task.key for task in tasks]
    same = list(shard.index.keys) == keys
    if same and fingerprint_of_shard(map(fingerprint_of_task, tasks)) != shard.fingerprint:
        # Touched files need not be changed files: what they hold decides.
        with closing(ordered_map(load, tasks, num_workers)) as loaded:
            for task, frame, crc in zip(tasks, loaded, shard.index.crc32c.tolist(), strict=True):
                same = same and google_crc32c.value(sample_slice(task.key, frame.members)) == crc
    if not same:
        raise ShardError(
            f"{where}: an unfinished pack of other frames (from {shard.index.keys[0]} to {shard.index.keys[-1]}; the "
            f"source now has {keys[0]} to {keys[-1]} there, or other content); the source has changed, so delete these "
            "objects or pack to another place"
        )
