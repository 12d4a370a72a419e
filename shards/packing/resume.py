"""What an interrupted pack left: finished shards that are whole and of the source as it is now need no packing."""

import hashlib
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial

import google_crc32c
import numpy as np

from shards.errors import ShardError
from shards.manifest import piece_name, shard_name
from shards.ordered_map import ordered_map
from shards.packing.frame_tasks import FrameTask, LoadedFrame, fingerprint_of_shard, fingerprint_of_task
from shards.packing.piece import ShardPiece
from shards.rows import ROW
from shards.slices import archive_end
from shards.stores.second_look import believed
from shards.stores.store import MissingObjectError, Store, take_faults


def kept_shards(
    store: Store,
    load: Callable[[FrameTask], LoadedFrame],
    tasks: Sequence[FrameTask],
    shard_size_bytes: int,
    num_workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> Generator[ShardPiece]:
    """The finished shards of an interrupted run, read back and checked, one after the other.

    Raises:
        ShardError: they hold other frames than the source does now.
        StoreError: storage refused or failed: that says nothing about the shards.
    """
    names = set(store.list())
    finished = 0
    while {shard_name(finished), piece_name(finished)} <= names:
        finished += 1
    last: ShardPiece | None = None  # held back until it is known whether it is full
    done = num_shards = 0
    with closing(ordered_map(partial(_look_back, store), range(finished), num_workers)) as results:
        for piece, faults in results:
            store.faults.update(faults)
            if piece is None or done == len(tasks) or piece.first_row != done:
                break
            of_shard = tasks[done : done + piece.num_samples]
            _require_same_source(f"{store.url}/{shard_name(num_shards)}", piece, of_shard, load, num_workers)
            if last is not None:
                yield last
            last = piece
            done += len(of_shard)
            num_shards += 1
            if on_progress is not None:
                on_progress(done, len(tasks))
    if last is not None and (done == len(tasks) or not _has_room(last, load(tasks[done]), shard_size_bytes)):
        yield last


def _has_room(piece: ShardPiece, following: LoadedFrame, shard_size_bytes: int) -> bool:
    """Whether a shard would take one more sample: a source that has grown since ended in one that was not full."""
    final = np.frombuffer(piece.rows, ROW)[-1]
    length = int(final["offset"]) + int(final["length"]) + len(following.data)
    return length + len(archive_end(length)) <= shard_size_bytes


def _look_back(store: Store, shard_index: int) -> tuple[ShardPiece | None, Counter[str]]:
    """A finished shard, and the faults of the storage on the way. Runs in a worker, with a store of its own."""
    return _read_back(store, shard_index), take_faults(store)


def _read_back(store: Store, shard_index: int) -> ShardPiece | None:
    """A finished shard; None when it is damaged or half-written, and so to be packed again. Runs in a worker."""
    try:
        encoded = believed(store, partial(store.read, piece_name(shard_index)), ShardPiece.is_whole)
        if not ShardPiece.is_whole(encoded):
            return None
        piece = ShardPiece.decode(encoded)
        read = partial(store.read, shard_name(shard_index))
        data = believed(store, read, lambda found: hashlib.sha256(found).digest() == piece.sha256)
    except MissingObjectError:
        return None
    return piece if hashlib.sha256(data).digest() == piece.sha256 else None


def _require_same_source(
    where: str,
    piece: ShardPiece,
    tasks: Sequence[FrameTask],
    load: Callable[[FrameTask], LoadedFrame],
    num_workers: int,
) -> None:
    """Raise ShardError unless a shard holds just these frames, as they are now."""
    keys, found = [task.key for task in tasks], piece.key_list()
    same = found == keys
    if same and fingerprint_of_shard(map(fingerprint_of_task, tasks)) != piece.fingerprint:
        # Touched files need not be changed files: what they hold decides.
        crcs = np.frombuffer(piece.rows, ROW)["crc32c"].tolist()
        with closing(ordered_map(load, tasks, num_workers)) as loaded:
            for frame, crc in zip(loaded, crcs, strict=True):
                same = same and google_crc32c.value(frame.data) == crc
    if not same:
        raise ShardError(
            f"{where}: an unfinished pack of other frames (from {found[0]} to {found[-1]}; the source now has "
            f"{keys[0]} to {keys[-1]} there, or other content); the source has changed, so delete these objects or "
            "pack to another place"
        )
