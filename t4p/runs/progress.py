"""How far a training is, as one line: what every command says of it, and how that line is read again.

A line is written by rank 0 of a training, passed on by `t4p launch`, and found again in the log of a job on a cluster,
whose run folder a laptop cannot read. There is one format, and one parser.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LINE_EVERY = 10.0  # seconds between two lines of a training whose output is no terminal
_WINDOW = 50  # steps that rates are taken over
_ENDLESS = re.compile(r"\d{20}")  # no number of a training; int() refuses those of thousands of digits
_IS_LOSS = re.compile(r"loss\b|loss_")


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: optimizer steps taken.
        num_steps: of the whole run.
        losses: of the step, by name; all names begin with "loss".
        samples_per_second: frames or scenes over all ranks, mean over the last steps.
        data_wait: share of the time that rank 0 waited for data, in [0, 1], over the last steps.
        seconds_left: of the steps to come, by the last ones; validations and checkpoints come on top.
        checkpoint: step of the newest whole checkpoint; None where there is none yet.
        scores: the task's scores of the last validation, by name; empty before any.
    """

    step: int
    num_steps: int
    losses: Mapping[str, float]
    samples_per_second: float
    data_wait: float
    seconds_left: float
    checkpoint: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_last(self) -> bool:
        """Whether every step is taken and saved."""
        return self.step == self.num_steps == self.checkpoint

    @property
    def where(self) -> str:
        """ "step 12 of 40"."""
        return f"step {self.step} of {self.num_steps}"

    @property
    def left(self) -> str:
        """The time that is left: hours, minutes, seconds."""
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

    @property
    def figures(self) -> tuple[str, ...]:
        """Losses, scores, rates and the newest checkpoint, each as it stands in a line."""
        return (
            *(f"{name} {value:.5g}" for name, value in self.losses.items()),
            *(f"{name} {value:.4g}" for name, value in self.scores.items()),
            f"{self.samples_per_second:.4g} frames/s",
            f"data wait {100 * self.data_wait:.0f} %",
            f"checkpoint {'none' if self.checkpoint is None else self.checkpoint}",
        )

    def __str__(self) -> str:
        *figures, checkpoint = self.figures
        return f"{self.where}: {', '.join([*figures, f'left {self.left}', checkpoint])}"

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {**vars(self), "losses": dict(self.losses), "scores": dict(self.scores)}


_NUMBER = r"-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf|nan)"
_LINE = re.compile(
    r"step (?P<step>\d+) of (?P<num_steps>\d+): "
    rf"(?P<named>(?:[A-Za-z_][^\s,]* {_NUMBER}, )*)"
    rf"(?P<rate>{_NUMBER}) frames/s, data wait (?P<wait>\d+) %, "
    r"left (?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d), checkpoint (?P<checkpoint>none|\d+)$"
)


def parse_line(line: str) -> Progress | None:
    """What a line says, whatever stands before it; None where it is none of a training."""
    found = _LINE.search(line.rstrip())
    if found is None or _ENDLESS.search(found[0]):
        return None
    pairs = (pair.rsplit(" ", 1) for pair in found["named"].split(", ")[:-1])
    named = {name: float(value) for name, value in pairs}
    return Progress(
        step=int(found["step"]),
        num_steps=int(found["num_steps"]),
        losses={name: value for name, value in named.items() if is_loss(name)},
        samples_per_second=float(found["rate"]),
        data_wait=int(found["wait"]) / 100,
        seconds_left=3600 * int(found["hours"]) + 60 * int(found["minutes"]) + int(found["seconds"]),
        checkpoint=None if found["checkpoint"] == "none" else int(found["checkpoint"]),
        scores={name: value for name, value in named.items() if not is_loss(name)},
    )


def last_in(log: str) -> Progress | None:
    """The last whole line of a training in a log; None where there is none."""
    whole = log.rpartition("\n")[0]  # of a line that is being written the checkpoint may lack digits
    for line in reversed(whole.splitlines()):
        if (found := parse_line(line)) is not None:
            return found
    return None


def is_loss(name: str) -> bool:
    """Whether a scalar of a step is a loss, by its name: `loss`, `loss_e`, ..."""
    return _IS_LOSS.match(name) is not None


# Told how a training goes, after every step, validation and checkpoint.
Show = Callable[[Progress], None]


class PlainLines:
    """Says it in a line: at the first step, then every LINE_EVERY seconds, and when the last step is saved."""

    def __init__(
        self, write: Callable[[str], None], prefix: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            prefix: what stands before every line: which of several trainings it is.
        """
        self._write = write
        self._prefix = prefix
        self._clock = clock
        self._said_at: float | None = None
        self._ended = False

    def __call__(self, progress: Progress) -> None:
        now = self._clock()
        ends = progress.is_last and not self._ended
        if ends or self._said_at is None or now - self._said_at >= LINE_EVERY:
            self._write(f"{self._prefix}{progress}")
            self._said_at, self._ended = now, progress.is_last


def print_line(line: str) -> None:
    """To standard output, at once: a log is read while it is written."""
    print(line, flush=True)  # noqa: T201


class Tracker:
    """Knows how far a training is from what it writes down."""

    def __init__(
        self,
        num_steps: int,
        score_names: Sequence[str],
        checkpoint: int | None = None,
        show: Show = lambda progress: None,
    ) -> None:
        """
        Args:
            score_names: scores of a validation that are worth a place in a line.
            checkpoint: step of the newest whole checkpoint.
            show: told after each of what follows, from the first step on.
        """
        self._show = show
        self._num_steps = num_steps
        self._score_names = score_names
        self._checkpoint = checkpoint
        self._scores: dict[str, float] = {}
        self._metrics: deque[Mapping[str, float]] = deque(maxlen=_WINDOW + 1)

    def step(self, metrics: Mapping[str, float]) -> None:
        """A step was taken.

        Args:
            metrics: its line of metrics.jsonl.
        """
        if self._metrics and metrics["step"] <= self._metrics[-1]["step"]:
            self._metrics.clear()  # the training has begun again from a checkpoint
        self._metrics.append(metrics)
        self._tell()

    def validated(self, scores: Mapping[str, float]) -> None:
        """The validation data was scored."""
        self._scores = {name: scores[name] for name in self._score_names if name in scores}
        self._tell()

    def saved(self, step: int) -> None:
        """A checkpoint is whole."""
        self._checkpoint = step
        self._tell()

    @property
    def progress(self) -> Progress | None:
        """How far it is; None before the first step that was seen."""
        if not self._metrics:
            return None
        newest = self._metrics[-1]
        recent = list(self._metrics)[1:] or list(self._metrics)  # the first step warms everything up
        seconds = sum(each["seconds"] for each in recent)
        step = int(newest["step"])
        return Progress(
            step=step,
            num_steps=self._num_steps,
            losses={name: value for name, value in newest.items() if is_loss(name)},
            samples_per_second=sum(each["samples_per_second"] * each["seconds"] for each in recent) / seconds,
            data_wait=sum(each["data_wait"] for each in recent) / seconds,
            seconds_left=(self._num_steps - step) * seconds / len(recent),
            checkpoint=self._checkpoint,
            scores=self._scores,
        )

    def _tell(self) -> None:
        if (progress := self.progress) is not None:
            self._show(progress)
