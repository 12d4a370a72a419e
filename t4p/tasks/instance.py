"""Instance segmentation, fine-tuned without images: masks by queries over groups of voxels, or by votes of voxels.

Figure 4 of the paper: learnable prompts, a loss on the score map at the bottleneck, a head on the decoder. What a mask
shows is said against the embeddings of the labels, so that no weight depends on their list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from t4p.config.data import EvaluatedDataConfig
from t4p.config.tasks import InstanceConfig
from t4p.data.fetch import Catalogue
from t4p.data.groups import group_points
from t4p.data.labels import IGNORED
from t4p.data.objects import NONE, ObjectBatch, ObjectRecipe, groups_of_voxels
from t4p.data.transforms import PointCloud, VoxelCloud
from t4p.errors import RunError
from t4p.losses.instance import InstanceWeights, by_layer, decode_masks, instance_loss
from t4p.losses.segmentation import balanced_cross_entropy
from t4p.metrics.instance import ComparedScene, compare, scores_of
from t4p.models.exported import ExportedNetwork
from t4p.models.offset_votes import cluster_votes, vote_loss
from t4p.models.query_decoder import QueryDecoder, pool_groups
from t4p.models.text4point import Text4Point
from t4p.models.vote_head import VoteHead
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
from t4p.tasks.found_masks import MIN_REGION, MOST_MASKS, FoundMasks, OnMasks, scenes_of_batch, score_masks
from t4p.tasks.object_task import ObjectTask
from t4p.tasks.pieces import Mask, Piece, cut_pieces, join_masks
from t4p.tasks.scored import ScoredSample, ScoreSheet

if TYPE_CHECKING:
    from t4p.models.clip import ClipTowers
    from t4p.models.prompts import PromptedLabels

__all__ = ["embed_labels", "masks_of_points", "problem_of_start", "run", "score"]

VOTES_RADIUS = 2.0  # voxels: votes that lie nearer are of one object
FEWEST_VOTES = 8  # voxels of the smallest object that votes make


def build_head(config: InstanceConfig, clip_dim: int) -> QueryDecoder | VoteHead:
    """What stands on the network, with random weights."""
    model, decoder = config.model, config.model.decoder
    if model.masks == "votes":
        return VoteHead(model.mask_channels, clip_dim, config.loss.logit_scale)
    return QueryDecoder(
        model.mask_channels,
        decoder.dim,
        decoder.num_queries,
        decoder.num_layers,
        decoder.num_heads,
        clip_dim,
        config.loss.logit_scale,
    )


class InstanceModule(PromptedModule):
    """The 3D network, the prompt tokens and a head that makes masks."""

    head_parts = ("net.head", "head")

    def __init__(self, config: InstanceConfig, prompted: PromptedLabels, clip_dim: int) -> None:
        super().__init__(config.model, config.loss, prompted, clip_dim, config.model.mask_channels)
        self.head = build_head(config, clip_dim)
        self._loss = config.loss
        self._voxel_size = config.model.voxel_size

    def forward(
        self,
        voxel_coords: Tensor,
        voxel_features: Tensor,
        label_of_voxel: Tensor,
        label_of_bottleneck: Tensor,
        instance_of_voxel: Tensor,
        label_of_instance: Tensor,
        sample_of_instance: Tensor,
        group_of_voxel: Tensor,
        instance_of_group: Tensor,
        sample_of_group: Tensor,
        corners: Tensor,
    ) -> tuple[Tensor, ...]:
        """The losses over the samples of all ranks. Collective.

        Args:
            As the attributes of ObjectBatch and its LabelledBatch.

        Returns:
            loss, loss_task, loss_class, loss_mask, loss_score, loss_aux: scalars; averaged over ranks they are the
            global ones. With votes, loss_mask is that of the offsets, and loss_score 0.
            instances: of this rank.
        """
        text = self.embed_labels()
        expanded, decoded = self.net(voxel_coords, voxel_features, text)
        loss_aux = self.loss_of_score_map(self.score_map(expanded, text), label_of_bottleneck)
        if isinstance(self.head, VoteHead):
            class_logits, offsets = self.head(decoded, text)
            nothing = class_logits.shape[1] - 1
            classes = torch.where(label_of_voxel == IGNORED, nothing, label_of_voxel)
            balance = self._loss.class_balance
            loss_class = self._loss.weight_class * balanced_cross_entropy(class_logits, classes, balance)
            middles = middles_of_voxels(voxel_coords[:, 1:], self._voxel_size).to(offsets.dtype)
            of_instance = middle_of_instances(middles, instance_of_voxel, len(label_of_instance))
            held = instance_of_voxel != NONE
            loss_mask = self._loss.weight_votes * vote_loss(offsets, middles, of_instance, held)
            loss_score = torch.zeros_like(loss_mask)
            loss_task = loss_class + loss_mask
        else:
            weights = self._loss
            groups = pool_groups(decoded, group_of_voxel, len(sample_of_group))
            loss_task, loss_class, loss_mask, loss_score = instance_loss(
                by_layer(self.head(groups, sample_of_group, len(corners), text)),
                instance_of_group,
                label_of_instance,
                sample_of_instance,
                sample_of_group,
                InstanceWeights(
                    label=weights.weight_class,
                    mask=weights.weight_mask,
                    dice=weights.weight_mask,
                    score=weights.weight_score,
                    no_object=weights.no_object,
                ),
            )
        loss = loss_task + self._loss.weight_aux * loss_aux
        num_instances = torch.full_like(loss, len(label_of_instance))
        return loss, loss_task, loss_class, loss_mask, loss_score, loss_aux, num_instances


def middle_of_instances(middles: Tensor, instance_of_voxel: Tensor, num_instances: int) -> Tensor:
    """(V, 3) the mean of the voxels of each voxel's instance; 0 for voxels that have none."""
    held = instance_of_voxel != NONE
    rows = instance_of_voxel[held]
    sums = middles.new_zeros(num_instances, 3).index_add(0, rows, middles[held])
    means = sums / torch.bincount(rows, minlength=num_instances).clamp(min=1)[:, None]
    return torch.zeros_like(middles).index_put((held,), means[rows])


