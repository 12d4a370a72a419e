"""A dataset of format 2 out of samples as they are, right or wrong: every checksum is of what it holds."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import google_crc32c

from shards.errors import ShardError
from shards.manifest import INDEX_NAME, MANIFEST_NAME, TABLE_NAME, Manifest, SampleKind, shard_name
from shards.packing.frame_tasks import LoadedFrame
from shards.packing.gathered import GatheredIndex
from shards.packing.writer import ShardWriter
from shards.rows import bare_rows
from shards.sample import row_of_sample, sample_from_members
from shards.slices import layout_of_slice, members_of_slice, sample_slice

Members = dict[str, bytes]


def blank_manifest(kind: SampleKind = "frames", label_names: Sequence[str] = (), dataset: str = "x") -> Manifest:
    """A manifest without counts and hashes."""
    return Manifest(2, 0, 0, 0, tuple(label_names), {"source_format": dataset}, "", kind, datasets=(dataset,))


def tar_of(members: Members) -> bytes:
    """A tar of these members, in their order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_samples(
    folder: Path,
    samples: Sequence[tuple[str, Members]],
    scratch: Path,
    blank: Manifest,
    shard_size_bytes: int = 1 << 30,
) -> None:
    """The dataset of these samples; what cannot be described, since it is broken, has a row that says only where."""
    slices = [(key, sample_slice(key, members)) for key, members in samples]
    write_slices(folder, slices, scratch, blank, shard_size_bytes)


def write_slices(
    folder: Path,
    slices: Sequence[tuple[str, bytes]],
    scratch: Path,
    blank: Manifest,
    shard_size_bytes: int = 1 << 30,
    edit_row: Callable[[bytes], bytes] = bytes,
) -> None:
    """The same of the bytes of samples in a tar.

    Args:
        edit_row: what becomes of the first row before it is sealed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    writer, gathered = ShardWriter(scratch, shard_size_bytes), GatheredIndex(scratch)
    rows = [_row(key, data, blank) for key, data in slices]
    rows[0] = edit_row(rows[0])
    finished = [writer.add(key, LoadedFrame(data, row, b"")) for (key, data), row in zip(slices, rows, strict=True)]
    for shard in filter(None, [*finished, writer.finish()]):
        gathered.add(shard.piece)
        (folder / shard_name(shard.shard_index)).write_bytes(shard.path.read_bytes())
    manifest, table, index, _ = gathered.finish(blank)
    (folder / INDEX_NAME).write_bytes(index.read_bytes())
    (folder / TABLE_NAME).write_bytes(table)
    (folder / MANIFEST_NAME).write_bytes(manifest.encode())


def _row(key: str, data: bytes, blank: Manifest) -> bytes:
    try:
        sample = sample_from_members(blank.sample_kind, key, members_of_slice(data, ""))
        return row_of_sample(sample, layout_of_slice(data, ""), data, 0)
    except ShardError:
        return bare_rows(0, [0], [len(data)], [google_crc32c.value(data)]).table.tobytes()
