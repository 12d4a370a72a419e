"""What is drawn for a whole frame or scene: how it is placed and tinted, where the grid lies, what it goes without."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t4p.config.data import AugmentConfig, DropFeaturesConfig
from t4p.data.draws import sample_rng


@dataclass(frozen=True, eq=False)
class Placement:
    """One sample's draws.

    Attributes:
        matrix: (4, 4) float64 similarity about the vertical through the origin.
        grid_shift: (3,) of a voxel, in [0, 1).
        tint: (3,) added to all colours, of the size of the jitter.
        jitter: standard deviation of the colour of a single point about that, in [0, 1].
        dropped: features of points that are 0 in all voxels (t4p/data/transforms.py).
    """

    matrix: NDArray[np.float64]
    grid_shift: tuple[float, float, float]
    tint: tuple[float, float, float]
    jitter: float
    dropped: tuple[str, ...] = ()


AS_RECORDED = Placement(np.eye(4), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0)


def draw_placement(
    settings: AugmentConfig | None, seed: int, epoch: int, key: str, drop_features: DropFeaturesConfig
) -> Placement:
    """Draw for one sample; without settings it stays as it was recorded, and nothing is dropped.

    The draws are made in a fixed order whatever is switched on, so that one setting does not change the others' draws.
    """
    if settings is None:
        return AS_RECORDED
    rng = sample_rng(seed, epoch, key, "augment")
    angle = rng.uniform(0, 2 * np.pi)
    mirrored = rng.random() < 0.5
    scale = 1 + settings.scale * rng.uniform(-1, 1)
    tint = rng.standard_normal(3)
    linear = np.eye(4)
    linear[:3, :3] *= scale
    if settings.rotation:
        cos, sin = np.cos(angle), np.sin(angle)
        linear = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ linear
    if settings.mirror and mirrored:
        linear = linear @ np.diag([-1.0, 1.0, 1.0, 1.0])
    shift = sample_rng(seed, epoch, key, "grid").random(3)
    shares = dict(drop_features)
    draws = sample_rng(seed, epoch, key, "drop").random(len(shares))
    return Placement(
        linear,
        tuple(shift.tolist()),
        tuple((settings.color_jitter * tint).tolist()),
        settings.color_jitter,
        tuple(name for (name, share), draw in zip(shares.items(), draws, strict=True) if draw < share),
    )
