"""Stores that lack what AWS has: what is missing is done without, aloud, or named."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Message
from s3_server import S3Server

from shards.errors import CallError
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.stores.place import open_store
from shards.stores.s3 import S3Client
from shards.stores.store import StoreError
from shards.verify import verify

ROOMS = "seed=1,rooms=2,frames=2,width=32,height=24"
NEWER_CHECKSUMS = rb"(?i)\r\nx-amz-(checksum-|sdk-checksum|trailer)"
CONDITION = rb"(?i)\r\nif-none-match:"


class Lacking(FaultProxy):
    """Refuses requests whose heads fit a pattern, with an answer of that kind; passes everything else on."""

    def __init__(self, url: str, pattern: bytes, kind: str) -> None:
        super().__init__(url, 0.0, 0)
        self._pattern, self._kind, self.num_refused = pattern, kind, 0

    def _draw(self, request: Message) -> tuple[str, float]:
        if re.search(self._pattern, request.head):
            self.num_refused += 1
            return self._kind, 0.0
        return super()._draw(request)


@pytest.fixture
def lacking(request: pytest.FixtureRequest, s3_server: S3Server, s3_bucket: str, monkeypatch) -> Iterator[Lacking]:
    with Lacking(s3_server.url, *request.param) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.mark.parametrize("lacking", [(CONDITION, "501")], indirect=True)
def test_without_conditional_puts_a_name_is_looked_at_and_that_is_said_once(
    lacking: Lacking, s3_bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = S3Client(s3_bucket.removeprefix("s3://").partition("/")[0], "prefix")
    with caplog.at_level(logging.WARNING):
        assert client.put_if_absent("a", b"first")
        assert not client.put_if_absent("a", b"second")
        assert client.put_if_absent("b", b"third")
    assert open_store(s3_bucket).read("a") == b"first"
    assert caplog.text.count("does not know If-None-Match, so it is looked whether a name is free") == 1
    assert lacking.num_refused == 3


@pytest.mark.parametrize("lacking", [(CONDITION, "501")], indirect=True)
def test_without_conditional_puts_a_dataset_is_packed_and_never_over_another(lacking: Lacking, s3_bucket: str) -> None:
    pack("synthetic", ROOMS, s3_bucket)
    assert verify(s3_bucket).problems == ()
    with pytest.raises(CallError, match=r"another dataset|holds"):
        pack("synthetic", ROOMS.replace("seed=1", "seed=2"), s3_bucket)
    assert lacking.num_refused >= 1


@pytest.mark.parametrize("lacking", [(NEWER_CHECKSUMS, "400")], indirect=True)
def test_stores_that_know_no_newer_checksums_are_written_to(lacking: Lacking, s3_bucket: str) -> None:
    pack("synthetic", ROOMS, s3_bucket)
    assert DatasetReader(s3_bucket).num_samples == 4
    assert lacking.num_refused == 0


@pytest.mark.parametrize("lacking", [(rb"^GET", "403")], indirect=True)
def test_a_refusal_says_all_that_it_can_come_from(lacking: Lacking, s3_bucket: str) -> None:
    with pytest.raises(StoreError, match=r"s3:ListBucket .* AWS_REQUEST_PAYER=requester .* AWS_SKIP_SIGNATURE=true"):
        DatasetReader(s3_bucket)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("s3://b/shard-{000000..000099}.tar", "a brace pattern of tars"),
        ("pipe:aws s3 cp s3://b/0.tar -", "a command"),
        ("s3://b/0.tar", "a single tar"),
        ("shards/0.tar", "a single tar"),
    ],
)
def test_what_webdataset_takes_for_a_place_is_named(url: str, kind: str) -> None:
    with pytest.raises(CallError, match=rf"is {kind}, and a dataset is named by the folder .* `t4p shards index TARS"):
        open_store(url)


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    (tmp_path / "mine.tar").mkdir()
    assert open_store(str(tmp_path / "mine.tar")).list() == ()
