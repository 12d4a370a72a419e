from __future__ import annotations

from pathlib import Path

import pytest

from launch.errors import LaunchError
from launch.private_ray import run_job
from launch.worker_group import WorkerJob, log_path


def test_logs_that_cannot_be_kept_do_not_hide_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver is replaced by what it leaves behind; tests/integration/test_launch_private_ray.py has a real Ray."""

    def lose_driver(folder: Path, on_tick: object) -> int:
        log_path(folder, 0).write_text("the last words of rank 0\n")
        (folder / "driver.log").write_text("Ray has no room\n")
        return 1

    monkeypatch.setattr("launch.private_ray._watch_driver", lose_driver)
    (tmp_path / "file").write_text("")
    job = WorkerJob("nowhere:nothing", {}, 1)
    with pytest.raises(LaunchError, match="Ray has no room"):
        run_job(job, lambda: None, keep_logs=tmp_path / "file" / "logs")
    with pytest.raises(LaunchError, match="Ray has no room"):
        run_job(job, lambda: None, keep_logs=tmp_path / "logs")
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "the last words of rank 0\n"
