"""The head of 3D detection: locations on two levels of the sparse decoder, each with a box and what words say of it.

The form is TR3D's (Rukhovich et al., Towards Real-Time Indoor 3D Object Detection, 2023), written from the paper, on
the U-Net that was pre-trained instead of a backbone of its own, and with text embeddings instead of a channel a class.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t4p.models.norm import NormFactory
from t4p.models.score_map import compare_with_text
from t4p.models.sparse.coordinates import KeyGrid
from t4p.models.sparse.layers import GenerativeUpsample, SubmanifoldConv
from t4p.models.sparse.pyramid import SparseBackend, SparsePyramid, build_pyramid

FIRST_SIZE = 0.6  # metres, of every side of every box before anything is learnt: furniture
FIRST_SCORE = 0.01  # of every class likewise: nearly all locations belong to no box (Lin et al. 2017)
BLOCK_LOCATIONS = 2**15
LOG_SIZES = (-5.0, 4.0)  # 7 mm to 55 m: a step gone wrong must not end in an infinite box


class LocatedBoxes(NamedTuple):
    """A box of every location, the coarse locations before the fine ones.

    Attributes:
        centers_of_location: (L, 3) metres, middles of the locations' voxels, from the corner of voxel (0, 0, 0).
        sample_of_location: (L,) int64.
        is_coarse: (L,) bool, the level.
        class_logits: (L, K), one per text embedding, each on its own (sigmoid).
        boxes: (L, 7) centre, in the frame of the locations, full sizes (metres), yaw (radians, counter-clockwise about
            +z, in (-pi / 2, pi / 2]: half a turn changes no box; 0 where boxes are not oriented).
    """

    centers_of_location: Tensor
    sample_of_location: Tensor
    is_coarse: Tensor
    class_logits: Tensor
    boxes: Tensor


class BoxHead(nn.Module):
    """Features of two neighbouring levels of the decoder to boxes and classes.

    Coarse locations are the voxels of the coarse level. Fine ones are all children of those, occupied or not: the
    middle of a thing is often where no surface is. Plain tensors in and out, no weight that depends on the number of
    labels, and a gradient for every weight also without any voxel: under ZeRO-3 it is a leaf, as Text4Point.
    """

    gathered_whole = True  # at ZeRO 3: see t4p.tasks.job

    def __init__(
        self,
        fine_channels: int,
        coarse_channels: int,
        hidden_channels: int,
        clip_dim: int,
        norm: NormFactory,
        *,
        oriented: bool,
        logit_scale: float,
        coarse_voxel_size: float,
        sparse_backend: SparseBackend,
    ) -> None:
        """
        Args:
            fine_channels, coarse_channels: of the decoder's features.
            hidden_channels: width of both levels before the outputs, which they share.
            clip_dim: d, the width of CLIP's joint space.
            oriented: boxes turn about the vertical.
            logit_scale: 1 / temperature of the cosines to begin with; it is learnt.
            coarse_voxel_size: metres, of the coarse level; the fine one has half of it.
        """
        super().__init__()
        self.coarse_voxel_size = coarse_voxel_size
        self.sparse_backend = sparse_backend
        self.coarse_conv = SubmanifoldConv(coarse_channels, hidden_channels, 3)
        self.coarse_norm = norm(hidden_channels)
        self.up = GenerativeUpsample(coarse_channels, hidden_channels)
        self.fine_projection = nn.Linear(fine_channels, hidden_channels, bias=False)
        self.up_norm = norm(hidden_channels)
        self.fine_conv = SubmanifoldConv(hidden_channels, hidden_channels, 3)
        self.fine_norm = norm(hidden_channels)
        # Centre in voxels of the location's level, logarithms of sizes in metres, (sin, cos) of twice the yaw.
        first = [0.0] * 3 + [math.log(FIRST_SIZE)] * 3 + ([0.0, 1.0] if oriented else [])
        self.to_box = nn.Linear(hidden_channels, len(first))
        self.to_embedding = nn.Linear(hidden_channels, clip_dim)
        self.log_logit_scale = nn.Parameter(torch.tensor([math.log(logit_scale)]))
        self.class_bias = nn.Parameter(torch.tensor([-math.log((1 - FIRST_SCORE) / FIRST_SCORE)]))
        nn.init.normal_(self.to_box.weight, std=0.01)
        with torch.no_grad():
            self.to_box.bias.copy_(torch.tensor(first))

    def forward(
        self, coarse_coords: Tensor, coarse: Tensor, fine_coords: Tensor, fine: Tensor, text: Tensor
    ) -> LocatedBoxes:
        """Boxes of both levels.

        Args:
            coarse_coords: (V_c, 4) int32 canonical, in cells of the coarse level.
            coarse: (V_c, coarse_channels).
            fine_coords: (V_f, 4) int32 canonical, in cells of the fine level, each within a voxel of the coarse one.
            fine: (V_f, fine_channels).
            text: (K, d) unit-norm.

        Returns:
            V_c + 8 V_c locations, in float32 at least, whatever the caller's autocast.

        Raises:
            ValueError: a fine voxel lies in no coarse one.
        """
        pyramid = build_pyramid(self.sparse_backend, coarse_coords, 1)
        of_coarse = F.relu(self.coarse_norm(self.coarse_conv(pyramid, coarse, 0)))
        generated_coords, of_fine = self._refine(pyramid, coarse, fine_coords, fine)
        features = torch.cat([of_coarse, of_fine])
        coords = torch.cat([coarse_coords, generated_coords])
        is_coarse = torch.arange(len(coords), device=coords.device) < len(coarse_coords)
        voxel_size_of_level = features.new_tensor([self.coarse_voxel_size / 2, self.coarse_voxel_size])
        voxel_sizes = voxel_size_of_level[is_coarse.long(), None]
        with torch.autocast(features.device.type, enabled=False):
            centers = (coords[:, 1:].to(features.dtype) + 0.5) * voxel_sizes
            boxes = self._boxes(self.to_box(features), centers, voxel_sizes)
            class_logits = self._class_logits(features, text)
            return LocatedBoxes(centers, coords[:, 0].long(), is_coarse, class_logits, boxes)

    def _refine(
        self, pyramid: SparsePyramid, coarse: Tensor, fine_coords: Tensor, fine: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Coordinates (8 V_c, 4) and features (8 V_c, hidden_channels) of the children of all coarse voxels."""
        children, generated = self.up(pyramid, coarse, 0)
        coords = children.coords(0)
        rows = _rows_of(fine_coords, coords)
        features = generated.index_add(0, rows, self.fine_projection(fine).to(generated.dtype))
        features = F.relu(self.up_norm(features))
        return coords, F.relu(self.fine_norm(self.fine_conv(children, features, 0)))

    def _class_logits(self, features: Tensor, text: Tensor) -> Tensor:
        """(L, K) of features (L, hidden_channels); without gradients some at a time: embeddings are CLIP's width."""
        blocks = (features,) if torch.is_grad_enabled() else features.split(BLOCK_LOCATIONS)
        scale = self.log_logit_scale.exp()
        cosines = torch.cat([compare_with_text(self.to_embedding(block), text, scale) for block in blocks])
        return cosines + self.class_bias

    def _boxes(self, raw: Tensor, centers: Tensor, voxel_sizes: Tensor) -> Tensor:
        """(L, 7) of what to_box says, (L, 6 or 8)."""
        middles = centers + raw[:, :3] * voxel_sizes
        sizes = raw[:, 3:6].clamp(*LOG_SIZES).exp()
        # Of twice the yaw, so that a box and the same box half a turn on are one.
        yaw = torch.atan2(raw[:, 6:7], raw[:, 7:8]) / 2 if raw.shape[1] == 8 else torch.zeros_like(raw[:, :1])
        return torch.cat([middles, sizes, yaw], dim=1)


