"""Frames made here, and a model for them (overrides of configs/smoke.yaml): for tests that need no shards."""

import numpy as np

from t4p.data.decode import DecodedFrame

WALL_OVERRIDES = [
    "data.shards=[a]",
    "data.image_size=[96, 128]",
    "model.voxel_size=0.08",
    "model.unet.encoder_channels=[16, 24]",
    "model.unet.decoder_channels=[24, 16]",
    "model.unet.stem_channels=16",
    "loss.num_pairs_e=40",
    "loss.num_pairs_d=60",
]


def make_frame(seed: int) -> DecodedFrame:
    """A bumpy wall about 2 m ahead with random blocks of colour."""
    rng = np.random.default_rng(seed)
    color = np.kron(rng.integers(0, 255, (12, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    depth = np.kron(2000 + 300 * rng.random((6, 8)), np.ones((16, 16))).astype(np.uint16)
    depth[rng.random(depth.shape) < 0.1] = 0
    K = np.array([[110.0, 0, 63.5], [0, 110.0, 47.5], [0, 0, 1]])
    return DecodedFrame(color, depth, 1000.0, K, K, np.eye(4), None)
