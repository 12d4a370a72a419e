"""Where the camera goes: round a closed curve in free space, its gaze drawn from object to object.

The path does not depend on how many frames are taken of it: frame i is the same in a dataset of 4 frames a room and of
400. The curve is an ellipse; the gaze turns with it, inwards or outwards, and leans towards the objects near its way.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shards.schema import Matrix
from shards.synthetic.draws import DECIMALS, Purpose, generator
from shards.synthetic.room import FREE_RADIUS, Room

CLEARANCE = 0.3  # metres from the camera to the nearest piece of furniture, wall, floor or ceiling
MAX_TURN = math.radians(24)  # of the gaze between two frames: less than half of the field of view
_TRIES = 40
_ATTRACTION = 3.0  # how sharply the gaze prefers objects near its nominal direction
_NOMINAL_WEIGHT = 0.3  # of that direction itself, beside the objects
_MAX_SLOPE = 0.9  # of the gaze, up or down
_NUM_CHECKED = 90  # positions on the curve


@dataclass(frozen=True, eq=False)
class CameraPath:
    """A closed curve through a room and a gaze along it.

    Attributes:
        center: (3,) metres, world.
        radius: (2,) of the ellipse along x and y, metres.
        height_swing: amplitude of the height, metres.
        first_phase: phase of frame 0, radians.
        phase_step: from frame to frame, radians; negative goes clockwise.
        gaze_offset: nominal direction of the gaze minus the phase, radians: 0 looks outwards, pi inwards.
        lift: (2,) how much the gaze is raised on the mean, and by how much more or less on the way, before it is made
            a unit vector; the objects alone would keep ceilings out of sight.
        roll_swing: amplitude of the roll, radians.
        targets: (n, 3) points worth looking at, metres, world.
    """

    center: NDArray[np.float64]
    radius: NDArray[np.float64]
    height_swing: float
    first_phase: float
    phase_step: float
    gaze_offset: float
    lift: tuple[float, float]
    roll_swing: float
    targets: NDArray[np.float64]

    def world_from_camera(self, frame_index: int) -> Matrix:
        """(4, 4) rigid pose of a frame; camera axes x right, y down, z ahead."""
        phase = self.first_phase + frame_index * self.phase_step
        phases = np.array([phase])
        position = self.positions(phases)
        ahead = self.gazes(phases)[0]
        right = np.array([ahead[1], -ahead[0], 0.0])  # ahead x up
        right /= math.sqrt(right[0] ** 2 + right[1] ** 2)
        down = np.cross(ahead, right)
        roll = self.roll_swing * math.sin(2 * phase)
        matrix = np.eye(4)
        matrix[:3, 0] = math.cos(roll) * right + math.sin(roll) * down
        matrix[:3, 1] = math.cos(roll) * down - math.sin(roll) * right
        matrix[:3, 2] = ahead
        matrix[:3, 3] = position[0]
        return matrix.round(DECIMALS)

    def positions(self, phases: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) positions at (n,) phases, metres, world."""
        return self.center + np.stack(
            [
                self.radius[0] * np.cos(phases),
                self.radius[1] * np.sin(phases),
                self.height_swing * np.sin(2 * phases + 1),
            ],
            axis=1,
        )

    def gazes(self, phases: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, 3) unit directions of the optical axis at (n,) phases, world."""
        nominal = np.stack([np.cos(phases + self.gaze_offset), np.sin(phases + self.gaze_offset)], axis=1)
        way = self.targets[None] - self.positions(phases)[:, None]
        distance = np.sqrt((way**2).sum(axis=2))
        level = np.maximum(np.sqrt((way[..., :2] ** 2).sum(axis=2)), 1e-6)
        cos = (way[..., :2] * nominal[:, None]).sum(axis=2) / level
        # Far objects fit into the image: near ones would fill it.
        weight = np.exp(_ATTRACTION * (cos - 1)) * distance**2 / (distance**2 + 1)
        gaze = (weight[..., None] * way / distance[..., None]).sum(axis=1)
        gaze /= np.maximum(weight.sum(axis=1, keepdims=True), 1e-6)
        gaze[:, :2] += _NOMINAL_WEIGHT * nominal
        gaze[:, 2] += self.lift[0] + self.lift[1] * np.sin(phases + self.gaze_offset)
        level = np.maximum(np.sqrt((gaze[:, :2] ** 2).sum(axis=1)), 1e-6)
        gaze[:, :2] /= level[:, None]
        gaze[:, 2] = _MAX_SLOPE * np.tanh(gaze[:, 2] / level / _MAX_SLOPE)
        return gaze / np.sqrt((gaze**2).sum(axis=1, keepdims=True))


def plan_path(room: Room, tour: int = 0) -> CameraPath:
    """A way of the camera through a room; depends on the seed and index of the room and the number of the tour alone.

    Frames are taken on tour 0; more tours see more of the room.
    """
    rng = generator(room.seed, room.room_index, Purpose.PATH, tour)
    targets = np.array([[*one.position, rng.uniform(0.2, 0.7) * one.size[2]] for one in room.objects]).reshape(-1, 3)
    inside_low, inside_high = room.low[:2] + CLEARANCE, room.high[:2] - CLEARANCE
    for attempt in range(_TRIES):
        # Later attempts are smaller, so that crowded rooms get a path as well.
        largest = 1.2 * (1 - attempt / _TRIES) + 0.2
        path = _draw_path(rng, rng.uniform(inside_low, inside_high), rng.uniform(0.2, largest, 2), targets)
        if _is_usable(path, room):
            return path
    # Inside the free spot only the gaze can turn too fast, and it does not once the steps are small.
    small = np.full(2, FREE_RADIUS - CLEARANCE - 0.01)
    slower = 1.0
    while not _is_usable(path, room):
        slower *= 0.9
        path = _draw_path(rng, np.array(room.free_spot), small, targets)
        path = replace(path, phase_step=path.phase_step * slower)
    return path


def clearance(room: Room, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) metres from (n, 3) world points to the nearest box of a piece or face of the room; below 0 outside it."""
    nearest = np.minimum(points - room.low, room.high - points).min(axis=1)
    for one in room.objects:
        cos, sin = one.turn
        x, y = points[:, 0] - one.position[0], points[:, 1] - one.position[1]
        local = np.stack([cos * x + sin * y, cos * y - sin * x, points[:, 2] - one.size[2] / 2], axis=1)
        beyond = np.maximum(np.abs(local) - np.array(one.size) / 2, 0)
        nearest = np.minimum(nearest, np.sqrt((beyond**2).sum(axis=1)))
    return nearest


