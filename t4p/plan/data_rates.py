"""How fast the samples of a run come on this machine, stage by stage, and what they wait for: `t4p bench data`."""

from __future__ import annotations

import os
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from shards.doors.json_text import parse_json
from t4p.config.tasks import PretrainConfig
from t4p.data.batch import PairRecipe
from t4p.data.fetch import Catalogue
from t4p.data.stream import TrainingStream
from t4p.models.towers import zero_towers_of
from t4p.plan.stages import WARM_UP, StageTimes, time_stages
from t4p.tasks.job import build_training_stream
from t4p.tasks.pretrain import build_sample_settings

ENOUGH = 0.7  # of what the processors allow: below it loaders wait for something else


@dataclass(frozen=True)
class DataRates:
    """What `t4p bench data` finds.

    Attributes:
        stages: of one sample.
        num_workers: loader processes.
        pixel_stride: every so many-th row and column of a depth image is lifted.
        num_cores: that they may use.
        first_batch: seconds from opening the stream to its first batch.
        samples_per_second: of all loaders together, from then on.
        remote: whether some of it lies in object storage.
        wanted: samples a second that the run in run.dir trained while it did not wait for data; None without one.
    """

    stages: StageTimes
    num_workers: int
    pixel_stride: int
    num_cores: int
    first_batch: float
    samples_per_second: float
    remote: bool
    wanted: float | None

    @property
    def allowed(self) -> float:
        """Samples a second that the processors allow to these loaders, as busy as they are."""
        return max(1, min(self.num_workers, self.num_cores)) / (self.stages.cpu * self.stages.busy)

    @property
    def starves(self) -> str:
        """The stage that the others wait for: "storage", "decode" or "points"."""
        slow = self.samples_per_second < ENOUGH * self.allowed
        if slow and (self.remote or self.stages.read_wall > self.stages.cpu):
            return "storage"
        return "points" if self.stages.points >= self.stages.decode else "decode"


def measure_rates(config: PretrainConfig, num_samples: int) -> DataRates:
    """Read samples as a training of this configuration would, on one rank.

    Args:
        num_samples: to time stage by stage, and to read through the loaders, at least.

    Raises:
        ConfigError: the datasets or the image size do not fit the configuration.
        ShardError, StoreError: a sample cannot be read.
    """
    catalogue = Catalogue(config.data.urls, config.data.weights)
    catalogue.require_frames()
    recipe = PairRecipe(build_sample_settings(config, zero_towers_of(config.model.clip)))
    stages, _ = time_stages(catalogue, recipe, catalogue.spread(num_samples + WARM_UP))
    first_batch, rate = _time_stream(build_training_stream(config, catalogue, recipe), config, num_samples)
    return DataRates(
        stages=stages,
        num_workers=config.data.num_workers,
        pixel_stride=config.data.pixel_stride,
        num_cores=len(os.sched_getaffinity(0)),
        first_batch=first_batch,
        samples_per_second=rate,
        remote=bool(catalogue.remote_stores),
        wanted=wanted_rate(Path(config.run.dir) / "metrics.jsonl"),
    )


def _time_stream(stream: TrainingStream[Any, Any], config: PretrainConfig, num_samples: int) -> tuple[float, float]:
    """Seconds to the first batch, and samples a second after those that were loading meanwhile."""
    per_batch = config.train.global_batch_size // config.train.grad_accum_steps
    ahead = 2 * config.data.num_workers + 1  # batches that were begun before the first was there
    num_batches = ahead + max(2, -(-num_samples // per_batch))
    steps = -(-num_batches // config.train.grad_accum_steps)
    stamps = [time.monotonic()]
    with closing(stream.batches(0, steps)) as batches:
        for _ in islice(batches, num_batches):
            stamps.append(time.monotonic())
    counted = len(stamps) - 1 - ahead
    return stamps[1] - stamps[0], counted * per_batch / max(stamps[-1] - stamps[-1 - counted], 1e-9)


def wanted_rate(metrics: Path) -> float | None:
    """Samples a second that a run trained while it did not wait for data; None without a run."""
    try:
        lines = [parse_json(line) for line in metrics.read_bytes().splitlines()]
        busy = [
            (line["samples_per_second"] * line["seconds"]) / (line["seconds"] - line["data_wait"])
            for line in lines[len(lines) // 4 :]
            if line["seconds"] > line["data_wait"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return statistics.median(busy) if busy else None
