"""Rooms, their furniture and the way of the camera through them."""

import hashlib
import math
import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest

from shards.schema import check_rigid
from shards.synthetic.draws import Purpose, generator
from shards.synthetic.furniture import FURNITURE_NAMES, LABEL_NAMES, NUM_SLOTS, build_piece
from shards.synthetic.room import FREE_RADIUS, NUM_FACES, Room, build_room
from shards.synthetic.trajectory import CLEARANCE, MAX_TURN, clearance, plan_path

GEOMETRY_HASH = "316046becbc589bcc2c2b124f73936e3"


@pytest.fixture(scope="module")
def rooms() -> list[Room]:
    return [build_room(5, i) for i in range(60)]


def geometry_hash(room: Room) -> str:
    """Of everything that makes up a room, in tenths of a millimetre: last digits may differ between processors."""
    path = plan_path(room)
    poses = np.stack([path.world_from_camera(i) for i in (0, 1, 17)])
    lengths = [room.low, room.high, room.solids.center, room.solids.half_size, poses]
    digest = hashlib.sha256()
    for array in (*(np.rint(10_000 * one).astype("<i8") for one in lengths), room.solids.shape):
        digest.update(np.ascontiguousarray(array).tobytes())
    for ids in (room.label_of_surface, room.instance_of_surface, room.slot_of_surface):
        digest.update(ids.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def test_a_seed_and_an_index_mean_this_room_for_ever() -> None:
    assert geometry_hash(build_room(1, 0)) + geometry_hash(build_room(2**32 - 1, 123456)) == GEOMETRY_HASH


def test_another_process_builds_the_same_room(clean_environ: dict[str, str]) -> None:
    script = (
        "from shards.synthetic.room import build_room as b\n"
        "import hashlib; b(9, 1); r = b(9, 4).solids\n"
        "print(hashlib.sha256(r.center.tobytes() + r.half_size.tobytes() + r.cos_yaw.tobytes()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", script], env=clean_environ, capture_output=True, text=True, check=True)
    ours = build_room(9, 4).solids
    arrays = ours.center.tobytes() + ours.half_size.tobytes() + ours.cos_yaw.tobytes()
    assert run.stdout.strip() == hashlib.sha256(arrays).hexdigest()


def test_draws_of_one_purpose_do_not_meet_those_of_another() -> None:
    keys = [(s, r, p, f) for s in (0, 1) for r in (0, 1, 256) for p in Purpose for f in (0, 1)]
    firsts = {generator(*key).integers(2**63) for key in keys}
    assert len(firsts) == len(keys)


def test_every_class_occurs_and_none_is_rare(rooms: list[Room]) -> None:
    labels = [one.label for room in rooms for one in room.objects]
    counts = {name: labels.count(name) for name in FURNITURE_NAMES}
    assert len(FURNITURE_NAMES) >= 12
    assert min(counts.values()) > 0.4 * len(labels) / len(FURNITURE_NAMES), counts
    assert LABEL_NAMES[:4] == ("unlabelled", "wall", "floor", "ceiling")
    assert all(4 <= len(room.objects) <= 13 for room in rooms)


