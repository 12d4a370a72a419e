"""The samples to be packed as tasks for worker processes, and fingerprints of the raw files they are made of."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import ShardError
from shards.sample import Sample, check_sample, members_of_sample
from shards.schema import sample_key
from shards.sources.formats import FrameRef


@dataclass(frozen=True, slots=True)
class FrameTask:
    """A frame to be packed, and its key in the dataset."""

    key: str
    ref: FrameRef


@dataclass(frozen=True, eq=False)
class LoadedFrame:
    """A frame read and checked.

    Attributes:
        members: its files in a tar, by the name after the key.
        fingerprint: hash of the raw files, as they were before they were read.
    """

    members: dict[str, bytes]
    fingerprint: bytes


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


def load_frame(read: Callable[[Any], Sample], task: FrameTask) -> LoadedFrame:
    """Read and check one frame, or scene; runs in a worker process."""
    fingerprint = fingerprint_of_task(task)
    sample = read(task.ref)
    check_sample(sample, f"{task.key} ({task.ref.origin})")
    return LoadedFrame(members_of_sample(sample), fingerprint)


def fingerprint_of_task(task: FrameTask) -> bytes:
    """A digest of what scanning found out about a frame, and of name, size and mtime of each of its raw files."""
    facts = [task.key]
    for field in dataclasses.fields(task.ref):
        value = getattr(task.ref, field.name)
        facts.append(f"{field.name}={_file_facts(value) if isinstance(value, Path) else repr(value)}")
    return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).digest()


def fingerprint_of_shard(fingerprints: Iterable[bytes]) -> bytes:
    """The content of a shard's .source: one digest over the fingerprints of its frames, in hex."""
    return hashlib.sha256(b"".join(fingerprints)).hexdigest().encode("ascii") + b"\n"


def _file_facts(path: Path) -> str:
    try:
        facts = path.stat()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
    return f"{path.name} {facts.st_size} {facts.st_mtime_ns}"
