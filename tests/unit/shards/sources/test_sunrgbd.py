"""SUN RGB-D, as published and as VoteNet exports it: real frames where they are at hand, and files of our writing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from shards.errors import CallError, ShardError
from shards.images import decode_depth, decode_labels
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.schema import Frame, check_frame
from shards.sources import sunrgbd, sunrgbd_votenet
from shards.sources.frame_files import read_frame
from shards.sources.options import SourceOptions
from shards.sources.recognise import recognise
from shards.sources.sunrgbd_mat import LABELS

DEFAULT = SourceOptions()
K = "100 0 32\n0 100 24\n0 0 1\n"
TILT = np.array([[1.0, 0, 0], [0, 0.8, 0.6], [0, -0.6, 0.8]])  # the camera looks down
VIEW = "kv2/kinect2data/000001_a-resize"


def lifted(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels (row, column) with a reading, and their points in the camera's frame, metres."""
    depth = check_frame(frame, "here") / frame.depth_scale
    rows, columns = np.nonzero(depth)
    z = depth[rows, columns]
    x, y = (
        (columns - frame.K_depth[0, 2]) / frame.K_depth[0, 0] * z,
        (rows - frame.K_depth[1, 2]) / frame.K_depth[1, 1] * z,
    )
    return rows, columns, np.stack([x, y, z], axis=1)


def inside(points: np.ndarray, camera_from_box: np.ndarray, size: tuple[float, ...]) -> np.ndarray:
    local = (points - camera_from_box[:3, 3]) @ camera_from_box[:3, :3]
    return (np.abs(local) <= np.array(size) / 2).all(axis=1)


@pytest.fixture
def exported(shared_data: Path) -> Path:
    return shared_data / "sunrgbd_votenet_export"


class TestVoteNetExport:
    def test_boxes_of_the_real_views_lie_on_their_objects(self, exported: Path, tmp_path: Path) -> None:
        pack("sunrgbd-votenet", exported, str(tmp_path / "d"))
        reader = DatasetReader(str(tmp_path / "d"))
        num_boxes = 0
        for place, name in enumerate(("000001", "000002")):
            frame = reader.read_frame(0, place)
            rows, columns, points = lifted(frame)
            lines = (exported / "sunrgbd_trainval" / "label" / f"{name}.txt").read_text().splitlines()
            assert frame.boxes is not None
            for box, line in zip(frame.boxes, lines, strict=True):
                label, left, top, width, height = line.split()[:5]
                assert box.label == label
                mine = inside(points, box.camera_from_box, box.size)
                x, y = float(left), float(top)
                flat = (columns >= x - 2) & (columns <= x + float(width) + 2)
                flat &= (rows >= y - 2) & (rows <= y + float(height) + 2)
                assert mine.sum() > 100
                assert (flat & mine).sum() > 0.95 * mine.sum(), label
                num_boxes += 1
        assert num_boxes == 8

    def test_points_come_back_where_they_were(self, exported: Path) -> None:
        (ref, _) = sunrgbd_votenet.scan(exported, DEFAULT)
        frame = read_frame(ref)
        _, _, points = lifted(frame)
        assert frame.world_from_camera is not None
        found = points @ frame.world_from_camera[:3, :3].T
        true = loadmat(exported / "sunrgbd_trainval" / "depth" / "000001.mat")["instance"][:, :3]
        # A point is a pixel; depth was rounded to millimetres.
        keys = {tuple(row) for row in np.rint(true * 100).astype(int)}
        near = [any((a + i, b + j, c + k) in keys for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1))
                for a, b, c in np.rint(found[::503] * 100).astype(int)]  # fmt: skip
        assert np.mean(near) > 0.99

    def test_splits_name_views_without_their_zeros(self, exported: Path, tmp_path: Path) -> None:
        (tmp_path / "val.txt").write_text("2\n17\n")
        assert [one.scene_id for one in sunrgbd_votenet.scan(exported, SourceOptions(split=tmp_path / "val.txt"))] == [
            "000002"
        ]

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("calib/000001.txt", b"1 2 3", "calib/000001.txt: found 1x3 numbers, wanted two lines of nine"),
            (
                "label/000001.txt",
                b"bed 1 2 3",
                r"label/000001.txt, line 1: .*wanted a class, four numbers",
            ),
            ("depth/000001.mat", b"no mat", r"depth/000001.mat: not a .mat file of version 5"),
            ("image/000001.jpg", b"", r"image/000001.jpg: color is an empty file"),
        ],
    )
    def test_what_is_damaged_is_named(
        self, exported: Path, tmp_path: Path, name: str, data: bytes, message: str
    ) -> None:
        root = shutil.copytree(exported / "sunrgbd_trainval", tmp_path / "votenet")
        (root / name).write_bytes(data)
        with pytest.raises(ShardError, match=message):
            read_frame(sunrgbd_votenet.scan(root, DEFAULT)[0])