def _draw_path(
    rng: np.random.Generator, center: NDArray[np.float64], radius: NDArray[np.float64], targets: NDArray[np.float64]
) -> CameraPath:
    inwards = rng.random() < 0.6
    return CameraPath(
        center=np.array([center[0], center[1], rng.uniform(1.2, 1.8)]),
        radius=radius,
        height_swing=rng.uniform(0.0, 0.15),
        first_phase=rng.uniform(0, 2 * math.pi),
        phase_step=math.radians(rng.uniform(9, 15)) * (1 if rng.random() < 0.5 else -1),
        gaze_offset=(math.pi if inwards else 0.0) + rng.uniform(-0.7, 0.7),
        lift=(rng.uniform(-0.3, 0.15), rng.uniform(0.1, 0.6)),
        roll_swing=rng.uniform(0, math.radians(4)),
        targets=targets,
    )


def _is_usable(path: CameraPath, room: Room) -> bool:
    phases = np.linspace(0, 2 * math.pi, _NUM_CHECKED, endpoint=False)
    if clearance(room, path.positions(phases)).min() < CLEARANCE:
        return False
    gazes, next_gazes = path.gazes(phases), path.gazes(phases + path.phase_step)
    turns = np.arccos(np.clip((gazes * next_gazes).sum(axis=1), -1, 1))
    return bool(turns.max() <= MAX_TURN)
