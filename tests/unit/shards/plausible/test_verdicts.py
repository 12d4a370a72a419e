"""One test of each kind of mistake, over variations: what is refused, what is doubted, and what nobody can know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from shards.plausible.facts import Cloud, View, coding_of
from shards.plausible.look import places
from shards.plausible.readings import Reading, quaternion_of, rotation_of
from shards.plausible.verdicts import (
    Finding,
    judge_bits,
    judge_cameras,
    judge_cloud,
    judge_depth,
    judge_labels,
    judge_up,
    judge_views,
)

W, H = 96, 72
K = np.array([[80.0, 0, (W - 1) / 2], [0, 80.0, (H - 1) / 2], [0, 0, 1]])


def bowl(scale: float = 1000.0) -> NDArray[np.uint16]:
    """Depth of a bowl, 1.2 to 2.4 m."""
    v, u = np.mgrid[:H, :W]
    return np.rint((2.4 - ((u - 40) ** 2 + (v - 30) ** 2) / 6000) * scale).astype(np.uint16)


def view(
    raw: NDArray[np.uint16] | None = None,
    scale: float = 1000.0,
    position: int = 0,
    pose: NDArray[np.float64] | None = None,
) -> View:
    raw = bowl() if raw is None else raw
    return View(
        key="scene/frame",
        position=position,
        depth=raw.astype(np.float32) / np.float32(scale),
        depth_scale=scale,
        K_depth=K,
        K_color=K,
        color_size=(W, H),
        world_from_camera=pose,
        coding=coding_of(raw),
        class_ids=None,
    )


@pytest.mark.parametrize(
    ("scale", "verdict"),
    [
        (1000, "fine"),
        (0.001, "cannot be right"),
        (0.1, "cannot be right"),
        (10, "cannot be right"),
        (200, "suspicious"),
        (1e6, "cannot be right"),
    ],
)
def test_depth_that_no_camera_sees_is_refused_with_the_scale_that_mends_it(scale: float, verdict: str) -> None:
    finding = judge_depth([view(scale=scale)])
    assert finding.verdict == verdict
    assert verdict == "fine" or "--depth-scale 1000" in finding.mend


def test_noise_and_empty_images_are_not_judged() -> None:
    noise = np.random.default_rng(0).integers(1, 65535, (H, W)).astype(np.uint16)
    for raw in (noise, np.zeros((H, W), np.uint16)):
        looked = [view(raw, position=i, pose=np.eye(4)) for i in range(3)]
        assert {finding.verdict for finding in judge_views(looked)} <= {"cannot be known", "fine"}


@pytest.mark.parametrize(
    ("scale", "verdict"), [(1000, "cannot be right"), (2000, "cannot be right"), (8000, "fine"), (5000, "suspicious")]
)
def test_bits_turned_by_three_are_told_unless_the_scale_says_so_too(scale: float, verdict: str) -> None:
    raw = bowl()
    assert judge_bits([view(((raw << 3) | (raw >> 13)).astype(np.uint16), scale)]).verdict == verdict


def test_bits_that_wrapped_and_bytes_that_were_swapped_are_told() -> None:
    raw = bowl(10_000.0)  # up to 24,000 units: the highest bits become the lowest
    assert coding_of(((raw << 3) | (raw >> 13)).astype(np.uint16)).step_bits == 3
    assert coding_of(raw) == coding_of(raw[::-1])
    assert coding_of(raw).step_bits == 0
    assert judge_bits([view(bowl().byteswap())]).cause == "bytes in the wrong order"


@pytest.mark.parametrize("color", [(128, 96), (84, 63), (97, 72), (640, 480)])
def test_one_K_for_two_sizes_is_refused(color: tuple[int, int]) -> None:
    finding = judge_cameras([replace(view(), color_size=color)])
    assert finding.verdict == "cannot be right"
    assert f"{color[0]}x{color[1]}" in finding.found
    own = K * np.array([[color[0] / W], [color[1] / H], [1]])
    own[:2, 2] += [(color[0] / W - 1) / 2, (color[1] / H - 1) / 2]
    assert judge_cameras([replace(view(), color_size=color, K_color=own)]).verdict == "fine"


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (2.0, "cannot be right"),
        (0.5, "cannot be right"),
        (1.33, "cannot be right"),
        (1.15, "suspicious"),
        (1.0, "fine"),
    ],
)
def test_K_of_another_resolution_is_told_by_its_principal_point(factor: float, verdict: str) -> None:
    other = K * np.array([[factor], [factor], [1]])
    assert judge_cameras([replace(view(), K_depth=other, K_color=other)]).verdict == verdict


@pytest.mark.parametrize(("ids", "names", "verdict", "cause"), [
    ((0, 1, 2), 3, "fine", ""),
    ((0, 255), 3, "cannot be right", "ignore"),
    ((1, 65535), 41, "cannot be right", "ignore"),
    ((0, 1, 3), 3, "cannot be right", "another list"),
    ((0, 7, 255), 3, "cannot be right", "another list"),
    ((0, 255), 0, "cannot be known", ""),
    (None, 3, "cannot be known", ""),
])  # fmt: skip
def test_ids_without_a_name_are_refused(ids: tuple[int, ...] | None, names: int, verdict: str, cause: str) -> None:
    finding = judge_labels([None, ids], ["name"] * names)
    assert finding.verdict == verdict
    assert cause in finding.cause


@pytest.mark.parametrize(
    ("metres", "verdict"), [(6.0, "fine"), (6000.0, "cannot be right"), (300.0, "suspicious"), (0.2, "suspicious")]
)
def test_the_size_of_a_whole_scene(metres: float, verdict: str) -> None:
    assert judge_cloud(Cloud("scene", (metres, metres / 2, metres / 3), None))[0].verdict == verdict


def test_the_up_axis_is_where_the_top_of_the_images_points() -> None:
    upright = np.eye(4)
    upright[:3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # looks along y, z up
    assert judge_up([view(pose=upright)], "+z").verdict == "fine"
    assert judge_up([view(pose=upright)], "+y").verdict == "suspicious"
    assert judge_up([view(pose=upright)], "-z").verdict == "suspicious"
    assert judge_up([view(pose=upright)], None).verdict == "cannot be known"


def test_a_jump_of_a_hundred_metres_a_frame_is_refused_even_where_depth_meets_nothing() -> None:
    views = [view(position=i, pose=np.eye(4)) for i in range(4)]
    for i, one in enumerate(views):
        assert one.world_from_camera is not None
        one.world_from_camera[0, 3] = 100.0 * i
    finding = of(judge_views(views), "poses")
    assert finding.verdict == "cannot be right"
    assert "millimetres" in finding.cause


def test_a_camera_that_stands_still_proves_nothing() -> None:
    assert of(judge_views([view(position=i, pose=np.eye(4)) for i in range(4)]), "poses").verdict == "cannot be known"
    assert of(judge_views([view()]), "poses").verdict == "cannot be known"


def test_a_look_does_not_grow_with_the_scene_and_chooses_the_same_frames() -> None:
    assert places(1) == [0]
    assert places(8) == list(range(8))
    for num_frames in (9, 100, 10_000):
        assert places(num_frames) == places(num_frames)
        assert len(places(num_frames)) <= 8
        assert max(places(num_frames)) < num_frames


def test_a_rotation_survives_its_quaternion() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        q = random.normal(size=4)
        R = rotation_of(q / np.linalg.norm(q))
        np.testing.assert_allclose(rotation_of(quaternion_of(R)), R, atol=1e-12)
        told = np.eye(4)
        told[:3, :3] = rotation_of(np.roll(q / np.linalg.norm(q), 1))  # read as x y z w, and w comes first
        np.testing.assert_allclose(Reading(w_first=1).world_from_camera(told)[:3, :3], R, atol=1e-12)


def of(findings: list[Finding], what: str) -> Finding:
    return next(finding for finding in findings if finding.what == what)


def test_one_plane_is_told_from_a_room() -> None:
    from types import SimpleNamespace

    from shards.plausible.poses import is_one_plane

    rows, columns = np.mgrid[0:48, 0:64]
    wall = 1 / (0.3 + 0.002 * columns - 0.001 * rows)
    corner = np.minimum(wall, 1 / (0.45 - 0.004 * columns + 0.002 * rows))
    noisy = wall * (1 + np.random.default_rng(0).normal(0, 0.005, wall.shape))
    assert is_one_plane(SimpleNamespace(depth=wall))
    assert is_one_plane(SimpleNamespace(depth=noisy))
    assert not is_one_plane(SimpleNamespace(depth=corner))
