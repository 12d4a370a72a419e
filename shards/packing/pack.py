"""Source to shards to manifest: read in parallel, written in order by one writer, resumable, published at the end."""

import importlib.metadata
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shards.doors.text import has_control
from shards.errors import CallError, ShardError
from shards.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    TABLE_NAME,
    VOXELS_NAME,
    Manifest,
    piece_name,
    shard_name,
)
from shards.ordered_map import ordered_map
from shards.packing.claim import SHARD_FILE, Claim, claim, published_before, release
from shards.packing.frame_tasks import FrameTask, LoadedFrame, load_frame
from shards.packing.gathered import GatheredIndex
from shards.packing.options import Check, DepthCodec
from shards.packing.piece import ShardPiece
from shards.packing.resume import kept_shards
from shards.packing.scratch import scratch_folder
from shards.packing.selection import Selection, find_tasks
from shards.packing.writer import FinishedShard, ShardWriter
from shards.plausible.look import Proof, look_at_source, require_plausible
from shards.schema import FORMAT_VERSION
from shards.sources.formats import GENERATORS, SourceFormat, find_format
from shards.sources.options import SourceOptions
from shards.stores.place import open_store
from shards.stores.second_look import believed

DEFAULT_SHARD_SIZE_BYTES = 256 << 20
MAX_SHARD_SIZE_BYTES = 4 << 30  # one PUT takes at most 5 GiB


@dataclass(frozen=True)
class PackReport:
    """What `pack` made.

    Attributes:
        url: place of the dataset.
        num_samples: in it.
        num_shards: in it.
        num_kept_shards: those of them that were finished by an earlier, interrupted run.
        size_bytes: bytes of all tars.
        seconds: this run took.
        licence: one line on the terms of the raw data, as the manifest has it.
        storage_faults: what storage did wrong on the way and was put right by asking again, by cause.
    """

    url: str
    num_samples: int
    num_shards: int
    num_kept_shards: int
    size_bytes: int
    seconds: float
    licence: str
    storage_faults: Mapping[str, int]


def pack(
    source_format: str | SourceFormat,
    src: str | Path,
    dst: str,
    *,
    num_workers: int = 1,
    shard_size_bytes: int = DEFAULT_SHARD_SIZE_BYTES,
    frames: slice | None = None,
    every: int = 1,
    max_frames: int | None = None,
    source_options: SourceOptions | None = None,
    check: Check = "headers",
    depth_codec: DepthCodec = "png",
    color_size: tuple[int, int] | None = None,
    licence: str | None = None,
    as_is: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    on_look: Callable[[Proof], None] | None = None,
) -> PackReport:
    """Pack the frames of a raw dataset. An interrupted call leaves no manifest; the same call again resumes.

    Args:
        source_format: a name in `shards.sources.formats`, or a reader of your own (docs/readers.md).
        src: folder of the raw dataset, or the text of a generator.
        dst: folder or s3:// prefix, without a dataset in it.
        num_workers: processes that read and check frames; the result does not depend on it.
        shard_size_bytes: cap on a tar.
        frames: which of the source's frames, by position; None takes all.
        every: keep one of so many of these.
        max_frames: then keep at most so many of each scene, spread over it; None keeps all.
        source_options: what the reader is told; None takes what the format does by itself.
        check: "full" decodes every image once and counts the voxels of every frame; "headers" holds sizes, kinds and
            checksums against the numbers, which costs a tenth.
        depth_codec: "png" keeps the bytes of what is one; "zstd" decodes in a sixth of a PNG's time, and counts voxels.
        color_size: (width, height) within which colour images are made smaller, and encoded anew; None keeps the bytes.
        licence: terms of the data, in a line; None takes what is known of the format.
        as_is: pack also what cannot be right, as a look at a few frames of each scene shows it.
        on_progress: called with (frames done, frames in all).
        on_look: called with what that look found, before anything is packed.

    Raises:
        CallError: an argument cannot be meant, or dst already holds a dataset.
        ShardError: depth, cameras, poses or labels cannot be right;
            a frame is broken, keys collide, or dst holds another unfinished pack.
        StoreError: storage refused or failed.
    """
    start = time.monotonic()
    _check_call(num_workers, shard_size_bytes, licence)
    chosen = find_format(source_format) if isinstance(source_format, str) else source_format
    root, told = Path(src), source_options or SourceOptions()
    tasks = find_tasks(chosen, root, told, Selection(frames, every, max_frames))
    label_names = chosen.label_names(root)
    options: dict[str, Any] = {
        "shard_size_bytes": shard_size_bytes,
        "frames": None if frames is None else [frames.start, frames.stop],
        "every": every,
        "depth_scale": told.depth_scale,
        "check": check,
        "depth_codec": depth_codec,
        **told.said(),
    }
    if max_frames is not None:
        options["max_frames"] = max_frames
    if color_size is not None:
        options["color_size"] = list(color_size)
    if licence is not None:
        options["licence"] = licence
    if as_is:
        options["as_is"] = True
    provenance = _provenance(chosen, root, options)
    store = open_store(dst)
    manifest = published_before(store, provenance)
    if manifest is not None:
        num_kept = manifest.num_shards
    else:
        if chosen not in GENERATORS:  # which make what they say
            require_plausible(look_at_source(chosen, tasks, label_names), str(src), as_is, on_look)
        ours = claim(store, provenance)
        load = partial(load_frame, chosen.read, check, depth_codec, color_size)
        with _scratch_folder(shard_size_bytes) as scratch:
            gathered = GatheredIndex(scratch)
            with closing(kept_shards(store, load, tasks, shard_size_bytes, num_workers, on_progress)) as kept:
                for piece in kept:
                    gathered.add(piece)
            num_kept = len(gathered.rows)
            rest = _pack_rest(ours, load, tasks, gathered, scratch, shard_size_bytes, num_workers, on_progress)
            with closing(rest):  # ends the workers before anything else happens
                for piece in rest:
                    gathered.add(piece)
            blank = _blank_manifest(chosen, label_names, provenance, licence)
            manifest = _publish(ours, gathered, blank, shard_size_bytes)
    release(store)
    return PackReport(
        url=store.url,
        num_samples=manifest.num_samples,
        num_shards=manifest.num_shards,
        num_kept_shards=num_kept,
        size_bytes=manifest.size_bytes,
        seconds=time.monotonic() - start,
        licence=manifest.licence,
        storage_faults=Counter(store.faults),
    )