@pytest.mark.parametrize("name", FURNITURE_NAMES)
def test_a_piece_stands_centred_on_the_floor_and_its_size_is_tight(name: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        piece = build_piece(name, rng)
        low = np.min([np.subtract(part.center, part.half_size) for part in piece.parts], axis=0)
        high = np.max([np.add(part.center, part.half_size) for part in piece.parts], axis=0)
        size = np.array(piece.size)
        np.testing.assert_allclose(low, [-size[0] / 2, -size[1] / 2, 0], atol=1e-8)
        np.testing.assert_allclose(high, [size[0] / 2, size[1] / 2, size[2]], atol=1e-8)
        assert all(min(part.half_size) > 0 and 0 <= part.slot < NUM_SLOTS for part in piece.parts)
        assert size[2] < 2.4  # below the lowest ceiling


def test_furniture_of_another_size_is_the_same_furniture_resized() -> None:
    for name in FURNITURE_NAMES:
        usual, small = (build_piece(name, generator(3, 7, Purpose.LAYOUT), percent) for percent in (100, 75))
        np.testing.assert_allclose(small.size, 0.75 * np.array(usual.size), atol=2e-4)
        for whole, part in zip(usual.parts, small.parts, strict=True):
            assert (part.shape, part.slot) == (whole.shape, whole.slot)
            np.testing.assert_allclose(part.center, 0.75 * np.array(whole.center), atol=2e-4)
    room = build_room(5, 3, 75)
    assert geometry_hash(room) != geometry_hash(build_room(5, 3))


def test_boxes_are_tight_around_the_solids_of_their_object(rooms: list[Room]) -> None:
    for room in rooms[:20]:
        for one in room.objects:
            mine = room.instance_of_surface[NUM_FACES:] == one.instance_id
            assert (room.label_of_surface[NUM_FACES:][mine] == LABEL_NAMES.index(one.label)).all()
            assert room.solids.cos_yaw[mine] == pytest.approx(math.cos(one.yaw))
            box_from_world = np.linalg.inv(one.world_from_box)
            middle = room.solids.center[mine] @ box_from_world[:3, :3].T + box_from_world[:3, 3]
            half = room.solids.half_size[mine]
            np.testing.assert_allclose((middle - half).min(axis=0), -np.array(one.size) / 2, atol=1e-8)
            np.testing.assert_allclose((middle + half).max(axis=0), np.array(one.size) / 2, atol=1e-8)


def footprint(one: object) -> np.ndarray:
    """(4, 2) corners on the floor."""
    x, y, _ = np.array(one.size) / 2
    corners = np.array([(-x, -y, 0, 1), (x, -y, 0, 1), (x, y, 0, 1), (-x, y, 0, 1)])
    return (corners @ one.world_from_box.T)[:, :2]


def test_pieces_stand_inside_and_apart_and_leave_a_spot_free(rooms: list[Room]) -> None:
    for room in rooms:
        outlines = [footprint(one) for one in room.objects]
        for corners in outlines:
            assert (corners > room.low[:2]).all()
            assert (corners < room.high[:2]).all()
        for first, second in combinations(outlines, 2):
            gap = np.maximum(first.min(axis=0) - second.max(axis=0), second.min(axis=0) - first.max(axis=0))
            assert gap.max() > 0.05
        spot = np.array([[*room.free_spot, 0.3]])
        assert clearance(room, spot)[0] >= min(0.3, FREE_RADIUS) - 1e-9


def test_the_camera_keeps_clear_of_everything_wherever_it_is(rooms: list[Room]) -> None:
    for room in rooms:
        path = plan_path(room)
        positions = np.stack([path.world_from_camera(i)[:3, 3] for i in range(40)])
        assert clearance(room, positions).min() > CLEARANCE - 0.02  # planned at 90 points of the curve, not everywhere


def test_clearance_is_the_distance_to_the_nearest_box() -> None:
    room = build_room(5, 0)
    one = room.objects[0]
    top = one.world_from_box @ [0, 0, one.size[2] / 2 + 0.17, 1]
    side = one.world_from_box @ [one.size[0] / 2 + 0.03, 0, 0, 1]
    inside = one.world_from_box @ [0, 0, 0, 1]
    near_wall = [room.high[0] - 0.01, 0.0, room.high[2] - 0.2]
    found = clearance(room, np.array([top[:3], side[:3], inside[:3], near_wall]))
    np.testing.assert_allclose(found, [min(0.17, room.high[2] - top[2]), 0.03, 0, 0.01], atol=1e-9)


def test_poses_are_rigid_level_and_smooth(rooms: list[Room]) -> None:
    turns, steps = [], []
    for room in rooms:
        path = plan_path(room)
        poses = [path.world_from_camera(i) for i in range(12)]
        for pose in poses:
            check_rigid("world_from_camera", pose, "here")
            np.testing.assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-8)
            assert pose[2, 1] < -0.6  # the image is upright: its y axis points down
        for first, second in pairwise(poses):
            turns.append(math.acos(min(1.0, float(first[:3, 2] @ second[:3, 2]))))
            steps.append(float(np.linalg.norm(first[:3, 3] - second[:3, 3])))
    assert max(turns) < MAX_TURN + 0.02
    assert np.median(turns) > 0.05
    assert max(steps) < 0.4
    assert np.median(steps) > 0.03
