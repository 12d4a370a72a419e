"""What `info` says of datasets whose content is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shards import summary as summary_module
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.stores.store import StoreError
from shards.summary import summarise


def test_rooms_have_scenes_sizes_poses_labels_and_a_range_of_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack("synthetic", "seed=3,rooms=2,frames=3,width=64,height=48", str(tmp_path / "d"), shard_size_bytes=30_000)
    dataset = DatasetReader(str(tmp_path / "d"))
    found = summarise(dataset)
    assert (found.num_scenes, found.scenes_are_all, found.num_looks, found.problem) == (2, True, 6, "")
    assert found.color_sizes == found.depth_sizes == ("64x48",)
    assert (found.pose_share, found.label_share, found.points) == (1.0, 1.0, None)
    assert found.depth is not None
    near, middle, far = found.depth
    assert 0.3 < near < middle < far < 6.5
    assert 0.5 < found.reading_share < 1
    assert found.lines()["poses"] == "all"
    assert sum(found.depth_shares) == pytest.approx(1)
    assert found.depth_shares[0] < 0.1
    assert dict(found.label_shares)["wall"] == max(share for _, share in found.label_shares)
    assert sum(share for _, share in found.label_shares) == pytest.approx(1)
    assert found.instances is not None
    assert 1 <= found.instances < 20
    assert found.lines()["sources"] == "synthetic"
    monkeypatch.setattr(summary_module, "MAX_INDEXES", 1)
    assert summarise(dataset).lines()["scenes"].startswith("1 at least")


def test_a_range_of_depth_that_no_room_has_is_asked_about(tmp_path: Path) -> None:
    pack("synthetic", "seed=3,rooms=1,frames=2,width=64,height=48", str(tmp_path / "d"))
    found = summarise(DatasetReader(str(tmp_path / "d")))
    assert "is --depth-scale right?" not in found.lines()["depth range"]
    assert "is --depth-scale right?" in replace(found, depth=(10.6, 18.4, 28.8)).lines()["depth range"]


def test_scenes_have_points(tmp_path: Path) -> None:
    pack("synthetic-scenes", "seed=3,rooms=1", str(tmp_path / "d"))
    found = summarise(DatasetReader(str(tmp_path / "d")))
    assert found.points is not None
    assert found.points > 10_000
    assert "points" in found.lines()
    assert "poses" not in found.lines()


def test_a_sample_that_cannot_be_read_is_said_and_the_others_are_told(tmp_path: Path) -> None:
    pack("synthetic", "seed=3,rooms=1,frames=4,width=64,height=48", str(tmp_path / "d"))
    (tar,) = (tmp_path / "d").glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[700] ^= 1  # in the first sample
    tar.write_bytes(data)
    found = summarise(DatasetReader(str(tmp_path / "d")))
    assert found.num_looks == 3
    assert "damaged" in found.problem
    assert "others could not be read" in found.lines()["seen in"]


def test_storage_that_fails_is_an_error(tmp_path: Path) -> None:
    pack("synthetic", "seed=3,rooms=1,frames=4,width=64,height=48", str(tmp_path / "d"))
    dataset = DatasetReader(str(tmp_path / "d"))
    (tar,) = (tmp_path / "d").glob("*.tar")
    tar.rename(tmp_path / "moved")
    tar.mkdir()  # what cannot be read, though it is there
    with pytest.raises(StoreError, match="no file but a pipe, device or folder"):
        summarise(dataset)
    tar.rmdir()
    assert "no such file" in summarise(dataset).lines()["look"]
