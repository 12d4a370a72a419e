"""Indexes, tables and manifests say so when a single bit of them is wrong."""

import dataclasses
import hashlib
import json

import google_crc32c
import numpy as np
import pytest

from shards.errors import ShardError
from shards.first_format import parse_lines
from shards.manifest import Manifest, piece_name, shard_name
from shards.rows import ROW
from shards.table import ShardRow, ShardTable


def make_dataset(num_shards: int) -> tuple[Manifest, ShardTable]:
    rows = [
        ShardRow(i + 1, 10240 * (i + 1), hashlib.sha256(b"%d" % i).digest(), 10 * (i + 1), i) for i in range(num_shards)
    ]
    table = ShardTable.from_rows(rows)
    manifest = Manifest(
        format_version=2,
        num_samples=int(table.num_samples.sum()),
        num_shards=num_shards,
        size_bytes=int(table.size_bytes.sum()),
        label_names=("nothing", "Stühle"),
        provenance={"source_format": "made"},
        shards_sha256=hashlib.sha256(table.encode()).hexdigest(),
        index_sha256="ab" * 32,
        index_bytes=int(table.num_samples.sum()) * ROW.itemsize + int(table.keys_length.sum()),
        generation=3,
        licence="yours",
        up_axis="-y",
        datasets=("made",),
    )
    return manifest, table


def test_names_sort_as_the_shards_do() -> None:
    assert shard_name(7) == "shard-000007.tar"
    assert piece_name(1234567) == "shard-1234567.idx"


@pytest.mark.parametrize("num_lines", [0, 1, 30])
def test_an_index_of_format_1_is_read(num_lines: int) -> None:
    body = b"".join(b"scene/%d\t%d\t%d\t%08x\n" % (i, i * 512, 512, i * 99) for i in range(num_lines))
    index = parse_lines(body + b"#crc32c\t%08x\n" % google_crc32c.value(body), 7, "here")
    assert index.keys == tuple(f"scene/{i}" for i in range(num_lines))
    np.testing.assert_array_equal(index.offsets, 512 * np.arange(num_lines))
    np.testing.assert_array_equal(index.lengths, np.full(num_lines, 512))
    np.testing.assert_array_equal(index.crc32c, 99 * np.arange(num_lines))
    assert index.rows.shard_index == 7
    assert index.rows.has_crc.all()


def test_every_flipped_bit_and_every_truncation_of_an_index_of_format_1_is_noticed() -> None:
    body = b"scene/0\t0\t1024\t00000005\nscene/1\t1024\t2048\tffffffff\nscene/2\t3072\t512\t00000011\n"
    data = body + b"#crc32c\t%08x\n" % google_crc32c.value(body)
    assert len(parse_lines(data, 0, "here").keys) == 3
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(ShardError, match="here: the index is damaged"):
                parse_lines(bytes(flipped), 0, "here")
    for length in range(len(data)):
        with pytest.raises(ShardError, match="here: the index is damaged"):
            parse_lines(data[:length], 0, "here")


def test_every_flipped_bit_of_a_manifest_is_noticed() -> None:
    data = make_dataset(2)[0].encode()
    for position in range(len(data)):
        for bit in (0, 3, 5, 7):  # 5 turns the case of letters
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(ShardError, match=r"here: (not a dataset manifest|its content has the sha256)"):
                Manifest.decode(bytes(flipped), "here")


def test_manifest_and_table_round_trip() -> None:
    manifest, table = make_dataset(3)
    assert Manifest.decode(manifest.encode(), "here") == manifest
    again = ShardTable.decode(table.encode(), manifest, "here")
    np.testing.assert_array_equal(again.num_samples, [1, 2, 3])
    np.testing.assert_array_equal(again.sha256, table.sha256)
    assert len(table.encode()) == 3 * 64


def test_a_changed_table_is_noticed() -> None:
    manifest, table = make_dataset(3)
    data = bytearray(table.encode())
    data[50] ^= 1
    with pytest.raises(ShardError, match=r"here: sha256 is .* the shard table is damaged"):
        ShardTable.decode(bytes(data), manifest, "here")
    with pytest.raises(ShardError, match="here: sha256 is"):
        ShardTable.decode(table.encode()[:64], manifest, "here")
    wrong = dataclasses.replace(manifest, num_samples=99)
    with pytest.raises(ShardError, match="rows add up to 6 samples and 61440 bytes, the manifest says 99"):
        ShardTable.decode(table.encode(), wrong, "here")


def test_manifests_of_other_kinds_are_refused() -> None:
    manifest, _ = make_dataset(1)
    with pytest.raises(ShardError, match="here: format version 3, this program reads 1 and 2; use the program version"):
        Manifest.decode(dataclasses.replace(manifest, format_version=3).encode(), "here")
    for broken in (b"", b"[]", b"{}", manifest.encode()[:-20]):
        with pytest.raises(ShardError, match="here: not a dataset manifest"):
            Manifest.decode(broken, "here")


@pytest.mark.parametrize("names", ["wall", [1, 2], {"wall": 1}])
def test_label_names_that_are_no_list_of_text_are_refused(names: object) -> None:
    fields = {"format_version": 1, "num_samples": 1, "num_shards": 1, "size_bytes": 1, "provenance": {}}
    text = json.dumps({**fields, "shards_sha256": "0" * 64, "label_names": names})
    with pytest.raises(ShardError, match=r"label_names is .*, wanted a list of text"):
        Manifest.decode(text.encode(), "here")
