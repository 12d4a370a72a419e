"""Packed frames of rooms: whatever a stranger reads out of the files holds together."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from commands.shards import app
from shards.errors import CallError
from shards.images import decode_color, decode_depth, decode_labels
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.schema import Frame, check_frame
from shards.sources import synthetic
from shards.sources.options import SourceOptions
from shards.synthetic.captions import MIN_SHARE
from shards.synthetic.furniture import LABEL_NAMES, STRUCTURE_NAMES
from shards.synthetic.raycast import Render
from shards.synthetic.sensor import DEPTH_SCALE, MAX_RANGE, MIN_COS_INCIDENCE, noise_deviation, sense_depth
from shards.synthetic.view import build_stage, exact_view, make_view
from shards.verify import verify

DEFAULT = SourceOptions()
SERIES = "seed=3,rooms=3,frames=4,width=64,height=48"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rooms") / "one"
    pack("synthetic", SERIES, str(folder))
    return folder


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    refs = synthetic.scan(Path("seed=8,rooms=12,frames=3"), DEFAULT)
    return [synthetic.read(ref) for ref in refs]


def test_two_workers_give_the_same_objects_as_one(dataset: Path, tmp_path: Path) -> None:
    pack("synthetic", SERIES, str(tmp_path / "two"), num_workers=2)
    once, twice = ({path.name: path.read_bytes() for path in f.iterdir()} for f in (dataset, tmp_path / "two"))
    assert once == twice
    assert len(once) == 4


def test_a_dataset_verifies_and_says_what_its_labels_mean(dataset: Path) -> None:
    assert verify(str(dataset)).problems == ()
    reader = DatasetReader(str(dataset))
    assert reader.manifest.label_names == LABEL_NAMES
    assert list(reader.index(0).keys)[3:5] == ["room-3-00000/0003", "room-3-00001/0000"]


def test_a_frame_made_alone_is_the_frame_made_in_order() -> None:
    in_order = [synthetic.read(ref) for ref in synthetic.scan(Path("seed=4,rooms=2,frames=3"), DEFAULT)]
    build_stage.cache_clear()
    (alone,) = [ref for ref in synthetic.scan(Path("seed=4,rooms=1,first=1,frames=9"), DEFAULT) if ref.frame_index == 2]
    again = synthetic.read(alone)
    assert again.frame_id == in_order[5].frame_id
    for name in ("color", "depth", "semantic", "instance", "caption"):
        assert getattr(again, name) == getattr(in_order[5], name)
    assert np.array_equal(again.world_from_camera, in_order[5].world_from_camera)
    assert in_order[4].color != in_order[5].color


def test_frames_pass_the_checks_of_every_dataset(frames: list[Frame]) -> None:
    for frame in frames:
        check_frame(frame, "here")
        assert decode_color(frame.color, frame.color_format).shape == (120, 160, 3)
        assert np.array_equal(frame.K_color, frame.K_depth)
        assert np.array_equal(frame.color_from_depth, np.eye(4))
        assert frame.depth_scale == 1000
        assert set(np.unique(decode_labels(frame.semantic)).tolist()) <= set(range(1, len(LABEL_NAMES)))


def test_labels_boxes_and_instances_speak_of_the_same_objects(frames: list[Frame]) -> None:
    """Boxes contain the exact points of their object, found through the packed camera and label images."""
    num_boxes = 0
    for ref, frame in zip(synthetic.scan(Path("seed=8,rooms=12,frames=3"), DEFAULT), frames, strict=True):
        exact = exact_view(ref.seed, ref.room_index, ref.frame_index, ref.width, ref.height)
        instance, semantic = decode_labels(frame.instance), decode_labels(frame.semantic)
        ids = [value for value in np.unique(instance).tolist() if value]
        assert len(ids) == len(frame.boxes)
        for instance_id, box in zip(ids, frame.boxes, strict=True):
            rows, columns = np.nonzero(instance == instance_id)
            assert {LABEL_NAMES[i] for i in np.unique(semantic[rows, columns])} == {box.label}
            rays = np.linalg.solve(frame.K_depth, np.stack([columns, rows, np.ones_like(rows)]))
            points = np.concatenate([rays * exact.depth[rows, columns], np.ones((1, len(rows)))])
            local = (np.linalg.inv(box.camera_from_box) @ points)[:3]
            assert (np.abs(local) <= np.array(box.size)[:, None] / 2 + 1e-7).all()
            num_boxes += 1
        assert ((instance == 0) == (semantic <= len(STRUCTURE_NAMES))).all()
    assert num_boxes > 60


def test_captions_name_what_is_visible_and_nothing_else(frames: list[Frame]) -> None:
    words = {name: re.compile(rf"\b{name[:-1]}({name[-1]}|{name[-1]}s|ves)\b") for name in LABEL_NAMES[1:]}
    for frame in frames:
        semantic = decode_labels(frame.semantic)
        visible = {name for i, name in enumerate(LABEL_NAMES) if (semantic == i).sum() >= MIN_SHARE * semantic.size}
        named = {name for name, pattern in words.items() if pattern.search(frame.caption)}
        assert named == visible, frame.caption
    assert len({re.sub("|".join(LABEL_NAMES), "", frame.caption) for frame in frames}) > 8


def test_a_caption_counts_the_objects_that_are_seen_well() -> None:
    numbers = {2: "two", 3: "three"}
    found = 0
    for room_index in range(60):
        view = make_view(8, room_index, 0, 40, 30)
        for label_id in np.unique(view.exact.semantic).tolist():
            pixels = np.bincount(view.exact.instance[view.exact.semantic == label_id])
            number = int((pixels >= MIN_SHARE * view.exact.semantic.size).sum())
            if label_id > len(STRUCTURE_NAMES) and number > 1:
                assert f"{numbers[number]} {LABEL_NAMES[label_id][:-1]}" in view.caption
                found += 1
    assert found > 2


def lifted(frame: Frame) -> np.ndarray:
    """(4, N) homogeneous world points of all readings."""
    depth = decode_depth(frame.depth) / frame.depth_scale
    rows, columns = np.nonzero(depth)
    z = depth[rows, columns]
    points = np.linalg.solve(frame.K_depth, np.stack([columns * z, rows * z, z]))
    return np.concatenate([points, np.ones((1, len(z)))])


def reprojection(first: Frame, second: Frame, second_from_first: np.ndarray) -> tuple[float, float]:
    """Median of |z projected - z measured| / z measured, and the share of first's readings that second sees."""
    x, y, z = second.K_depth @ (second_from_first @ lifted(first))[:3]
    num_readings = len(z)
    x, y, z = x[z > 0.05], y[z > 0.05], z[z > 0.05]
    measured = decode_depth(second.depth) / second.depth_scale
    columns, rows = np.rint(x / z).astype(int), np.rint(y / z).astype(int)
    inside = (columns >= 0) & (rows >= 0) & (columns < measured.shape[1]) & (rows < measured.shape[0])
    found = measured[rows[inside], columns[inside]]
    error = np.abs(z[inside] - found)[found > 0] / found[found > 0]
    return float(np.median(error)) if len(error) else float("nan"), inside.sum() / num_readings


