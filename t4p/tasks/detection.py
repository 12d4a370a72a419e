"""Detection, fine-tuned without images: boxes from two levels of the decoder, each with what the labels say of it.

Figure 4 of the paper: learnable prompts, a loss on the score map at the bottleneck, a head on the decoder, which goes
one level up from the bottleneck here: boxes are looked for where voxels are as large as parts of furniture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from t4p.config.data import EvaluatedDataConfig
from t4p.config.tasks import DetectionConfig
from t4p.data.boxes import rows_inside
from t4p.data.fetch import Catalogue
from t4p.data.objects import ObjectBatch, ObjectRecipe
from t4p.data.transforms import VoxelCloud
from t4p.errors import DataError, RunError
from t4p.losses.detection import assign_locations, detection_loss
from t4p.metrics.detection import Boxes, Detections, DetectionScores, evaluate, suppress
from t4p.models.box_head import BoxHead, propose
from t4p.models.exported import ExportedNetwork, for_one_process
from t4p.models.norm import build_norm
from t4p.models.text4point import Text4Point
from t4p.runs.logs import StepRecord
from t4p.runs.progress import Show
from t4p.tasks.evaluate import middles_of_voxels, scored_batches
from t4p.tasks.finetune import (
    PromptedModule,
    embed_labels,
    finetune,
    label_recipe,
    prompt_labels,
)
from t4p.tasks.object_task import ObjectTask, objects_of_boxes, scored_sample
from t4p.tasks.scored import ScoredSample, ScoreSheet, SheetRow

if TYPE_CHECKING:
    from t4p.models.clip import ClipTowers
    from t4p.models.prompts import PromptedLabels

__all__ = ["boxes_of_points", "embed_labels", "problem_of_start", "run", "score"]

# A box is asked on the coarse level from this many voxels of the fine one on: the cube root of its volume.
COARSE_FROM = 4.0
SUPPRESSED_FROM = 0.25  # IoU with a surer box of the class, VoteNet's
FEWEST_POINTS = 5  # in a box that is kept, VoteNet's
OVERLAPS = (0.25, 0.5)
# Of the cosines with the text. Focal loss pushes nearly all of them down: from 30 on nothing was learnt of labels that
# resemble each other.
MULTIPLIER_AT_START = 10.0
OUT_DIM = 1  # of the network's own head, which nothing reads


def build_head(config: DetectionConfig, net: Text4Point, clip_dim: int) -> BoxHead:
    """What stands on the network, with random weights."""
    model = config.model
    return BoxHead(
        net.unet.plan.decoder_channels[0],
        net.unet.bottleneck_channels,
        model.head_channels,
        clip_dim,
        build_norm(model.norm, model.norm_group_size),
        oriented=model.boxes == "oriented",
        logit_scale=MULTIPLIER_AT_START,
        coarse_voxel_size=model.voxel_size * 2**model.unet.num_strides,
        sparse_backend=model.sparse_backend,
    )


class DetectionModule(PromptedModule):
    """The 3D network, the prompt tokens and a head that makes boxes; the decoder beyond what the head reads rests."""

    read = "levels"
    head_parts = ("head",)

    def __init__(self, config: DetectionConfig, prompted: PromptedLabels, clip_dim: int) -> None:
        super().__init__(config.model, config.loss, prompted, clip_dim, OUT_DIM)
        self.net.freeze((*config.model.frozen, "fine"))
        self.head = build_head(config, self.net, clip_dim)
        self._loss = config.loss

    def forward(
        self,
        voxel_coords: Tensor,
        voxel_features: Tensor,
        label_of_bottleneck: Tensor,
        boxes: Tensor,
        label_of_box: Tensor,
        sample_of_box: Tensor,
    ) -> tuple[Tensor, ...]:
        """The losses over the samples of all ranks. Collective.

        Args:
            As the attributes of ObjectBatch and its LabelledBatch.

        Returns:
            loss, loss_task, loss_class, loss_box, loss_aux: scalars; averaged over ranks they are the global ones.
            boxes: of this rank.
        """
        text = self.embed_labels()
        expanded, coarse, coarse_coords, fine, fine_coords = self.net(voxel_coords, voxel_features, text, self.read)
        located = self.head(coarse_coords, coarse, fine_coords, fine, text)
        fine_voxel_size = self.head.coarse_voxel_size / 2
        box_of_location = assign_locations(
            located.centers_of_location,
            located.sample_of_location,
            located.is_coarse,
            boxes,
            sample_of_box,
            boxes[:, 3:6].prod(dim=1) >= (COARSE_FROM * fine_voxel_size) ** 3,
            self._loss.top_k,
        )
        loss_class, loss_box = detection_loss(located.class_logits, located.boxes, box_of_location, boxes, label_of_box)
        loss_box = self._loss.weight_box * loss_box
        loss_aux = self.loss_of_score_map(self.score_map(expanded, text), label_of_bottleneck)
        loss_task = loss_class + loss_box
        loss = loss_task + self._loss.weight_aux * loss_aux
        return loss, loss_task, loss_class, loss_box, loss_aux, torch.full_like(loss, len(boxes))


@torch.no_grad()
def find_boxes(head: BoxHead, text: Tensor, levels: Sequence[Tensor], num_samples: int) -> Iterator[Detections]:
    """The boxes of every sample, in order, metres from the corner of its voxel (0, 0, 0).

    Args:
        text: (K, d) label embeddings, unit-norm.
        levels: what the network gives with `read="levels"`, behind h3D_hat.
    """
    coarse, coarse_coords, fine, fine_coords = levels
    located = head(coarse_coords, coarse, fine_coords, fine, text)
    for sample in range(num_samples):
        proposed = propose(located, sample)
        boxes, class_ids, scores = (values.double().cpu().numpy() for values in proposed)
        kept = suppress(boxes, class_ids.astype(np.int64), scores, SUPPRESSED_FROM)
        yield Detections(boxes[kept], class_ids[kept].astype(np.int64), scores[kept])


def drop_empty(found: Detections, points: NDArray[np.floating]) -> Detections:
    """Leave out boxes with fewer than FEWEST_POINTS of (N, 3) points in the same frame."""
    boxes = np.asarray(found.boxes)
    kept = np.array([len(rows) >= FEWEST_POINTS for rows in rows_inside(points, boxes)], bool)
    return Detections(boxes[kept], np.asarray(found.class_ids)[kept], np.asarray(found.scores)[kept])


@torch.no_grad()
def compare_batch(
    net: Text4Point, head: BoxHead, text: Tensor, voxel_size: float, batch: ObjectBatch
) -> Iterator[tuple[Detections, Boxes]]:
    """What was found in every sample of a batch, and what is there.

    Args:
        batch: on the network's device.
    """
    labelled = batch.labelled
    _, *levels = net(labelled.voxel_coords, labelled.voxel_features, text, read="levels")
    found = find_boxes(head, text, levels, len(batch.corners))
    # A point stands in the middle of its voxel here, as far as counting those in a box goes.
    coords = labelled.voxel_coords[labelled.voxel_of_point]
    points, sample_of_point = middles_of_voxels(coords[:, 1:], voxel_size).cpu().numpy(), coords[:, 0].cpu().numpy()
    boxes, labels = batch.boxes.cpu().numpy(), batch.label_of_box.cpu().numpy()
    for sample, detections in enumerate(found):
        own = (batch.sample_of_box == sample).cpu().numpy()
        yield drop_empty(detections, points[sample_of_point == sample]), Boxes(boxes[own], labels[own])


class DetectionTask(ObjectTask[tuple[Detections, Boxes]]):
    """What the module takes of a batch, and the scores of boxes."""

    term_names = ("loss", "loss_task", "loss_class", "loss_box", "loss_aux", "boxes")

    def inputs(self, batch: ObjectBatch) -> tuple[Tensor, ...]:
        """The arguments of DetectionModule."""
        batch = batch.to(self._device)
        labelled = batch.labelled
        return (
            labelled.voxel_coords,
            labelled.voxel_features,
            labelled.label_of_bottleneck,
            batch.boxes,
            batch.label_of_box,
            batch.sample_of_box,
        )

    @torch.no_grad()
    def validate(self, module: nn.Module) -> Mapping[str, float]:
        """VoteNet's protocol on the validation data: `ap25`, `ap50`, `ar25`, `ar50`, and `ap25/LABEL`."""
        if (compared := self.compare(module, compare_batch)) is None:
            return {}
        low, high = scores_at(compared)
        if not math.isfinite(low.map):
            raise RunError(
                "validation: no box of model.labels in data.validation_shards; look at a sample with `t4p shards show`"
            )
        named = {"ap25": low.map, "ap50": high.map, "ar25": low.mar, "ar50": high.mar}
        return named | {f"ap25/{self._labels[index]}": value for index, value in low.ap.items()}