@torch.no_grad()
def propose(
    located: LocatedBoxes, sample_index: int, max_locations: int = 1000, score_threshold: float = 0.01
) -> tuple[Tensor, Tensor, Tensor]:
    """What the locations of one sample suggest, before boxes of the same thing suppress each other.

    Args:
        max_locations: so many with the highest score of any class suggest something.
        score_threshold: of a class at a location, to be one of its suggestions.

    Returns:
        boxes: (n, 7).
        class_ids: (n,) int64 columns of the class logits; a location may suggest several.
        scores: (n,) in (score_threshold, 1].
    """
    rows = (located.sample_of_location == sample_index).nonzero()[:, 0]
    scores = located.class_logits[rows].sigmoid()
    best = scores.amax(1).sort(descending=True, stable=True).indices[:max_locations]
    location, class_ids = (scores[best] > score_threshold).nonzero(as_tuple=True)
    return located.boxes[rows[best[location]]], class_ids, scores[best[location], class_ids]


def _rows_of(voxel_coords: Tensor, among: Tensor) -> Tensor:
    """(V,) int64 rows of voxels (V, 4) in canonical coordinates that hold all of them.

    Raises:
        ValueError: names the first that is not there.
    """
    grid = KeyGrid.around(torch.cat([among, voxel_coords]), margin=0)
    keys, wanted = grid.keys(among), grid.keys(voxel_coords)
    rows = torch.searchsorted(keys, wanted)
    missing = torch.cat([keys, keys.new_full((1,), -1)])[rows] != wanted  # -1 is no voxel's key
    if missing.any():
        voxel = voxel_coords[int(missing.nonzero()[0])].tolist()
        raise ValueError(
            f"the fine voxel {voxel} (batch, x, y, z) lies in no voxel of the coarse level; pass the coordinates of "
            "two neighbouring levels of one pyramid"
        )
    return rows
