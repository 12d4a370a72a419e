"""What one sample takes on its way to a batch, stage by stage, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from t4p.data.fetch import Catalogue
from t4p.data.stream import Recipe

WARM_UP = 4  # samples, which load libraries and open connections


@dataclass(frozen=True)
class StageTimes:
    """What one sample takes in one loader process, as a mean.

    Attributes:
        read: CPU seconds to have its bytes out of storage, checked.
        read_wall: seconds until they are there, one after the other, nothing read ahead.
        decode: CPU seconds from bytes to pixels.
        points: CPU seconds from pixels to points, voxels and pairs.
        stored_bytes: of colour and depth.
        busy: wall over CPU seconds of decoding and points: above 1 other work runs on the processors.
    """

    read: float
    read_wall: float
    decode: float
    points: float
    stored_bytes: float
    busy: float

    @property
    def cpu(self) -> float:
        """CPU seconds of a sample."""
        return self.read + self.decode + self.points


def time_stages(
    catalogue: Catalogue, recipe: Recipe[Any, Any], places: Sequence[tuple[int, int]]
) -> tuple[StageTimes, list[Any]]:
    """Read, decode and pair samples one after the other, in this process, without a cache.

    Args:
        places: (shard_index, sample_index) of at least one; the first few are not counted if there are more.

    Returns:
        The means, and each sample as a batch.

    Raises:
        ShardError, StoreError: a sample cannot be read.
        ValueError: one cannot be used.
    """
    times: list[tuple[float, ...]] = []
    batches: list[Any] = []
    for shard_index, sample_index in places:
        began, wall = time.process_time(), time.monotonic()
        key, stored = catalogue.read(shard_index, sample_index)
        read, read_wall = time.process_time() - began, time.monotonic() - wall
        made = recipe.make(stored, catalogue.dataset_index(shard_index), key, 0)
        decoded = time.process_time()
        batches.append(recipe.join([made]))
        joined, all_wall = time.process_time(), time.monotonic() - wall
        size = sum(len(part) for part in (getattr(stored, "color", b""), getattr(stored, "depth", b"")))
        times.append((read, read_wall, decoded - began - read, joined - decoded, float(size), all_wall))
    counted = times[WARM_UP:] or times[-1:]
    read, read_wall, decode, points, stored_bytes, wall = (
        statistics.fmean(column) for column in zip(*counted, strict=True)
    )
    busy = max(1.0, (wall - read_wall) / max(decode + points, 1e-9))
    return StageTimes(read, read_wall, decode, points, stored_bytes, busy), batches
