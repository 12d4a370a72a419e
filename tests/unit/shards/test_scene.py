"""Scenes survive a round trip, and checks name what is wrong with them."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest

from shards.errors import ShardError
from shards.scene import WHOLE, Scene, SceneBox, check_scene, members_of_scene, scene_from_members
from shards.schema import sample_key

KEY = sample_key("my room", WHOLE)


def make_scene(num_points: int = 50) -> Scene:
    rng = np.random.default_rng(0)
    world_from_box = np.eye(4)
    world_from_box[:3, 3] = (1.5, -0.25, 1 / 3)
    return Scene(
        dataset="made",
        scene_id="my room",
        points=rng.normal(size=(num_points, 3)).astype(np.float32),
        rgb=rng.integers(0, 256, (num_points, 3), dtype=np.uint8),
        semantic=rng.integers(0, 16, num_points).astype(np.uint8),
        instance=rng.integers(0, 900, num_points).astype(np.uint16),
        boxes=(SceneBox("chair", world_from_box, (0.5, 0.6, 1.1)),),
    )


@pytest.mark.parametrize("without", [(), ("boxes",), ("semantic", "instance"), ("semantic", "instance", "boxes")])
def test_a_scene_round_trips(without: tuple[str, ...]) -> None:
    scene = dataclasses.replace(make_scene(), **dict.fromkeys(without))
    members = members_of_scene(scene)
    again = scene_from_members(KEY, members)
    check_scene(again, "here")
    for name in ("points", "rgb", "semantic", "instance"):
        before, after = getattr(scene, name), getattr(again, name)
        if name in without:
            assert after is None
        else:
            np.testing.assert_array_equal(before, after)
            assert before.dtype == after.dtype
    assert (again.boxes is None) == ("boxes" in without)
    for box, box_again in zip(scene.boxes or (), again.boxes or (), strict=True):
        assert (box.label, box.size) == (box_again.label, box_again.size)
        np.testing.assert_array_equal(box.world_from_box, box_again.world_from_box)
    assert members_of_scene(again) == members


def test_equal_arrays_give_equal_bytes_whenever_they_are_written() -> None:
    data = members_of_scene(make_scene())["points.npz"]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:  # as anybody would
        assert archive["xyz"].dtype == np.float32
        assert sorted(archive.files) == ["instance", "rgb", "semantic", "xyz"]


def damaged(members: dict[str, bytes], name: str, data: bytes | None) -> dict[str, bytes]:
    others = {other: value for other, value in members.items() if other != name}
    return others if data is None else {**others, name: data}


def pickled_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, xyz=np.array([{}], dtype=object), rgb=np.zeros((1, 3), np.uint8))
    return buffer.getvalue()


def other_npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, xyz=np.zeros((1, 3), np.float32))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("points.npz", None, "member points.npz is missing"),
        ("meta.json", None, "member meta.json is missing"),
        ("depth.png", b"", "unknown member depth.png; a scene has"),
        ("points.npz", b"junk", "not an npz archive: 4 bytes"),
        ("points.npz", b"PK junk", "a member is malformed"),
        ("points.npz", pickled_npz(), "a member is malformed .*xyz holds object, .*nothing is ever unpickled"),
        ("points.npz", other_npz(), r"points.npz holds \['xyz'\], wanted xyz, rgb"),
        ("meta.json", b"{}", "a member is malformed"),
        ("meta.json", json.dumps({"format_version": 3}).encode(), "format version 3, this program reads 1 and 2"),
        (
            "meta.json",
            json.dumps({"format_version": 1, "dataset": "made", "scene_id": "another"}).encode(),
            "is of scene 'another'",
        ),
        ("boxes.json", b'[{"label": "chair"}]', "a member is malformed"),
    ],
)
def test_broken_members_are_named(name: str, data: bytes | None, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        scene_from_members(KEY, damaged(members_of_scene(make_scene()), name, data))


def test_every_cut_and_many_flipped_bytes_of_the_points_are_noticed_or_harmless() -> None:
    members = members_of_scene(make_scene(5))
    data = members["points.npz"]
    wanted = scene_from_members(KEY, members)
    for length in range(0, len(data), 7):
        with pytest.raises(ShardError):
            scene_from_members(KEY, {**members, "points.npz": data[:length]})
    for position in range(0, len(data), 3):
        flipped = data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]
        try:
            found = scene_from_members(KEY, {**members, "points.npz": flipped})
        except ShardError:
            continue
        np.testing.assert_array_equal(found.points, wanted.points)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": np.zeros((0, 3), np.float32)}, "the scene has no points"),
        ({"points": np.zeros((50, 3))}, r"xyz is float64 \(50, 3\), wanted float32 \(50, 3\)"),
        ({"points": np.full((50, 3), np.nan, np.float32)}, "50 points are not finite"),
        ({"rgb": np.zeros((49, 3), np.uint8)}, r"rgb is uint8 \(49, 3\), wanted uint8 \(50, 3\)"),
        ({"semantic": np.zeros(50, np.int64)}, r"semantic is int64 \(50,\), wanted uint8 or uint16"),
        ({"instance": np.zeros(50, np.uint8)}, "instance is uint8"),
        ({"boxes": (SceneBox("bed", np.zeros((4, 4)), (1, 1, 1)),)}, "world_from_box is not a rigid transform"),
        ({"boxes": (SceneBox("bed", np.eye(4), (1, 0, 1)),)}, "the box of a bed has size"),
    ],
)
def test_scenes_that_do_not_hold_together_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ShardError, match=f"here: .*{message}"):
        check_scene(dataclasses.replace(make_scene(), **changes), "here")
