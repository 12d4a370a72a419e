"""Any scan: what is read of each kind, what is guessed and said, and what is refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.doors.ply import write_ply
from shards.errors import CallError, ShardError
from shards.reader import DatasetReader
from t4p.data.fusing import Fusion
from t4p.data.scan import read_scan
from t4p.data.upright import UP_AXES, guess_unit, guess_up, turn_up

DATA = Path(__file__).resolve().parents[3] / "data"
OLDER = DATA / "older"


def room(num_points: int = 20_000) -> np.ndarray:
    """Points of a floor and four walls, 5 x 4 x 2.5 m, z up, without a ceiling."""
    rng = np.random.default_rng(0)
    points = rng.random((num_points, 3)) * [5, 4, 2.5]
    side = rng.integers(0, 6, num_points)
    points[side < 2, 2] = 0
    for wall, (axis, value) in enumerate([(0, 0), (0, 5), (1, 0), (1, 4)], start=2):
        points[side == wall, axis] = value
    return points + rng.normal(0, 0.005, points.shape)


def saved(folder: Path, points: np.ndarray) -> str:
    path = folder / "my scan.ply"
    write_ply(path, points, np.full((len(points), 3), 9, np.uint8), {})
    return str(path)


@pytest.mark.parametrize("up", UP_AXES)
def test_turning_an_axis_up_mirrors_nothing(up: str) -> None:
    axes = turn_up(np.eye(3), up)
    assert np.linalg.det(axes) == pytest.approx(1)
    sign = -1 if up.startswith("-") else 1
    np.testing.assert_array_equal(axes["xyz".index(up[-1])], [0, 0, sign])


@pytest.mark.parametrize("up", ["z", "y", "-y"])
def test_the_up_axis_is_where_the_floor_lies_flat_and_it_is_said(tmp_path: Path, up: str) -> None:
    turned = room() @ turn_up(np.eye(3), up).T  # the inverse of a rotation is its transpose
    assert guess_up(turned) == up
    found = read_scan(saved(tmp_path, turned))
    np.testing.assert_allclose(found.points, room(), atol=1e-5)
    assert f"up is taken to be {up}" in " ".join(found.remarks)


def test_an_axis_that_is_given_is_taken_and_not_spoken_of(tmp_path: Path) -> None:
    found = read_scan(saved(tmp_path, room()), up="-z")
    np.testing.assert_allclose(found.points, turn_up(room(), "-z"), atol=1e-5)
    assert not any("taken to be" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    ("scale", "unit", "metres", "said"),
    [
        (1.0, None, 1.0, ""),
        (1000.0, None, 1.0, "taken as millimetres; --unit m says"),
        (100.0, "cm", 1.0, ""),
        (1000.0, "m", 1000.0, ""),
        (120.0, None, 120.0, "which may be millimetres or centimetres; taken as metres"),
        (11.0, None, 11.0, ""),
        (13.0, None, 13.0, "it reaches over 65 x 52 x 3"),
        (70.0, None, 70.0, "which may be millimetres or centimetres; taken as metres"),
    ],
)
def test_millimetres_are_known_where_they_can_be_nothing_else(
    tmp_path: Path, scale: float, unit: str | None, metres: float, said: str
) -> None:
    found = read_scan(saved(tmp_path, room() * scale), unit, up="z")
    np.testing.assert_allclose(found.points, room() * metres, rtol=1e-5, atol=1e-3)
    assert said in " ".join(found.remarks)
    assert len(found.remarks) == 1 + bool(said)


def test_a_hall_in_millimetres_is_not_taken_as_metres_in_silence() -> None:
    unit, said = guess_unit(room() * 5000)
    assert unit == "m"
    assert "say --unit mm" in said


def test_points_that_are_not_finite_are_left_out_and_the_rows_of_the_others_are_kept(tmp_path: Path) -> None:
    points = room(100)
    points[[3, 50]] = np.nan
    found = read_scan(saved(tmp_path, points))
    assert found.rows.tolist() == [row for row in range(100) if row not in (3, 50)]
    assert "2 of 100 points are not finite (NaN) and are left out, the first of them row 3" in " ".join(found.remarks)
    assert found.name == "my_scan"


@pytest.mark.parametrize(("num_points", "offset"), [(100, 0.0), (20_000, 0.0), (100, 4e6)])
@pytest.mark.parametrize("stray", [1e6, -3e8, 1e300])
def test_points_that_went_astray_are_left_out_and_told(
    tmp_path: Path, num_points: int, offset: float, stray: float
) -> None:
    points = room(num_points) + [offset, 0, 0]
    kept = [row for row in range(num_points) if row not in (7, 60)]
    points[[7, 60], 0] = stray
    np.savez(tmp_path / "stray.npz", points=points)
    found = read_scan(str(tmp_path / "stray.npz"), up="z")
    assert found.rows.tolist() == kept
    np.testing.assert_allclose(found.points + found.offset, points[kept], atol=1e-5)
    said = " ".join(found.remarks)
    assert f"2 of {num_points:,} points lie more than 10,000 m from their median" in said
    assert "the first of them row 7" in said
    assert " points over 5.0 x 4.0 x 2.5 m" in said
    assert "--unit" not in said


def test_a_scan_whose_points_all_lie_apart_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "apart.npz", points=np.array([[0.0, 0, 0], [1e6, 0, 0]]))
    with pytest.raises(ShardError, match="2 of 2 points lie more than 10,000 m from their median, taken as m; say"):
        read_scan(str(tmp_path / "apart.npz"))


def test_a_scan_far_away_is_moved_near_the_origin_by_whole_metres(tmp_path: Path) -> None:
    path = tmp_path / "far.npz"
    np.savez(path, xyz=room() + [4_000_000.0, 500_000.0, 30.0], rgb=np.zeros((20_000, 3)), names=np.array(["x"]))
    found = read_scan(str(path))
    assert found.offset[2] == 0
    np.testing.assert_allclose(found.points + found.offset - [4e6, 5e5, 30], room(), atol=1e-5)


@pytest.mark.parametrize(("num_points", "message"), [(0, "holds no point;"), (3, "holds no point that is finite")])
def test_a_scan_without_a_point_is_refused(tmp_path: Path, num_points: int, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        read_scan(saved(tmp_path, np.full((num_points, 3), np.nan)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": np.zeros((5, 2))}, r"its points are float64 of shape \(5, 2\), wanted"),
        ({"places": np.zeros((5, 3))}, "its points are nothing of these names"),
        ({"points": np.zeros((5, 3)), "rgb": np.zeros((4, 3))}, r"colours have shape \(4, 3\), wanted \(5, 3\)"),
        ({"points": np.zeros((5, 3)), "rgb": np.full((5, 3), 200.0)}, "colours are float64 from 200 to 200"),
        ({"points": np.array([[None] * 3])}, "points holds object"),
    ],
)
def test_arrays_that_are_no_scan_are_told(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "scan.npz", **arrays)
    with pytest.raises(ShardError, match=message):
        read_scan(str(tmp_path / "scan.npz"))


def test_a_stored_scene_is_its_points() -> None:
    scene = DatasetReader(str(OLDER / "scenes")).read_scene(0, 0)
    key = DatasetReader(str(OLDER / "scenes")).key(0, 0)
    for spelled in (f"{OLDER / 'scenes'}#{key}", f"{OLDER / 'scenes'}/{key}", f"{OLDER / 'scenes'}#{key[:-6]}"):
        found = read_scan(spelled)
        np.testing.assert_array_equal(found.points, scene.points)
        np.testing.assert_array_equal(found.colors, scene.rgb)


def test_the_frames_of_a_scene_are_fused_and_one_alone_is_what_it_shows() -> None:
    frames = OLDER / "frames"
    several, one = read_scan(f"{frames}#room-5-00000"), read_scan(f"{frames}#room-5-00000/0000")
    assert len(several.points) > len(one.points)
    cells = np.unique(np.floor(several.points / 0.01).astype(int), axis=0)
    assert len(cells) == pytest.approx(len(several.points), rel=0.02), "one point a cell, but for rounding at its faces"
    assert "2 frame(s) fused" in several.remarks[1]
    real = read_scan(str(DATA / "tum_rgbd"))
    assert "4 frame(s) fused" in real.remarks[1]
    assert real.points[:, 2].max() < 3, "the world of TUM has z up"


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        ("nothing.ply", "nothing.ply: no such file or folder; wanted a .ply"),
        (__file__, r"a file \.py, wanted a \.ply"),
        (str(OLDER), "neither a packed dataset"),
        (str(OLDER / "frames"), r"holds 2 scenes, wanted one; give one of '.*#room-5-00000'"),
        (f"{OLDER / 'frames'}#room-9", "no scene 'room-9' among 2"),
        (f"{OLDER / 'frames'}#room-5-00000/77", "no sample 'room-5-00000/77'"),
        (f"{DATA / 'tum_rgbd'}#other", "no scene 'other' among 1"),
    ],
)
def test_what_is_no_scan_is_told_with_what_would_be_one(scan: str, message: str) -> None:
    with pytest.raises(CallError, match=message):
        read_scan(scan)


def test_a_fused_cloud_is_the_mean_of_each_cell_and_its_size_is_bounded() -> None:
    rng = np.random.default_rng(1)
    frames = [rng.random((500, 3)) for _ in range(4)]
    coarse, fine = Fusion(0.1, most_cells=100), Fusion(10.0)
    for points in frames:
        coarse.add(points, np.full((500, 3), 40, np.uint8))
        fine.add(points, np.full((500, 3), 40, np.uint8))
    points, colors = fine.result()
    np.testing.assert_allclose(points, np.concatenate(frames).mean(axis=0, keepdims=True))
    assert colors.tolist() == [[40, 40, 40]]
    assert len(coarse.result()[0]) <= 100
    assert coarse.cell_size == 0.4
    with pytest.raises(ValueError, match=r"a point lies 5e\+06 m from the origin"):
        coarse.add(np.array([[5e6, 0, 0]]), np.zeros((1, 3), np.uint8))