@torch.no_grad()
def find_masks(
    head: QueryDecoder | VoteHead,
    text: Tensor,
    voxel_size: float,
    decoded: Tensor,
    voxel_coords: Tensor,
    group_of_voxel: Tensor,
    sample_of_group: Tensor,
    num_samples: int,
) -> Iterator[FoundMasks]:
    """The objects of every sample, in order.

    Args:
        text: (K, d) label embeddings, unit-norm.
        voxel_size: metres.
        decoded: (V, C) z3D of the network.
        voxel_coords, group_of_voxel, sample_of_group: (V, 4) int32, (V,) and (G,), as in ObjectBatch.
    """
    samples = voxel_coords[:, 0]
    if isinstance(head, VoteHead):
        class_logits, offsets = head(decoded, text)
        probability, label = class_logits.softmax(1).max(1)
        label = torch.where(label == class_logits.shape[1] - 1, IGNORED, label)
        middles = middles_of_voxels(voxel_coords[:, 1:], voxel_size)
        for sample in range(num_samples):
            own = samples == sample
            found = cluster_votes(
                middles[own],
                offsets[own],
                label[own],
                probability[own],
                VOTES_RADIUS * voxel_size,
                FEWEST_VOTES,
                MOST_MASKS,
            )
            yield FoundMasks(*(values.cpu().numpy() for values in found))
        return
    groups = pool_groups(decoded, group_of_voxel, len(sample_of_group))
    prediction = by_layer(head(groups, sample_of_group, num_samples, text))[-1]
    first_group = torch.bincount(sample_of_group, minlength=num_samples).cumsum(0).roll(1)
    for sample in range(num_samples):
        masks, class_ids, scores = decode_masks(prediction, sample, sample_of_group, MOST_MASKS)
        of_voxel = group_of_voxel[samples == sample] - (first_group[sample] if sample else 0)
        yield FoundMasks(masks[:, of_voxel].cpu().numpy(), class_ids.cpu().numpy(), scores.float().cpu().numpy())


