"""Several packed datasets as one table of shards, and the stored sample behind a (shard, sample) pair."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shards.errors import CallError, ShardError
from shards.reader import DatasetReader, spread
from shards.sample import Sample
from shards.stores.patient import PatientStore
from shards.stores.store import StoreError, take_faults
from shards.terms import DatasetTerms
from t4p.data.course import Pool
from t4p.data.shelf import Ahead, Shelf

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Stretches:
    """Samples of a dataset that lie side by side in a tar: what counts as its shards.

    Attributes:
        shards: (S,) int64, the tar of each.
        firsts: (S,) int64, its first sample there.
        counts: (S,) int64, its samples.
    """

    shards: IntArray
    firsts: IntArray
    counts: IntArray

    @classmethod
    def of_tars(cls, counts: IntArray) -> _Stretches:
        """Every tar as a whole."""
        return cls(np.arange(len(counts)), np.zeros_like(counts), counts)

    @classmethod
    def where(cls, taken: Sequence[NDArray[np.bool_]]) -> _Stretches:
        """The samples of every tar that are taken."""
        edges = [np.flatnonzero(np.diff(np.concatenate([[False], each, [False]]))).reshape(-1, 2) for each in taken]
        firsts, stops = np.concatenate(edges).astype(np.int64).T
        return cls(np.repeat(np.arange(len(edges)), [len(each) for each in edges]), firsts, stops - firsts)


class Catalogue:
    """The shards of several datasets, one after the other in the order given; or of each the samples of some scenes.

    Picklable and safe to use in loader processes: the readers open their own connections there.

    Attributes:
        samples_per_shard, bytes_per_shard: (num_shards,) int64 over all datasets. Of some scenes alone, every
            stretch of samples that lie side by side in a tar counts as a shard, its bytes as its share of the tar's.
        weights: of a mixture, one for each dataset; None where all are read as one.
        num_samples: their sum.
        urls: places of the datasets.
        label_names: for each dataset, the names of its class ids, by id; empty without labels.
        terms: for each dataset, what it was made of and its licence, and how many of its samples are read.
        voxels_sha256: for each dataset, the hash of its voxel counts; None where nobody has counted.
        shards_sha256: for each dataset, the hash of its shard table, or of the one before checksums were filled in.
    """

    def __init__(self, urls: Sequence[str], weights: Sequence[float] | None = None) -> None:
        """Open the manifests.

        Raises:
            CallError: datasets are missing or incomplete; the message names them all.
            ShardError: one is damaged or unreachable.
        """
        self._readers, problems = [], []
        for url in urls:
            try:
                self._readers.append(DatasetReader(url))
            except CallError as error:
                problems.append(error)
        if problems:
            raise problems[0] if len(problems) == 1 else CallError("\n  ".join(map(str, problems)))
        self.weights = None if weights is None else tuple(weights)
        self._lay([_Stretches.of_tars(reader.samples_per_shard) for reader in self._readers])
        self.urls = tuple(reader.url for reader in self._readers)
        self.label_names = tuple(reader.manifest.label_names for reader in self._readers)
        self.terms = tuple(DatasetTerms.of(reader.url, reader.manifest) for reader in self._readers)
        self.voxels_sha256 = tuple(reader.manifest.voxels_sha256 for reader in self._readers)
        self.shards_sha256 = tuple(reader.manifest.identity for reader in self._readers)

    def _lay(self, stretches: Sequence[_Stretches]) -> None:
        """Number the stretches of all datasets."""
        self._stretches = tuple(stretches)
        self._first_shard = np.cumsum([0, *(len(each.counts) for each in stretches)])
        self.samples_per_shard: IntArray = np.concatenate([each.counts for each in stretches])
        self.bytes_per_shard = np.concatenate(
            [_bytes(reader, each) for reader, each in zip(self._readers, stretches, strict=True)]
        )
        self.num_samples = int(self.samples_per_shard.sum())

    def scenes(self) -> tuple[tuple[str, ...], ...]:
        """The scenes of each dataset, as keys begin with them. Reads every index.

        Raises:
            ShardError: an index is damaged.
        """
        return tuple(
            tuple(
                dict.fromkeys(_scene(key) for shard in range(reader.manifest.num_shards) for key in reader.keys(shard))
            )
            for reader in self._readers
        )

    def of_scenes(self, scenes: Sequence[Collection[str]]) -> Catalogue:
        """The samples of some scenes alone.

        Args:
            scenes: of each dataset, of those that `scenes` says; at least one of each.

        Raises:
            ShardError: an index is damaged.
        """
        part = copy.copy(self)
        part._lay(
            [
                _Stretches.where(
                    [
                        np.array([_scene(key) in names for key in reader.keys(shard)], bool)
                        for shard in range(reader.manifest.num_shards)
                    ]
                )
                for reader, names in zip(self._readers, scenes, strict=True)
            ]
        )
        part.terms = tuple(
            replace(terms, num_samples=part.num_samples_of(index)) for index, terms in enumerate(self.terms)
        )
        return part

    def num_samples_of(self, dataset_index: int) -> int:
        """Samples of one of the datasets."""
        return int(self._stretches[dataset_index].counts.sum())

    def place(self, dataset_index: int, number: int) -> tuple[int, int]:
        """(shard_index, sample_index) of a sample of one of the datasets, counted from its first."""
        stops = np.cumsum(self._stretches[dataset_index].counts)
        shard = int(np.searchsorted(stops, number, side="right"))
        first = int(stops[shard] - self._stretches[dataset_index].counts[shard])
        return int(self._first_shard[dataset_index]) + shard, number - first

    def dataset_index(self, shard_index: int) -> int:
        """Which of the datasets a shard is of."""
        return int(np.searchsorted(self._first_shard, shard_index, side="right")) - 1

    def key(self, shard_index: int, sample_index: int) -> str:
        """The key of a sample, unique within its dataset."""
        reader, local_shard, first = self.locate(shard_index)
        return reader.key(local_shard, first + sample_index)

    @property
    def pools(self) -> tuple[Pool, ...]:
        """What orders run over: all datasets as one, or each of a mixture. Reads what was counted of them.

        Raises:
            ShardError: a count is damaged.
        """
        each = [
            Pool(stretches.counts, _bytes(reader, stretches), _voxels(reader, stretches))
            for reader, stretches in zip(self._readers, self._stretches, strict=True)
        ]
        if self.weights is not None:
            return tuple(replace(pool, weight=weight) for pool, weight in zip(each, self.weights, strict=True))
        counted = [pool.voxels for pool in each if pool.voxels is not None]
        voxels = np.concatenate(counted) if len(counted) == len(each) else None
        return (Pool(self.samples_per_shard, self.bytes_per_shard, voxels),)

    def require_frames(self) -> None:
        """Raise CallError unless every dataset holds RGB-D frames: pre-training needs images."""
        for reader in self._readers:
            if reader.manifest.sample_kind != "frames":
                raise CallError(
                    f"{reader.url}: holds {reader.manifest.sample_kind}, and pre-training needs RGB-D frames; name a "
                    "dataset of frames in data.shards (scenes are for t4p finetune)"
                )

    def require_scenes(self, purpose: str, otherwise: str = "") -> None:
        """Raise CallError unless every dataset holds whole scenes, which the purpose needs: `a submission`.

        Args:
            otherwise: another way out, for the message.
        """
        for reader in self._readers:
            if reader.manifest.sample_kind != "scenes":
                raise CallError(
                    f"{reader.url}: holds {reader.manifest.sample_kind}, and {purpose} is of whole scenes; name a "
                    f"dataset of scenes in data.shards{otherwise}"
                )

    def fetch(self, shard_index: int, sample_index: int) -> Sample:
        """Read one sample by its index entry, length and crc32c checked.

        Raises:
            ShardError: the bytes are not what the index promises, or cannot be read.
        """
        reader, local_shard, first = self.locate(shard_index)
        return reader.read_sample(local_shard, first + sample_index)

    def read(
        self, shard_index: int, sample_index: int, ahead: Ahead | None = None, shelf: Shelf | None = None
    ) -> tuple[str, Sample]:
        """The key and one sample, out of the node's cache where it is there or comes, else out of storage.

        Args:
            ahead: what is read ahead for it; None for nothing.
            shelf: the node's cache; None without one.

        Raises:
            ShardError: as `fetch`.
        """
        reader, local_shard, first = self.locate(shard_index)
        if shelf is not None and ahead is not None and isinstance(reader.tars, PatientStore):
            there = replace(ahead, start=first + ahead.start, stop=first + ahead.stop)
            taken = shelf.take(reader, local_shard, first + sample_index, there)
            if taken is not None:
                return taken
        return reader.read_keyed(local_shard, first + sample_index)

    @property
    def remote_stores(self) -> tuple[PatientStore, ...]:
        """Where the tars and indexes lie of those datasets whose tars are in object storage."""
        remote = [reader for reader in self._readers if isinstance(reader.tars, PatientStore)]
        stores = {id(store): store for reader in remote for store in (reader.tars, reader.store)}
        return tuple(store for store in stores.values() if isinstance(store, PatientStore))

    def spread(self, count: int) -> list[tuple[int, int]]:
        """So many (shard, sample) pairs or fewer, spread evenly over all of them, the first and the last included."""
        return spread(self.samples_per_shard, count)

    def few_of(self, dataset_index: int, count: int) -> list[tuple[str, Sample]]:
        """So many samples of a dataset or fewer, spread over what is read of it, with their keys; no broken one."""
        found = []
        for shard, sample in spread(self._stretches[dataset_index].counts, count):
            try:
                found.append(self.read(int(self._first_shard[dataset_index]) + shard, sample))
            except StoreError:
                break  # the next would take as long to fail; training says what is wrong there
            except ShardError:  # training counts what is broken
                continue
        return found

    def take_faults(self) -> Counter[str]:
        """What the storages did wrong since the last call, in this process, and was put right by asking again."""
        return sum((take_faults(reader.store) for reader in self._readers), Counter())

    def locate(self, shard_index: int) -> tuple[DatasetReader, int, int]:
        """The dataset that a shard is of, the tar there that has its samples, and which of the tar's is its first."""
        dataset_index = self.dataset_index(shard_index)
        stretches, local = self._stretches[dataset_index], shard_index - int(self._first_shard[dataset_index])
        return self._readers[dataset_index], int(stretches.shards[local]), int(stretches.firsts[local])


def _scene(key: str) -> str:
    return key.partition("/")[0]


def _bytes(reader: DatasetReader, stretches: _Stretches) -> IntArray:
    """(S,) bytes of each stretch: the whole of a tar, or its share of one, whose samples are taken to be alike."""
    sizes, counts = reader.table.size_bytes.astype(np.int64), np.maximum(reader.samples_per_shard, 1)
    return sizes[stretches.shards] * stretches.counts // counts[stretches.shards]


def _voxels(reader: DatasetReader, stretches: _Stretches) -> NDArray[np.uint16] | None:
    """The voxels of every sample; the mean where one was not counted, None where none was."""
    counts = reader.voxel_counts()
    if counts is None or not counts.any():
        return None
    counts = np.where(counts > 0, counts, np.uint16(counts[counts > 0].mean()))
    firsts = reader.table.first_row[stretches.shards] + stretches.firsts
    rows = [np.arange(first, first + count) for first, count in zip(firsts, stretches.counts, strict=True)]
    return counts[np.concatenate(rows)]