def scores_at(compared: Sequence[tuple[Detections, Boxes]]) -> tuple[DetectionScores, DetectionScores]:
    """VoteNet's scores at an IoU of 0.25 and of 0.5."""
    found = evaluate([predicted for predicted, _ in compared], [true for _, true in compared], OVERLAPS)
    low, high = OVERLAPS
    return found[low], found[high]


build_task = DetectionTask


def run(config: DetectionConfig, on_step: Callable[[StepRecord], None] | None = None, show: Show | None = None) -> None:
    """Fine-tune as one worker of those that the environment describes; alone without one. Collective.

    Args, raises:
        As `t4p.tasks.finetune.finetune`.
    """
    finetune(config, build_module, build_recipe, build_task, on_step, show)


def build_module(config: DetectionConfig, towers: ClipTowers) -> DetectionModule:
    """Random weights, the same in every process.

    Raises:
        ClipError: the prompts cannot work.
    """
    torch.manual_seed(config.run.seed)
    return DetectionModule(config, prompt_labels(config, towers), towers.embed_dim)


def build_recipe(
    config: DetectionConfig, catalogue: Catalogue, trains: bool, ignored_labels: Sequence[str] | None = None
) -> ObjectRecipe:
    """How the samples of a catalogue become those of this job; arguments and errors of `label_recipe`.

    Boxes are enough: points without labels leave the score map without a loss.
    """
    recipe = label_recipe(config, catalogue, trains, ignored_labels, unlabelled=True)
    return ObjectRecipe(recipe, config.model.label_names, boxes_of=config.model.boxes)


