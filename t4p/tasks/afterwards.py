"""What is said of a training when it is over, and before it begins where it learns from random towers. No torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from shards.errors import UserError
from t4p.config.data import EvaluatedDataConfig, LabelledDataConfig
from t4p.config.kinds import task_named
from t4p.config.tasks import JobConfig
from t4p.data.fetch import Catalogue
from t4p.runs.checkpoint import MARKER, checkpoints_in, step_of

ANY_OTHER = "*"  # of data.ignored_labels
USUAL = EvaluatedDataConfig(shards=("",))  # what `t4p evaluate` takes where it is told nothing of its data


def random_towers(config: JobConfig) -> str | None:
    """One sentence where a training learns from a CLIP that has random weights; None where it has learnt ones."""
    if config.model.clip.pretrained != "random":
        return None
    return (
        "random towers: model.clip.pretrained is random, so this CLIP knows colour and texture and no words; it shows "
        "that everything works. For results take a real CLIP, as configs/pretrain/own.yaml does"
    )


def newest_marked(checkpoints: Path) -> Path | None:
    """The newest checkpoint that has a marker, None without any. Its files are not read: that is for the ranks."""
    whole = [folder for folder in checkpoints_in(checkpoints) if (folder / MARKER).exists()]
    return max(whole, key=step_of, default=None)


def is_finished(config: JobConfig) -> bool:
    """Whether the run folder has a whole checkpoint of the last step, by its marker."""
    newest = newest_marked(Path(config.run.dir) / "checkpoints")
    return newest is not None and step_of(newest) >= config.train.num_steps


def look_afterwards(config: JobConfig) -> tuple[str, ...]:
    """Lines on what a training has left: its folder, its newest checkpoint, and the commands that go on from there."""
    run_dir = Path(config.run.dir)
    checkpoint = newest_marked(run_dir / "checkpoints")
    if checkpoint is None:
        return (f"run folder: {run_dir}, without a whole checkpoint",)
    step, num_steps = step_of(checkpoint), config.train.num_steps
    beyond = f"finished: at step {step}, beyond train.num_steps={num_steps}; raise it to go on"
    return (
        beyond if step > num_steps else f"finished at step {step} of {num_steps}",
        f"  run folder: {run_dir}",
        f"  checkpoint: {checkpoint}",
        *(f"  next: {command}" for command in next_commands(config, checkpoint)),
    )


def next_commands(config: JobConfig, checkpoint: Path) -> tuple[str, ...]:
    """Commands that work as they are, in this order: export the network, and score it where there are labels.

    Args:
        checkpoint: a whole checkpoint of the run.
    """
    exported = Path(config.run.dir) / f"{checkpoint.name}.safetensors"
    commands = []
    if not exported.exists():
        commands.append(["checkpoint", "export", str(checkpoint), str(exported)])
    if (scored := scored_data(config)) is not None:
        commands.append(["evaluate", f"model.exported={exported}", *_overrides_of(scored)])
    if not commands:
        commands.append(["checkpoint", "verify", str(checkpoint)])
    return tuple(shlex.join(["t4p", *command]) for command in commands)


def scored_data(config: JobConfig) -> EvaluatedDataConfig | None:
    """The validation data as it is scored, where it has labels of the run or, for boxes, no labels; else None."""
    urls, labels, ignored = config.data.validation_shards, config.model.label_names, _ignored_labels(config)
    try:
        names_of_datasets = Catalogue(urls).label_names if urls else ()
    except UserError:  # what is said of a run that is over must not make it fail
        return None
    names = {name for names in names_of_datasets for name in names}
    boxes_alone = not task_named(config.task).needs(config).labels and not all(names_of_datasets)
    if names.isdisjoint(labels) and not boxes_alone:
        return None
    if not names <= {*labels, *ignored} and ANY_OTHER not in ignored:
        ignored = (ANY_OTHER,)
    same = {name: getattr(config.data, name) for name in ("cache_dir", "cache_bytes", "pixel_stride", "max_depth")}
    return USUAL.model_copy(update={"shards": urls, "ignored_labels": ignored, **same})


def evaluation_of(config: JobConfig, exported: Path) -> str:
    """The command that scores an export of a run on DST, a dataset with labels like those that it was trained on."""
    overrides = _overrides_of(USUAL.model_copy(update={"ignored_labels": _ignored_labels(config)}))
    return shlex.join(["t4p", "evaluate", f"model.exported={exported}", "data.shards=[DST]", *overrides])


def _ignored_labels(config: JobConfig) -> tuple[str, ...]:
    return config.data.ignored_labels if isinstance(config.data, LabelledDataConfig) else USUAL.ignored_labels


def _overrides_of(scored: EvaluatedDataConfig) -> Sequence[str]:
    """What `t4p evaluate` is told of its data: the datasets, and what is not as usual."""
    names = ("shards", "ignored_labels", "cache_dir", "cache_bytes", "pixel_stride", "max_depth")
    given = {name: getattr(scored, name) for name in names if getattr(scored, name) != getattr(USUAL, name)}
    return [f"data.{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items()]
