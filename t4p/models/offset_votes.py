"""Voxels that vote for the centre of their instance, and instances as what then lies together.

The idea of PointGroup (Jiang et al. 2020): shifted by its vote, a chair's voxels fall together and apart from the next
chair's, and what is connected within a class is an instance. Nothing to learn but the offsets.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from t4p.data.labels import IGNORED
from t4p.data.transforms import voxelize
from t4p.distributed import all_reduce_sum, world_size

# Metres below which the direction of a vector counts less and less: at 0 it has none, and its gradient no bound.
SHORTEST = 0.01
CELLS_PER_RADIUS = 2


def vote_loss(
    offsets: Tensor, centers_of_voxel: Tensor, instance_center_of_voxel: Tensor, has_instance: Tensor
) -> Tensor:
    """How far votes miss the centre of the instance, and how far their direction does. Collective.

    Args:
        offsets: (V, 3) metres, the votes: the centre of the instance seen from the voxel.
        centers_of_voxel: (V, 3) metres, where the voxel is.
        instance_center_of_voxel: (V, 3) metres, where the centre of its instance is.
        has_instance: (V,) bool; the others do not count, whatever stands in their rows.

    Returns:
        Scalar in float32 at least: of each voxel the L1 distance in metres, plus 1 - the cosine between the vote and
        the right one. W x (sum over local voxels) / (voxels of all ranks with an instance): its average over ranks is
        the global mean. 0, with a graph, where there is none.
    """
    offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))[has_instance]
    wanted = (instance_center_of_voxel - centers_of_voxel)[has_instance].to(offsets.dtype)
    distance = (offsets - wanted).abs().sum()
    cosines = (F.normalize(offsets, dim=1, eps=SHORTEST) * F.normalize(wanted, dim=1, eps=SHORTEST)).sum(1)
    num_voxels = all_reduce_sum(has_instance.sum())
    return world_size() * (distance + (1 - cosines).sum()) / num_voxels.clamp(min=1)


def cluster_votes(
    points: Tensor,
    offsets: Tensor,
    label_of_voxel: Tensor,
    probability: Tensor,
    radius: float,
    min_voxels: int,
    max_masks: int = 100,
) -> tuple[Tensor, Tensor, Tensor]:
    """Instances of one sample: per label, shifted voxels that are connected by steps of at most `radius`.

    Shifted voxels that fall into one cell of radius / 2 are connected, and stand from there on at their mean: so the
    work is bounded by the volume that votes fill, however many fall together. Deterministic, on the CPU.

    Args:
        points: (V, 3) metres.
        offsets: (V, 3) metres, the votes.
        label_of_voxel: (V,) int64, or IGNORED: in no mask.
        probability: (V,) of that label, in [0, 1].
        radius: metres.
        min_voxels: smaller clusters are left out.
        max_masks: so many, the surest, are kept: before anything is learnt there are thousands.

    Returns:
        masks: (P, V) bool, disjoint, P at most max_masks.
        class_ids: (P,) int64.
        scores: (P,) the mean probability of the mask's voxels, descending; equal ones by label, then by first voxel.

    Raises:
        ValueError: a shifted voxel is not finite, or they span more than 2^20 cells along an axis.
    """
    device = label_of_voxel.device
    shifted = (points.detach() + offsets.detach()).float().cpu()
    labels = label_of_voxel.cpu().numpy()
    cluster_of_voxel = np.full(len(labels), -1)
    label_of_cluster: list[int] = []
    for label in np.unique(labels[labels != IGNORED]).tolist():
        rows = np.flatnonzero(labels == label)
        component = _connected(shifted[torch.from_numpy(rows)], radius)
        kept = np.bincount(component) >= min_voxels
        number = np.where(kept, len(label_of_cluster) + np.cumsum(kept) - 1, -1)
        cluster_of_voxel[rows] = number[component]
        label_of_cluster += [label] * int(kept.sum())
    clustered = cluster_of_voxel >= 0
    num_voxels = np.bincount(cluster_of_voxel[clustered], minlength=len(label_of_cluster))
    certain = probability.detach().double().cpu().numpy()
    scores = np.bincount(cluster_of_voxel[clustered], certain[clustered], len(label_of_cluster)) / num_voxels
    best = np.argsort(-scores, kind="stable")[:max_masks]
    masks = torch.from_numpy(cluster_of_voxel == best[:, None])
    class_ids = torch.tensor(label_of_cluster, dtype=torch.int64)[best]
    return masks.to(device), class_ids.to(device), torch.from_numpy(scores[best]).float().to(device)


def _connected(points: Tensor, radius: float) -> np.ndarray:
    """(N,) the component of each of (N, 3) float32 points, numbered by their first points."""
    from scipy.sparse import coo_array  # slow to import, and other trainings start without it
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    cells = voxelize(points, radius / CELLS_PER_RADIUS)
    centers = cells.means(points.double()).numpy()
    pairs = cKDTree(centers).query_pairs(radius, output_type="ndarray")
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(centers),) * 2)
    _, component_of_cell = connected_components(links, directed=False)
    component = component_of_cell[cells.voxel_of_point.numpy()]
    _, first, number = np.unique(component, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number]
