"""Tars that are there already: the index of a dataset made by reading each once, and voxels counted afterwards."""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from shards.checks import check_sample_headers
from shards.doors.text import shown
from shards.errors import CallError, ShardError
from shards.manifest import INDEX_NAME, MANIFEST_NAME, TABLE_NAME, VOXELS_NAME, Manifest, SampleKind, shard_name
from shards.ordered_map import ordered_map
from shards.packing.gathered import GatheredIndex
from shards.packing.piece import ShardPiece
from shards.packing.scratch import scratch_folder
from shards.reader import DatasetReader
from shards.rows import ROW, bare_rows, check_layout, sealed_row
from shards.sample import check_sample, row_of_sample, sample_from_members
from shards.schema import FORMAT_VERSION, is_key
from shards.slices import layout_of_slice, members_of_slice, spans_of_tar
from shards.stores.place import open_store
from shards.stores.store import Store, take_faults

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class IndexedTar:
    """What one reading of a tar told.

    Attributes:
        kind: what its samples are.
        keys: of its samples, in order.
        rows: of its samples, not sealed; `dataset` is a position in `datasets`.
        datasets: names of where its samples came from.
        voxels: of each sample; 0 where nobody has counted.
        size_bytes: of the tar.
        sha256: of the tar.
        faults: of the storage on the way.
    """

    kind: SampleKind
    keys: tuple[str, ...]
    rows: tuple[bytes, ...]
    datasets: tuple[str, ...]
    voxels: tuple[int, ...]
    size_bytes: int
    sha256: bytes
    faults: Counter[str]


def index_tars(
    url: str, into: str | None, *, counts: bool, num_workers: int = 1, on_progress: Progress | None = None
) -> Manifest:
    """Make a dataset of the tars in a place, which stay where and as they are.

    Args:
        url: folder or prefix that holds the tars.
        into: place for manifest, table and index; None is beside the tars.
        counts: decode every frame and count its voxels; else headers and checksums are looked at.
        num_workers: processes, one tar each at a time (each holds that tar in memory).
        on_progress: called with (tars done, tars in all).

    Raises:
        CallError: there are no tars, or there is a dataset already.
        ShardError: a tar holds something else than samples of this format, or a key occurs twice.
        StoreError: storage refused or failed.
    """
    source, target = open_store(url), open_store(into or url)
    names = [name for name in source.list() if name.endswith(".tar")]
    if not names:
        raise CallError(f"{source.url}: no *.tar in it; give the place that holds the tars themselves")
    if target.exists(MANIFEST_NAME):
        raise CallError(f"{target.url}: already holds a dataset; --counts adds voxels to it, --into is another place")
    with ExitStack() as stack:
        gathered = GatheredIndex(stack.enter_context(scratch_folder()))
        kinds: set[SampleKind] = set()
        datasets: list[str] = []
        seen: set[str] = set()
        results = stack.enter_context(closing(ordered_map(partial(_index_tar, source, counts), names, num_workers)))
        for done, (name, tar) in enumerate(zip(names, results, strict=True), start=1):
            source.faults.update(tar.faults)
            kinds.add(tar.kind)
            if len(kinds) > 1:
                raise ShardError(f"{source.url}/{name}: holds {tar.kind}, the tars before it others; index them apart")
            if again := seen.intersection(tar.keys):
                raise ShardError(f"{source.url}/{name}: key {min(again)} is in an earlier tar too; rename one of them")
            seen.update(tar.keys)
            datasets += [dataset for dataset in tar.datasets if dataset not in datasets]
            gathered.add(_piece(tar, datasets, gathered.num_samples))
            if on_progress is not None:
                on_progress(done, len(names))
        usual = names == [shard_name(i) for i in range(len(names))]
        blank = Manifest(
            format_version=FORMAT_VERSION,
            num_samples=0,
            num_shards=0,
            size_bytes=0,
            label_names=(),
            provenance={"source_format": "webdataset", "source": source.url.rstrip("/").rpartition("/")[2]},
            shards_sha256="",
            sample_kind=kinds.pop(),
            datasets=tuple(datasets),
            tar_names=() if usual else tuple(names),
            tars_url=None if into is None else _lasting(source.url),
        )
        manifest, table, index, voxels = gathered.finish(blank)
        target.write(INDEX_NAME, index)
        target.write(TABLE_NAME, table)
        if voxels is not None:
            target.write(VOXELS_NAME, voxels)
        if not target.write_if_absent(MANIFEST_NAME, manifest.encode()):
            raise ShardError(f"{target.url}: somebody else published a dataset here in the meantime; verify it")
    return manifest


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
    manifest = replace(
        dataset.manifest,
        voxels_sha256=hashlib.sha256(voxels).hexdigest(),
        generation=dataset.manifest.generation + 1,
    )
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


def _index_tar(source: Store, counts: bool, name: str) -> IndexedTar:
    """Read a tar and describe its samples. Runs in a worker, with a store of its own."""
    where = f"{source.url}/{name}"
    data = source.read(name)  # once, as nothing vouches for it: what storage alters on the way, `verify` names later
    try:
        spans = spans_of_tar(data)
    except (tarfile.TarError, ValueError) as error:
        raise ShardError(f"{where}: not a tar ({shown(error)}); remove it, or name another place") from error
    if not spans:
        raise ShardError(f"{where}: holds no samples; remove it")
    rows, voxels, datasets = [], [], dict[str, int]()
    kind: SampleKind = "frames"
    for key, start, stop in spans:
        if not is_key(key):
            raise ShardError(f"{where}: '{shown(key)}' is no key SCENE/FRAME of letters, digits, '-' and '_'; pack it")
        piece = data[start:stop]
        members = members_of_slice(piece, f"{where}, sample {key}")
        kind = "scenes" if "points.npz" in members else "frames"
        sample = sample_from_members(kind, key, members)
        if counts:
            voxels.append(check_sample(sample, f"{where}, sample {key}"))
        else:
            check_sample_headers(sample, f"{where}, sample {key}")
        position = datasets.setdefault(sample.dataset, len(datasets))
        rows.append(row_of_sample(sample, layout_of_slice(piece, where), piece, position))
    lengths = [stop - start for _, start, stop in spans]
    check_layout(bare_rows(0, [start for _, start, _ in spans], lengths, None), len(data), where)
    return IndexedTar(
        kind=kind,
        keys=tuple(key for key, _, _ in spans),
        rows=tuple(rows),
        datasets=tuple(datasets),
        voxels=tuple(voxels) or (0,) * len(rows),
        size_bytes=len(data),
        sha256=hashlib.sha256(data).digest(),
        faults=take_faults(source),
    )


def _piece(tar: IndexedTar, datasets: list[str], first_row: int) -> ShardPiece:
    """The piece of a tar, its rows pointing into the names of all of them."""
    table = np.frombuffer(bytearray(b"".join(tar.rows)), ROW)
    table["dataset"] = np.array([datasets.index(name) for name in tar.datasets])[table["dataset"]]
    offsets = np.cumsum(table["length"], dtype=np.int64) - table["length"]
    sealed = [
        sealed_row(table[i : i + 1].tobytes(), offset, first_row + i) for i, offset in enumerate(offsets.tolist())
    ]
    return ShardPiece.of_samples(
        first_row=first_row,
        size_bytes=tar.size_bytes,
        sha256=tar.sha256,
        fingerprint=bytes(32),
        rows=sealed,
        voxels=tar.voxels,
        keys=tar.keys,
    )


def _lasting(url: str) -> str:
    """A place that means the same wherever somebody stands."""
    return url if "://" in url else str(Path(url).resolve())
