"""Instances of a network that labels points, without a head for them: neighbouring groups of points of one label.

After pre-training the labels are whatever words are asked: zero-shot instances, masks by groups and named by text. Two
objects of one label that touch are one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from t4p.config.data import EvaluatedDataConfig
from t4p.config.kinds import task_named
from t4p.config.tasks import JobConfig
from t4p.data.fetch import Catalogue
from t4p.data.groups import neighbour_pairs
from t4p.data.labelled import build_label_recipe
from t4p.data.objects import ObjectBatch, ObjectRecipe
from t4p.models.exported import ExportedNetwork
from t4p.tasks.evaluate import scored_batches, voxel_scores
from t4p.tasks.found_masks import MOST_MASKS, FoundMasks, OnMasks, score_masks
from t4p.tasks.scored import ScoredSample, ScoreSheet

FEWEST_VOXELS = 8  # of an instance


def join_groups(
    voxel_coords: NDArray[np.int32], group_of_voxel: NDArray[np.int64], shares: NDArray[np.float32]
) -> FoundMasks:
    """Give every group the label of its voxels, and join those of one label that touch.

    Args:
        voxel_coords: (V, 3), unique, ascending in (x, y, z), from 0; V may be 0.
        group_of_voxel: (V,) from 0 without gaps.
        shares: (V, K) in [0, 1], how much a voxel is of every label.

    Returns:
        The largest share, as a mean over the voxels of a group, says its label; over those of an instance it is the
        score. Instances of fewer than FEWEST_VOXELS are left out, and of more than MOST_MASKS the least sure.
    """
    if not len(voxel_coords):
        return FoundMasks(np.zeros((0, 0), bool), np.zeros(0, np.int64), np.zeros(0, np.float32))
    sizes = np.bincount(group_of_voxel)
    means = np.stack([np.bincount(group_of_voxel, column) for column in shares.T], axis=1) / sizes[:, None]
    label_of_group = means.argmax(axis=1)
    first, second = (group_of_voxel[rows] for rows in neighbour_pairs(voxel_coords))
    joins = label_of_group[first] == label_of_group[second]
    links = coo_array((np.ones(joins.sum(), bool), (first[joins], second[joins])), shape=(len(sizes), len(sizes)))
    num_instances, instance_of_group = connected_components(links, directed=False)
    label = np.empty(num_instances, np.int64)
    label[instance_of_group] = label_of_group
    num_voxels = np.bincount(instance_of_group, sizes)
    of_label = means[np.arange(len(sizes)), label_of_group] * sizes
    score = np.bincount(instance_of_group, of_label) / num_voxels
    surest = np.argsort(-score, kind="stable")
    kept = surest[num_voxels[surest] >= FEWEST_VOXELS][:MOST_MASKS]
    masks = instance_of_group[group_of_voxel][None, :] == kept[:, None]
    return FoundMasks(masks, label[kept], score[kept].astype(np.float32))


@torch.no_grad()
def score_named_groups(
    exported: ExportedNetwork,
    scored: EvaluatedDataConfig,
    on_progress: Callable[[int, int], None],
    on_sample: Callable[[ScoredSample], None] | None = None,
    on_masks: OnMasks | None = None,
) -> ScoreSheet:
    """Average precision of such instances on every point of the datasets, by ScanNet's protocol.

    Args:
        exported: of a task that labels points.
        on_progress: called with (samples done, samples in all).
        on_sample, on_masks: as for `t4p.tasks.instance.score`.

    Raises:
        ConfigError: the classes of a dataset are not the network's labels.
        ShardError, DataError: the data is missing or damaged, or holds no object.
    """

    def recipe(config: JobConfig, catalogue: Catalogue, _trains: bool, ignored: Sequence[str]) -> ObjectRecipe:
        unlabelled = on_masks is not None
        labels = build_label_recipe(
            catalogue, config.data, config.model, exported.labels, ignored, augment=None, unlabelled=unlabelled
        )
        return ObjectRecipe(labels, exported.labels, groups_of="own")

    found = (
        (batch, _found_in(exported, batch)) for batch in scored_batches(exported.config, scored, recipe, on_progress)
    )
    sheet = score_masks(found, exported.labels, exported.config.model.voxel_size, scored.shards, on_sample, on_masks)
    return replace(sheet, protocol=f"neighbouring groups of one label, {sheet.protocol}")


def _found_in(exported: ExportedNetwork, batch: ObjectBatch) -> FoundMasks:
    """The instances of the one sample of a batch."""
    labelled = batch.labelled
    found = voxel_scores(exported, labelled.voxel_coords, labelled.voxel_features, labelled.bottleneck_of_voxel)
    scale = exported.logit_scale if task_named(exported.config.task).any_words else 1.0  # of cosines, or of logits
    shares = (found.scores * scale).softmax(1).cpu().numpy()
    return join_groups(labelled.voxel_coords[:, 1:].numpy(), batch.group_of_voxel.numpy(), shares)
