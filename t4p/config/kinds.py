"""The table of tasks: whatever depends on the task of a run looks it up here, and nothing else knows their names.

A task is a schema, a module that runs it, and its row here. No torch: the module is imported on use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from t4p.config.section import Section
from t4p.config.tasks import (
    DetectionConfig,
    EvaluateConfig,
    InstanceConfig,
    JobConfig,
    PretrainConfig,
    SemanticConfig,
)
from t4p.config.words import as_yaml
from t4p.errors import ConfigError

GroupsOf = Literal["own", "given", "none"]
BoxesOf = Literal["axis_aligned", "oriented"]


@dataclass(frozen=True)
class Needs:
    """What a stored sample must have for a task to learn from it, beside points.

    Attributes:
        labels: semantic labels.
        masks: instance ids.
        boxes: what boxes are made of, None for none.
        groups: what masks are made of, None where nobody asks.
    """

    labels: bool = True
    masks: bool = False
    boxes: BoxesOf | None = None
    groups: GroupsOf | None = None


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Attributes:
        name: value of `task` in its configurations.
        schema: what its configurations are read by.
        command: `t4p COMMAND` and `t4p launch COMMAND` run it, one of those that `commands` has; tasks may share one.
        module: that runs it, with these functions. Importing it loads torch, and neither DeepSpeed nor open_clip.
            Of every task: `run(config, on_step, show)`; for exports `embed_labels(config, towers, weights)` and
            `problem_of_start(config)`, and `weights_at_start(config, towers)` where that may be None.
            Where it finds labels: `voxel_scores(exported, coords, features, bottleneck_of_voxel)`.
            Where it finds masks or boxes: `score(exported, scored, on_progress, on_sample)`, of masks with `on_masks`
            too, which a submission gives by that name alone; and for `t4p.load` `masks_of_points(exported, cloud,
            voxels, group_of_point)` or `boxes_of_points(exported, voxels)`.
            For `t4p plan`, where its schema is a FinetuneConfig: `build_recipe(config, catalogue, trains)`,
            `build_module(config, towers)`, which has `net` and `groups(train)`, and `build_task(config, device,
            validation)`.
            `t4p.tasks.semantic`, `instance` and `detection` have them.
        any_words: whether an export can be asked words that it was not trained with.
        scored: what the scores of `t4p evaluate` are of, as the title of a table.
        out_dim: channels of the network's second output, in its export.
        scores: which of the scores of a validation a line of progress shows.
        finds: what its networks say: a label of every voxel, or objects, as masks or as boxes.
        needs: of a configuration, what the samples of a fine-tuning must have.
    """

    name: str
    schema: type[JobConfig]
    command: str
    module: str
    any_words: bool
    scored: str
    out_dim: Callable[[Any], int]
    scores: tuple[str, ...] = ()
    finds: Literal["labels", "masks", "boxes"] = "labels"
    needs: Callable[[Any], Needs] = lambda config: Needs()

    def load(self) -> ModuleType:
        """The module that runs it."""
        return importlib.import_module(self.module)


# By name; the first of a command is its default. Another row may be added at run time.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "pretrain",
            PretrainConfig,
            "pretrain",
            "t4p.tasks.pretrain",
            True,
            "Zero-shot, nearest text embedding",
            lambda config: config.model.embed_dim_d,
            ("retrieval_e", "retrieval_d"),
        ),
        Task(
            "semantic",
            SemanticConfig,
            "finetune",
            "t4p.tasks.semantic",
            False,
            "Fine-tuned head",
            lambda config: len(config.model.label_names),
            ("miou",),
        ),
        Task(
            "instance",
            InstanceConfig,
            "finetune",
            "t4p.tasks.instance",
            False,
            "Instances",
            lambda config: config.model.mask_channels,
            ("ap50", "ap25"),
            "masks",
            lambda config: Needs(masks=True, groups=config.model.groups if config.model.masks == "queries" else None),
        ),
        Task(
            "detection",
            DetectionConfig,
            "finetune",
            "t4p.tasks.detection",
            False,
            "Boxes",
            lambda config: 1,
            ("ap25", "ap50"),
            "boxes",
            lambda config: Needs(labels=False, boxes=config.model.boxes),
        ),
    )
}
EVALUATE = "evaluate"


def task_named(name: object) -> Task:
    """The row of a task.

    Raises:
        ConfigError: there is none of that name.
    """
    found = TASKS.get(name) if isinstance(name, str) else None
    if found is None:
        raise ConfigError(f"task is {as_yaml(name)}; known: {', '.join(TASKS)}")
    return found


def tasks_of(command: str) -> tuple[Task, ...]:
    """The tasks that a command runs, its default first."""
    return tuple(task for task in TASKS.values() if task.command == command)


def schemas() -> Mapping[str, tuple[type[Section], ...]]:
    """The schemas of every command that reads configurations."""
    commands = dict.fromkeys(task.command for task in TASKS.values())
    return {name: tuple(task.schema for task in tasks_of(name)) for name in commands} | {EVALUATE: (EvaluateConfig,)}


def config_of_task(tree: Mapping[str, Any]) -> JobConfig:
    """The configuration of the task that a dumped tree names.

    Raises:
        ConfigError: the task is unknown.
        ValueError: the tree is of another version (a pydantic ValidationError).
    """
    first = next(iter(TASKS))  # the only one when trees did not name theirs
    return task_named(tree.get("task", first)).schema.model_validate(tree)