def problem_of_start(config: DetectionConfig) -> str:
    """Why an export cannot keep a share of what a run began with."""
    return "has a head that makes boxes, whose random weights say nothing at the beginning"


def head_of(exported: ExportedNetwork) -> BoxHead:
    """The head of an exported network, on its device, in eval mode."""
    config, text = exported.config, exported.label_embeddings
    assert isinstance(config, DetectionConfig)
    config = config.model_copy(update={"model": for_one_process(config.model)})
    head = build_head(config, exported.net, text.shape[1])
    head.load_state_dict(exported.part("head"))
    return head.to(text.device).eval().requires_grad_(False)


@torch.no_grad()
def boxes_of_points(exported: ExportedNetwork, voxels: VoxelCloud) -> tuple[Detections, Tensor]:
    """Boxes around the objects among points of a user, in their frame, and h3D_hat (Vb, d) of the same pass.

    Args:
        voxels: of the points, as the network takes them.
    """
    config, text = exported.config, exported.label_embeddings
    assert isinstance(config, DetectionConfig)
    coords = F.pad(voxels.voxel_coords, (1, 0)).to(text.device)
    features = voxels.voxel_features.to(text.device)
    expanded, *levels = exported.net(coords, features, text, read="levels")
    (found,) = find_boxes(head_of(exported), text, levels, 1)
    middles = middles_of_voxels(voxels.voxel_coords[voxels.voxel_of_point], config.model.voxel_size)
    kept = drop_empty(found, middles.numpy())
    boxes = np.array(kept.boxes, np.float64)
    boxes[:, :3] += voxels.corner.numpy()
    return replace(kept, boxes=boxes), expanded


def score(
    exported: ExportedNetwork,
    scored: EvaluatedDataConfig,
    on_progress: Callable[[int, int], None],
    on_sample: Callable[[ScoredSample], None] | None,
) -> ScoreSheet:
    """Average precision of the boxes of the datasets, by VoteNet's protocol.

    Args:
        on_progress: called with (samples done, samples in all).
        on_sample: told what was said of each sample.

    Raises:
        ConfigError: the classes of a dataset are not its labels.
        ShardError, DataError: the data is missing or damaged, or holds no box.
    """
    config = exported.config
    assert isinstance(config, DetectionConfig)
    head, text = head_of(exported), exported.label_embeddings
    compared: list[tuple[Detections, Boxes]] = []
    for batch in scored_batches(config, scored, build_recipe, on_progress):
        (pair,) = compare_batch(exported.net, head, text, config.model.voxel_size, batch.to(text.device))
        compared.append(pair)
        if on_sample is not None:
            found, there = pair
            on_sample(
                scored_sample(
                    batch,
                    middles_of_voxels(batch.labelled.voxel_coords[:, 1:], config.model.voxel_size).cpu().numpy(),
                    "AP25",
                    scores_at([pair])[0].map,
                    objects_of_boxes(found.boxes, found.class_ids, found.scores),
                    objects_of_boxes(there.boxes, there.class_ids, np.ones(len(np.asarray(there.boxes)))),
                )
            )
    low, high = scores_at(compared)
    if not math.isfinite(low.map):
        raise DataError(
            f"{', '.join(scored.shards)}: no box of the network's labels; look at a sample with `t4p shards show`"
        )
    return sheet_of(exported.labels, low, high)


def sheet_of(labels: Sequence[str], low: DetectionScores, high: DetectionScores) -> ScoreSheet:
    """The scores at an IoU of 0.25 and of 0.5 as a table."""
    return ScoreSheet(
        protocol="VoteNet's protocol on boxes",
        columns=("AP25", "AP50", "AR25", "AR50"),
        rows=tuple(
            SheetRow(
                label,
                tuple(values.get(index, math.nan) for values in (low.ap, high.ap, low.recall, high.recall)),
            )
            for index, label in enumerate(labels)
        ),
        means=(low.map, high.map, low.mar, high.mar),
    )
