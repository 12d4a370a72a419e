"""The proof of a posed reader: depth of one frame, carried into another by the poses, is the depth seen there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards.schema import Frame, check_frame

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])


def disagreement(first: Frame, second: Frame, first_pose: np.ndarray, second_pose: np.ndarray) -> np.ndarray:
    """Relative errors of depth, of the points of `first` that `second` sees."""
    depths = [check_frame(frame, "here") / frame.depth_scale for frame in (first, second)]
    rows, columns = np.nonzero(depths[0])
    z = depths[0][rows, columns]
    K = first.K_depth
    points = np.stack([(columns - K[0, 2]) / K[0, 0] * z, (rows - K[1, 2]) / K[1, 1] * z, z, np.ones_like(z)])
    x, y, z, _ = np.linalg.inv(second_pose) @ first_pose @ points
    ahead = z > 0.1
    K = second.K_depth
    u = np.rint(K[0, 0] * x[ahead] / z[ahead] + K[0, 2]).astype(int)
    v = np.rint(K[1, 1] * y[ahead] / z[ahead] + K[1, 2]).astype(int)
    inside = (u >= 0) & (v >= 0) & (u < depths[1].shape[1]) & (v < depths[1].shape[0])
    seen, told = depths[1][v[inside], u[inside]], z[ahead][inside]
    return np.abs(told[seen > 0] - seen[seen > 0]) / seen[seen > 0]


def proof(frames: Sequence[Frame], step: int = 1) -> dict[str, tuple[float, float]]:
    """(median error, share within 5 %) of frames `step` apart, as they are, inverted, and with turned axes."""
    found = {}
    for name in ("right", "inverted", "flipped"):
        errors = []
        for first, second in zip(frames, frames[step:], strict=False):
            assert first.world_from_camera is not None
            assert second.world_from_camera is not None
            poses = [first.world_from_camera, second.world_from_camera]
            if name == "inverted":
                poses = [np.linalg.inv(pose) for pose in poses]
            if name == "flipped":
                poses = [pose @ FLIP for pose in poses]
            errors.append(disagreement(first, second, *poses))
        every = np.concatenate(errors)
        found[name] = (float(np.median(every)), float((every < 0.05).mean())) if len(every) else (np.inf, 0.0)
    return found
