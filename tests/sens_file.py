"""Writes ScanNet's .sens from its published layout, for tests."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class SensFrame:
    """One frame: encoded colour, (H, W) uint16 depth, (4, 4) world from camera, stamps in microseconds."""

    color: bytes
    depth: np.ndarray
    pose: np.ndarray
    stamps: tuple[int, int] = (0, 0)


@dataclass
class SensFile:
    """All of a file; `codings` are numbers of the format: colour 1 png, 2 jpeg; depth 0 raw, 1 zlib, 2 occi."""

    frames: Sequence[SensFrame]
    K_color: np.ndarray
    K_depth: np.ndarray
    color_size: tuple[int, int]
    version: int = 4
    codings: tuple[int, int] = (2, 1)
    depth_scale: float = 1000.0
    name: bytes = b"StructureSensor"
    extrinsics: tuple[np.ndarray, np.ndarray] = field(default_factory=lambda: (np.eye(4), np.eye(4)))

    def write(self, path: Path) -> list[int]:
        """Write it; where each frame begins."""
        height, width = self.frames[0].depth.shape
        pieces = [struct.pack("<IQ", self.version, len(self.name)), self.name]
        for K, extrinsics in zip((self.K_color, self.K_depth), self.extrinsics, strict=True):
            whole = np.eye(4, dtype="<f4")
            whole[:3, :3] = K
            pieces += [whole.tobytes(), extrinsics.astype("<f4").tobytes()]
        sizes = (*self.color_size, width, height)
        pieces.append(struct.pack("<2i4IfQ", *self.codings, *sizes, self.depth_scale, len(self.frames)))
        starts = []
        for frame in self.frames:
            depth = frame.depth.astype("<u2").tobytes()
            depth = zlib.compress(depth) if self.codings[1] == 1 else depth
            starts.append(sum(map(len, pieces)))
            pieces.append(frame.pose.astype("<f4").tobytes())
            pieces.append(struct.pack("<4Q", *frame.stamps, len(frame.color), len(depth)))
            pieces += [frame.color, depth]
        if self.version == 4:
            pieces.append(struct.pack("<Q", 1) + bytes(128))  # readings of the inertial unit
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(pieces))
        return starts
