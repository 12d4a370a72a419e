"""Shards are what webdataset's writer makes of the same samples, byte for byte, and are cut apart exactly."""

import hashlib
import io
import tarfile
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.packing.writer import ShardWriter
from shards.schema import MEMBERS
from shards.slices import archive_end, members_of_slice, sample_slice

members_of_a_sample = st.dictionaries(st.sampled_from(MEMBERS), st.binary(max_size=1500), min_size=1)
samples_of_a_shard = st.lists(members_of_a_sample, min_size=1, max_size=6)


def keyed(samples: list[dict[str, bytes]]) -> list[tuple[str, dict[str, bytes]]]:
    return [(f"scene/{i}_2E5", members) for i, members in enumerate(samples)]


def write(folder: Path, samples: list[tuple[str, dict[str, bytes]]], cap: int):
    writer = ShardWriter(folder, cap)
    finished = [writer.add(key, members) for key, members in samples] + [writer.finish()]
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
        assert shard.row.size_bytes == len(data)
        assert shard.row.sha256 == hashlib.sha256(data).digest()
        assert shard.row.num_samples == len(shard.index.keys)
        assert len(data) <= cap or len(shard.index.keys) == 1
        position = 0
        for key, offset, length, crc in zip(
            shard.index.keys, shard.index.offsets, shard.index.lengths, shard.index.crc32c, strict=True
        ):
            piece = data[offset : offset + length]
            assert offset == position
            assert google_crc32c.value(piece) == crc
            found.append((key, members_of_slice(piece, "here")))
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
        assert [len(shard.index.keys) for shard in shards] == wanted


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