@torch.no_grad()
def compare_batch(
    net: Text4Point, head: QueryDecoder | VoteHead, text: Tensor, voxel_size: float, batch: ObjectBatch
) -> Iterator[ComparedScene]:
    """What was found in every sample of a batch beside what is there; arguments of `masks_of_batch`."""
    for scene in scenes_of_batch(masks_of_batch(net, head, text, voxel_size, batch), batch):
        yield compare(scene, range(len(text)), MIN_REGION)


def masks_of_batch(
    net: Text4Point, head: QueryDecoder | VoteHead, text: Tensor, voxel_size: float, batch: ObjectBatch
) -> Iterator[FoundMasks]:
    """What was found in every sample of a batch.

    Args:
        batch: on the network's device.
    """
    labelled = batch.labelled
    _, decoded = net(labelled.voxel_coords, labelled.voxel_features, text)
    return find_masks(
        head,
        text,
        voxel_size,
        decoded,
        labelled.voxel_coords,
        batch.group_of_voxel,
        batch.sample_of_group,
        len(batch.corners),
    )


class InstanceTask(ObjectTask[ComparedScene]):
    """What the module takes of a batch, and the scores on points."""

    term_names = ("loss", "loss_task", "loss_class", "loss_mask", "loss_score", "loss_aux", "instances")

    def inputs(self, batch: ObjectBatch) -> tuple[Tensor, ...]:
        """The arguments of InstanceModule."""
        batch = batch.to(self._device)
        labelled = batch.labelled
        return (
            labelled.voxel_coords,
            labelled.voxel_features,
            labelled.label_of_voxel,
            labelled.label_of_bottleneck,
            batch.instance_of_voxel,
            batch.label_of_instance,
            batch.sample_of_instance,
            batch.group_of_voxel,
            batch.instance_of_group,
            batch.sample_of_group,
            batch.corners,
        )

    @torch.no_grad()
    def validate(self, module: nn.Module) -> Mapping[str, float]:
        """ScanNet's protocol on the points of the validation data: `ap`, `ap50`, `ap25`, and `ap50/LABEL`."""
        if (compared := self.compare(module, compare_batch)) is None:
            return {}
        found = scores_of(compared, range(len(self._labels)))
        if not math.isfinite(found.mean_ap):
            raise RunError(
                f"validation: no object of model.labels with {MIN_REGION} points in data.validation_shards; look at a "
                "sample with `t4p shards show`"
            )
        named = {"ap": found.mean_ap, "ap50": found.mean_ap50, "ap25": found.mean_ap25}
        named |= {f"ap50/{label}": found.ap50[index] for index, label in enumerate(self._labels)}
        return {name: value for name, value in named.items() if math.isfinite(value)}  # nan: absent from the data


build_task = InstanceTask


def run(config: InstanceConfig, on_step: Callable[[StepRecord], None] | None = None, show: Show | None = None) -> None:
    """Fine-tune as one worker of those that the environment describes; alone without one. Collective.

    Args, raises:
        As `t4p.tasks.finetune.finetune`.
    """
    finetune(config, build_module, build_recipe, build_task, on_step, show)


def build_module(config: InstanceConfig, towers: ClipTowers) -> InstanceModule:
    """Random weights, the same in every process.

    Raises:
        ClipError: the prompts cannot work.
    """
    torch.manual_seed(config.run.seed)
    return InstanceModule(config, prompt_labels(config, towers), towers.embed_dim)


def build_recipe(
    config: InstanceConfig,
    catalogue: Catalogue,
    trains: bool,
    ignored_labels: Sequence[str] | None = None,
    *,
    unlabelled: bool = False,
) -> ObjectRecipe:
    """How the samples of a catalogue become those of this job; arguments and errors of `label_recipe`."""
    recipe = label_recipe(config, catalogue, trains, ignored_labels, unlabelled=unlabelled)
    return ObjectRecipe(
        recipe, config.model.label_names, groups_of=config.model.groups if config.model.masks == "queries" else None
    )


def problem_of_start(config: InstanceConfig) -> str:
    """Why an export cannot keep a share of what a run began with."""
    return "has a head that makes masks, whose random weights say nothing at the beginning"


