"""What a depth camera makes of exact depth: noise that grows with distance, and holes.

The noise is the axial model of Nguyen, Izadi and Lovell, "Modeling Kinect Sensor Noise for Improved 3D Reconstruction
and Tracking" (3DIMPVT 2012), whose growth with the square of the distance agrees with Khoshelham and Elberink,
"Accuracy and Resolution of Kinect Depth Data" (Sensors 2012). It is independent from pixel to pixel; a real camera's is
not. Labels and boxes stay exact: a hole has a class.
"""

import math

import numpy as np
from numpy.typing import NDArray

from shards.synthetic.raycast import Render

DEPTH_SCALE = 1000.0  # units per metre of packed depth
MIN_RANGE = 0.25  # metres; nearer surfaces give no reading
MAX_RANGE = 6.0  # metres
MIN_COS_INCIDENCE = math.cos(math.radians(84))
_DROPOUT_SHARE = 0.005  # of the pixels, each for itself
_MAX_NUM_SPOTS = 4  # round holes in one image
_SPOT_RADIUS = (0.01, 0.04)  # of the image width
_MAX_RELATIVE_NOISE = 0.03  # of the depth: the term of the angle has a pole at grazing incidence


def noise_deviation(depth: NDArray[np.float64], cos_incidence: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of a reading, metres.

    Args:
        depth: metres along the optical axis.
        cos_incidence: cosine between ray and normal, 0 to 1, of the same shape.
    """
    angle = np.arccos(np.clip(cos_incidence, 0, 1))
    grazing = (angle / np.maximum(math.pi / 2 - angle, 1e-3)) ** 2
    deviation = 0.0012 + 0.0019 * (depth - 0.4) ** 2 + 0.0001 / np.sqrt(depth) * grazing
    return np.minimum(deviation, _MAX_RELATIVE_NOISE * depth)


def sense_depth(render: Render, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Read the depth of a view.

    Returns:
        (H, W) uint16, DEPTH_SCALE units per metre; 0 where there is no reading: beyond the range, at grazing incidence,
        in a few round spots and at single pixels.
    """
    depth = render.depth
    read = depth + noise_deviation(depth, render.cos_incidence) * rng.standard_normal(depth.shape, dtype=np.float32)
    lost = rng.random(depth.shape, dtype=np.float32) < _DROPOUT_SHARE
    lost |= (depth < MIN_RANGE) | (depth > MAX_RANGE) | (render.cos_incidence < MIN_COS_INCIDENCE)
    lost |= _spots(depth.shape[0], depth.shape[1], rng)
    return np.where(lost, 0, np.rint(read * DEPTH_SCALE)).astype(np.uint16)


def _spots(height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    inside = np.zeros((height, width), dtype=bool)
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    for _ in range(int(rng.integers(_MAX_NUM_SPOTS + 1))):
        row, column, radius = rng.uniform(0, height), rng.uniform(0, width), width * rng.uniform(*_SPOT_RADIUS)
        inside |= (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    return inside