class TestPublished:
    def test_the_real_view_is_a_room(self, shared_data: Path) -> None:
        (ref,) = sunrgbd.scan(shared_data / "sunrgbd_original", DEFAULT)
        frame = read_frame(ref)
        assert (frame.scene_id, frame.frame_id) == ("2014-12-18_11-31-54_260595134347", "0000144")
        _, _, points = lifted(frame)
        assert 1.5 < np.median(points[:, 2]) < 4
        assert frame.world_from_camera is not None
        heights = (points @ frame.world_from_camera[:3, :3].T)[:, 2]
        turned = points[:, 1] * -1  # as if the camera were level already
        bins = np.arange(-3, 3, 0.05)
        level, as_taken = (np.histogram(one, bins)[0].max() / len(points) for one in (heights, turned))
        assert level > 1.5 * as_taken  # floor and desk lie flat

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """Two views of our own writing, with the annotation as it is published."""
        rng = np.random.default_rng(0)
        for place, name in enumerate((VIEW, "xtion/sun3d/dorm/0001")):
            view = tmp_path / "SUNRGBD" / name
            for kind in ("image", "depth", "depth_bfx", "extrinsics"):
                (view / kind).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(view / "image" / "a.jpg")
            depth = rng.integers(800, 5000, (48, 64)).astype(np.uint16)
            for kind, extra in (("depth", 0), ("depth_bfx", 1)):
                turned = depth + np.uint16(extra)
                Image.fromarray((turned << 3 | turned >> 13).astype(np.uint16)).save(view / kind / "a.png")
            np.savetxt(view / "extrinsics" / "20140101000000.txt", np.eye(3))
            np.savetxt(view / "extrinsics" / "20150101000000.txt", np.column_stack([TILT, np.zeros(3)]))
            (view / "intrinsics.txt").write_text(K)
            (tmp_path / f"depth{place}.npy").write_bytes(depth.tobytes())
        labels = np.zeros((48, 64), np.uint8)
        labels[:, 10:20], labels[:, 20:30], labels[:, 30:40] = 1, 2, 3
        names = np.array(["Night Stand", "wall", "dinosaur"], dtype=object)
        savemat(tmp_path / "SUNRGBD" / VIEW / "seg.mat", {"seglabel": labels, "names": names})
        boxes = [
            {"classname": "bed", "basis": np.array([[0.6, 0.8, 0], [-0.8, 0.6, 0], [0, 0, 1]]),
             "coeffs": np.array([0.5, 1.0, 0.3]), "centroid": np.array([0.2, 3.0, -0.4]),
             "orientation": np.array([0.6, 0.8, 0])},
            {"classname": "lamp", "basis": np.array([[0.6, 0.8, 0], [0.8, -0.6, 0], [0, 0, 1]]),  # left-handed
             "coeffs": np.array([0.1, 0.2, 0.4]), "centroid": np.array([0.0, 2.0, 0.0]),
             "orientation": np.array([0.6, 0.8, 0])},
        ]  # fmt: skip
        found = np.empty(2, dtype=object)
        found[:] = boxes
        views = np.empty(2, dtype=object)
        views[:] = [
            {"sequenceName": f"SUNRGBD/{VIEW}", "groundtruth3DBB": found},
            {"sequenceName": "SUNRGBD/xtion/sun3d/dorm/0001/", "groundtruth3DBB": np.zeros((0, 0))},
        ]
        savemat(tmp_path / "SUNRGBDMeta3DBB_v2.mat", {"SUNRGBDMeta": views})
        return tmp_path / "SUNRGBD"

    def test_a_view_is_read_with_labels_and_boxes(self, root: Path) -> None:
        assert recognise(root).name == "sunrgbd"
        refs = sunrgbd.scan(root, DEFAULT)
        assert [one.scene_id for one in refs] == [VIEW, "xtion/sun3d/dorm/0001"]
        frame = read_frame(refs[0])
        depth = check_frame(frame, "here")
        true = np.frombuffer((root.parent / "depth0.npy").read_bytes(), np.uint16).reshape(48, 64)
        assert np.array_equal(depth, true + 1)  # that of depth_bfx
        assert frame.semantic is not None
        labels = decode_labels(frame.semantic)
        names = sunrgbd.label_names(root)
        assert names == LABELS
        assert len(names) == 38
        assert [names[labels[0, column]] for column in (0, 10, 20, 30)] == [
            "unlabelled",
            "night_stand",
            "wall",
            "unlabelled",
        ]
        assert frame.world_from_camera is not None
        # The newest extrinsics level the camera; (x, y, z) becomes x right, y ahead, z up.
        np.testing.assert_allclose(frame.world_from_camera[:3, :3] @ [0, 0, 1], [0, 0.8, -0.6], atol=1e-12)
        assert frame.boxes is not None
        bed, lamp = frame.boxes
        assert (bed.label, bed.size, lamp.label) == ("bed", (1.0, 2.0, 0.6), "lamp")
        world_from_box = frame.world_from_camera @ bed.camera_from_box
        np.testing.assert_allclose(world_from_box[:3, 3], [0.2, 3.0, -0.4], atol=1e-12)
        np.testing.assert_allclose(world_from_box[:3, 0], [0.6, 0.8, 0], atol=1e-12)
        assert read_frame(refs[1]).boxes == ()

    def test_without_the_annotation_there_are_no_boxes(self, root: Path) -> None:
        (root.parent / "SUNRGBDMeta3DBB_v2.mat").rename(root.parent / "other.mat")
        assert {one.boxes for one in sunrgbd.scan(root, DEFAULT)} == {None}
        shutil.rmtree(root / VIEW / "depth_bfx")
        frame = read_frame(sunrgbd.scan(root, DEFAULT)[0])
        true = np.frombuffer((root.parent / "depth0.npy").read_bytes(), np.uint16).reshape(48, 64)
        assert np.array_equal(decode_depth(frame.depth), true)

    def test_what_is_missing_or_damaged_is_named(self, root: Path) -> None:
        (root.parent / "SUNRGBDMeta3DBB_v2.mat").write_bytes(b"MATLAB 7.3")
        with pytest.raises(ShardError, match=r"SUNRGBDMeta3DBB_v2.mat: not the annotation of SUN RGB-D"):
            sunrgbd.scan(root, DEFAULT)
        (root.parent / "SUNRGBDMeta3DBB_v2.mat").unlink()
        (root / VIEW / "seg.mat").write_bytes(b"nothing")
        with pytest.raises(ShardError, match=r"seg.mat: not a .mat file of version 5 .* to pack without labels"):
            read_frame(sunrgbd.scan(root, DEFAULT)[0])
        shutil.rmtree(root / VIEW / "extrinsics")
        with pytest.raises(ShardError, match=r"extrinsics: no .txt in it, wanted the rotation that levels the camera"):
            sunrgbd.scan(root, DEFAULT)
        with pytest.raises(CallError, match="no view of SUN RGB-D in it or below"):
            sunrgbd.scan(root.parent / "SUNRGBD" / "xtion" / "sun3d" / "dorm" / "0001" / "image", DEFAULT)