def neighbours(frames: Sequence[Frame]) -> list[tuple[Frame, Frame]]:
    return [(first, second) for first, second in pairwise(frames) if first.scene_id == second.scene_id]


def test_consecutive_frames_agree_through_the_packed_cameras_and_not_through_inverted_ones(
    frames: list[Frame],
) -> None:
    right, wrong, overlap = [], [], []
    for first, second in neighbours(frames):
        one, two = first.world_from_camera, second.world_from_camera
        error, share = reprojection(first, second, np.linalg.inv(two) @ one)
        right.append(error)
        overlap.append(share)
        wrong.append(reprojection(first, second, two @ np.linalg.inv(one))[0])
    assert len(right) == 24
    assert max(right) < 0.02, right
    assert min(overlap) > 0.4, overlap
    assert np.nanmedian(wrong) > 0.04, wrong
    assert np.nanmedian(wrong) > 5 * np.median(right), (wrong, right)


def test_points_of_all_frames_lie_on_the_walls_floor_and_ceiling_they_are_labelled_as(frames: list[Frame]) -> None:
    """World z points up, metres: the floor is at 0, walls are where the room ends."""
    for ref, frame in zip(synthetic.scan(Path("seed=8,rooms=12,frames=3"), DEFAULT), frames, strict=True):
        room = build_stage(ref.seed, ref.room_index).room
        points = (frame.world_from_camera @ lifted(frame))[:3].T
        labels = decode_labels(frame.semantic)[decode_depth(frame.depth) > 0]
        nearest_wall = np.minimum(points[:, :2] - room.low[:2], room.high[:2] - points[:, :2]).min(axis=1)
        distance = {1: nearest_wall, 2: points[:, 2], 3: room.high[2] - points[:, 2]}
        for label_id, off in distance.items():
            if (labels == label_id).any():
                assert np.median(np.abs(off[labels == label_id])) < 0.02


