"""A task of its own in one file and one row: is a voxel of the floor or of a wall?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t4p.config.data import LabelledDataConfig
from t4p.config.kinds import TASKS, Task
from t4p.config.section import PositiveFloat, Section
from t4p.config.tasks import JobConfig
from t4p.data.few_labels import training_catalogue
from t4p.data.labelled import LabelledBatch, build_label_recipe
from t4p.data.labels import IGNORED
from t4p.models.exported import ExportedNetwork
from t4p.models.score_map import VoxelScores
from t4p.models.text4point import build_text4point
from t4p.models.towers import load_towers_from
from t4p.tasks.job import build_engine, build_training_stream, run_training, start_worker

NAME = "planes"


class PlanesLossConfig(Section):
    weight: PositiveFloat = 2.0


class PlanesConfig(JobConfig):
    task: Literal["planes"] = NAME
    data: LabelledDataConfig
    loss: PlanesLossConfig = PlanesLossConfig()


class PlanesModule(nn.Module):
    def __init__(self, config: PlanesConfig, text: Tensor) -> None:
        super().__init__()
        self.net = build_text4point(config.model, text.shape[1], len(config.model.label_names))
        self._text = text
        self._weight = config.loss.weight

    def forward(self, voxel_coords: Tensor, voxel_features: Tensor, label_of_voxel: Tensor) -> tuple[Tensor, ...]:
        expanded, scores = self.net(voxel_coords, voxel_features, self._text)
        known = label_of_voxel != IGNORED
        loss = F.cross_entropy(scores[known], label_of_voxel[known], reduction="sum") / max(int(known.sum()), 1)
        return (self._weight * loss + 0 * expanded.sum(),)


class PlanesTask:
    term_names = ("loss",)

    def inputs(self, batch: LabelledBatch) -> tuple[Tensor, ...]:
        return batch.voxel_coords, batch.voxel_features, batch.label_of_voxel

    def check(self, record: Any) -> None: ...

    def validate(self, module: nn.Module) -> Mapping[str, float]:
        return {}


def run(config: PlanesConfig, on_step: Callable[[Any], None] | None = None, show: Any = None) -> None:
    start_worker(config.train)
    towers = load_towers_from(config.model.clip, config.run.seed)
    data, seed = config.data, config.run.seed
    catalogue = training_catalogue(data, seed)
    recipe = build_label_recipe(
        catalogue,
        data,
        config.model,
        config.model.label_names,
        data.ignored_labels,
        augment=data.augment,
        seed=seed,
        labels_per_scene=data.labels_per_scene,
    )
    stream = build_training_stream(config, catalogue, recipe)
    torch.manual_seed(config.run.seed)
    module = PlanesModule(config, embed_labels(config, towers, {}))

    def wrap(checkpoint: Path | None) -> Any:
        return build_engine(module, config.train, checkpoint)

    run_training(config, wrap, PlanesTask(), stream, catalogue, towers.sha256, on_step, show)


def embed_labels(config: PlanesConfig, towers: Any, weights: Mapping[str, Tensor]) -> Tensor:
    return towers.encode_synonyms(config.model.label_words, config.model.text_query.template)


def problem_of_start(config: PlanesConfig) -> str:
    return "began with random weights"


@torch.no_grad()
def voxel_scores(
    exported: ExportedNetwork, coords: Tensor, features: Tensor, bottleneck_of_voxel: Tensor
) -> VoxelScores:
    expanded, scores = exported.net(coords, features, exported.label_embeddings)
    return VoxelScores(scores, expanded)


TASKS[NAME] = Task(
    NAME, PlanesConfig, "finetune", __name__, False, "Planes", lambda config: len(config.model.label_names)
)
