"""The vectorised caster against a slow one that knows nothing of it: one ray, one solid at a time, other formulas."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from shards.synthetic.furniture import FURNITURE_NAMES, LABEL_NAMES, Shape
from shards.synthetic.raycast import cast_rays, intrinsics_of_size, render
from shards.synthetic.room import NUM_FACES, Room, build_room
from shards.synthetic.trajectory import plan_path

SEED = 11


@dataclass(frozen=True)
class Meeting:
    """Where a ray meets a surface: length along the ray, which surface, its outward normal."""

    distance: float
    surface: int
    normal: tuple[float, float, float]


def slow_cast(room: Room, origin: list[float], direction: list[float]) -> Meeting:
    """The nearest meeting of one ray with all surfaces of a room."""
    meetings = [*meetings_with_faces(room, origin, direction)]
    for p in range(len(room.solids.shape)):
        meetings.extend(meetings_with_solid(room, p, origin, direction))
    return min((one for one in meetings if one.distance > 0), key=lambda one: one.distance)


def meetings_with_faces(room: Room, origin: list[float], direction: list[float]) -> Iterator[Meeting]:
    for surface in range(NUM_FACES):
        axis, end = surface // 2, (room.low, room.high)[surface % 2]
        if direction[axis] == 0:
            continue
        distance = (float(end[axis]) - origin[axis]) / direction[axis]
        point = [o + distance * d for o, d in zip(origin, direction, strict=True)]
        if all(room.low[i] <= point[i] <= room.high[i] for i in range(3) if i != axis):
            normal = [0.0, 0.0, 0.0]
            normal[axis] = -1.0 if surface % 2 else 1.0
            yield Meeting(distance, surface, tuple(normal))


def meetings_with_solid(room: Room, p: int, origin: list[float], direction: list[float]) -> Iterator[Meeting]:
    """All points where the line pierces the solid's skin; the ray and the normals are turned, nothing is scaled."""
    solids = room.solids
    yaw = math.atan2(solids.sin_yaw[p], solids.cos_yaw[p])
    a, b, c = solids.half_size[p].tolist()
    ox, oy, oz = turned([o - m for o, m in zip(origin, solids.center[p].tolist(), strict=True)], -yaw)
    dx, dy, dz = turned(direction, -yaw)
    found: list[tuple[float, list[float]]] = []
    shape = Shape(int(solids.shape[p]))
    if shape == Shape.BOX:
        for axis, (half, o, d) in enumerate(((a, ox, dx), (b, oy, dy), (c, oz, dz))):
            for sign in (-1.0, 1.0) if d else ():
                t = (sign * half - o) / d
                point = (ox + t * dx, oy + t * dy, oz + t * dz)
                if all(abs(point[i]) <= (a, b, c)[i] for i in range(3) if i != axis):
                    found.append((t, [sign * (i == axis) for i in range(3)]))
    elif shape == Shape.CYLINDER:
        for sign in (-1.0, 1.0) if dz else ():
            t = (sign * c - oz) / dz
            if ((ox + t * dx) / a) ** 2 + ((oy + t * dy) / b) ** 2 <= 1:
                found.append((t, [0.0, 0.0, sign]))
        for t in roots(((ox, dx, a), (oy, dy, b))):
            if abs(oz + t * dz) <= c:
                found.append((t, [(ox + t * dx) / a**2, (oy + t * dy) / b**2, 0.0]))
    else:
        for t in roots(((ox, dx, a), (oy, dy, b), (oz, dz, c))):
            found.append((t, [(ox + t * dx) / a**2, (oy + t * dy) / b**2, (oz + t * dz) / c**2]))
    for t, normal in found:
        length = math.hypot(*normal)
        yield Meeting(t, NUM_FACES + p, tuple(turned([n / length for n in normal], yaw)))


def roots(axes: tuple[tuple[float, float, float], ...]) -> list[float]:
    """Where sum((o + t d)^2 / r^2) is 1: from the lowest point of the parabola outwards."""
    curvature = sum((d / r) ** 2 for _, d, r in axes)
    if curvature == 0:
        return []
    lowest = -sum(o * d / r**2 for o, d, r in axes) / curvature
    value = sum(((o + lowest * d) / r) ** 2 for o, d, r in axes) - 1
    return [] if value > 0 else [lowest - math.sqrt(-value / curvature), lowest + math.sqrt(-value / curvature)]


def turned(vector: list[float], yaw: float) -> list[float]:
    x, y, z = vector
    return [math.cos(yaw) * x - math.sin(yaw) * y, math.sin(yaw) * x + math.cos(yaw) * y, z]


