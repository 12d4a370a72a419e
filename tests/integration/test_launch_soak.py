"""The long run of test_launch.py, longer: every fault three times (`make soak` only)."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import (
    Road,
    assert_every_loss_was_told,
    run_as_jobs,
    run_on_private_ray,
    run_uninterrupted,
)
from launched_run import assert_same_run
from ray_site import start_ray_site

from shards.packing.pack import pack

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.kill, pytest.mark.alone, pytest.mark.soak]

ROAD = Road(num_steps=1000, rounds=3)


def test_a_long_run_that_suffers_every_fault_three_times_is_the_uninterrupted_one(
    tum_sample: Path, tmp_path: Path
) -> None:
    run_dir, shards = tmp_path / "run", str(tmp_path / "shards")
    pack("tum", tum_sample, shards)
    on_private_ray = run_on_private_ray(shards, run_dir, ROAD)
    assert_every_loss_was_told(on_private_ray.losses)
    with start_ray_site(shards) as site:
        as_jobs = run_as_jobs(site, run_dir, ROAD)
    assert_every_loss_was_told(as_jobs.losses)
    assert_every_loss_was_told(as_jobs.losses_of_last)
    assert (as_jobs.stopped, as_jobs.left, as_jobs.last.process.returncode) == (["STOPPED"] * 3, [], 0)
    assert_same_run(run_dir, run_uninterrupted(shards, tmp_path / "whole", ROAD), ROAD.num_steps)
