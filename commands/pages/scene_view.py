"""A room seen from outside one corner, from above, through the walls in the way: for the eye, not for scores."""

from __future__ import annotations

import colorsys
import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Structure first, as in every list of labels here (wall, floor, ceiling): quiet, so that furniture stands out.
_STRUCTURE_COLORS = ((214, 212, 206), (234, 220, 190), (186, 192, 200))
_FURNITURE_COLORS = (
    (66, 113, 174),
    (240, 138, 36),
    (216, 68, 74),
    (98, 186, 178),
    (150, 96, 60),
    (56, 142, 60),
    (242, 202, 60),
    (110, 110, 118),
    (86, 196, 236),
    (150, 200, 60),
    (240, 140, 170),
    (126, 78, 162),
)
OTHER_COLOR = (60, 60, 60)  # of points that have none of the labels

CUT_HEIGHT = 2.0  # metres above the floor; what is higher hides the room from above
_WALL_THICKNESS = 0.12  # metres, of the walls that are left out: twice the noise of a depth camera
_FLOOR_THICKNESS = 0.06  # metres; below it nothing hides anything, so the floor reaches to the walls left out
_OUTLIERS = 0.2  # per cent of the points at either end of an axis that do not count as the room
_STRAYS = 0.05  # per cent of the points drawn, on every side, that may lie outside the picture
_LOOKING_DOWN = math.radians(38)
_FROM_AXIS = math.radians(35)  # of the longer side of the room: the corner is not quite in the middle of the picture
_DISTANCE = 2.6  # of the camera from the middle, in half diagonals of the room
_MARGIN = 0.04  # of the picture, on every side
_SUBPIXELS = 2  # a picture is drawn this much larger in both directions, then reduced: smooth edges
_SPLAT_SPACINGS = 1.9  # width of a splat in distances between neighbours: above sqrt(2), so that a surface is closed
_MAX_SPLAT = 24  # subpixels
_CELL = 0.1  # metres, of space: its points tell how dense they lie and which way their surface faces
_LIGHT_OF_AXIS = (0.92, 0.84, 1.0)  # of surfaces that face along x, y, z: as under a window at one end
# Shading, in logarithms of depth: what counts as level, the step that counts in full, and how dark that is.
_NOISE = 0.006
_EDGE = 0.05
_SHADE = 7.0