def wall(depth: float, cos_incidence: float, shape: tuple[int, int] = (200, 300)) -> Render:
    flat = np.zeros(shape, dtype=np.int64)
    return Render(
        depth=np.full(shape, depth),
        normals=np.zeros((*shape, 3)),
        semantic=flat.astype(np.uint8),
        instance=flat.astype(np.uint16),
        surface=flat,
        surface_points=np.zeros((*shape, 3)),
        cos_incidence=np.full(shape, cos_incidence),
    )


class TestSensor:
    @pytest.mark.parametrize("depth", [0.5, 1.5, 3.0, 5.5])
    def test_noise_is_as_published_and_grows_with_distance(self, depth: float) -> None:
        read = sense_depth(wall(depth, 1.0), np.random.default_rng(0)) / DEPTH_SCALE
        off = read[read > 0] - depth
        wanted = 0.0012 + 0.0019 * (depth - 0.4) ** 2
        assert abs(off.mean()) < 0.05 * wanted
        assert off.std() == pytest.approx(wanted, rel=0.05)
        assert noise_deviation(np.array(depth), np.array(0.2)) > noise_deviation(np.array(depth), np.array(0.9))

    def test_holes_beyond_the_range_at_grazing_angles_and_at_random(self) -> None:
        rng = np.random.default_rng(0)
        assert not sense_depth(wall(MAX_RANGE + 0.01, 1.0), rng).any()
        assert not sense_depth(wall(0.2, 1.0), rng).any()
        assert not sense_depth(wall(2.0, MIN_COS_INCIDENCE - 0.01), rng).any()
        shares = [float((sense_depth(wall(2.0, 0.9), rng) == 0).mean()) for _ in range(20)]
        assert 0.003 < min(shares) < 0.01
        assert 0.01 < max(shares) < 0.06

    def test_labels_and_boxes_do_not_know_of_the_sensor(self, frames: list[Frame]) -> None:
        holes = [float((decode_depth(frame.depth) == 0).mean()) for frame in frames]
        assert 0.003 < np.median(holes) < 0.1
        for frame in frames:
            assert (decode_labels(frame.semantic)[decode_depth(frame.depth) == 0] > 0).all()


class TestCalls:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("seed=1", r"rooms is missing; wanted a text such as seed=1,rooms=20"),
            ("rooms=2", r"seed is missing"),
            ("seed=1,rooms=0", r"rooms is '0', wanted a whole number, 1 to"),
            ("seed=-1,rooms=2", r"seed is '-1', wanted a whole number, 0 to 4294967295"),
            ("seed=1,rooms=2.5", r"rooms is '2.5'"),
            ("seed=1,rooms=²", r"rooms is '²'"),
            ("seed=1,rooms=2,room=3", r"found 'room=3', did you mean rooms\?; wanted .* frames, width, height"),
            ("seed=1,rooms=2,rooms=3", r"rooms is given twice"),
            ("seed=1,rooms=2,width=4", r"width is '4', wanted a whole number, 16 to 4096"),
            ("rooms", r"found 'rooms'; wanted"),
            ("some/folder", r"found 'some/folder'; wanted"),
            ("seed=1,rooms=2,first=4294967295", r"the last room is beyond"),
        ],
    )
    def test_what_cannot_be_meant_is_named(self, text: str, message: str) -> None:
        with pytest.raises(CallError, match=message):
            synthetic.scan(Path(text), DEFAULT)

    def test_a_depth_scale_is_refused(self) -> None:
        with pytest.raises(CallError, match="--depth-scale has no meaning; leave it out"):
            synthetic.scan(Path("seed=1,rooms=1"), SourceOptions(depth_scale=1000.0))

    def test_the_command_line_packs_rooms(self, tmp_path: Path) -> None:
        runner = CliRunner()
        small = "seed=1,rooms=2,frames=2,width=32,height=24,first=7"
        done = runner.invoke(app, ["pack", "synthetic", small, str(tmp_path), "--workers", "1"])
        assert done.exit_code == 0, done.output
        assert "4 samples in 1 shards" in done.output
        assert DatasetReader(str(tmp_path)).key(0, 0) == "room-1-00007/0000"
        wrong = runner.invoke(app, ["pack", "synthetic", "seed=1", str(tmp_path / "x")])
        assert wrong.exit_code == 2
        assert "synthetic" in runner.invoke(app, ["formats"]).output
