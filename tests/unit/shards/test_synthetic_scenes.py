"""Whole rooms as datasets of scenes: packed, verified, read back, drawn; and datasets of frames stay what they were."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from commands.shards import app
from shards.errors import CallError, ShardError
from shards.manifest import MANIFEST_NAME, Manifest
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.synthetic.cloud import VOXEL_SIZE
from shards.synthetic.furniture import LABEL_NAMES
from shards.synthetic.view import build_stage
from shards.verify import verify

SERIES = "seed=6,rooms=3,frames=12,width=80,height=60"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "one"
    pack("synthetic-scenes", SERIES, str(folder))
    return folder


def test_scenes_verify_and_the_manifest_says_what_they_are(dataset: Path) -> None:
    assert verify(str(dataset)).problems == ()
    reader = DatasetReader(str(dataset))
    assert reader.manifest.sample_kind == "scenes"
    assert reader.manifest.label_names == LABEL_NAMES
    assert list(reader.index(0).keys) == [f"room-6-0000{i}/whole" for i in range(3)]
    facts = json.loads(CliRunner().invoke(app, ["info", str(dataset), "--json"]).output)
    assert facts["sample_kind"] == "scenes"


def test_two_workers_give_the_same_objects_as_one(dataset: Path, tmp_path: Path) -> None:
    pack("synthetic-scenes", SERIES, str(tmp_path / "two"), num_workers=2)
    once, twice = ({path.name: path.read_bytes() for path in f.iterdir()} for f in (dataset, tmp_path / "two"))
    assert once == twice


def test_points_lie_in_the_room_and_in_the_boxes_of_their_instances(dataset: Path) -> None:
    reader = DatasetReader(str(dataset))
    for i in range(3):
        scene = reader.read_scene(0, i)
        room = build_stage(6, i).room
        points = scene.points.astype(np.float64)
        assert len(points) > 5000
        assert ((points > room.low - 0.2) & (points < room.high + 0.2)).all()  # noise reaches through walls
        walls = points[scene.semantic == LABEL_NAMES.index("wall"), :2]
        assert np.median(np.minimum(walls - room.low[:2], room.high[:2] - walls).min(axis=1)) < 0.01
        voxels = np.unique(np.floor(points / VOXEL_SIZE), axis=0)
        assert len(voxels) > 0.99 * len(points)  # float32 moves a few over the border
        ids = [value for value in np.unique(scene.instance).tolist() if value]
        assert len(ids) == len(scene.boxes) >= 4
        assert ((scene.instance == 0) == (scene.semantic <= 3)).all()
        for instance_id, box in zip(ids, scene.boxes, strict=True):
            mine = scene.instance == instance_id
            assert {LABEL_NAMES[label] for label in np.unique(scene.semantic[mine])} == {box.label}
            box_from_world = np.linalg.inv(box.world_from_box)
            local = points[mine] @ box_from_world[:3, :3].T + box_from_world[:3, 3]
            assert (np.abs(local) <= np.array(box.size) / 2 + 0.05).all(axis=1).mean() > 0.95


def test_segments_are_pieces_of_one_surface_of_one_object(dataset: Path) -> None:
    scene = DatasetReader(str(dataset)).read_scene(0, 0)
    points = scene.points.astype(np.float64)
    ids, counts = np.unique(scene.segments, return_counts=True)
    assert 50 < len(ids) < len(points) / 20
    for segment in ids[counts > 50]:
        mine = scene.segments == segment
        assert len(np.unique(scene.instance[mine])) == len(np.unique(scene.semantic[mine])) == 1
        if not scene.instance[mine][0]:  # of a wall: a patch of a plane
            spread = np.linalg.svd(points[mine] - points[mine].mean(axis=0), compute_uv=False) / counts[segment] ** 0.5
            assert spread[2] < 0.03
            assert np.ptp(points[mine], axis=0).max() < 1.2


def test_frames_and_scenes_are_not_taken_for_one_another(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"holds scenes \(packed with synthetic-scenes\), wanted frames"):
        DatasetReader(str(dataset)).read_frame(0, 0)
    pack("synthetic", "seed=1,rooms=1,frames=1,width=32,height=24", str(tmp_path))
    with pytest.raises(CallError, match=r"holds frames \(packed with synthetic\), wanted scenes"):
        DatasetReader(str(tmp_path)).read_scene(0, 0)


def test_a_manifest_from_before_there_were_scenes_means_frames(dataset: Path) -> None:
    fields = json.loads((dataset / MANIFEST_NAME).read_bytes())
    for name in ("sample_kind", "sha256"):
        del fields[name]
    fields["format_version"] = 1
    assert Manifest.decode(json.dumps(fields).encode(), "here").sample_kind == "frames"
    fields["sample_kind"] = "meshes"
    with pytest.raises(ShardError, match="here: samples are 'meshes', this program reads frames and scenes"):
        Manifest.decode(json.dumps(fields).encode(), "here")
