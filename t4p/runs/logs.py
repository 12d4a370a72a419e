"""What a run says of itself: one JSON line per step, TensorBoard, and one line per validation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import needs_extra
from t4p.errors import RunError
from t4p.runs.checkpoint import write_atomically
from t4p.runs.progress import Tracker


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, averaged or summed over all ranks.

    Attributes:
        step: optimizer steps taken, counting from 1.
        terms: the loss and its parts (`loss`, `loss_e`, ...) and the other scalars of the task, means over ranks.
        learning_rate: used in this step.
        gradient_norm: before clipping.
        samples_seen: frames over all ranks since the start of the run.
        samples_skipped: frames of this step that were broken and left out, over all ranks.
        samples_per_second: frames over all ranks in this step.
        seconds: wall time of the step.
        data_wait: seconds of it that rank 0 waited for its batches.
        storage_faults: answers of the storage that failed and were asked for again, over all ranks.
        fetch_requests: made during the step to read ahead from object storage, over all nodes.
        fetch_bytes: that came by them.
        cache_hits: samples that were in the cache of their node when its fetcher came to them.
    """

    step: int
    terms: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    samples_seen: int
    samples_skipped: int
    samples_per_second: float
    seconds: float
    data_wait: float
    storage_faults: int = 0
    fetch_requests: int = 0
    fetch_bytes: int = 0
    cache_hits: int = 0

    def as_dict(self) -> dict[str, float]:
        """Flat, in the order of a metrics line."""
        fields = {name: value for name, value in vars(self).items() if name not in ("step", "terms")}
        return {"step": self.step, **self.terms, **fields}


class RunLog:
    """Writes `metrics.jsonl`, `validation.jsonl` and `tensorboard/` of a run folder. Rank 0 alone has one."""

    def __init__(self, run_dir: Path, start_step: int, tracker: Tracker | None = None) -> None:
        """Open the logs, cut back to `start_step`: what a killed run wrote after its last checkpoint is taken again.

        Args:
            tracker: told of every step, validation and checkpoint.
        """
        with needs_extra("train", "tensorboard", "the log of a run"):
            from torch.utils.tensorboard import SummaryWriter

        self._metrics_path = run_dir / "metrics.jsonl"
        self._validation_path = run_dir / "validation.jsonl"
        cut_back(self._metrics_path, start_step)
        cut_back(self._validation_path, start_step if start_step else -1)  # a run that begins anew validates anew
        self._tracker = tracker
        if tracker is not None and (scores := last_line(self._validation_path)) is not None:
            tracker.validated(scores)
        self._metrics = self._metrics_path.open("a", encoding="utf-8")
        self._validation = self._validation_path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start_step + 1 if start_step else 0)

    def step(self, record: StepRecord) -> None:
        """Log one step; the line is on disk for other readers when this returns."""
        metrics = record.as_dict()
        self._write(self._metrics, "train", record.step, metrics)
        if self._tracker is not None:
            self._tracker.step(metrics)

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Log the scores after `step` steps."""
        self._write(self._validation, "validation", step, {"step": step, **scores})
        if self._tracker is not None:
            self._tracker.validated(scores)

    def checkpoint(self, step: int) -> None:
        """Take note of a checkpoint that is whole."""
        if self._tracker is not None:
            self._tracker.saved(step)

    def close(self) -> None:
        """Close everything, whatever the disk still takes: a line that it did not take was told when it was written."""
        for file in (self._metrics, self._validation, self._board):
            with suppress(OSError):
                file.close()

    def _write(self, file: Any, prefix: str, step: int, values: Mapping[str, float]) -> None:
        try:
            file.write(json.dumps(values, allow_nan=False) + "\n")  # repr of a float: every bit comes back
            file.flush()
            for name, value in values.items():
                if name != "step":
                    self._board.add_scalar(f"{prefix}/{name}", value, step)
        except OSError as error:
            raise RunError(
                f"{file.name}: cannot be written ({error}); make room and start again: the run goes on from its last "
                "checkpoint, if there is one"
            ) from error


def read_lines(path: Path) -> list[dict[str, float]]:
    """All records of a JSON-lines file, without what was not written to its end; none where it is missing."""
    return [record for _, record in _whole_lines(path)]


def last_line(path: Path) -> dict[str, float] | None:
    """The last record of a JSON-lines file; None where there is none."""
    lines = read_lines(path)
    return lines[-1] if lines else None


def cut_back(path: Path, step: int) -> None:
    """Drop the lines of a JSON-lines file that come after `step`, and a last line that was not written to its end."""
    if path.exists():
        write_atomically(path, "".join(line for line, record in _whole_lines(path) if record["step"] <= step))


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Every line of a run in a JSON-lines file, and what it says; a torn one, or of something else, is passed over."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if line.endswith("\n") and isinstance(record, dict) and isinstance(record.get("step"), int):
            yield line, record