@dataclass(frozen=True, eq=False)
class RoomView:
    """Which point of a room every pixel of a picture shows: built once, drawn in as many colours as wanted.

    Attributes:
        num_points: points of the cloud, those that are not shown included.
        point_of_pixel: (S H, S W) int64 with S = _SUBPIXELS, index of the point shown; num_points where there is none.
        light: (S H, S W) float32 in (0, 1], what the colour is multiplied with.
    """

    num_points: int
    point_of_pixel: NDArray[np.int64]
    light: NDArray[np.float32]

    @classmethod
    def of(cls, points: NDArray[np.floating], width: int = 640, height: int = 480) -> RoomView:
        """Place the camera, outside the corner from which most of the points are seen.

        The room is taken for a box along the axes of the world. Left out are the points above CUT_HEIGHT, and those on
        the two sides of the box that face the camera; in a room that is turned against the axes, walls stay in sight.

        Args:
            points: (N, 3) metres, world, z up.
            width, height: size of the pictures, pixels.

        Raises:
            ValueError: not (N, 3), no points, or a coordinate that is not finite.
        """
        corners = [_turned(_check_points(points), quarters) for quarters in range(4)]
        seen = [len(np.unique(_look(corner, width // 2, height // 2)[0])) for corner in corners]
        best = corners[int(np.argmax(seen))]
        point_of_pixel, depth = _look(best, width * _SUBPIXELS, height * _SUBPIXELS)
        light = np.append(_slope_light(best), 1.0)[point_of_pixel] * _edge_light(depth)
        return cls(len(points), point_of_pixel, light.astype(np.float32))

    def draw(self, colors: NDArray[np.uint8]) -> bytes:
        """A PNG of the room.

        Args:
            colors: (N, 3) uint8, of the points the view was built of.

        Raises:
            ValueError: colours of another shape or type.
        """
        if colors.shape != (self.num_points, 3) or colors.dtype != np.uint8:
            raise ValueError(
                f"colors are {colors.dtype} {colors.shape}; wanted uint8 {(self.num_points, 3)}, one of every point"
            )
        white = np.full((1, 3), 255, np.uint8)
        pixels = np.concatenate([colors, white])[self.point_of_pixel] * self.light[..., None]
        image = Image.fromarray(pixels.round().astype(np.uint8)).reduce(_SUBPIXELS)
        out = io.BytesIO()
        image.save(out, format="png", optimize=True)
        return out.getvalue()


def label_palette(num_labels: int) -> NDArray[np.uint8]:
    """(K, 3) a colour for every label, the same in every picture; the first three are wall, floor and ceiling.

    Unlike `t4p shards show`, which draws ids of any dataset, this knows which labels are structure.
    """
    named = [*_STRUCTURE_COLORS, *_FURNITURE_COLORS][:num_labels]
    # Golden-ratio hues: neighbours in the list look different.
    more = [
        colorsys.hsv_to_rgb((0.618034 * index) % 1.0, (0.8, 0.5)[index % 2], (0.6, 0.85)[index // 2 % 2])
        for index in range(len(named), num_labels)
    ]
    return np.array([*named, *(np.array(more) * 255)]).reshape(num_labels, 3).astype(np.uint8)


def color_labels(labels: NDArray[np.integer], num_labels: int) -> NDArray[np.uint8]:
    """(N, 3) the palette's colour of every point, OTHER_COLOR where its label is none of 0 to num_labels - 1.

    Args:
        labels: (N,) indices of labels.
    """
    colors = np.concatenate([label_palette(num_labels), np.array([OTHER_COLOR], np.uint8)])
    return colors[np.where((labels >= 0) & (labels < num_labels), labels, num_labels)]


def _check_points(points: NDArray[np.floating]) -> NDArray[np.float64]:
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points have shape {points.shape}; wanted (N, 3)")
    if not len(points):
        raise ValueError("the room has no points, so there is nothing to draw; give a scene with at least one")
    if num_broken := np.count_nonzero(~np.isfinite(points).all(axis=1)):
        raise ValueError(f"{num_broken} of {len(points)} points have a coordinate that is not finite; drop them first")
    return points.astype(np.float64)


def _turned(points: NDArray[np.float64], quarters: int) -> NDArray[np.float64]:
    """Points turned about z by quarter turns: the camera always stands at the low end of x and y."""
    for _ in range(quarters):
        points = np.stack([points[:, 1], -points[:, 0], points[:, 2]], axis=1)
    return points


def _look(points: NDArray[np.float64], width: int, height: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(H, W) index of the point that a pixel shows, N where there is none, and its depth in metres, inf there."""
    kept = np.flatnonzero(_in_sight(points))
    columns, rows, depth, focal_length = _project(points[kept], width, height)
    splat = _SPLAT_SPACINGS * _spacing(points[kept]) * focal_length / depth
    nearest = _nearest(columns, rows, depth, splat, (height, width))
    return np.append(kept, len(points))[nearest], np.append(depth, np.inf)[nearest]


def _in_sight(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) whether a point is drawn: not too high, and on neither of the sides that face the camera."""
    low, high = np.percentile(points, [_OUTLIERS, 100 - _OUTLIERS], axis=0)
    thickness = np.minimum(_WALL_THICKNESS, 0.05 * (high - low))  # a thin cloud is not all wall
    above_floor = points[:, 2] - low[2]
    behind_walls = (points[:, :2] >= (low + thickness)[:2]).all(axis=1)
    inside = (points >= low - _WALL_THICKNESS).all(axis=1) & (points <= high + _WALL_THICKNESS).all(axis=1)
    return inside & (above_floor <= CUT_HEIGHT) & (behind_walls | (above_floor <= _FLOOR_THICKNESS))


def _project(
    points: NDArray[np.float64], width: int, height: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Columns and rows in a picture that the points fill, their depths in metres, and the focal length in pixels."""
    low, high = points.min(axis=0), points.max(axis=0)
    radius = max(float(np.linalg.norm(high - low)) / 2, 1e-3)
    side = _FROM_AXIS if high[0] - low[0] <= high[1] - low[1] else math.pi / 2 - _FROM_AXIS
    ahead = np.array([math.cos(side), math.sin(side), 0.0]) * math.cos(_LOOKING_DOWN)
    ahead[2] = -math.sin(_LOOKING_DOWN)
    right = np.array([math.sin(side), -math.cos(side), 0.0])
    x, y, z = np.stack([right, np.cross(ahead, right), ahead]) @ (points - (low + high) / 2).T
    depth = z + _DISTANCE * radius
    x, y = x / depth, y / depth
    # The principal point and the focal length follow from the points: the room fills the picture.
    (left, top), (end, bottom) = np.percentile([x, y], [_STRAYS, 100 - _STRAYS], axis=1)
    across, down = max(end - left, 1e-6), max(bottom - top, 1e-6)
    scale = (1 - 2 * _MARGIN) * min(width / across, height / down, 10 * max(width, height))
    columns = width / 2 + scale * (x - (left + end) / 2)
    rows = height / 2 + scale * (y - (top + bottom) / 2)
    return columns, rows, depth, scale


def _spacing(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distance of a point to its neighbours on the surface, metres, from how many of them share its cell of space.

    Cells at the edge of a surface hold few points: nowhere is it more than 1.4 times that of the fullest quarter.
    """
    cell_of_point, counts = _cells(points, shift=0.0)
    full = float(np.percentile(counts, 75))
    return _CELL / np.sqrt(np.clip(counts, full / 2, full))[cell_of_point]


def _cells(points: NDArray[np.float64], shift: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) the cell of space that a point lies in, counting those that hold any, and (M,) how many points each holds.

    Args:
        shift: shift of the grid, in cells.
    """
    cells = np.floor((points - points.min(axis=0)) / _CELL + shift).astype(np.int64)
    extent = cells.max(axis=0) + 1
    flat = (cells[:, 0] * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2]
    _, cell_of_point, counts = np.unique(flat, return_inverse=True, return_counts=True)
    return cell_of_point, counts


def _slope_light(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) how bright a point's surface is, by the axis it faces: so that shapes show also where a colour is flat.

    The normal of a point is that of the plane through its cell of space, its light the mean over shifted grids.
    """
    lights = [_normals(points, shift) ** 2 @ np.array(_LIGHT_OF_AXIS) for shift in (0.0, 0.25, 0.5, 0.75)]
    return np.mean(lights, axis=0)


def _normals(points: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    """(N, 3) unit normals, of either sign."""
    cell_of_point, counts = _cells(points, shift)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(cell_of_point, values) / counts

    offset = points - np.stack([mean(column) for column in points.T], axis=1)[cell_of_point]
    spread = np.array([[mean(offset[:, i] * offset[:, j]) for j in range(3)] for i in range(3)])
    directions = np.linalg.eigh(np.moveaxis(spread, 2, 0))[1]  # of the smallest spread first
    return directions[cell_of_point, :, 0]


def _nearest(
    columns: NDArray[np.float64],
    rows: NDArray[np.float64],
    depth: NDArray[np.float64],
    splat: NDArray[np.float64],
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Paint every point as a disc and keep the nearest.

    Args:
        columns, rows, depth: (N,) where points are.
        splat: (N,) width of their discs, pixels.
        shape: H, W.

    Returns:
        (H, W) index of the point; N where there is none.
    """
    far_to_near = np.argsort(-depth, kind="stable")
    column, row = (np.floor(values[far_to_near]).astype(np.int64) for values in (columns, rows))
    radius = np.clip(splat[far_to_near], 1.0, _MAX_SPLAT) / 2
    # A rank is larger the nearer the point is; 0 is the background.
    rank = np.arange(1, len(depth) + 1, dtype=np.int32)
    nearest = np.zeros(shape, np.int32)
    reach = int(radius.max())
    for down in range(-reach, reach + 1):
        for across in range(-reach, reach + 1):
            at_row, at_column = row + down, column + across
            painted = (math.hypot(down, across) <= radius) & (at_row >= 0) & (at_row < shape[0])
            painted &= (at_column >= 0) & (at_column < shape[1])
            layer = np.zeros(shape, np.int32)
            layer[at_row[painted], at_column[painted]] = rank[painted]  # of several, numpy keeps the last: the nearest
            np.maximum(nearest, layer, out=nearest)
    return np.append(len(depth), far_to_near)[nearest]


def _edge_light(depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Darken pixels that lie behind their neighbours (eye-dome lighting), so that edges show without normals.

    Args:
        depth: (H, W) metres, inf for the background.
    """
    height, width = depth.shape
    reach = 2 * _SUBPIXELS
    log_depth = np.log(np.pad(depth, reach, constant_values=np.inf))
    own = np.where(np.isfinite(depth), log_depth[reach:-reach, reach:-reach], 0.0)
    behind = np.zeros(depth.shape)
    for down, across in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        top, left = reach * (1 + down), reach * (1 + across)
        neighbour = log_depth[top : top + height, left : left + width]
        behind += np.clip(own - neighbour - _NOISE, 0.0, _EDGE)
    # One neighbour alone is a stray point; an edge has several.
    light = np.exp(-_SHADE * np.maximum(behind - _EDGE, 0.0))
    return np.where(np.isfinite(depth), light, 1.0)
