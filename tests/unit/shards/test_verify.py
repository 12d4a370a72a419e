"""Verify names every broken sample, and no other."""

import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from made_dataset import blank_manifest, write_samples, write_slices

from shards.errors import CallError, ShardError
from shards.images import encode_depth
from shards.manifest import INDEX_NAME, shard_name
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.rows import ROW
from shards.slices import members_of_slice
from shards.stores.folder import FolderStore
from shards.stores.store import StoreError
from shards.verify import VerifyReport, _verify_shard, verify


@pytest.fixture
def dataset(tmp_path: Path, make_scene: Callable[..., Path]) -> Path:
    folder = tmp_path / "dataset"
    pack("seven-scenes", make_scene(tmp_path / "kitchen", 9), str(folder), shard_size_bytes=50_000)
    return folder


def messages(report: VerifyReport) -> str:
    return "\n".join(problem.message for problem in report.problems)


def republish(folder: Path, samples: list[tuple[str, dict[str, bytes]]], tmp_path: Path) -> None:
    """Replace the dataset by one of these samples, whose checksums are all right."""
    for path in folder.iterdir():
        path.unlink()
    write_samples(folder, samples, tmp_path / "scratch", blank_manifest(dataset="seven-scenes"), 50_000)


def all_samples(folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    reader = DatasetReader(str(folder))
    return [
        (reader.key(shard, i), reader.read_members(shard, i))
        for shard in range(reader.manifest.num_shards)
        for i in range(reader.samples_per_shard[shard])
    ]


def test_a_whole_dataset_has_no_problem(dataset: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(str(dataset), on_progress=lambda done, total: seen.append((done, total)))
    assert report.problems == ()
    assert report.broken_keys == ()
    assert report.num_samples == 9
    assert seen == [(i + 1, report.num_shards) for i in range(report.num_shards)]


def test_two_workers_find_the_same(dataset: Path) -> None:
    data = bytearray((dataset / shard_name(1)).read_bytes())
    data[3000] ^= 1
    (dataset / shard_name(1)).write_bytes(data)
    assert verify(str(dataset), num_workers=2) == verify(str(dataset))


@pytest.mark.parametrize("seed", range(60))
def test_flipped_bytes_are_pinned_to_their_samples(dataset: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = dataset / shard_name(0)
    index = DatasetReader(str(dataset)).index(0)
    data = bytearray(path.read_bytes())
    wanted = set()
    for _ in range(rng.randint(1, 3)):
        position = rng.choice(
            [rng.randrange(len(data)), rng.randrange(512), int(index.offsets[-1]) + rng.randrange(512)]
        )
        data[position] ^= 1 << rng.randrange(8)
        for key, offset, length in zip(index.keys, index.offsets, index.lengths, strict=True):
            if offset <= position < offset + length:
                wanted.add(key)
    if bytes(data) == path.read_bytes():
        return
    path.write_bytes(data)
    report = verify(str(dataset))
    assert set(report.broken_keys) == wanted
    assert "sha256 is" in messages(report)


@pytest.mark.parametrize("cut", [0, 100, 5_000, 20_000, -1, -5_000])
def test_a_truncated_shard_breaks_the_samples_behind_the_cut(dataset: Path, cut: int) -> None:
    path = dataset / shard_name(1)
    data = path.read_bytes()
    length = cut % len(data)
    index = DatasetReader(str(dataset)).index(1)
    path.write_bytes(data[:length])
    report = verify(str(dataset))
    ends = (index.offsets + index.lengths).tolist()
    assert report.broken_keys == tuple(key for key, end in zip(index.keys, ends, strict=True) if end > length)
    assert report.problems


def test_a_shard_cut_between_two_members_is_noticed_though_webdataset_would_not(dataset: Path) -> None:
    path = dataset / shard_name(0)
    index = DatasetReader(str(dataset)).index(0)
    path.write_bytes(path.read_bytes()[: int(index.offsets[-1])])
    assert verify(str(dataset)).broken_keys == (index.keys[-1],)


def test_a_missing_shard_breaks_all_its_samples(dataset: Path) -> None:
    (dataset / shard_name(0)).unlink()
    report = verify(str(dataset))
    assert report.broken_keys == DatasetReader(str(dataset)).index(0).keys
    assert "shard-000000.tar: no such file" in messages(report)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_flipped_row_names_its_sample(dataset: Path) -> None:
    path = dataset / INDEX_NAME
    data = path.read_bytes()
    keys = DatasetReader(str(dataset)).index(0).keys
    for i, position in ((0, 0), (1, 200), (len(keys) - 1, ROW.itemsize - 1)):
        flip(path, i * ROW.itemsize + position)
        report = verify(str(dataset))
        assert report.broken_keys == (keys[i],)
        assert "index.bin: the row of sample" in messages(report)
        path.write_bytes(data)


def test_a_flipped_key_names_its_sample(dataset: Path) -> None:
    keys = DatasetReader(str(dataset)).index(0).keys
    flip(dataset / INDEX_NAME, 9 * ROW.itemsize + 3)
    report = verify(str(dataset))
    assert report.broken_keys == keys[:1]
    assert "the keys of shard 0 are damaged" in messages(report)


def test_a_row_that_says_something_else_than_its_sample_is_named(dataset: Path, tmp_path: Path) -> None:
    reader = DatasetReader(str(dataset))
    slices = [(reader.key(0, i), reader.read_slice(0, i)) for i in range(2)]
    for name, value in (("depth_scale", 999.0), ("K_color", 70.0), ("member_offset", 512), ("color_size", 3)):

        def altered(row: bytes, name: str = name, value: float = value) -> bytes:
            rows = np.frombuffer(bytearray(row), ROW)
            rows[name] = value
            return rows.tobytes()

        folder = tmp_path / name
        write_slices(folder, slices, tmp_path / "scratch", blank_manifest(dataset="seven-scenes"), edit_row=altered)
        report = verify(str(folder))
        assert report.broken_keys == (slices[0][0],)
        assert f"the index says something else than the sample of {name} (" in messages(report)


def test_a_missing_index_is_a_problem_of_all_its_samples(dataset: Path) -> None:
    reader = DatasetReader(str(dataset))
    keys = [key for shard in range(reader.manifest.num_shards) for key in reader.keys(shard)]
    (dataset / INDEX_NAME).unlink()
    assert verify(str(dataset)).broken_keys == tuple(keys)


def test_shard_and_index_both_damaged(dataset: Path) -> None:
    for name in (shard_name(0), INDEX_NAME):
        flip(dataset / name, 20)
    assert "tar and index are both damaged: none of its samples can be read" in messages(verify(str(dataset)))


OLDER = Path(__file__).resolve().parents[2] / "data/older/frames"


def test_a_dataset_of_format_1_is_verified_line_by_line(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OLDER, tmp_path / "older"))
    assert verify(str(folder)).problems == ()
    path, keys = folder / "shard-000000.idx", DatasetReader(str(folder)).index(0).keys
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    for line_number, position in ((0, 3), (1, -2), (len(keys) - 1, -12)):
        changed = bytearray(lines[line_number])
        changed[position] ^= 1
        path.write_bytes(b"".join([*lines[:line_number], bytes(changed), *lines[line_number + 1 :]]))
        report = verify(str(folder))
        assert report.broken_keys == (keys[line_number],)
        assert "the index is damaged" in messages(report)
    path.write_bytes(data[:-2] + b"0\n")
    report = verify(str(folder))
    assert report.broken_keys == ()
    assert "the index is damaged" in messages(report)
    path.unlink()
    assert verify(str(folder)).broken_keys == keys
    body = b"".join(b"\t".join([*line.split(b"\t")[:2], b"99", *line.split(b"\t")[3:]]) for line in lines[:-1])
    path.write_bytes(body + b"#crc32c\t%08x\n" % google_crc32c.value(body))
    assert verify(str(folder)).broken_keys == keys


def test_a_sample_that_was_packed_broken_is_named(dataset: Path, tmp_path: Path) -> None:
    """Checksums are right, the content is not: only decoding every member tells."""
    samples = all_samples(dataset)
    samples[2][1]["depth.png"] = samples[2][1]["depth.png"][:2000]
    samples[5][1]["depth.png"] = encode_depth(np.ones((96, 128), np.uint16))
    samples[7][1]["meta.json"] = samples[6][1]["meta.json"]
    republish(dataset, samples, tmp_path)
    report = verify(str(dataset))
    assert report.broken_keys == (samples[2][0], samples[5][0], samples[7][0])
    for text in ("depth cannot be decoded", "depth is 128x96 but K_depth", "meta.json is of scene"):
        assert text in messages(report)


def test_a_key_that_occurs_twice_is_named(dataset: Path, tmp_path: Path) -> None:
    samples = all_samples(dataset)
    republish(dataset, [*samples, samples[0]], tmp_path)
    report = verify(str(dataset))
    assert report.broken_keys == (samples[0][0],)
    assert f"key {samples[0][0]} occurs 2 times in the dataset" in messages(report)


def test_a_repeated_key_in_a_shard_whose_index_is_damaged_is_named_with_the_rest(dataset: Path, tmp_path: Path) -> None:
    samples = all_samples(dataset)
    republish(dataset, [*samples, samples[0]], tmp_path)
    flip(dataset / INDEX_NAME, 9)
    report = verify(str(dataset))
    assert report.broken_keys == (samples[0][0],)
    assert "the row of sample 0 of shard 0, at byte 0, is damaged" in messages(report)
    assert f"key {samples[0][0]} occurs 2 times in the dataset" in messages(report)


def test_storage_that_fails_is_no_damage(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_range, failures = FolderStore.read_range, [True]

    def fail(self: FolderStore, name: str, offset: int, length: int) -> bytes:
        if name == INDEX_NAME and failures:
            failures.pop()  # for a moment only
            raise StoreError("the network is down")
        return read_range(self, name, offset, length)

    monkeypatch.setattr(FolderStore, "read_range", fail)
    with pytest.raises(StoreError, match="the network is down"):
        verify(str(dataset))


def test_a_shard_is_held_once(tmp_path: Path, make_scene: Callable[..., Path]) -> None:
    folder = tmp_path / "large"
    pack("seven-scenes", make_scene(tmp_path / "office", 40, size=(320, 240)), str(folder))
    reader = DatasetReader(str(folder))
    _verify_shard(reader, 0)  # imports what is imported late
    tracemalloc.start()
    try:
        assert _verify_shard(reader, 0).problems == ()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * reader.manifest.size_bytes


def test_the_witness_is_heard(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If our own cutting were wrong, webdataset's reader would say so."""

    def wrong(data: bytes, where: str) -> dict[str, bytes]:
        members = members_of_slice(data, where)
        if "frame-000004" in where:
            members["caption.txt"] = b"never packed"
        return members

    monkeypatch.setattr("shards.verify.members_of_slice", wrong)
    report = verify(str(dataset))
    assert report.broken_keys == ("kitchen/frame-000004",)
    assert "webdataset's reader finds other members: ['color.jpg', 'depth.png', 'meta.json']" in messages(report)


def test_what_cannot_be_verified_at_all_is_an_error(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(CallError, match="no dataset here"):
        verify(str(tmp_path / "nowhere"))
    (dataset / "shards.bin").write_bytes(b"")
    with pytest.raises(ShardError, match="the shard table is damaged"):
        verify(str(dataset))