def test_rays_in_all_directions_meet_what_the_slow_caster_finds() -> None:
    rng = np.random.default_rng(0)
    shapes: set[Shape] = set()
    for room_index in range(12):
        room = build_room(SEED, room_index)
        origin = plan_path(room).positions(rng.uniform(0, 7, 1))[0]
        directions = rng.normal(size=(3, 1, 60))
        directions[:, 0, :3] = np.eye(3)  # parallel to walls and floor
        directions[:, 0, 3:6] = -np.eye(3)
        hits = cast_rays(room, origin, directions)
        for i in range(directions.shape[2]):
            wanted = slow_cast(room, origin.tolist(), directions[:, 0, i].tolist())
            assert hits.distance[0, i] == pytest.approx(wanted.distance, abs=1e-9), (room_index, i)
            assert hits.surface[0, i] == wanted.surface, (room_index, i)
            if wanted.surface >= NUM_FACES:
                shapes.add(Shape(int(room.solids.shape[wanted.surface - NUM_FACES])))
    assert shapes == set(Shape)


def test_depth_normals_and_labels_of_images_are_those_of_the_slow_caster() -> None:
    rng = np.random.default_rng(1)
    seen: set[str] = set()
    width, height = 40, 30
    K = intrinsics_of_size(width, height)
    for room_index in range(12, 30):
        room = build_room(SEED, room_index)
        pose = plan_path(room).world_from_camera(int(rng.integers(30)))
        view = render(room, K, width, height, pose)
        for row, column in zip(rng.integers(height, size=40), rng.integers(width, size=40), strict=True):
            ray = pose[:3, :3] @ np.linalg.solve(K, [column, row, 1.0])
            wanted = slow_cast(room, pose[:3, 3].tolist(), ray.tolist())
            where = (room_index, row, column)
            assert view.depth[row, column] == pytest.approx(wanted.distance, abs=1e-9), where
            assert view.surface[row, column] == wanted.surface, where
            np.testing.assert_allclose(view.normals[row, column], wanted.normal, atol=1e-7, err_msg=str(where))
            cos = -float(np.dot(wanted.normal, ray)) / math.hypot(*ray)
            assert view.cos_incidence[row, column] == pytest.approx(cos, abs=1e-7)
            label = LABEL_NAMES[view.semantic[row, column]]
            if wanted.surface < NUM_FACES:
                assert label == ("wall", "wall", "wall", "wall", "floor", "ceiling")[wanted.surface]
                assert view.instance[row, column] == 0
            else:
                one = room.objects[view.instance[row, column] - 1]
                assert label == one.label
                point = np.array([*(pose[:3, 3] + wanted.distance * ray), 1.0])
                assert (np.abs(np.linalg.inv(one.world_from_box) @ point)[:3] <= np.array(one.size) / 2 + 1e-7).all()
            seen.add(label)
    assert {"wall", "floor", "ceiling"} <= seen
    assert len(seen & set(FURNITURE_NAMES)) >= 10


def test_trying_a_solid_on_few_pixels_only_loses_nothing() -> None:
    width, height = 48, 36
    K = intrinsics_of_size(width, height)
    for room_index in range(8):
        room = build_room(SEED, room_index)
        pose = plan_path(room).world_from_camera(room_index)
        pose[:3, 3] = [*room.free_spot, 0.4]  # low among the furniture, some of it beside and behind the camera
        view = render(room, K, width, height, pose)
        columns, rows = np.meshgrid(np.arange(width), np.arange(height))
        rays = np.linalg.solve(K, np.stack([columns, rows, np.ones_like(rows)]).reshape(3, -1))
        all_tried = cast_rays(room, pose[:3, 3], (pose[:3, :3] @ rays).reshape(3, height, width))
        np.testing.assert_allclose(view.depth, all_tried.distance, rtol=1e-12)
        assert (view.surface != all_tried.surface).mean() < 1e-3  # two surfaces met at once, within rounding


def test_surface_points_lie_on_the_skin_of_their_solid() -> None:
    room = build_room(SEED, 3)
    view = render(room, intrinsics_of_size(64, 48), 64, 48, plan_path(room).world_from_camera(2))
    solid = view.surface[view.surface >= NUM_FACES] - NUM_FACES
    unit = view.surface_points[view.surface >= NUM_FACES] / room.solids.half_size[solid]
    shape = room.solids.shape[solid]
    level = np.hypot(unit[:, 0], unit[:, 1])
    skin = np.select(
        [shape == Shape.BOX, shape == Shape.CYLINDER],
        [np.abs(unit).max(axis=1), np.maximum(level, np.abs(unit[:, 2]))],
        np.hypot(level, unit[:, 2]),
    )
    np.testing.assert_allclose(skin, 1, atol=1e-9)