def _check_call(num_workers: int, shard_size_bytes: int, licence: str | None) -> None:
    if num_workers < 1:
        raise CallError(f"workers must be at least 1, found {num_workers}")
    if not 1 <= shard_size_bytes <= MAX_SHARD_SIZE_BYTES:
        raise CallError(f"shard size is {shard_size_bytes} bytes, wanted 1 to {MAX_SHARD_SIZE_BYTES}")
    if licence is not None and (not licence.strip() or has_control(licence)):
        raise CallError(f"the licence is {licence!r}, wanted one line of text, such as 'CC BY 4.0'")


def _provenance(source_format: SourceFormat, root: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "source_format": source_format.name,
        "source": root.resolve().name,
        "options": dict(options),
        # Equal bytes are promised for equal versions of what encodes them.
        "versions": {
            "format": FORMAT_VERSION,
            **{name: _version(name) for name in ("text4point", "pillow", "zstandard")},
        },
    }


def _blank_manifest(
    source_format: SourceFormat, label_names: tuple[str, ...], provenance: Mapping[str, Any], licence: str | None
) -> Manifest:
    """A manifest without the counts and hashes of what it is of."""
    return Manifest(
        format_version=FORMAT_VERSION,
        num_samples=0,
        num_shards=0,
        size_bytes=0,
        label_names=label_names,
        provenance=provenance,
        shards_sha256="",
        sample_kind=source_format.sample_kind,
        licence=source_format.licence if licence is None else licence,
        up_axis=source_format.up_axis,
        datasets=(source_format.name,),
    )


def _pack_rest(
    ours: Claim,
    load: Callable[[FrameTask], LoadedFrame],
    tasks: Sequence[FrameTask],
    gathered: GatheredIndex,
    scratch: Path,
    shard_size_bytes: int,
    num_workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> Generator[ShardPiece]:
    """Pack and store the shards that are not there yet, yielding what is noted of each."""
    done = gathered.num_samples
    writer = ShardWriter(scratch, shard_size_bytes, len(gathered.rows), done)
    try:
        with closing(ordered_map(load, tasks[done:], num_workers)) as loaded:
            for task, frame in zip(tasks[done:], loaded, strict=True):
                with _explained(shard_size_bytes):
                    finished = writer.add(task.key, frame)
                if finished:
                    yield _store_shard(ours, finished)
                done += 1
                if on_progress is not None:
                    on_progress(done, len(tasks))
        with _explained(shard_size_bytes):
            finished = writer.finish()
        if finished:
            yield _store_shard(ours, finished)
    finally:
        writer.abandon()


@contextmanager
def _scratch_folder(shard_size_bytes: int) -> Iterator[Path]:
    with ExitStack() as stack:
        with _explained(shard_size_bytes):
            folder = stack.enter_context(scratch_folder())
        yield folder


@contextmanager
def _explained(shard_size_bytes: int) -> Iterator[None]:
    """Put around what only writes to the scratch folder."""
    try:
        yield
    except OSError as error:
        raise ShardError(
            f"the folder for temporary files: cannot write ({error}); a shard is put together there, point TMPDIR to a "
            f"disk with {shard_size_bytes >> 20} MiB free"
        ) from error


def _store_shard(ours: Claim, finished: FinishedShard) -> ShardPiece:
    ours.require()
    # The piece goes last: it vouches for a whole tar.
    ours.store.write(shard_name(finished.shard_index), finished.path)
    ours.store.write(piece_name(finished.shard_index), finished.piece.encode())
    finished.path.unlink()
    return finished.piece


def _publish(ours: Claim, gathered: GatheredIndex, blank: Manifest, shard_size_bytes: int) -> Manifest:
    """Write table and index and, by a conditional put, the manifest that makes the objects a dataset."""
    store = ours.store
    with _explained(shard_size_bytes):
        manifest, table, index, voxels = gathered.finish(blank)
    objects: dict[str, bytes | Path] = {INDEX_NAME: index, TABLE_NAME: table}
    if voxels is not None:
        objects[VOXELS_NAME] = voxels
    names = {name for i in range(manifest.num_shards) for name in (shard_name(i), piece_name(i))} | objects.keys()
    ours.require()
    for name in store.list():
        if SHARD_FILE.fullmatch(name) and name not in names:
            store.delete(name)
    for name, data in objects.items():
        store.write(name, data)
    ours.require()
    encoded = manifest.encode()
    # Two calls of one pack that race to the end publish equal bytes: that is success for both.
    if not store.write_if_absent(MANIFEST_NAME, encoded) and encoded != believed(
        store, partial(store.read, MANIFEST_NAME), lambda found: found == encoded
    ):
        raise ShardError(
            f"{store.url}: somebody else published another dataset here in the meantime; its shards may be overwritten "
            "by ours, so verify it, and pack to another place"
        )
    return manifest


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