def head_of(exported: ExportedNetwork) -> QueryDecoder | VoteHead:
    """The head of an exported network, on its device, in eval mode."""
    assert isinstance(exported.config, InstanceConfig)
    text = exported.label_embeddings
    head = build_head(exported.config, text.shape[1])
    head.load_state_dict(exported.part("head"))
    return head.to(text.device).eval().requires_grad_(False)


@torch.no_grad()
def masks_of_points(
    exported: ExportedNetwork, cloud: PointCloud, voxels: VoxelCloud, group_of_point: NDArray[np.int64] | None
) -> tuple[tuple[Mask, ...], Tensor]:
    """The objects among points of a user, the surest first, and h3D_hat (Vb, d) of the same pass.

    The network sees all of a scan; of more than PIECE_VOXELS voxels the head sees one piece after the other, since it
    was trained on scenes that have no more objects than it has queries.

    Args:
        voxels: of the points, as the network takes them.
        group_of_point: (N,) from 0 without gaps; None makes groups as the run did, our own where it had given ones.

    Raises:
        ValueError: groups are given, and the masks of the network are votes.
    """
    config, text = exported.config, exported.label_embeddings
    assert isinstance(config, InstanceConfig)
    num_voxels = len(voxels.voxel_coords)
    if group_of_point is not None and config.model.masks == "votes":
        raise ValueError(
            "groups are given, and this network was trained with model.masks: votes, which are clustered without any; "
            "leave groups out"
        )
    if group_of_point is None and config.model.masks == "queries" and config.model.groups != "none":
        group_of_point = group_points(cloud.points, cloud.colors).numpy()
    group_of_voxel = groups_of_voxels(group_of_point, voxels.voxel_of_point, num_voxels).to(text.device)
    coords = F.pad(voxels.voxel_coords, (1, 0)).to(text.device)
    expanded, decoded = exported.net(coords, voxels.voxel_features.to(text.device), text)
    head, voxel_size = head_of(exported), config.model.voxel_size
    pieces = []
    for seen, is_own in cut_pieces(coords, voxel_size):
        groups, group_of_seen = torch.unique(group_of_voxel[seen], return_inverse=True)
        (found,) = find_masks(
            head, text, voxel_size, decoded[seen], coords[seen], group_of_seen, torch.zeros_like(groups), 1
        )
        pieces.append(piece_of(seen, is_own, found))
    return join_masks(pieces, num_voxels), expanded


def piece_of(seen: Tensor, is_own: Tensor, found: FoundMasks) -> Piece:
    """What was found among the voxels `seen`, in rows of the scan."""
    rows = seen.cpu().numpy()
    masks = zip(found.masks, found.class_ids.tolist(), found.scores.tolist(), strict=True)
    return Piece(
        rows, is_own.cpu().numpy(), tuple(Mask(rows[mask], class_id, score) for mask, class_id, score in masks)
    )


def score(
    exported: ExportedNetwork,
    scored: EvaluatedDataConfig,
    on_progress: Callable[[int, int], None],
    on_sample: Callable[[ScoredSample], None] | None,
    on_masks: OnMasks | None = None,
) -> ScoreSheet:
    """Average precision on every point of the datasets, by ScanNet's protocol.

    Args:
        on_progress: called with (samples done, samples in all).
        on_sample: told what was said of each sample.
        on_masks: called with the key of each sample and the masks, class ids and scores of its objects. Then no point
            needs a true object, and without any the scores are nan.

    Raises:
        ConfigError: the classes of a dataset are not its labels.
        ShardError, DataError: the data is missing or damaged, or holds no object.
    """
    config = exported.config
    assert isinstance(config, InstanceConfig)
    head, text = head_of(exported), exported.label_embeddings
    make_recipe = partial(build_recipe, unlabelled=on_masks is not None)
    found = (
        (batch, masks)
        for batch in scored_batches(config, scored, make_recipe, on_progress)
        for masks in masks_of_batch(exported.net, head, text, config.model.voxel_size, batch.to(text.device))
    )
    return score_masks(found, exported.labels, config.model.voxel_size, scored.shards, on_sample, on_masks)
