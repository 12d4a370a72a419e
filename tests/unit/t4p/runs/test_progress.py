"""One line that says how far a training is: written, read again, and found in a log."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t4p.runs.progress import LINE_EVERY, PlainLines, Progress, Tracker, last_in, parse_line

LINE = (
    "step 120 of 1000: loss 3.2145, loss_e 1.6, loss_d 1.6145, retrieval_e 0.125, 12.5 frames/s, data wait 3 %, "
    "left 1:01:01, checkpoint 100"
)
PROGRESS = Progress(
    120, 1000, {"loss": 3.2145, "loss_e": 1.6, "loss_d": 1.6145}, 12.5, 0.03, 3661, 100, {"retrieval_e": 0.125}
)

numbers = st.floats(-1e300, 1e300) | st.floats(-20, 20)
endings = st.text("abcdefghijklmnopqrstuvwxyz0123456789_/-", max_size=8)
progresses = st.builds(
    Progress,
    step=st.integers(0, 10**9),
    num_steps=st.integers(1, 10**9),
    losses=st.dictionaries(endings.map("loss_{}".format), numbers, max_size=4),
    samples_per_second=st.floats(0, 1e12),
    data_wait=st.floats(0, 1),
    seconds_left=st.floats(0, 1e9),
    checkpoint=st.none() | st.integers(0, 10**9),
    scores=st.dictionaries(endings.map("m{}".format), numbers, max_size=3),
)


def test_a_line_is_what_it_says() -> None:
    assert str(PROGRESS) == LINE
    assert parse_line(LINE) == PROGRESS


@given(progresses)
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_again(progress: Progress) -> None:
    read = parse_line(f"from scratch: {progress}\n")
    assert read is not None
    assert str(read) == str(progress)
    assert (read.step, read.num_steps, read.checkpoint) == (progress.step, progress.num_steps, progress.checkpoint)
    for named, wanted in ((read.losses, progress.losses), (read.scores, progress.scores)):
        assert named == {name: pytest.approx(value, rel=1e-3) for name, value in wanted.items()}
    assert read.seconds_left == pytest.approx(progress.seconds_left, abs=0.5)


# Hypothesis draws texts from the constants of this very file too: whole lines among them.
OTHER = (st.text() | st.text("step of: los0123456789,%")).filter(lambda line: "frames/s" not in line)


@given(OTHER | st.sampled_from(range(1, len(LINE))).map(lambda n: LINE[:-n]))
def test_other_lines_are_none_of_a_training(line: str) -> None:
    assert parse_line(line) is None or line.endswith(("checkpoint 10", "checkpoint 1"))  # digits were cut off


def test_a_loss_that_is_not_finite_is_read_as_it_is() -> None:
    line = str(Progress(1, 2, {"loss": math.inf, "loss_e": -math.inf, "loss_d": math.nan}, 1, 0, 0))
    read = parse_line(line)
    assert read is not None
    assert str(read) == line


def test_the_last_line_of_a_log_is_found_between_others() -> None:
    log = f"starting Ray\n{LINE.replace('step 120', 'step 110')}\n{LINE}\nrank 1 of 2 is gone; restart 1 of 3\nstep 9 o"
    assert last_in(log) == PROGRESS
    assert last_in(f"{LINE}\n{LINE.replace('step 120', 'step 130')[:-1]}") == PROGRESS, "one that is being written"
    assert last_in("starting Ray\n") is None
    assert last_in("") is None
    assert last_in(LINE.replace("step ", "step " + "9" * 5000)) is None, "no number of a training"


def line_of(step: int, seconds: float = 2.0) -> dict[str, float]:
    rate = {"samples_per_second": 8 / seconds, "seconds": seconds, "data_wait": 0.5}
    return {"step": step, "loss": 1.0 / step, "loss_e": 0.5, "pairs_e": 7.0, "learning_rate": 1e-3, **rate}


def test_rates_are_those_of_the_last_steps_without_the_first_one_which_warms_everything_up() -> None:
    tracker = Tracker(100, ("miou",))
    assert tracker.progress is None
    tracker.validated({"miou": 0.25, "accuracy": 0.5})
    tracker.step(line_of(1, seconds=60.0))
    first = tracker.progress
    assert first is not None
    assert first.seconds_left == 99 * 60
    for step in range(2, 11):
        tracker.step(line_of(step))
    tracker.saved(10)
    wanted = Progress(10, 100, {"loss": 0.1, "loss_e": 0.5}, 4.0, 0.25, 180.0, 10, {"miou": 0.25})
    assert tracker.progress == wanted


def test_a_training_that_begins_again_is_followed_from_there() -> None:
    tracker = Tracker(100, ())
    for step in (1, 2, 3, 4):
        tracker.step(line_of(step))
    tracker.step(line_of(3, seconds=1.0))
    progress = tracker.progress
    assert progress is not None
    assert (progress.step, progress.samples_per_second) == (3, 8.0)


def test_lines_come_at_the_first_step_now_and_then_and_at_the_end() -> None:
    now, said = [0.0], []
    lines = PlainLines(said.append, "a: ", clock=lambda: now[0])
    tracker = Tracker(40, (), show=lines)
    for step in range(1, 41):
        now[0] += LINE_EVERY / 10
        tracker.step(line_of(step))
        if step % 20 == 0:
            tracker.saved(step)
    assert [line.partition(":")[0] for line in said] == ["a"] * 5
    found = [parse_line(line) for line in said]
    assert [(each.step, each.checkpoint) for each in found if each] == [
        (1, None),
        (11, None),
        (21, 20),
        (31, 20),
        (40, 40),
    ]
