"""A room seen from outside one corner, from above, through the walls in the way: for the eye, not for scores."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
_EDGE_WIDTHS = ((5.0, 0.25), (2.6, 1.0))  # of a box's edge: width in subpixels, share of its colour; the rim is dark
_HIDDEN = 0.3  # opacity of an edge behind what is shown
_NEAR = 0.04  # metres, that an edge may lie behind a surface and still be drawn as on it


@dataclass(frozen=True, eq=False)
class ColoredBox:
    """An oriented box and its colour.

    Attributes:
        world_from_box: (4, 4) rigid, metres; the box is centred on its own origin.
        size: full extents along the box's own axes, metres.
        color: red, green, blue in 0 to 255.
    """

    world_from_box: NDArray[np.float64]
    size: tuple[float, float, float]
    color: tuple[int, int, int]

    @property
    def edges(self) -> NDArray[np.float64]:
        """(12, 2, 3) both ends of every edge, metres, world."""
        corners = np.array(list(product((-0.5, 0.5), repeat=3))) * self.size
        corners = corners @ self.world_from_box[:3, :3].T + self.world_from_box[:3, 3]
        # Corners of a pair differ in one of the three bits of their number.
        pairs = [(corner, corner | bit) for bit in (1, 2, 4) for corner in range(8) if not corner & bit]
        return corners[np.array(pairs)]


@dataclass(frozen=True, eq=False)
class _Camera:
    """Where points of the world are in a picture.

    Attributes:
        quarters: quarter turns about z before the camera looks: it always stands at the low end of x and y.
        axes: (3, 3) right, down and ahead.
        middle: (3,) metres, what it looks at, after the turn.
        distance: metres, of the camera from it.
        scale: focal length in pixels.
        column, row: of the principal point, less what the camera does not look at straight.
    """

    quarters: int
    axes: NDArray[np.float64]
    middle: NDArray[np.float64]
    distance: float
    scale: float
    column: float
    row: float

    def project(
        self, points: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Columns and rows of (N, 3) points of the world, and their depths in metres."""
        x, y, z = self.axes @ (_turned(points, self.quarters) - self.middle).T
        depth = z + self.distance
        return self.column + self.scale * x / depth, self.row + self.scale * y / depth, depth


