"""Indexes, tables and manifests say so when a single bit of them is wrong."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.manifest import Manifest, ShardIndex, ShardRow, ShardTable, index_name, shard_name

rows_of_an_index = st.lists(st.tuples(st.integers(0, 2**50), st.integers(0, 2**40), st.integers(0, 2**32 - 1)))


def make_index(rows: list[tuple[int, int, int]]) -> ShardIndex:
    return ShardIndex(
        keys=tuple(f"scene/{i}" for i in range(len(rows))),
        offsets=np.array([row[0] for row in rows], np.int64),
        lengths=np.array([row[1] for row in rows], np.int64),
        crc32c=np.array([row[2] for row in rows], np.uint32),
    )


def make_dataset(num_shards: int) -> tuple[Manifest, ShardTable]:
    rows = [ShardRow(i + 1, 10240 * (i + 1), hashlib.sha256(b"%d" % i).digest()) for i in range(num_shards)]
    table = ShardTable.from_rows(rows)
    manifest = Manifest(
        format_version=1,
        num_samples=int(table.num_samples.sum()),
        num_shards=num_shards,
        size_bytes=int(table.size_bytes.sum()),
        label_names=("nothing", "Stühle"),
        provenance={"source_format": "made"},
        shards_sha256=hashlib.sha256(table.encode()).hexdigest(),
    )
    return manifest, table


def test_names_sort_as_the_shards_do() -> None:
    assert shard_name(7) == "shard-000007.tar"
    assert index_name(1234567) == "shard-1234567.idx"


@settings(max_examples=300, deadline=None)
@given(rows_of_an_index)
def test_an_index_round_trips(rows: list[tuple[int, int, int]]) -> None:
    index = make_index(rows)
    again = ShardIndex.decode(index.encode(), "here")
    assert again.keys == index.keys
    for name in ("offsets", "lengths", "crc32c"):
        np.testing.assert_array_equal(getattr(again, name), getattr(index, name))
        assert getattr(again, name).dtype == getattr(index, name).dtype


def test_every_flipped_bit_and_every_truncation_of_an_index_is_noticed() -> None:
    data = make_index([(0, 1024, 5), (1024, 2048, 0xFFFFFFFF), (3072, 512, 17)]).encode()
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(ShardError, match="here: the index is damaged"):
                ShardIndex.decode(bytes(flipped), "here")
    for length in range(len(data)):
        with pytest.raises(ShardError, match="here: the index is damaged"):
            ShardIndex.decode(data[:length], "here")


def test_manifest_and_table_round_trip() -> None:
    manifest, table = make_dataset(3)
    assert Manifest.decode(manifest.encode(), "here") == manifest
    again = ShardTable.decode(table.encode(), manifest, "here")
    np.testing.assert_array_equal(again.num_samples, [1, 2, 3])
    np.testing.assert_array_equal(again.sha256, table.sha256)
    assert len(table.encode()) == 3 * 48


def test_a_changed_table_is_noticed() -> None:
    manifest, table = make_dataset(3)
    data = bytearray(table.encode())
    data[50] ^= 1
    with pytest.raises(ShardError, match=r"here: sha256 is .* the shard table is damaged"):
        ShardTable.decode(bytes(data), manifest, "here")
    with pytest.raises(ShardError, match="here: sha256 is"):
        ShardTable.decode(table.encode()[:48], manifest, "here")
    wrong = dataclasses.replace(manifest, num_samples=99)
    with pytest.raises(ShardError, match="rows add up to 6 samples and 61440 bytes, the manifest says 99"):
        ShardTable.decode(table.encode(), wrong, "here")


def test_manifests_of_other_kinds_are_refused() -> None:
    manifest, _ = make_dataset(1)
    with pytest.raises(ShardError, match="here: format version 2, this program reads 1; use the program version"):
        Manifest.decode(manifest.encode().replace(b'"format_version": 1', b'"format_version": 2'), "here")
    for broken in (b"", b"[]", b"{}", manifest.encode()[:-20]):
        with pytest.raises(ShardError, match="here: not a dataset manifest"):
            Manifest.decode(broken, "here")


@pytest.mark.parametrize("names", ["wall", [1, 2], {"wall": 1}])
def test_label_names_that_are_no_list_of_text_are_refused(names: object) -> None:
    fields = {"format_version": 1, "num_samples": 1, "num_shards": 1, "size_bytes": 1, "provenance": {}}
    text = json.dumps({**fields, "shards_sha256": "0" * 64, "label_names": names})
    with pytest.raises(ShardError, match=r"label_names is .*, wanted a list of text"):
        Manifest.decode(text.encode(), "here")
