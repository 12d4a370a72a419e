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
    for terminal in (True, False):
        runs = {name: tmp_path / f"{name}_{terminal}.jsonl" for name in ("one", "two")}
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, width=100)
        with RunProgress(runs, 8, console, "waiting") as progress:
            runs["one"].write_text(line(8))
            progress.update()
            runs["two"].write_text(line(4))
        if not terminal:
            assert not output.getvalue().strip()
            continue
        assert "two: waiting" in output.getvalue()
        *_, one, two = [shown for shown in output.getvalue().splitlines() if "/8" in shown]
        for shown, name, step, loss in ((one, "one", 8, "1.2500"), (two, "two", 4, "2.5000")):
            assert name in shown
            assert "waiting" not in shown
            assert f"{step}/8" in shown
            assert f"loss {loss}" in shown
