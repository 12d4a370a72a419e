"""Frames of ARKit of our own writing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from arkit_layouts import ArkitFrame
from PIL import Image

from shards.images import encode_depth


@pytest.fixture
def made(tmp_path: Path) -> list[ArkitFrame]:
    """Four frames of our own writing."""
    rng = np.random.default_rng(0)
    frames = []
    for place in range(4):
        color, depth = tmp_path / f"{place}.jpg", tmp_path / f"{place}.png"
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(color)
        depth.write_bytes(encode_depth(rng.integers(500, 4000, (24, 32)).astype(np.uint16)))
        pose = np.eye(4)
        pose[:3, 3] = (place, 2, 3)
        K = np.array([[80.0, 0, 40], [0, 80, 30], [0, 0, 1]])
        confidence = rng.integers(0, 3, (24, 32))
        frames.append(ArkitFrame(color, depth, confidence, K, (80, 60), pose, 9.5 + place))
    return frames
