"""The samples to be packed as tasks for worker processes, and fingerprints of the raw files they are made of."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.checks import check_frame_headers, check_sample_headers
from shards.errors import ShardError
from shards.images import BrokenImageError, decode_reduced_color, encode_color, pack_depth
from shards.packing.options import Check, DepthCodec
from shards.sample import Sample, members_of_sample, row_of_sample
from shards.scene import Scene
from shards.schema import Frame, check_frame, decode_frame_depth, sample_key
from shards.slices import layout_of_slice, sample_slice
from shards.sources.cameras import Camera
from shards.sources.formats import FrameRef
from shards.voxels import count_voxels


@dataclass(frozen=True, slots=True)
class FrameTask:
    """A frame to be packed, and its key in the dataset."""

    key: str
    ref: FrameRef


@dataclass(frozen=True, eq=False)
class LoadedFrame:
    """A frame read, checked and made ready to be appended to a tar.

    Attributes:
        data: its bytes in a tar.
        row: its row in the index, before it is sealed.
        fingerprint: hash of the raw files, as they were before they were read.
        num_voxels: as `shards.voxels` counts them; 0 where nobody did.
    """

    data: bytes
    row: bytes
    fingerprint: bytes
    num_voxels: int = 0


def unique_tasks(refs: Sequence[FrameRef]) -> list[FrameTask]:
    """One task per frame, in order.

    Raises:
        ShardError: two frames have the same key.
    """
    tasks: dict[str, FrameTask] = {}
    for ref in refs:
        key = sample_key(ref.scene_id, ref.frame_id)
        if key in tasks:
            raise ShardError(
                f"{ref.origin}: key {key} is already taken by {tasks[key].ref.origin}; keys must be unique in a "
                "dataset: rename one of the two folders or files, or pack them into two datasets"
            )
        tasks[key] = FrameTask(key, ref)
    return list(tasks.values())


def load_frame(
    read: Callable[[Any], Sample],
    check: Check,
    depth_codec: DepthCodec,
    color_size: tuple[int, int] | None,
    task: FrameTask,
) -> LoadedFrame:
    """Read and check one frame, or scene; runs in a worker process.

    Args:
        read: of the source format.
        check: whether images are decoded, or only their headers and checksums looked at.
        depth_codec: how depth is stored; of a PNG the bytes stay as they were read.
        color_size: as in `pack`.
        task: the frame.
    """
    fingerprint = fingerprint_of_task(task)
    sample, where, num_voxels = read(task.ref), f"{task.key} ({task.ref.origin})", 0
    if color_size is not None and not isinstance(sample, Scene):
        sample = with_smaller_color(sample, color_size, where)
    if isinstance(sample, Scene) or (check == "headers" and depth_codec == "png"):
        check_sample_headers(sample, where)
    else:
        if check == "full":
            depth = check_frame(sample, where)
        else:
            check_frame_headers(sample, where)
            depth = decode_frame_depth(sample, where)
        num_voxels = count_voxels(depth, sample.depth_scale, sample.K_depth)
        if depth_codec == "zstd":
            height, width = depth.shape
            packed = pack_depth(depth)
            sample = dataclasses.replace(
                sample, depth=packed, depth_format="zst", depth_size=(width, height), no_reading=0
            )
    data, row = sliced(task.key, sample)
    return LoadedFrame(data, row, fingerprint, num_voxels)


def with_smaller_color(frame: Frame, within: tuple[int, int], where: str) -> Frame:
    """A frame whose colour image fits into (width, height), encoded anew; one that does already stays as it is.

    Raises:
        ShardError: the image does not decode; `where` names the frame.
    """
    try:
        found = decode_reduced_color(frame.color, frame.color_format, (within[1], within[0]))
    except BrokenImageError as error:
        raise ShardError(f"{where}: {error}; restore the file, or remove the frame, and pack again") from error
    height, width = found.size
    share = min(within[0] / width, within[1] / height)
    if share >= 1:
        return frame
    smaller = (max(1, round(share * width)), max(1, round(share * height)))
    K = Camera(tuple(frame.K_color.ravel().tolist()), (width, height)).matrix(smaller, where)
    return dataclasses.replace(frame, color=encode_color(found.pixels, smaller), color_format="jpg", K_color=K)


def sliced(key: str, sample: Sample) -> tuple[bytes, bytes]:
    """The bytes of a checked sample in a tar, and its row in the index of a dataset of its kind alone."""
    data = sample_slice(key, members_of_sample(sample))
    return data, row_of_sample(sample, layout_of_slice(data, key), data, 0)


def fingerprint_of_task(task: FrameTask) -> bytes:
    """A digest of what scanning found out about a frame, and of name, size and mtime of each of its raw files."""
    facts = [task.key, *_facts_of(task.ref)]
    return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).digest()


def fingerprint_of_shard(fingerprints: Iterable[bytes]) -> bytes:
    """One digest over the fingerprints of the frames of a shard."""
    return hashlib.sha256(b"".join(fingerprints)).digest()


def _facts_of(ref: Any) -> Iterator[str]:
    """Every field of a dataclass, and of those in it, on a line; a path is what its file looks like from outside."""
    for field in dataclasses.fields(ref):
        value = getattr(ref, field.name)
        if dataclasses.is_dataclass(value):
            yield from (f"{field.name}.{fact}" for fact in _facts_of(value))
        else:
            yield f"{field.name}={_file_facts(value) if isinstance(value, Path) else repr(value)}"


def _file_facts(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
    return f"{path.name} {facts.st_size} {facts.st_mtime_ns}"
