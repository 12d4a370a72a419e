"""Real frames through a real S3 server: packed, verified, read by strangers, and geometrically right."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shards.images import decode_depth
from shards.manifest import shard_name
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.schema import Frame, Matrix, decode_frame_depth
from shards.sources import seven_scenes
from shards.sources.options import SourceOptions
from shards.stores.place import open_store
from shards.verify import verify


@dataclass(frozen=True)
class RealSet:
    """A raw dataset, packed to S3."""

    source_format: str
    source: Path
    num_frames: int
    shard_size_bytes: int
    url: str


@pytest.fixture(scope="module", params=["seven-scenes", "tum"])
def real(request: pytest.FixtureRequest, shared_data: Path, s3_server) -> Iterator[RealSet]:
    source, num_frames, cap = {
        "seven-scenes": (shared_data / "seven_scenes_style" / "data", 100, 3 << 20),
        "tum": (shared_data / "tum_rgbd", 40, 6 << 20),
    }[request.param]
    with pytest.MonkeyPatch.context() as environment:
        for name, value in s3_server.environ().items():
            environment.setenv(name, value)
        url = f"s3://{s3_server.make_bucket()}/{request.param}"
        report = pack(request.param, source, url, num_workers=2, shard_size_bytes=cap)
        assert report.num_samples == num_frames
        assert report.num_shards > 3
        yield RealSet(request.param, source, num_frames, cap, url)


def frames(url: str) -> list[Frame]:
    reader = DatasetReader(url)
    return [
        reader.read_frame(shard, i)
        for shard in range(reader.manifest.num_shards)
        for i in range(reader.samples_per_shard[shard])
    ]


def test_the_dataset_verifies(real: RealSet) -> None:
    report = verify(real.url)
    assert report.problems == ()
    assert report.num_samples == real.num_frames


def test_one_worker_gives_the_same_objects(real: RealSet) -> None:
    store = open_store(real.url)
    again = open_store(real.url + "-again")
    pack(real.source_format, real.source, again.url, num_workers=1, shard_size_bytes=real.shard_size_bytes)
    assert again.list() == store.list()
    assert len(store.list()) == DatasetReader(real.url).manifest.num_shards + 3
    for name in store.list():
        assert hashlib.sha256(store.read(name)).digest() == hashlib.sha256(again.read(name)).digest(), name


def test_tarfile_and_webdataset_find_every_member_of_every_frame(real: RealSet) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    reader = DatasetReader(real.url)
    store = open_store(real.url)
    wanted: dict[str, dict[str, bytes]] = {}
    by_tarfile: dict[str, dict[str, bytes]] = {}
    by_webdataset: dict[str, dict[str, bytes]] = {}
    for shard in range(reader.manifest.num_shards):
        for i in range(reader.samples_per_shard[shard]):
            wanted[reader.key(shard, i)] = reader.read_members(shard, i)
        data = store.read(shard_name(shard))
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                key, _, name = member.name.partition(".")
                by_tarfile.setdefault(key, {})[name] = archive.extractfile(member).read()
        for sample in group_by_keys(tar_file_expander([{"url": "here", "stream": io.BytesIO(data)}])):
            members = {name: value for name, value in sample.items() if not name.startswith("__")}
            assert sample["__key__"] not in by_webdataset
            by_webdataset[sample["__key__"]] = members
    assert len(wanted) == real.num_frames
    assert all({"depth.png", "meta.json"} < set(members) and len(members) == 3 for members in wanted.values())
    assert by_tarfile == wanted
    assert by_webdataset == wanted


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset closes no file
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset_opens_a_shard_by_itself(real: RealSet, tmp_path: Path) -> None:
    import webdataset

    reader = DatasetReader(real.url)
    path = tmp_path / "shard-000000.tar"
    path.write_bytes(open_store(real.url).read(path.name))
    dataset = webdataset.WebDataset(str(path), shardshuffle=False)
    assert [sample["__key__"] for sample in dataset] == list(reader.index(0).keys)


def test_colour_is_never_encoded_anew(real: RealSet) -> None:
    pattern = "*.color.jpg" if real.source_format == "seven-scenes" else "*/rgb/*.png"
    found = {hashlib.sha256(frame.color).digest() for frame in frames(real.url)}
    assert found == {hashlib.sha256(path.read_bytes()).digest() for path in real.source.glob(pattern)}


def test_depth_of_seven_scenes_keeps_its_bytes_and_its_65535_is_no_reading(real: RealSet) -> None:
    if real.source_format != "seven-scenes":
        pytest.skip("65535 is a habit of 7-Scenes")
    num_invalid = 0
    for ref, frame in zip(seven_scenes.scan(real.source, SourceOptions()), frames(real.url), strict=True):
        before, after = decode_depth(ref.depth.where.read_bytes()), decode_frame_depth(frame, "here")
        assert frame.depth == ref.depth.where.read_bytes()
        num_invalid += int((before == 65535).sum())
        assert np.array_equal(np.where(before == 65535, 0, before), after)
    assert num_invalid > 0


def reprojection_error(first: Frame, second: Frame, second_from_first: Matrix) -> float:
    """Median of |z projected - z measured| / z measured, first's readings seen in second; nan without overlap."""
    depth = decode_frame_depth(first, "first") / first.depth_scale
    rows, columns = np.nonzero(depth)
    z = depth[rows, columns]
    points = np.linalg.inv(first.K_depth) @ np.stack([columns * z, rows * z, z])
    x, y, z = second.K_depth @ (second_from_first[:3, :3] @ points + second_from_first[:3, 3:])
    x, y, z = x[z > 0.05], y[z > 0.05], z[z > 0.05]
    measured = decode_frame_depth(second, "second") / second.depth_scale
    columns, rows = np.rint(x / z).astype(int), np.rint(y / z).astype(int)
    inside = (columns >= 0) & (rows >= 0) & (columns < measured.shape[1]) & (rows < measured.shape[0])
    found = measured[rows[inside], columns[inside]]
    error = np.abs(z[inside] - found)[found > 0] / found[found > 0]
    return float(np.median(error)) if len(error) > 1000 else float("nan")


def median_error(packed: list[Frame], inverted: bool) -> float:
    errors = []
    for first, second in pairwise(packed):
        one, two = first.world_from_camera, second.world_from_camera
        if inverted:
            one, two = np.linalg.inv(one), np.linalg.inv(two)
        errors.append(reprojection_error(first, second, np.linalg.inv(two) @ one))
    return float(np.nanmedian(errors))


def test_consecutive_frames_agree_through_the_packed_cameras(real: RealSet) -> None:
    packed = frames(real.url)
    right, wrong = median_error(packed, inverted=False), median_error(packed, inverted=True)
    assert right < 0.02, right
    assert wrong > 5 * right, (right, wrong)
    assert wrong > 0.04, wrong


def test_the_frames_in_this_repository_agree_too(tum_sample: Path, tmp_path: Path) -> None:
    pack("tum", tum_sample, str(tmp_path))
    assert median_error(frames(str(tmp_path)), inverted=False) < 0.02
    assert verify(str(tmp_path)).problems == ()
