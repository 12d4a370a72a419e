"""Tars that are there already: the index of a dataset made by reading each once, or its headers alone."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import IO

import numpy as np

from shards.checks import check_image_heads, check_sample_headers
from shards.described import row_of_frame
from shards.doors.text import shown
from shards.errors import CallError, ShardError
from shards.manifest import INDEX_NAME, MANIFEST_NAME, TABLE_NAME, VOXELS_NAME, Manifest, SampleKind, shard_name
from shards.ordered_map import ordered_map
from shards.packing.gathered import GatheredIndex
from shards.packing.piece import ShardPiece
from shards.packing.scratch import scratch_folder
from shards.packing.tar_headers import HEADS, HeadersOfSample, HeadersOfTar
from shards.rows import ROW, bare_rows, check_layout, sealed_row
from shards.sample import check_sample, row_of_sample, sample_from_members
from shards.schema import FORMAT_VERSION, Frame, is_key
from shards.slices import BLOCK_BYTES, layout_of_slice, members_of_slice, spans_of_tar
from shards.stores.place import open_store
from shards.stores.store import Store, take_faults

Progress = Callable[[int, int], None]
AT_ONCE = 32  # tars whose headers are read at the same time: a request waits for storage, and each needs the one before


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
        sha256: of the tar, or where its headers alone were read what stands for it (`shards.versions`).
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
    url: str,
    into: str | None,
    *,
    counts: bool,
    headers_only: bool = False,
    num_workers: int = 1,
    on_progress: Progress | None = None,
) -> Manifest:
    """Make a dataset of the tars in a place, which stay where and as they are.

    Args:
        url: folder or prefix that holds the tars.
        into: place for manifest, table and index; None is beside the tars.
        counts: decode every frame and count its voxels; else headers and checksums are looked at.
        headers_only: read by ranges no more than that takes, and let every frame be without a checksum; not with
            `counts`.
        num_workers: processes, one tar each at a time (each holds that tar in memory).
        on_progress: called with (tars done, tars in all).

    Raises:
        CallError: there are no tars, or there is a dataset already, or the headers of tars in a folder are asked for.
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
        results = stack.enter_context(
            _headers_of(source, names)
            if headers_only
            else closing(ordered_map(partial(_index_tar, source, counts), names, num_workers))
        )
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


def _index_tar(source: Store, counts: bool, name: str) -> IndexedTar:
    """Read a tar and describe its samples. Runs in a worker, with a store of its own."""
    where = f"{source.url}/{name}"
    data = source.read(name)  # once, as nothing vouches for it: what storage alters on the way, `verify` names later
    spans = _spans(io.BytesIO(data), where)
    rows, voxels, datasets = [], [], dict[str, int]()
    kind: SampleKind = "frames"
    for key, start, stop in spans:
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
    _check_spans(spans, len(data), where)
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


@contextmanager
def _headers_of(source: Store, names: Sequence[str]) -> Iterator[Iterator[IndexedTar]]:
    """What the headers of tars tell, in order; at the end nobody reads on but for the requests in flight."""
    pool = ThreadPoolExecutor(min(AT_ONCE, len(names)))
    ended = Event()
    try:
        yield pool.map(partial(_index_headers, source, ended), names)
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


def _index_headers(source: Store, ended: Event, name: str) -> IndexedTar:
    """Read the headers of a tar, and of its images, and what meta.json says; one request after the other."""
    where = f"{source.url}/{name}"
    tar = HeadersOfTar(source, name, ended)
    spans = _spans(io.BufferedReader(tar, BLOCK_BYTES), where)
    rows, datasets = [], dict[str, int]()
    for key, start, stop in spans:
        piece = HeadersOfSample(tar, start, stop)
        layout = layout_of_slice(piece, f"{where}, sample {key}")
        if "points.npz" in layout:
            raise ShardError(f"{where}, sample {key}: is a scene, which has to be read whole; leave out --headers-only")
        heads = {member: piece.head(member, *layout[member]) for member in layout if member in HEADS}
        frame = sample_from_members("frames", key, heads)
        assert isinstance(frame, Frame)
        check_image_heads(frame, f"{where}, sample {key}")
        position = datasets.setdefault(frame.dataset, len(datasets))
        rows.append(row_of_frame(frame, layout, len(piece), None, position))
    _check_spans(spans, len(tar), where)
    return IndexedTar(
        kind="frames",
        keys=tuple(key for key, _, _ in spans),
        rows=tuple(rows),
        datasets=tuple(datasets),
        voxels=(0,) * len(rows),
        size_bytes=len(tar),
        sha256=tar.digest,
        faults=Counter(),  # threads have one store, which counts them itself
    )


def _spans(tar: IO[bytes], where: str) -> list[tuple[str, int, int]]:
    """Key, first byte and end of every sample."""
    try:
        spans = spans_of_tar(tar)
    except (tarfile.TarError, ValueError) as error:
        raise ShardError(f"{where}: not a tar ({shown(error)}); remove it, or name another place") from error
    if not spans:
        raise ShardError(f"{where}: holds no samples; remove it")
    for key, _, _ in spans:
        if not is_key(key):
            raise ShardError(f"{where}: '{shown(key)}' is no key SCENE/FRAME of letters, digits, '-' and '_'; pack it")
    return spans


def _check_spans(spans: Sequence[tuple[str, int, int]], size_bytes: int, where: str) -> None:
    starts, lengths = [start for _, start, _ in spans], [stop - start for _, start, stop in spans]
    check_layout(bare_rows(0, starts, lengths, None), size_bytes, where)


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
