from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from launch.progress import MetricsFollower, RunProgress


def line(step: int) -> str:
    return json.dumps({"step": step, "loss": 10.0 / step, "samples_per_second": 4.0}) + "\n"


def test_follower_gives_the_newest_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(path)
    assert follower.newest() is None
    path.write_text(line(1) + line(2))
    newest = follower.newest()
    assert newest is not None
    assert newest["step"] == 2
    assert follower.newest() is None
    half = line(3)
    path.write_text(line(1) + line(2) + half[:10])
    assert follower.newest() is None
    path.write_text(line(1) + line(2) + half)
    newest = follower.newest()
    assert newest is not None
    assert newest["step"] == 3


def test_follower_begins_anew_when_a_resumed_run_cuts_the_file_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step) for step in range(1, 9)))
    follower = MetricsFollower(path)
    follower.newest()
    path.write_text(line(1))
    newest = follower.newest()
    assert newest is not None
    assert newest["step"] == 1


def test_progress_shows_on_a_terminal_and_is_silent_elsewhere(tmp_path: Path) -> None:
    path, other = (tmp_path / f"metrics_{run}.jsonl" for run in ("one", "two"))
    for terminal in (True, False):
        output = io.StringIO()
        path.unlink(missing_ok=True)
        console = Console(file=output, force_terminal=terminal, width=100)
        with RunProgress({"one": path, "two": other}, 8, console, "starting") as progress:
            path.write_text(line(8))
            progress.update()
        assert ("8/8" in output.getvalue()) == terminal
        assert ("loss 1.2500" in output.getvalue()) == terminal
        assert ("one" in output.getvalue()) == terminal
        assert ("two: starting" in output.getvalue()) == terminal
        assert terminal or not output.getvalue().strip()
