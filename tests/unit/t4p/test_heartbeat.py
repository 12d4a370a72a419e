"""Signs of life, and patience that does not count time in which the process itself stood still."""

import random
import time
from pathlib import Path

import pytest

from t4p import heartbeat
from t4p.heartbeat import Standstill, beating_while_files_move, last_beat


def test_patience_ends_after_its_limit_without_news_and_begins_anew_with_any():
    rng = random.Random(0)
    for _ in range(500):
        limit, every = rng.uniform(1, 100), rng.uniform(0.1, 5)
        patience = Standstill(limit, longest=2 * every)
        waited, news = 0.0, 0
        patience.is_over(news, every)
        for _ in range(200):
            if rng.random() < 0.1:
                news, waited = news + 1, 0.0
            else:
                waited += every
            assert patience.is_over(news, every) == (waited >= limit)


def test_time_in_which_this_process_stood_still_is_no_waiting():
    patience = Standstill(limit=10, longest=2)
    assert not patience.is_over(1, 1)
    assert not patience.is_over(1, 3600)  # stopped for an hour: one look
    assert patience.waited == 2


def test_files_that_move_are_signs_of_life_and_a_line_of_a_log_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "FILES_EVERY", 0.05)
    with beating_while_files_move("saving"), (tmp_path / "file").open("wb") as file:
        begun = last_beat().number
        time.sleep(0.3)
        assert last_beat().number == begun
        deadline = time.monotonic() + 20
        while last_beat().number < begun + 3:
            assert time.monotonic() < deadline
            file.write(bytes(10**6))
            time.sleep(0.02)
    assert last_beat().place == "saving"


def test_a_process_has_a_title(tmp_path: Path) -> None:
    comm = Path("/proc/self/comm")
    if not comm.exists():
        pytest.skip("no /proc here")
    before = comm.read_text().strip()
    try:
        heartbeat.title_process("t4p-rank")
        assert comm.read_text() == "t4p-rank\n"
    finally:
        heartbeat.title_process(before)
