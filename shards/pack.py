"""Source to shards to manifest: read in parallel, written in order by one writer, resumable, published at the end."""

import hashlib
import importlib.metadata
import json
import re
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c

from shards.manifest import (
    MANIFEST_NAME,
    TABLE_NAME,
    Manifest,
    ShardIndex,
    ShardRow,
    ShardTable,
    index_name,
    shard_name,
)
from shards.ordered_map import ordered_map
from shards.reader import PACKING_NAME
from shards.schema import FORMAT_VERSION, CallError, Frame, ShardError, check_frame, members_of_frame, sample_key
from shards.sources.formats import FrameRef, find_format
from shards.sources.raw_files import SourceOptions
from shards.store import MissingObjectError, Store, open_store
from shards.writer import FinishedShard, ShardWriter, archive_end, sample_slice

DEFAULT_SHARD_SIZE_BYTES = 256 << 20
MAX_SHARD_SIZE_BYTES = 4 << 30  # one PUT takes at most 5 GiB
_SHARD_FILE = re.compile(r"shard-\d{6,}\.(tar|idx)|shards\.bin")


@dataclass(frozen=True)
class PackReport:
    """What `pack` made.

    Attributes:
        url: of the dataset.
        num_samples: in it.
        num_shards: in it.
        num_kept_shards: of these, finished by an earlier, interrupted run.
        size_bytes: of all tars.
        seconds: this run took.
        licence: one line on the terms of the raw data.
    """

    url: str
    num_samples: int
    num_shards: int
    num_kept_shards: int
    size_bytes: int
    seconds: float
    licence: str


