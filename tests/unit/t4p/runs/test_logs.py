"""Logs that stay one line per step through a kill."""

import json

import pytest

from t4p.errors import RunError
from t4p.runs.logs import RunLog, StepRecord, cut_back
from t4p.train.loop import scheduled_learning_rate


def test_lines_after_the_checkpoint_and_a_torn_last_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s, "loss": 0.1}) + "\n" for s in range(1, 8)) + '{"step": 8, "lo')
    cut_back(path, 5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    cut_back(path, 0)
    assert path.read_text() == ""
    cut_back(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


def test_lines_that_are_none_of_a_run_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"loss": 2}\n3\n[4]\n{"step": "5"}\nnull\n{"step": 2}\n')
    cut_back(path, 9)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_holds_every_bit_of_a_loss():
    loss = 0.1 + 0.2
    record = StepRecord(7, {"loss": loss}, 1e-3, 2.0, 14, 0, 10.0, 0.2, 0.01)
    line = json.loads(json.dumps(record.as_dict()))
    assert line["loss"] == loss
    assert list(line)[:2] == ["step", "loss"]


@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(10, 0), (100, 10), (7, 6)])
def test_warm_up_rises_to_the_peak_and_the_cosine_falls_towards_zero(num_steps, warmup_steps):
    rates = [scheduled_learning_rate(step, num_steps, warmup_steps, 0.5) for step in range(1, num_steps + 1)]
    assert rates[warmup_steps] == max(rates) == 0.5
    assert rates[: warmup_steps + 1] == sorted(rates[: warmup_steps + 1])
    assert rates[warmup_steps:] == sorted(rates[warmup_steps:], reverse=True)
    assert min(rates) > 0
    assert scheduled_learning_rate(num_steps + 1, num_steps, warmup_steps, 0.5) == pytest.approx(0, abs=1e-12)


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    log = RunLog(tmp_path, 0)
    log._metrics.close()
    log._metrics = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(RunError, match=r"/dev/full: cannot be written \(.*No space left.*goes on from its last"):
        log.step(StepRecord(1, {"loss": 1.0}, 1e-3, 2.0, 14, 0, 10.0, 0.2, 0.01))
    log.close()
