"""`t4p.stream`: the points of packed datasets in batches, in the order of a training, for whatever network."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal
from uuid import uuid4

import torch
from torch import Tensor

from shards.sample import Sample as StoredSample
from shards.scene import Scene
from t4p.config.data import USUAL_BLOCK
from t4p.data.decode import decode_frame
from t4p.data.fetch import Catalogue
from t4p.data.order import ORDER_VERSION, steps_per_epoch
from t4p.data.ranks import Nodes
from t4p.data.read_ahead import plan_read_ahead
from t4p.data.stream import StreamSettings, TrainingStream
from t4p.data.tensors import as_tensor
from t4p.data.transforms import PointCloud, lift_frame

STEP = "step"


@dataclass(frozen=True, eq=False)
class PointBatch:
    """B frames or scenes one after the other; B may be 0.

    Attributes:
        points: (N, 3) float32 metres, z up.
        colors: (N, 3) float32 in [0, 1].
        offsets: (B + 1,) int64; sample i has the rows offsets[i] to offsets[i + 1], which may be none.
        keys: B of them, of the stored samples.
    """

    points: Tensor
    colors: Tensor
    offsets: Tensor
    keys: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class KeyedCloud(PointCloud):
    """The points of one sample, and its key."""

    key: str


@dataclass(frozen=True)
class PointRecipe:
    """Stored frames or scenes to points, and no further: see `t4p.data.stream.Recipe`.

    Attributes:
        pixel_stride: for frames, every k-th row and column of a depth image is lifted.
        max_depth: for frames, metres; readings beyond are dropped.
        in_world: frames go to the world of the dataset where they have poses, else to upright camera axes. Scenes are
            in their world already.
    """

    pixel_stride: int
    max_depth: float
    in_world: bool

    def make(self, stored: StoredSample, dataset_index: int, key: str, epoch: int) -> KeyedCloud:
        """Lift a frame, or take the points of a scene; nothing is drawn."""
        if isinstance(stored, Scene):
            return KeyedCloud(as_tensor(stored.points), as_tensor(stored.rgb).float() / 255, key)
        lifted = lift_frame(decode_frame(stored), self.pixel_stride, self.max_depth, self.in_world)
        return KeyedCloud(lifted.points.float(), lifted.colors, key)

    def join(self, samples: Sequence[KeyedCloud]) -> PointBatch:
        """The samples one after the other."""
        nothing = torch.zeros(0, 3)
        return PointBatch(
            points=torch.cat([nothing, *(sample.points for sample in samples)]),
            colors=torch.cat([nothing, *(sample.colors for sample in samples)]),
            offsets=torch.tensor([0, *accumulate(len(sample.points) for sample in samples)], dtype=torch.int64),
            keys=tuple(sample.key for sample in samples),
        )


class PointStream:
    """The batches of one rank, an epoch to a loop; `stream` makes one.

    A loop goes on where the last one ended or was broken off: first to the end of its epoch, the next one with the next
    epoch. The position is all the state there is, so `state_dict` may be asked for at any time, and be loaded by any
    number of ranks.
    """

    def __init__(self, catalogue: Catalogue, recipe: PointRecipe, settings: StreamSettings) -> None:
        """
        Raises:
            ValueError: fewer samples than the batch, or more ranks than samples in it.
        """
        self._stream = TrainingStream(catalogue, recipe, settings)
        self._steps_per_epoch = steps_per_epoch(catalogue.num_samples, settings.global_batch_size)
        self._order: dict[str, Any] = {
            "order": ORDER_VERSION,
            "batch_size": settings.global_batch_size,
            "seed": settings.seed,
            "streams": settings.num_streams,
            "shuffle_block": settings.shuffle_block,
            "shards_sha256": list(catalogue.shards_sha256),
        }
        self._step = 0

    def __len__(self) -> int:
        """Batches of a whole epoch; the samples that fill no batch are left out, others in each epoch."""
        return self._steps_per_epoch

    def __iter__(self) -> Iterator[PointBatch]:
        """The batches from here to the end of the epoch.

        Raises:
            DataError: a sample is broken, beyond `max_skip_fraction`.
            StoreError: storage failed.
            RuntimeError: another loop, or `load_state_dict`, has moved the stream meanwhile.
        """
        first = self._step
        last = (first // self._steps_per_epoch + 1) * self._steps_per_epoch
        for step, batch in enumerate(self._stream.batches(first, last), start=first):
            if self._step != step:
                raise RuntimeError(
                    f"this loop is at step {step} and its stream at step {self._step}: another loop or load_state_dict "
                    "moved it; one loop at a time, and a new one after load_state_dict"
                )
            self._step = step + 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is, as plain numbers and strings: the batches given out count as done."""
        return {STEP: self._step, **self._order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a stream of the same data, seed and batch size was; its rank and world size may be others.

        Raises:
            ValueError: it is the state of another stream; names what differs.
        """
        differing = [
            f"{name} is {state.get(name)!r} there and {value!r} here"
            for name, value in self._order.items()
            if state.get(name) != value
        ]
        step = state.get(STEP)
        if not isinstance(step, int) or step < 0:
            differing.append(f"{STEP} is {step!r}, wanted a number of steps")
        if differing:
            raise ValueError(f"the state is of another stream: {'; '.join(differing)}; make the stream as that one was")
        self._step = state[STEP]


def stream(
    urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    batch_size: int,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pixel_stride: int = 1,
    max_depth: float = 10.0,
    frame: Literal["camera", "world"] = "camera",
    streams: int = 64,
    shuffle_block: int = USUAL_BLOCK,
    max_skip_fraction: float = 0.0,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_bytes: int | None = None,
) -> PointStream:
    """The points of packed frames or scenes in batches, in the order of a training with these numbers.

    `for batch in t4p.stream(...)` is one epoch, and can be gone on with from any batch, exactly, after `state_dict` and
    `load_state_dict`. Which samples make a batch depends on the datasets, `seed`, `batch_size`, `streams` and
    `shuffle_block` alone: not on the number of ranks or loader processes. Nothing is augmented.

    Samples of object storage are read ahead while a loop lasts, by a process of each rank's own: a call knows neither
    which ranks are on its machine nor which of them lasts longest, so every rank counts as a node and reads the streams
    that are its own. Ranks of a machine may share the folder of the cache.

    Args:
        urls: places of packed datasets, folders or s3:// prefixes, in an order that belongs to the stream.
        batch_size: samples of a batch over all ranks, which have equal shares, but for one sample.
        seed: seed of the order.
        rank, world_size: this process among those that share the batches.
        num_workers: loader processes; 0 loads in this one.
        pixel_stride: for frames, lift every k-th row and column of the depth image.
        max_depth: for frames, metres; readings beyond are dropped.
        frame: axes of a frame's points: upright camera axes (right, ahead, up), or the dataset's world, if its z is up.
        streams, shuffle_block: settings of the order, as data.streams and data.shuffle_block (bytes) of a training.
        max_skip_fraction: share of broken samples that are left out of their batches.
        cache_dir: folder of what is read ahead from object storage; by default in memory, else on disk.
        cache_bytes: of it, at most half of what is free there; 0 reads nothing ahead.

    Raises:
        CallError, ShardError, StoreError: a dataset is missing, damaged or out of reach, or the folder of the cache is
            not this user's alone.
        ValueError: a number is out of range; the datasets hold less than a batch, or a batch less than the ranks.
    """
    for name, value, wanted, fits in (
        ("num_workers", num_workers, "0 or more", num_workers >= 0),
        ("pixel_stride", pixel_stride, "1 or more", pixel_stride >= 1),
        ("max_depth", max_depth, "metres above 0", max_depth > 0),
        ("frame", frame, "'camera' or 'world'", frame in ("camera", "world")),
        ("streams", streams, "1 or more", streams >= 1),
        ("shuffle_block", shuffle_block, "1 or more", shuffle_block >= 1),
        ("seed", seed, "0 or more, below 2^64", 0 <= seed < 2**64),
        ("cache_bytes", cache_bytes, "0 or more, or None", cache_bytes is None or cache_bytes >= 0),
        ("max_skip_fraction", max_skip_fraction, "a share from 0 to 1", 0 <= max_skip_fraction <= 1),
    ):
        if not fits:
            raise ValueError(f"{name} is {value!r}, wanted {wanted}")
    places = [urls] if isinstance(urls, str | os.PathLike) else urls
    catalogue = Catalogue([os.fspath(place) for place in places])
    folder = None if cache_dir is None else os.fspath(cache_dir)
    say = partial(print, file=sys.stderr, flush=True)  # standard output is the caller's
    settings = StreamSettings(
        num_workers=num_workers,
        num_streams=streams,
        shuffle_block=shuffle_block,
        global_batch_size=batch_size,
        grad_accum_steps=1,
        rank=rank,
        nodes=Nodes.equal(world_size, 1),
        seed=seed,
        max_skip_fraction=max_skip_fraction,
        read_ahead=plan_read_ahead(catalogue, folder, cache_bytes, uuid4().hex, say),
    )
    return PointStream(catalogue, PointRecipe(pixel_stride, max_depth, frame == "world"), settings)
