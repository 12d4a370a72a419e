"""Exact ray casting: which surface a ray meets first, how far away, and the normal there. Sums and products in float64.

Every solid is a unit solid (cube, cylinder or ball of half extent 1) after a turn about z and a scaling of its axes, so
a ray is taken there, cut with the unit solid, and its parameter needs no way back. A solid is only tried on the pixels
its bounding box can cover; normals are worked out once, for the winners. Nothing goes through BLAS: its last digits
depend on the number of threads, and with them the packed bytes would.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.schema import Matrix
from shards.synthetic.furniture import Shape
from shards.synthetic.room import NUM_FACES, Room, Solids

Array = NDArray[np.float64]

_TINY = 1e-12  # a direction's component nearer to 0 counts as this: parallel to a face, it never meets it
_NEAR = 0.02  # metres; a box that reaches nearer to the plane of the camera is tried on every pixel
# Signs of the eight corners of a box.
_CORNERS = np.array([(x, y, z) for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])


@dataclass(frozen=True, eq=False)
class Hits:
    """What rays from inside a room meet first. `...` is the shape of the bundle of rays.

    Attributes:
        distance: (...) in lengths of the ray's direction.
        surface: (...) int64 surface of the room.
    """

    distance: Array
    surface: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Render:
    """A noise-free view of a room.

    Attributes:
        depth: (H, W) metres along the optical axis, above 0 everywhere: a room is closed.
        normals: (H, W, 3) unit, world, on the camera's side.
        semantic: (H, W) uint8 positions in LABEL_NAMES.
        instance: (H, W) uint16 instance ids, 0 for walls, floor and ceiling.
        surface: (H, W) int64 surface of the room.
        surface_points: (H, W, 3) metres, in the frame of the surface: the middle of its solid (or of the room's floor)
            is the origin, the axes turn with the piece.
        cos_incidence: (H, W) cosine between the normal and the way back to the camera, 0 to 1.
    """

    depth: Array
    normals: Array
    semantic: NDArray[np.uint8]
    instance: NDArray[np.uint16]
    surface: NDArray[np.int64]
    surface_points: Array
    cos_incidence: Array


def intrinsics_of_size(width: int, height: int) -> Matrix:
    """K (3, 3), pixels, of the camera that takes the rooms: 61 degrees wide, whatever its resolution."""
    focal = 0.85 * width
    return np.array([[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]])


def render(room: Room, K: Matrix, width: int, height: int, world_from_camera: Matrix) -> Render:
    """Cast a ray through the centre of every pixel.

    Args:
        room: the camera must be inside of it and outside of its furniture.
        K: (3, 3) pixels, without skew.
        width: width of the image, pixels.
        height: height of the image, pixels.
        world_from_camera: (4, 4) rigid; camera axes x right, y down, z ahead.
    """
    directions = _pixel_rays(K, width, height, world_from_camera)
    origin = world_from_camera[:3, 3]
    hits = cast_rays(room, origin, directions, _windows(room.solids, K, width, height, world_from_camera))
    normals, surface_points = _surface_geometry(room, origin, directions, hits)
    along = -(normals[..., 0] * directions[0] + normals[..., 1] * directions[1] + normals[..., 2] * directions[2])
    length = np.sqrt(directions[0] ** 2 + directions[1] ** 2 + directions[2] ** 2)
    return Render(
        depth=hits.distance,  # the directions reach 1 metre along the optical axis
        normals=normals,
        semantic=room.label_of_surface[hits.surface],
        instance=room.instance_of_surface[hits.surface],
        surface=hits.surface,
        surface_points=surface_points,
        cos_incidence=along / length,
    )


def cast_rays(room: Room, origin: Array, directions: Array, windows: NDArray[np.int64] | None = None) -> Hits:
    """Find what each ray meets first.

    Args:
        room: origin must be inside of it and outside of its solids, which cannot be seen from within.
        origin: (3,) metres, world, of all rays.
        directions: (3, H, W) world, any length but 0.
        windows: (P, 4) first row, end row, first column, end column of the rays that solid p may meet; None tries all.

    Returns:
        Hits of shape (H, W).
    """
    distance, surface = _meet_faces(room, origin, directions)
    solids = room.solids
    num_rows, num_columns = distance.shape
    if windows is None:
        windows = np.tile(np.array([0, num_rows, 0, num_columns]), (len(solids.shape), 1))
    meet = {Shape.BOX: _meet_cube, Shape.CYLINDER: _meet_cylinder, Shape.ELLIPSOID: _meet_ball}
    offsets = origin - solids.center
    for p, (top, bottom, left, right) in enumerate(windows.tolist()):
        if top >= bottom or left >= right:
            continue
        view = (slice(top, bottom), slice(left, right))
        turn = (float(solids.cos_yaw[p]), float(solids.sin_yaw[p]))
        scale = solids.half_size[p].tolist()
        start = _to_unit(offsets[p].tolist(), turn, scale)
        ray = _to_unit((directions[0][view], directions[1][view], directions[2][view]), turn, scale)
        found = meet[Shape(int(solids.shape[p]))](start, ray)
        nearer = (found > 0) & (found < distance[view])
        np.copyto(distance[view], found, where=nearer)
        np.copyto(surface[view], NUM_FACES + p, where=nearer)
    return Hits(distance, surface)


def _pixel_rays(K: Matrix, width: int, height: int, world_from_camera: Matrix) -> Array:
    """(3, H, W) world directions whose component along the optical axis is 1."""
    x = ((np.arange(width) - K[0, 2]) / K[0, 0])[None, :]
    y = ((np.arange(height) - K[1, 2]) / K[1, 1])[:, None]
    rotation = world_from_camera[:3, :3]
    return np.stack([rotation[i, 0] * x + rotation[i, 1] * y + rotation[i, 2] for i in range(3)])


def _windows(solids: Solids, K: Matrix, width: int, height: int, world_from_camera: Matrix) -> NDArray[np.int64]:
    """(P, 4) the rows and columns, ends excluded, that the bounding box of each solid can cover."""
    cos, sin = solids.cos_yaw[:, None], solids.sin_yaw[:, None]
    corners = _CORNERS[None] * solids.half_size[:, None]
    world = np.stack(
        [
            solids.center[:, None, 0] + cos * corners[..., 0] - sin * corners[..., 1],
            solids.center[:, None, 1] + sin * corners[..., 0] + cos * corners[..., 1],
            solids.center[:, None, 2] + corners[..., 2],
        ],
        axis=-1,
    )
    offset = world - world_from_camera[:3, 3]
    rotation = world_from_camera[:3, :3]
    x, y, z = (
        offset[..., 0] * rotation[0, i] + offset[..., 1] * rotation[1, i] + offset[..., 2] * rotation[2, i]
        for i in range(3)
    )
    safe = np.maximum(z, _NEAR)
    columns, rows = x / safe * K[0, 0] + K[0, 2], y / safe * K[1, 1] + K[1, 2]
    windows = np.stack(
        [
            np.clip(np.floor(rows.min(axis=1)), 0, height),
            np.clip(np.ceil(rows.max(axis=1)) + 1, 0, height),
            np.clip(np.floor(columns.min(axis=1)), 0, width),
            np.clip(np.ceil(columns.max(axis=1)) + 1, 0, width),
        ],
        axis=1,
    ).astype(np.int64)
    windows[z.min(axis=1) < _NEAR] = [0, height, 0, width]
    windows[z.max(axis=1) < 0] = 0  # behind the camera
    return windows


def _to_unit(vector: tuple | list, turn: tuple[float, float], scale: list[float]) -> tuple:
    """World vector (three numbers or three arrays) in the axes of a unit solid."""
    (x, y, z), (cos, sin) = vector, turn
    return (
        x * (cos / scale[0]) + y * (sin / scale[0]),
        y * (cos / scale[1]) - x * (sin / scale[1]),
        z * (1 / scale[2]),
    )


def _away_from_zero(component: Array) -> Array:
    return np.where(np.abs(component) < _TINY, _TINY, component)


def _meet_faces(room: Room, origin: Array, directions: Array) -> tuple[Array, NDArray[np.int64]]:
    """Distance to the room's inner faces, and which one a ray meets."""
    components = [_away_from_zero(directions[axis]) for axis in range(3)]
    ends = [
        np.where(component > 0, room.high[axis] - origin[axis], room.low[axis] - origin[axis]) / component
        for axis, component in enumerate(components)
    ]
    distance = np.minimum(np.minimum(ends[0], ends[1]), ends[2])
    axis = np.where(ends[0] == distance, 0, np.where(ends[1] == distance, 1, 2))
    positive = np.where(axis == 0, components[0] > 0, np.where(axis == 1, components[1] > 0, components[2] > 0))
    return distance, 2 * axis + positive


def _slab(start: float, component: Array) -> tuple[Array, Array]:
    """Where a ray enters and leaves the slab from -1 to 1."""
    inverse = 1 / _away_from_zero(component)
    middle = -start * inverse
    half = np.abs(inverse)
    return middle - half, middle + half


def _meet_cube(start: tuple, ray: tuple) -> Array:
    near, far = _slab(start[0], ray[0])
    for axis in (1, 2):
        axis_near, axis_far = _slab(start[axis], ray[axis])
        near, far = np.maximum(near, axis_near), np.minimum(far, axis_far)
    return np.where(near <= far, near, np.inf)


def _meet_cylinder(start: tuple, ray: tuple) -> Array:
    near, far = _meet_quadric(start[:2], ray[:2])
    cap_near, cap_far = _slab(start[2], ray[2])
    near, far = np.maximum(near, cap_near), np.minimum(far, cap_far)
    return np.where(near <= far, near, np.inf)


def _meet_ball(start: tuple, ray: tuple) -> Array:
    near, _ = _meet_quadric(start, ray)
    return near


def _meet_quadric(start: tuple, ray: tuple) -> tuple[Array, Array]:
    """Where a ray enters and leaves the unit circle (two components) or ball (three); (inf, -inf) where it misses."""
    square, mixed = ray[0] * ray[0], start[0] * ray[0]
    constant = start[0] * start[0] - 1
    for offset, component in zip(start[1:], ray[1:], strict=True):
        square, mixed = square + component * component, mixed + offset * component
        constant += offset * offset
    square = np.maximum(square, _TINY**2)
    discriminant = mixed * mixed - square * constant
    root = np.sqrt(np.maximum(discriminant, 0.0))
    meets = discriminant > 0
    return np.where(meets, (-mixed - root) / square, np.inf), np.where(meets, (-mixed + root) / square, -np.inf)


def _surface_geometry(room: Room, origin: Array, directions: Array, hits: Hits) -> tuple[Array, Array]:
    """Normals (world, unit) and points in the frame of the surface, (H, W, 3) each."""
    x, y, z = (origin[axis] + hits.distance * directions[axis] for axis in range(3))
    normals = np.zeros((*hits.surface.shape, 3))
    points = np.stack([x, y, z], axis=-1)
    for face in range(NUM_FACES):
        axis, positive = divmod(face, 2)
        normals[..., axis][hits.surface == face] = -1.0 if positive else 1.0
    on_solid = hits.surface >= NUM_FACES
    solid = hits.surface[on_solid] - NUM_FACES
    solids = room.solids
    cos, sin, half_size = solids.cos_yaw[solid], solids.sin_yaw[solid], solids.half_size[solid]
    offset = points[on_solid] - solids.center[solid]
    local = np.stack(
        [cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0], offset[:, 2]], axis=1
    )
    points[on_solid] = local
    normal = _local_normals(solids.shape[solid], local, half_size)
    normals[on_solid] = np.stack(
        [cos * normal[:, 0] - sin * normal[:, 1], sin * normal[:, 0] + cos * normal[:, 1], normal[:, 2]], axis=1
    )
    return normals, points


def _local_normals(shape: NDArray[np.uint8], local: Array, half_size: Array) -> Array:
    """(N, 3) outward unit normals at points on the surface of solids, in the axes of the solids."""
    unit = local / half_size
    normal = unit / half_size  # the gradient of an ellipsoid; of a cylinder, with its upright component 0
    cap = np.abs(unit[:, 2]) - 1 > np.sqrt(unit[:, 0] ** 2 + unit[:, 1] ** 2) - 1
    is_cylinder = shape == Shape.CYLINDER
    normal[is_cylinder & ~cap, 2] = 0
    flat_axis = np.where(shape == Shape.BOX, np.abs(unit).argmax(axis=1), np.where(is_cylinder & cap, 2, -1))
    for axis in range(3):
        on_axis = flat_axis == axis
        normal[on_axis] = 0
        normal[on_axis, axis] = np.sign(unit[on_axis, axis])
    return normal / np.sqrt((normal**2).sum(axis=1, keepdims=True))