def pack(
    source_format: str,
    src: str | Path,
    dst: str,
    *,
    num_workers: int = 1,
    shard_size_bytes: int = DEFAULT_SHARD_SIZE_BYTES,
    frames: slice | None = None,
    every: int = 1,
    depth_scale: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> PackReport:
    """Pack the frames of a raw dataset. An interrupted call leaves no manifest; the same call again resumes.

    Args:
        source_format: a name in `shards.sources.formats`.
        src: folder of the raw dataset.
        dst: folder or s3:// prefix, without a dataset in it.
        num_workers: processes that read and check frames; the result does not depend on it.
        shard_size_bytes: cap on a tar.
        frames: which of the source's frames, by position; None takes all.
        every: keep one of so many of these.
        depth_scale: depth units per metre; None takes the format's own.
        on_progress: called with (frames done, frames in all).

    Raises:
        CallError: an argument cannot be meant, or dst already holds a dataset.
        ShardError: a frame is broken, keys collide, or dst holds another unfinished pack.
        StoreError: storage refused or failed.
    """
    start = time.monotonic()
    if num_workers < 1 or every < 1:
        raise CallError(f"workers and every must be at least 1, found {num_workers} and {every}")
    if not 1 <= shard_size_bytes <= MAX_SHARD_SIZE_BYTES:
        raise CallError(f"shard size is {shard_size_bytes} bytes, wanted 1 to {MAX_SHARD_SIZE_BYTES}")
    if depth_scale is not None and not depth_scale > 0:
        raise CallError(f"depth scale is {depth_scale}, wanted units per metre, above 0")
    chosen = find_format(source_format)
    root = Path(src)
    refs = chosen.scan(root, SourceOptions(depth_scale))
    selected = refs[frames or slice(None)][::every]
    if not selected:
        raise CallError(f"{src}: none of its {len(refs)} frames is left by frames {frames} and every {every}")
    tasks = _unique_tasks(selected)
    label_names = chosen.label_names(root)
    provenance = {
        "source_format": chosen.name,
        "source": root.resolve().name,
        "licence": chosen.licence,
        "options": {
            "shard_size_bytes": shard_size_bytes,
            "frames": None if frames is None else [frames.start, frames.stop],
            "every": every,
            "depth_scale": depth_scale,
        },
        # Equal bytes are promised for equal versions of what encodes them.
        "versions": {name: _version(name) for name in ("text4point", "webdataset", "pillow")},
    }
    store = open_store(dst)
    load = partial(_load_members, chosen.read)
    _claim(store, provenance)
    kept = _kept_shards(store, load, tasks, shard_size_bytes)
    rest = _pack_rest(store, load, tasks, kept, shard_size_bytes, num_workers, on_progress)
    with closing(rest):  # ends the workers before anything else happens
        rows = [*kept, *rest]
    manifest = _publish(store, rows, label_names, provenance)
    return PackReport(
        url=store.url,
        num_samples=manifest.num_samples,
        num_shards=manifest.num_shards,
        num_kept_shards=len(kept),
        size_bytes=manifest.size_bytes,
        seconds=time.monotonic() - start,
        licence=chosen.licence,
    )


@dataclass(frozen=True)
class _Task:
    key: str
    ref: FrameRef


def _unique_tasks(refs: Sequence[FrameRef]) -> list[_Task]:
    tasks: dict[str, _Task] = {}
    for ref in refs:
        key = sample_key(ref.scene_id, ref.frame_id)
        if key in tasks:
            raise ShardError(
                f"{ref.origin}: key {key} is already taken by {tasks[key].ref.origin}; keys must be unique in a "
                "dataset: rename one of the two folders or files, or pack them into two datasets"
            )
        tasks[key] = _Task(key, ref)
    return list(tasks.values())


def _load_members(read: Callable[[Any], Frame], task: _Task) -> dict[str, bytes]:
    """Read and check one frame; runs in a worker process."""
    frame = read(task.ref)
    check_frame(frame, f"{task.key} ({task.ref.origin})")
    return members_of_frame(frame)


def _claim(store: Store, provenance: Mapping[str, Any]) -> None:
    """Mark the destination as being packed with these options, or recognise our own mark and resume.

    Raises:
        CallError: there is a dataset.
        ShardError: there is an unfinished one of other options, or shards of unknown origin.
    """
    if store.exists(MANIFEST_NAME):
        raise CallError(
            f"{store.url}: already holds a dataset ({MANIFEST_NAME} is there); pack to another place, or delete it"
        )
    names = store.list()
    if PACKING_NAME not in names and (leftovers := [name for name in names if _SHARD_FILE.fullmatch(name)]):
        raise ShardError(
            f"{store.url}: holds {leftovers[0]} ({len(leftovers)} such files) but neither {MANIFEST_NAME} nor "
            f"{PACKING_NAME}, so they are not ours to resume or replace; delete them, or pack to another place"
        )
    mine = (json.dumps(provenance, indent=1, sort_keys=True) + "\n").encode("ascii")
    if store.write_if_absent(PACKING_NAME, mine):
        return
    found = store.read(PACKING_NAME)
    if found != mine:
        raise ShardError(
            f"{store.url}: holds an unfinished pack with other options ({_difference(found, provenance)}); repeat that "
            "call to finish it, or delete these objects, or pack to another place"
        )


def _difference(found: bytes, wanted: Mapping[str, Any]) -> str:
    try:
        earlier = json.loads(found)
        before, now = ({**value, **value["options"], **value["versions"]} for value in (earlier, wanted))
    except (ValueError, KeyError, TypeError):
        return f"{PACKING_NAME} cannot be read"
    names = [name for name in now if name not in ("options", "versions") and before.get(name) != now[name]]
    return ", ".join(f"{name} was {before.get(name)!r}, now {now[name]!r}" for name in names)


def _kept_shards(
    store: Store, load: Callable[[_Task], dict[str, bytes]], tasks: Sequence[_Task], shard_size_bytes: int
) -> list[ShardRow]:
    """The finished shards of an interrupted run, read back and checked: they need not be packed again.

    Raises:
        ShardError: they hold other frames than the source does now.
    """
    names = set(store.list())
    rows: list[ShardRow] = []
    lengths: list[int] = []
    done = 0
    while done < len(tasks) and {shard_name(len(rows)), index_name(len(rows))} <= names:
        where = f"{store.url}/{index_name(len(rows))}"
        try:
            index = ShardIndex.decode(store.read(index_name(len(rows))), where)
            data = store.read(shard_name(len(rows)))
        except (ShardError, MissingObjectError):
            break  # damaged or half-written: packed again
        if not _is_whole(data, index):
            break
        wanted = [task.key for task in tasks[done : done + len(index.keys)]]
        first = sample_slice(tasks[done].key, load(tasks[done]))
        if list(index.keys) != wanted or google_crc32c.value(first) != int(index.crc32c[0]):
            raise ShardError(
                f"{where}: an unfinished pack of other frames (from {index.keys[0]} to {index.keys[-1]}; the source "
                f"now has {wanted[0]} to {wanted[-1]} there, or other content); the source has changed, so delete "
                "these objects or pack to another place"
            )
        rows.append(ShardRow(len(index.keys), len(data), hashlib.sha256(data).digest()))
        lengths.append(int(index.offsets[-1] + index.lengths[-1]))
        done += len(index.keys)
    if rows and done < len(tasks):
        # The last shard of a source that has grown since was not full: a fresh run would put more into it.
        length = lengths[-1] + len(sample_slice(tasks[done].key, load(tasks[done])))
        if length + len(archive_end(length)) <= shard_size_bytes:
            rows.pop()
    return rows


def _is_whole(data: bytes, index: ShardIndex) -> bool:
    """Whether a tar is exactly the samples of its index."""
    spans = zip(index.offsets.tolist(), index.lengths.tolist(), index.crc32c.tolist(), strict=True)
    position = 0
    for offset, length, crc in spans:
        if offset != position or google_crc32c.value(data[offset : offset + length]) != crc:
            return False
        position += length
    return position > 0 and data[position:] == archive_end(position)


def _pack_rest(
    store: Store,
    load: Callable[[_Task], dict[str, bytes]],
    tasks: Sequence[_Task],
    kept: Sequence[ShardRow],
    shard_size_bytes: int,
    num_workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> Generator[ShardRow]:
    """Pack and store the shards that are not there yet, yielding their rows."""
    done = sum(row.num_samples for row in kept)
    with tempfile.TemporaryDirectory(prefix="t4p-pack-") as scratch:
        writer = ShardWriter(Path(scratch), shard_size_bytes, len(kept))
        try:
            with closing(ordered_map(load, tasks[done:], num_workers)) as loaded:
                for task, members in zip(tasks[done:], loaded, strict=True):
                    if finished := writer.add(task.key, members):
                        yield _store_shard(store, finished)
                    done += 1
                    if on_progress is not None:
                        on_progress(done, len(tasks))
            if finished := writer.finish():
                yield _store_shard(store, finished)
        except OSError as error:
            raise ShardError(
                f"{scratch}: cannot write ({error}); a shard is put together there, point TMPDIR to a disk with "
                f"{shard_size_bytes >> 20} MiB free"
            ) from error
        finally:
            writer.abandon()


def _store_shard(store: Store, finished: FinishedShard) -> ShardRow:
    # The index goes last: an index vouches for a whole tar.
    store.write(shard_name(finished.shard_index), finished.path)
    store.write(index_name(finished.shard_index), finished.index.encode())
    finished.path.unlink()
    return finished.row


def _publish(
    store: Store, rows: Sequence[ShardRow], label_names: tuple[str, ...], provenance: Mapping[str, Any]
) -> Manifest:
    """Write the shard table and, by a conditional put, the manifest that makes the objects a dataset."""
    expected = {name for i in range(len(rows)) for name in (shard_name(i), index_name(i))} | {TABLE_NAME}
    for name in store.list():
        if _SHARD_FILE.fullmatch(name) and name not in expected:
            store.delete(name)
    table = ShardTable.from_rows(rows).encode()
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        num_samples=sum(row.num_samples for row in rows),
        num_shards=len(rows),
        size_bytes=sum(row.size_bytes for row in rows),
        label_names=label_names,
        provenance=provenance,
        shards_sha256=hashlib.sha256(table).hexdigest(),
    )
    store.write(TABLE_NAME, table)
    # A lost answer makes boto3 ask again and find its own manifest there: equal bytes are success.
    if not store.write_if_absent(MANIFEST_NAME, manifest.encode()) and store.read(MANIFEST_NAME) != manifest.encode():
        raise ShardError(
            f"{store.url}: somebody else published another dataset here in the meantime; its shards may be overwritten "
            "by ours, so verify it, and pack to another place"
        )
    store.delete(PACKING_NAME)
    return manifest


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