@dataclass(frozen=True, eq=False)
class RoomView:
    """Which point of a room every pixel of a picture shows: built once, drawn in as many colours as wanted.

    Attributes:
        num_points: points of the cloud, those that are not shown included.
        point_of_pixel: (S H, S W) int64 with S = _SUBPIXELS, index of the point shown; num_points where there is none.
        depth: (S H, S W) float32, metres from the camera to that point; inf where there is none.
        light: (S H, S W) float32 in (0, 1], what the colour is multiplied with.
    """

    num_points: int
    point_of_pixel: NDArray[np.int64]
    depth: NDArray[np.float32]
    light: NDArray[np.float32]
    _camera: _Camera

    @classmethod
    def of(
        cls, points: NDArray[np.floating], width: int = 640, height: int = 480, boxes: Sequence[ColoredBox] = ()
    ) -> RoomView:
        """Place the camera, outside the corner from which most of the points are seen.

        The room is taken for a box along the axes of the world. Left out are the points above CUT_HEIGHT, and those on
        the two sides of the box that face the camera; in a room that is turned against the axes, walls stay in sight.

        Args:
            points: (N, 3) metres, world, z up.
            width, height: size of the pictures, pixels.
            boxes: the pictures have room for them.

        Raises:
            ValueError: not (N, 3), no points, or a coordinate that is not finite.
        """
        checked = _check_points(points)
        none = np.zeros((0, 3))
        cameras = [_place_camera(checked, none, quarters, width // 2, height // 2) for quarters in range(4)]
        seen = [len(np.unique(_look(checked, camera, width // 2, height // 2)[0])) for camera in cameras]
        ends = np.concatenate([none, *(box.edges.reshape(-1, 3) for box in boxes)])
        camera = _place_camera(checked, ends, int(np.argmax(seen)), width * _SUBPIXELS, height * _SUBPIXELS)
        point_of_pixel, depth = _look(checked, camera, width * _SUBPIXELS, height * _SUBPIXELS)
        slopes = slope_light(_turned(checked, camera.quarters), _CELL)
        light = np.append(slopes, 1.0)[point_of_pixel] * _edge_light(depth)
        return cls(len(points), point_of_pixel, depth.astype(np.float32), light.astype(np.float32), camera)

    def draw(self, colors: NDArray[np.uint8], boxes: Sequence[ColoredBox] = ()) -> bytes:
        """A PNG of the room.

        Args:
            colors: (N, 3) uint8, of the points the view was built of.
            boxes: their edges are drawn over the points, faint where something stands before them.

        Raises:
            ValueError: colours of another shape or type.
        """
        if colors.shape != (self.num_points, 3) or colors.dtype != np.uint8:
            raise ValueError(
                f"colors are {colors.dtype} {colors.shape}; wanted uint8 {(self.num_points, 3)}, one of every point"
            )
        white = np.full((1, 3), 255, np.uint8)
        pixels = np.concatenate([colors, white])[self.point_of_pixel] * self.light[..., None]
        for width, share in _EDGE_WIDTHS:
            for box in boxes:
                self._draw_edges(pixels, box, width, share)
        image = Image.fromarray(pixels.round().astype(np.uint8)).reduce(_SUBPIXELS)
        out = io.BytesIO()
        image.save(out, format="png", optimize=True)
        return out.getvalue()

    def _draw_edges(self, pixels: NDArray[np.float32], box: ColoredBox, width: float, share: float) -> None:
        """Blend the edges of a box into (S H, S W, 3) pixels."""
        height, across = pixels.shape[:2]
        ends = box.edges
        columns, rows, _ = self._camera.project(ends.reshape(-1, 3))
        longest = np.hypot(*np.diff(np.stack([columns, rows]).reshape(2, 12, 2), axis=2)[..., 0]).max()
        steps = np.linspace(0, 1, int(min(longest, 2 * (height + across))) + 2)[:, None, None]
        columns, rows, depth = self._camera.project(((1 - steps) * ends[:, 0] + steps * ends[:, 1]).reshape(-1, 3))
        opacity = np.zeros((height, across), np.float32)
        reach = int(width / 2)
        for down, right in product(range(-reach, reach + 1), repeat=2):
            if math.hypot(down, right) > width / 2:
                continue
            at_row, at_column = (np.floor(rows) + down).astype(int), (np.floor(columns) + right).astype(int)
            inside = (at_row >= 0) & (at_row < height) & (at_column >= 0) & (at_column < across) & (depth > 0)
            at_row, at_column = at_row[inside], at_column[inside]
            shown = depth[inside] <= self.depth[at_row, at_column] + _NEAR
            np.maximum.at(opacity, (at_row, at_column), np.where(shown, 1.0, _HIDDEN).astype(np.float32))
        painted = np.nonzero(opacity)
        alpha = opacity[painted][:, None]
        pixels[painted] = (1 - alpha) * pixels[painted] + alpha * share * np.array(box.color, np.float32)


def _check_points(points: NDArray[np.floating]) -> NDArray[np.float64]:
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points have shape {points.shape}; wanted (N, 3)")
    if not len(points):
        raise ValueError("the room has no points, so there is nothing to draw; give a scene with at least one")
    if num_broken := np.count_nonzero(~np.isfinite(points).all(axis=1)):
        raise ValueError(f"{num_broken} of {len(points)} points have a coordinate that is not finite; drop them first")
    return points.astype(np.float64)


def _turned(points: NDArray[np.float64], quarters: int) -> NDArray[np.float64]:
    """Points turned about z by quarter turns."""
    for _ in range(quarters):
        points = np.stack([points[:, 1], -points[:, 0], points[:, 2]], axis=1)
    return points


def _look(
    points: NDArray[np.float64], camera: _Camera, width: int, height: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(H, W) index of the point that a pixel shows, N where there is none, and its depth in metres, inf there."""
    kept = np.flatnonzero(_in_sight(_turned(points, camera.quarters)))
    columns, rows, depth = camera.project(points[kept])
    splat = _SPLAT_SPACINGS * _spacing(points[kept]) * camera.scale / depth
    nearest = _nearest(columns, rows, depth, splat, (height, width))
    return np.append(kept, len(points))[nearest], np.append(depth, np.inf)[nearest]


def _in_sight(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) whether a point is drawn: not too high, and on neither of the sides that face the camera.

    All of them where that would leave none: a few points far from each other are no room.
    """
    low, high = np.percentile(points, [_OUTLIERS, 100 - _OUTLIERS], axis=0)
    thickness = np.minimum(_WALL_THICKNESS, 0.05 * (high - low))  # a thin cloud is not all wall
    above_floor = points[:, 2] - low[2]
    behind_walls = (points[:, :2] >= (low + thickness)[:2]).all(axis=1)
    inside = (points >= low - _WALL_THICKNESS).all(axis=1) & (points <= high + _WALL_THICKNESS).all(axis=1)
    drawn = inside & (above_floor <= CUT_HEIGHT) & (behind_walls | (above_floor <= _FLOOR_THICKNESS))
    return drawn if drawn.any() else np.ones(len(points), bool)


def _place_camera(
    points: NDArray[np.float64], ends: NDArray[np.float64], quarters: int, width: int, height: int
) -> _Camera:
    """A camera at the low end of x and y after so many quarter turns; what is in sight fills its picture.

    Args:
        ends: (M, 3) metres, more that its picture has room for.
    """
    turned = _turned(points, quarters)
    turned = turned[_in_sight(turned)]
    low, high = turned.min(axis=0), turned.max(axis=0)
    radius = max(float(np.linalg.norm(high - low)) / 2, 1e-3)
    side = _FROM_AXIS if high[0] - low[0] <= high[1] - low[1] else math.pi / 2 - _FROM_AXIS
    ahead = np.array([math.cos(side), math.sin(side), 0.0]) * math.cos(_LOOKING_DOWN)
    ahead[2] = -math.sin(_LOOKING_DOWN)
    right = np.array([math.sin(side), -math.cos(side), 0.0])
    axes, middle, distance = np.stack([right, np.cross(ahead, right), ahead]), (low + high) / 2, _DISTANCE * radius

    def across_and_down(those: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y, z = axes @ (those - middle).T
        return np.stack([x, y]) / np.maximum(z + distance, 1e-6)

    extent = np.percentile(across_and_down(turned), [_STRAYS, 100 - _STRAYS], axis=1)
    more = across_and_down(_turned(ends, quarters))
    left, top = np.minimum(extent[0], more.min(axis=1, initial=np.inf))
    end, bottom = np.maximum(extent[1], more.max(axis=1, initial=-np.inf))
    across, down = max(end - left, 1e-6), max(bottom - top, 1e-6)
    scale = (1 - 2 * _MARGIN) * min(width / across, height / down, 10 * max(width, height))
    column, row = width / 2 - scale * (left + end) / 2, height / 2 - scale * (top + bottom) / 2
    return _Camera(quarters, axes, middle, distance, scale, column, row)


def _spacing(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) distance of a point to its neighbours on the surface, metres, from how many of them share its cell of space.

    Cells at the edge of a surface hold few points: nowhere is it more than 1.4 times that of the fullest quarter.
    """
    cell_of_point, counts = _cells(points, shift=0.0, cell=_CELL)
    full = float(np.percentile(counts, 75))
    return _CELL / np.sqrt(np.clip(counts, full / 2, full))[cell_of_point]


def _cells(points: NDArray[np.float64], shift: float, cell: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) the cell of space that a point lies in, counting those that hold any, and (M,) how many points each holds.

    Args:
        shift: shift of the grid, in cells.
        cell: edge of a cell, metres.
    """
    cells = np.floor((points - points.min(axis=0)) / cell + shift).astype(np.int64)
    extent = cells.max(axis=0) + 1
    flat = (cells[:, 0] * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2]
    _, cell_of_point, counts = np.unique(flat, return_inverse=True, return_counts=True)
    return cell_of_point, counts


def slope_light(points: NDArray[np.float64], cell: float) -> NDArray[np.float64]:
    """(N,) how bright a point's surface is, by the axis it faces: so that shapes show also where a colour is flat.

    The normal of a point is that of the plane through its cell of space, its light the mean over shifted grids.

    Args:
        points: (N, 3) metres, N at least 1.
        cell: edge of a cell, metres.
    """
    lights = [_normals(points, shift, cell) ** 2 @ np.array(_LIGHT_OF_AXIS) for shift in (0.0, 0.25, 0.5, 0.75)]
    return np.mean(lights, axis=0)


def _normals(points: NDArray[np.float64], shift: float, cell: float) -> NDArray[np.float64]:
    """(N, 3) unit normals, of either sign."""
    cell_of_point, counts = _cells(points, shift, cell)

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
