"""Shards are what webdataset's writer makes of the same samples, byte for byte, and are cut apart exactly."""

import hashlib
import io
import tarfile
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.packing.frame_tasks import LoadedFrame
from shards.packing.piece import ShardPiece
from shards.packing.writer import ShardWriter
from shards.rows import ROW, SampleRows, bare_rows, damaged_rows
from shards.schema import MEMBERS, sample_key
from shards.slices import archive_end, key_of_slice, members_of_slice, sample_slice, samples_of_tar

members_of_a_sample = st.dictionaries(st.sampled_from(MEMBERS), st.binary(max_size=1500), min_size=1)
samples_of_a_shard = st.lists(members_of_a_sample, min_size=1, max_size=6)


def keyed(samples: list[dict[str, bytes]]) -> list[tuple[str, dict[str, bytes]]]:
    return [(f"scene/{i}_2E5", members) for i, members in enumerate(samples)]


def loaded(key: str, members: dict[str, bytes]) -> LoadedFrame:
    data = sample_slice(key, members)
    return LoadedFrame(data, bare_rows(0, [0], [len(data)], [google_crc32c.value(data)]).table.tobytes(), b"")


def write(folder: Path, samples: list[tuple[str, dict[str, bytes]]], cap: int):
    writer = ShardWriter(folder, cap)
    finished = [writer.add(key, loaded(key, members)) for key, members in samples] + [writer.finish()]
    return [shard for shard in finished if shard is not None]


@settings(max_examples=200, deadline=None)
@given(samples_of_a_shard)
def test_a_shard_is_what_one_webdataset_writer_makes_of_it(tmp_path_factory, samples: list[dict[str, bytes]]) -> None:
    from webdataset.writer import TarWriter

    buffer = io.BytesIO()
    with TarWriter(
        buffer, user="", group="", mode=0o444, mtime=0, format="USTAR_FORMAT", encoder=False, compress=False
    ) as writer:
        for key, members in keyed(samples):
            writer.write({"__key__": key, **members})
    (shard,) = write(tmp_path_factory.mktemp("shard"), keyed(samples), 1 << 30)
    assert shard.path.read_bytes() == buffer.getvalue()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 155), st.integers(1, 87), members_of_a_sample)
def test_a_long_key_is_what_tarfile_makes_of_it(scene: int, frame: int, members: dict[str, bytes]) -> None:
    """webdataset's writer takes PAX headers for these, its reader reads both."""
    key = sample_key("s" * scene, "f" * frame)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(members.items()):
            info = tarfile.TarInfo(f"{key}.{name}")
            info.mode, info.size = 0o444, len(content)
            archive.addfile(info, io.BytesIO(content))
        length = archive.offset
    data = sample_slice(key, members)
    assert data == buffer.getvalue()[:length]
    assert key_of_slice(data) == key
    (sample,) = samples_of_tar("here", io.BytesIO(data + archive_end(len(data))))
    assert sample["__key__"] == key
    assert {name: sample[name] for name in members} == members


@settings(max_examples=200, deadline=None)
@given(samples_of_a_shard, st.integers(1, 30_000))
def test_the_index_cuts_every_sample_out_of_its_shard(
    tmp_path_factory, samples: list[dict[str, bytes]], cap: int
) -> None:
    shards = write(tmp_path_factory.mktemp("shard"), keyed(samples), cap)
    found = []
    for number, shard in enumerate(shards):
        data = shard.path.read_bytes()
        assert shard.shard_index == number
        piece = ShardPiece.decode(shard.piece.encode())
        assert vars(piece) == vars(shard.piece)
        assert piece.size_bytes == len(data)
        assert piece.sha256 == hashlib.sha256(data).digest()
        assert piece.num_samples == len(piece.key_list())
        assert piece.first_row == len(found)
        assert damaged_rows(piece.rows, len(found)) == []
        assert len(data) <= cap or piece.num_samples == 1
        rows = SampleRows(number, 0, np.frombuffer(piece.rows, ROW))
        position = 0
        for key, offset, length, crc in zip(
            piece.key_list(), rows.offsets.tolist(), rows.lengths.tolist(), rows.crc32c.tolist(), strict=True
        ):
            content = data[offset : offset + length]
            assert offset == position
            assert google_crc32c.value(content) == crc
            found.append((key, members_of_slice(content, "here")))
            position += length
        assert data[position:] == archive_end(position)
    assert found == keyed(samples)


def test_tarfile_reads_a_shard_and_finds_nothing_of_this_machine(tmp_path: Path) -> None:
    samples = keyed([{"color.jpg": b"1" * 700, "meta.json": b"{}"}, {"depth.png": b""}])
    (shard,) = write(tmp_path, samples, 1 << 20)
    with tarfile.open(shard.path) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [f"{key}.{name}" for key, of in samples for name in sorted(of)]
        for member in members:
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            assert (member.mode, member.mtime, member.pax_headers) == (0o444, 0, {})
        assert archive.extractfile(members[0]).read() == b"1" * 700


def test_a_shard_is_never_larger_than_its_cap_unless_one_sample_is(tmp_path: Path) -> None:
    samples = keyed([{"color.jpg": bytes(5000)}] * 7)
    # A sample takes 5632 bytes, the end of a tar fills it up to a multiple of 10240.
    for cap, wanted in ((20480, [3, 3, 1]), (20479, [1] * 7), (1, [1] * 7), (30720, [5, 2])):
        shards = write(tmp_path, samples, cap)
        assert [shard.piece.num_samples for shard in shards] == wanted


@pytest.mark.parametrize("position", [0, 100, 130, 257])
def test_a_slice_that_is_no_tar_is_refused(position: int) -> None:
    data = bytearray(sample_slice("scene/1", {"color.jpg": b"123", "depth.png": b"456"}))
    data[position : position + 5] = b"\xff" * 5
    if position in (0, 100):  # the key is not the reader's to check: it comes from the index, and crc32c covers it
        members_of_slice(bytes(data), "here")
        return
    with pytest.raises(ShardError, match=r"^here: "):
        members_of_slice(bytes(data), "here")


def test_a_slice_cut_short_is_refused() -> None:
    data = sample_slice("scene/1", {"color.jpg": bytes(2000)})
    with pytest.raises(ShardError, match=r"here: member 'scene/1.color.jpg' of 2000 bytes"):
        members_of_slice(data[:1024], "here")
