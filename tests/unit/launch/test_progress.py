from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from launch.progress import GrowingLines, RunFollower, follow_trainings, show_trainings
from t4p.config.data import DataConfig
from t4p.config.run import RunConfig, TrainConfig
from t4p.config.tasks import PretrainConfig
from t4p.runs.checkpoint import write_marker
from t4p.runs.progress import Progress, last_in, parse_line


def line(step: int) -> str:
    rate = {"samples_per_second": 4.0, "seconds": 0.5, "data_wait": 0.0}
    return json.dumps({"step": step, "loss": 10.0 / step, **rate}) + "\n"


def config_of(run_dir: Path) -> PretrainConfig:
    return PretrainConfig(
        run=RunConfig(dir=str(run_dir)), data=DataConfig(shards=("nowhere",)), train=TrainConfig(num_steps=8)
    )


def save(run_dir: Path, step: int) -> None:
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    write_marker(folder)


def test_whole_lines_are_given_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    growing = GrowingLines(path)
    assert growing.added() == []
    path.write_text(line(1) + line(2))
    assert [each["step"] for each in growing.added()] == [1, 2]
    assert growing.added() == []
    half = line(3)
    path.write_text(line(1) + line(2) + half[:10])
    assert growing.added() == []
    path.write_text(line(1) + line(2) + half)
    assert [each["step"] for each in growing.added()] == [3]


def test_a_file_that_a_resumed_run_cuts_back_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(step) for step in range(1, 9)))
    growing = GrowingLines(path)
    growing.added()
    path.write_text(line(1))
    assert [each["step"] for each in growing.added()] == [1]


def test_a_run_is_followed_from_what_is_new_with_its_last_scores_and_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(line(5))
    (tmp_path / "validation.jsonl").write_text('{"step": 0, "retrieval_e": 0.5, "frames_e": 3.0}\n')
    save(tmp_path, 4)
    shown: list[Progress] = []
    follower = RunFollower(config_of(tmp_path), shown.append)
    follower.update()
    assert shown == [], "what an earlier launch wrote is no news"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line(6))
    follower.update()
    follower.update()
    (progress,) = shown
    assert (progress.step, progress.checkpoint, progress.scores) == (6, 4, {"retrieval_e": 0.5})
    save(tmp_path, 8)
    follower.update(to_the_end=True)
    assert shown[-1].checkpoint == 8


@pytest.mark.parametrize("terminal", [True, False])
def test_two_trainings_are_shown_on_a_terminal_and_told_in_lines_elsewhere(tmp_path: Path, terminal: bool) -> None:
    configs = {name: config_of(tmp_path / name) for name in ("one", "two")}
    for name in configs:
        (tmp_path / name).mkdir()
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=50, _environ={"TERM": "xterm"})
    with follow_trainings(configs, console, "waiting") as update:
        (tmp_path / "one" / "metrics.jsonl").write_text(line(8))
        update()
        (tmp_path / "two" / "metrics.jsonl").write_text(line(4))
        save(tmp_path / "one", 8)
    said = output.getvalue()
    if not terminal:
        told = [(each.partition(":")[0], parse_line(each)) for each in said.splitlines()]
        assert [(name, found.step, found.is_last) for name, found in told if found] == [
            ("one", 8, False),
            ("one", 8, True),
            ("two", 4, False),
        ], "lines are not wrapped, whatever the width"
        return
    assert "two: waiting" in said
    assert last_in(said) is None
    last = said[said.rindex("one ") :]
    for words in ("step 8 of 8", "loss 1.25", "4 frames/s", "checkpoint 8", "step 4 of 8", "loss 2.5", "0:00:02 left"):
        assert words in last
    assert max(map(len, last.splitlines())) < 80, "figures are whole, on as many lines as it takes"


def test_a_terminal_that_cannot_redraw_gets_lines(tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, _environ={"TERM": "dumb"})
    with show_trainings([""], console, "waiting") as shows:
        shows[""](Progress(1, 8, {"loss": 1.0}, 4.0, 0.0, 3.5))
    assert last_in(output.getvalue()) == Progress(1, 8, {"loss": 1.0}, 4.0, 0.0, 4)
