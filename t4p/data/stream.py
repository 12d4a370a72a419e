"""Fetch, decode, transform and batch, in the order that order.py prescribes, in loader processes.

What a stored sample becomes is the task's: a recipe makes it and joins it with others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch.utils.data import Dataset

from shards.errors import ShardError
from shards.sample import Sample as StoredSample
from shards.stores.store import MissingObjectError, StoreError
from t4p.config.data import USUAL_BLOCK
from t4p.data.board import Board, FetchCounts
from t4p.data.course import Course, CourseSettings
from t4p.data.fetch import Catalogue
from t4p.data.loaders import PATIENCE, load
from t4p.data.needs import TrainingNeeds
from t4p.data.ranks import Nodes
from t4p.data.read_ahead import ReadAhead, shelf_of
from t4p.data.shelf import Ahead, Shelf
from t4p.data.sweep import Sweep, SweepNeeds
from t4p.errors import DataError
from t4p.heartbeat import beat

# Samples that a rank reads before the share of broken ones is taken of what it has read.
GRACE = 1000
ALONE = Nodes((0,))

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")
Batch_co = TypeVar("Batch_co", covariant=True)


class Recipe(Protocol[Sample, Batch_co]):
    """How a task turns stored samples into batches. Picklable: loader processes make and join the samples."""

    def make(self, stored: StoredSample, dataset_index: int, key: str, epoch: int) -> Sample:
        """One sample; every draw keyed by (seed, epoch, dataset, key).

        Args:
            dataset_index: which of the catalogue's datasets it is of.

        Raises:
            ShardError: it cannot be decoded.
            ValueError: it cannot be used.
        """

    def join(self, samples: Sequence[Sample]) -> Batch_co:
        """The samples of a micro-batch side by side; there may be none."""


@dataclass(frozen=True)
class SampleRef:
    """One sample of a catalogue, as it is to be drawn in one epoch.

    Attributes:
        ahead: what is read ahead for it; None where nothing is.
    """

    epoch: int
    shard_index: int
    sample_index: int
    ahead: Ahead | None = None


@dataclass(frozen=True)
class BrokenSample:
    """A sample that could not be used, and why."""

    key: str
    cause: str
    message: str


@dataclass(frozen=True)
class StreamSettings:
    """What a rank reads of the samples of a run, and with how many processes.

    Attributes:
        shuffle_block: bytes of a block.
        patience: seconds without a sample after which loader processes are replaced.
        read_ahead: from object storage, and where to; None for nothing.
    """

    num_workers: int
    num_streams: int
    shuffle_block: int
    global_batch_size: int
    grad_accum_steps: int
    rank: int
    nodes: Nodes
    seed: int
    max_skip_fraction: float
    patience: float = PATIENCE
    read_ahead: ReadAhead | None = None


class TrainingStream(Generic[Sample, Batch]):
    """The micro-batches of one rank, from any step on.

    The state of the stream is the global step alone: the same step gives the same frames, with the same draws,
    whatever was read before and however many loader processes or ranks there are.
    """

    def __init__(self, catalogue: Catalogue, recipe: Recipe[Sample, Batch], settings: StreamSettings) -> None:
        """Prepare the stream; nothing is read yet.

        Raises:
            ValueError: fewer samples than the global batch, or more ranks than frames in it.
        """
        self._catalogue = catalogue
        self._recipe = recipe
        self._settings = settings
        self._pools = catalogue.pools
        self._new_course()  # which checks
        if not 0 <= settings.rank < settings.nodes.world_size:
            raise ValueError(f"rank is {settings.rank}; it must be in [0, {settings.nodes.world_size}), the world size")
        self._node = settings.nodes.of_rank[settings.rank]
        self._local_rank = settings.nodes.beside(settings.rank).index(settings.rank)
        self._board: Board | None = None
        self._skipped: Counter[str] = Counter()
        self._num_read = 0
        self._faults: Counter[str] = Counter()

    @property
    def storage_faults(self) -> Counter[str]:
        """What the storage did wrong so far and was put right by asking again, by cause, on this rank.

        Those of the fetcher of a node are told by its first rank.
        """
        return self._faults + self.fetched.faults

    @property
    def num_skipped(self) -> int:
        """Broken samples left out so far, on this rank."""
        return self._skipped.total()

    @property
    def fetched(self) -> FetchCounts:
        """What the fetcher of this node has done in the loop that is under way; told by its first rank alone."""
        return self._board.counts() if self._board is not None and self._local_rank == 0 else FetchCounts()

    def _new_course(self) -> Course:
        """A course for one walker alone: it keeps what it is at, and a fetcher's thread walks beside the loaders'."""
        settings = self._settings
        return Course(
            self._pools,
            CourseSettings(
                seed=settings.seed,
                num_streams=settings.num_streams,
                shuffle_block=settings.shuffle_block,
                global_batch_size=settings.global_batch_size,
                grad_accum_steps=settings.grad_accum_steps,
                nodes=settings.nodes,
            ),
        )

    def batches(self, start_step: int, end_step: int) -> Generator[Batch, None, None]:
        """The micro-batches of steps [start_step, end_step), `grad_accum_steps` to a step.

        Raises:
            DataError: more samples are broken than `max_skip_fraction` allows.
            StoreError: the storage failed.
        """

        def refs_from(num_done: int) -> Iterator[list[SampleRef]]:
            steps, micro_steps = divmod(num_done, settings.grad_accum_steps)
            return islice(self._refs(start_step + steps, end_step), micro_steps, None)

        settings = self._settings
        first = start_step * settings.grad_accum_steps
        needs = TrainingNeeds(self._new_course(), self._node, (start_step, end_step))
        with shelf_of(
            settings.read_ahead, self._catalogue, needs, settings.nodes, settings.rank, str(start_step)
        ) as shelf:
            self._board = shelf.board if shelf is not None else None
            loaded = _load(
                self._catalogue, self._recipe, refs_from, settings.num_workers, settings.patience, self._faults, shelf
            )
            for number, one in enumerate(loaded, start=first + 1):
                if shelf is not None:
                    shelf.board.put_progress(self._local_rank, number)
                self._account(one)
                yield one.batch

    def _refs(self, start_step: int, end_step: int) -> Iterator[list[SampleRef]]:
        """The samples of each micro-batch of this rank, step after step."""
        course = self._new_course()
        for step in range(start_step, end_step):
            for micro_step in range(self._settings.grad_accum_steps):
                batch = course.micro_batch(step, micro_step)
                mine = np.flatnonzero(batch.ranks == self._settings.rank)
                rows = np.column_stack([batch.epochs, batch.samples, course.read_ranges(batch, self._node)])
                number = step * self._settings.grad_accum_steps + micro_step
                yield [
                    SampleRef(epoch, shard, sample, Ahead(start, stop, number))
                    for epoch, shard, sample, start, stop in rows[mine].tolist()
                ]

    def _account(self, loaded: _Loaded[Any]) -> None:
        """Count what was read and what of it was broken, and say which."""
        broken = loaded.broken
        self._num_read += loaded.num_samples
        self._skipped.update(sample.cause for sample in broken)
        # The share of what was read; at first of GRACE samples, or one broken sample among the first few would be many.
        allowed = self._settings.max_skip_fraction * max(self._num_read, GRACE)
        if broken and self.num_skipped > allowed:
            causes = ", ".join(f"{count} {cause}" for cause, count in self._skipped.most_common())
            raise DataError(
                f"{broken[-1].message}\n{self.num_skipped} of {self._num_read} samples read were broken "
                f"({causes}), and data.max_skip_fraction is {self._settings.max_skip_fraction:g}: repack what "
                "`t4p shards verify` names, or raise it"
            )
        for sample in broken:
            print(f"left out: sample {sample.key}: {sample.message}", flush=True)  # noqa: T201


class ValidationStream(Generic[Sample, Batch]):
    """Every sample of a catalogue once, one to a batch, in order, without augmentation; ranks have a part each."""

    def __init__(
        self,
        catalogue: Catalogue,
        recipe: Recipe[Sample, Batch],
        num_workers: int,
        rank: int = 0,
        nodes: Nodes = ALONE,
        patience: float = PATIENCE,
        read_ahead: ReadAhead | None = None,
        block_bytes: int = USUAL_BLOCK,
    ) -> None:
        """Prepare the stream; nothing is read yet.

        Args:
            patience, read_ahead: as in `StreamSettings`.
            block_bytes: of what is read ahead at once. A training of the same ones and data shares the entries.
        """
        self._catalogue = catalogue
        self._recipe = recipe
        self._num_workers = num_workers
        self._rank = rank
        self._nodes = nodes
        self._patience = patience
        self._read_ahead = read_ahead
        self._sweep = Sweep(catalogue.samples_per_shard, catalogue.bytes_per_shard, block_bytes, nodes.world_size)
        self._local_rank = nodes.beside(rank).index(rank)
        self._num_loops = 0  # counted alike by all ranks

    def batches(self) -> Generator[Batch, None, None]:
        """One sample at a time.

        Raises:
            DataError: a sample is broken; validation drops nothing.
        """

        def refs_from(num_done: int) -> Iterator[list[SampleRef]]:
            for number, need in enumerate(self._sweep.needs(self._rank, num_done), start=num_done):
                yield [SampleRef(0, need.shard_index, need.sample_index, Ahead(need.start, need.stop, number))]

        self._num_loops += 1
        num_samples = self._sweep.num_samples(self._rank)
        needs = SweepNeeds(self._sweep, self._nodes.beside(self._rank))
        with shelf_of(
            self._read_ahead, self._catalogue, needs, self._nodes, self._rank, f"look-{self._num_loops}"
        ) as shelf:
            batches = _load(
                self._catalogue, self._recipe, refs_from, self._num_workers, self._patience, Counter(), shelf
            )
            for number, loaded in enumerate(batches, start=1):
                if shelf is not None:
                    shelf.board.put_progress(self._local_rank, number)
                beat(f"validation, sample {number} of {num_samples} of this rank")
                for sample in loaded.broken:
                    raise DataError(sample.message)
                yield loaded.batch


class _SampleDataset(Dataset[Sample | BrokenSample | StoreError], Generic[Sample]):
    def __init__(self, catalogue: Catalogue, recipe: Recipe[Sample, Any], shelf: Shelf | None) -> None:
        self._catalogue = catalogue
        self._recipe = recipe
        self._shelf = shelf

    def __getitem__(self, ref: SampleRef) -> Sample | BrokenSample | StoreError:
        key: str | None = None
        try:
            key, stored = self._catalogue.read(ref.shard_index, ref.sample_index, ref.ahead, self._shelf)
            return self._recipe.make(stored, self._catalogue.dataset_index(ref.shard_index), key, ref.epoch)
        except MissingObjectError as error:
            return BrokenSample(key or self._key(ref), "missing", str(error))
        except StoreError as error:
            return error  # the storage failed, and not the sample: raised in the training process, with one traceback
        except ShardError as error:
            return BrokenSample(key or self._key(ref), "damaged", str(error))
        except ValueError as error:
            return BrokenSample(key or self._key(ref), "unusable", f"sample {key}: {error}")

    def _key(self, ref: SampleRef) -> str:
        """Of a sample that is not there to say it, where the index does."""
        try:
            return self._catalogue.key(ref.shard_index, ref.sample_index)
        except ShardError:
            return f"number {ref.sample_index} of shard {ref.shard_index}"


@dataclass(frozen=True)
class _Loaded(Generic[Batch]):
    """What a loader process hands over of one list of references.

    Attributes:
        batch: the samples that could be used, joined; its tensors pass through shared memory.
        broken: the others.
        num_samples: of both together.
        failure: of the storage, which ends the run.
        faults: what the storage did wrong meanwhile and was put right.
    """

    batch: Batch
    broken: tuple[BrokenSample, ...]
    num_samples: int
    failure: StoreError | None
    faults: Counter[str]


@dataclass(frozen=True)
class _Join(Generic[Sample, Batch]):
    """Joins the samples of a list, in the process that made them."""

    catalogue: Catalogue
    recipe: Recipe[Sample, Batch]

    def __call__(self, samples: list[Any]) -> _Loaded[Batch]:
        failures = [sample for sample in samples if isinstance(sample, StoreError)]
        broken = tuple(sample for sample in samples if isinstance(sample, BrokenSample))
        whole = [sample for sample in samples if not isinstance(sample, StoreError | BrokenSample)]
        return _Loaded(
            batch=self.recipe.join([] if failures else whole),
            broken=broken,
            num_samples=len(samples),
            failure=failures[0] if failures else None,
            faults=self.catalogue.take_faults(),
        )


def _load(
    catalogue: Catalogue,
    recipe: Recipe[Sample, Batch],
    refs_from: Callable[[int], Iterable[list[SampleRef]]],
    num_workers: int,
    patience: float,
    faults: Counter[str],
    shelf: Shelf | None,
) -> Iterator[_Loaded[Batch]]:
    """What is loaded of each list; adds to `faults` what the storage did wrong on the way."""
    faults.update(catalogue.take_faults())  # so that forks begin with none
    dataset: _SampleDataset[Sample] = _SampleDataset(catalogue, recipe, shelf)
    for loaded in load(dataset, refs_from, num_workers, _Join(catalogue, recipe), patience):
        faults.update(loaded.faults)
        if loaded.failure is not None:
            raise loaded.failure
        yield loaded
