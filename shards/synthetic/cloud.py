"""A whole room as one labelled point cloud: the readings of many views, thinned to one point per voxel.

Points come from the noisy depth, as those of a scanned room would, and only from where a camera looked; labels are
those of the pixel a point was read at, so they are exact although its place is not.
"""

import numpy as np
from numpy.typing import NDArray

from shards.scene import Scene, SceneBox
from shards.synthetic.raycast import Render
from shards.synthetic.room import NUM_FACES
from shards.synthetic.sensor import DEPTH_SCALE
from shards.synthetic.view import View, build_stage, make_view

VOXEL_SIZE = 0.02  # metres
NUM_TOURS = 3  # from one curve, much of a room lies behind its furniture
_PATCH = 1.0  # metres; how far a segment of a wall goes
_STRIDE = 2  # of the steps along a path: neighbours overlap by half and more even so


def make_scene(
    seed: int,
    room_index: int,
    num_frames: int,
    width: int,
    height: int,
    dataset: str,
    scene_id: str,
    furniture: int = 100,
) -> Scene:
    """Fuse `num_frames` views of a room, shared out among NUM_TOURS paths of the camera.

    Boxes are those of the objects that have points, in the order of their instance ids. Segments are those of a perfect
    mesh: they never reach over an edge, and so never from one object to another.
    """
    views = [
        make_view(seed, room_index, _STRIDE * frame, width, height, tour, furniture)
        for tour in range(NUM_TOURS)
        for frame in range((num_frames + NUM_TOURS - 1 - tour) // NUM_TOURS)
    ]
    points = np.concatenate([lift_readings(view) for view in views])
    read = [view.depth > 0 for view in views]
    distance = np.concatenate([view.depth[seen] for view, seen in zip(views, read, strict=True)])
    kept = _one_per_voxel(points, distance)
    instance = np.concatenate([view.exact.instance[seen] for view, seen in zip(views, read, strict=True)])[kept]
    pieces = np.concatenate([_pieces(view.exact)[seen] for view, seen in zip(views, read, strict=True)])[kept]
    present = set(np.unique(instance).tolist())
    return Scene(
        dataset=dataset,
        scene_id=scene_id,
        points=points[kept].astype(np.float32),
        rgb=np.concatenate([view.color[seen] for view, seen in zip(views, read, strict=True)])[kept],
        semantic=np.concatenate([view.exact.semantic[seen] for view, seen in zip(views, read, strict=True)])[kept],
        instance=instance,
        segments=np.unique(pieces, axis=0, return_inverse=True)[1].reshape(-1).astype(np.uint32),
        boxes=tuple(
            SceneBox(one.label, one.world_from_box, one.size)
            for one in build_stage(seed, room_index, furniture=furniture).room.objects
            if one.instance_id in present
        ),
    )


def lift_readings(view: View) -> NDArray[np.float64]:
    """(N, 3) world points, metres, of the pixels with a reading, row by row."""
    rows, columns = np.nonzero(view.depth)
    z = view.depth[rows, columns] / DEPTH_SCALE
    x, y = (columns - view.K[0, 2]) / view.K[0, 0] * z, (rows - view.K[1, 2]) / view.K[1, 1] * z
    pose = view.world_from_camera
    return np.stack([pose[i, 0] * x + pose[i, 1] * y + pose[i, 2] * z + pose[i, 3] for i in range(3)], axis=1)


def _pieces(exact: Render) -> NDArray[np.int64]:
    """(H, W, 7) equal where pixels see one segment: one surface, one direction of its normal, one patch of a wall."""
    directions = np.rint(2 * exact.normals)  # a sixth of a cylinder or so
    patches = np.floor(exact.surface_points / _PATCH + 0.38)  # faces do not lie on their border
    patches[exact.surface >= NUM_FACES] = 0.0
    return np.concatenate([exact.surface[..., None], directions, patches], axis=-1).astype(np.int64)


def _one_per_voxel(points: NDArray[np.float64], distance: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Indexes of the points to keep, in order: of every voxel the one read from nearest, whose noise is least."""
    voxel = np.floor(points / VOXEL_SIZE).astype(np.int64)
    voxel -= voxel.min(axis=0)
    extent = voxel.max(axis=0) + 1
    flat = (voxel[:, 0] * extent[1] + voxel[:, 1]) * extent[2] + voxel[:, 2]
    nearest_first = np.argsort(distance, kind="stable")
    _, first = np.unique(flat[nearest_first], return_index=True)
    return np.sort(nearest_first[first])
