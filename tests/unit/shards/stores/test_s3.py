"""Folder and S3 behave alike; S3 against a real server, its failures told apart in the message."""

import contextlib
import multiprocessing
import os
import pickle
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3

import shards.stores.object_store
from shards.errors import CallError
from shards.stores.object_store import ObjectStoreClient, s3_store
from shards.stores.patience import Patience
from shards.stores.patient import PatientStore
from shards.stores.place import open_store
from shards.stores.s3 import S3Client
from shards.stores.store import MissingBucketError, MissingObjectError, Store, StoreError


@pytest.fixture(params=["folder", "s3", "obstore"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A new place. "obstore" is what gs:// and az:// are, over the server that there is."""
    if request.param == "folder":
        return open_store(str(tmp_path / "new" / "folder"))
    url = request.getfixturevalue("s3_bucket")
    return open_store(url) if request.param == "s3" else PatientStore(ByObstore(url))


class ByObstore(ObjectStoreClient):
    """The client of gs:// and az://, over a bucket of S3."""

    def __init__(self, url: str) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        super().__init__("gs", bucket, prefix)

    def _connected(self) -> object:
        if self._store is None:
            settings = S3Client(self.bucket, self.prefix)._connect().settings
            assert settings is not None
            self._store = s3_store(settings)
        return self._store


@pytest.fixture(params=["obstore", "boto3"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who reads s3://: in a process forked from one that has used obstore it is boto3."""
    if request.param == "boto3":
        monkeypatch.setattr(shards.stores.object_store, "_with_threads", [0])
    return request.param


def test_objects_are_read_back_whole_and_in_ranges(store: Store, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "local").write_bytes(content)
    store.write("from-bytes", content)
    store.write("from-file", tmp_path / "local")
    store.write("empty", b"")
    assert store.read("from-bytes") == store.read("from-file") == content
    assert store.read("empty") == b""
    assert store.read_range("from-file", 1_234_567, 1000) == content[1_234_567:1_235_567]
    assert store.read_range("from-file", 2_999_990, 1000) == content[-10:]
    assert store.read_range("from-file", 5, 0) == b""
    assert store.read_range("from-file", 3_000_000, 10) == store.read_range("from-file", 4_000_000, 10) == b""
    assert store.read_range("empty", 0, 10) == b""
    assert store.exists("empty")
    assert not store.exists("other")
    assert store.list() == ("empty", "from-bytes", "from-file")
    store.write("empty", b"replaced")
    assert store.read("empty") == b"replaced"
    store.delete("empty")
    store.delete("empty")
    assert store.list() == ("from-bytes", "from-file")


def test_missing_object_is_named(store: Store) -> None:
    store.write("there", b"1")
    for call in (lambda: store.read("gone"), lambda: store.read_range("gone", 0, 5)):
        with pytest.raises(MissingObjectError, match=f"{store.url}/gone: no such"):
            call()


def test_a_new_place_is_empty(store: Store) -> None:
    assert store.list() == ()
    assert not store.exists("manifest.json")


def test_one_of_eight_racing_writers_wins(store: Store) -> None:
    racers: list[Store] = [pickle.loads(pickle.dumps(store)) for _ in range(8)]
    together = threading.Barrier(8)

    def race(i: int) -> list[bool]:
        racers[i].exists("claim-0")  # connect before the start
        won = []
        for round_number in range(5):
            together.wait()
            won.append(racers[i].write_if_absent(f"claim-{round_number}", b"writer %d" % i))
        return won

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(race, range(8)))
    for round_number, won in enumerate(zip(*results, strict=True)):
        assert won.count(True) == 1
        assert store.read(f"claim-{round_number}") == b"writer %d" % won.index(True)


def _read_in_child(store: Store, connection: object) -> None:
    content = store.read("object")
    is_own = not isinstance(store.client, S3Client) or store.client._connection.pid == os.getpid()
    connection.send((content, is_own))  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_store_works_after_a_fork_and_in_a_spawned_process(s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    store.write("object", b"content")
    assert store.read("object") == b"content"  # the parent is connected
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        child = context.Process(target=_read_in_child, args=(store, theirs))
        child.start()
        assert ours.poll(60)
        assert ours.recv() == (b"content", True), "the child used its parent's connections"
        child.join()
    assert store.client._connection.pid == os.getpid()


def _ask_in_child(store: Store, connection: object) -> None:
    try:
        store.read("object")
    except StoreError as error:
        connection.send(str(error))  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_only_obstore_reads_is_refused_after_a_fork_and_does_not_hang(s3_bucket: str) -> None:
    store = PatientStore(ByObstore(s3_bucket))
    store.write("object", b"content")
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_ask_in_child, args=(store, theirs))
    child.start()
    assert ours.poll(30)
    assert re.search("forked from one that has read gs:// already; start it with spawn or forkserver", ours.recv())
    child.join()


def test_keys_that_obstore_cannot_write_are_read_all_the_same(s3_bucket: str) -> None:
    bucket = s3_bucket.removeprefix("s3://").split("/")[0]
    for prefix in ("a//b", "with space+plus%20", "ä"):
        store = PatientStore(S3Client(bucket, prefix))
        store.write("object", prefix.encode())
        assert store.read("object") == prefix.encode()


def test_threads_read_at_once(s3_bucket: str) -> None:
    content = os.urandom(1_000_000)
    open_store(s3_bucket).write("object", content)
    store = open_store(s3_bucket)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: store.read_range("object", 1000 * i, 1000), range(100)))
    assert found == [content[1000 * i : 1000 * i + 1000] for i in range(100)]


def test_other_schemes_are_refused() -> None:
    with pytest.raises(
        CallError, match=r"ftp://b/p: ftp:// is not supported, wanted a folder or s3://, gs:// or az://bucket/prefix"
    ):
        open_store("ftp://b/p")
    with pytest.raises(CallError, match="names no bucket"):
        open_store("s3:///prefix")
    for url in ("s3:/bucket/x", "s3:bucket/x", "S3:/bucket"):
        with pytest.raises(CallError, match=rf"{url}: wanted a folder or s3://bucket/prefix, with two slashes"):
            open_store(url)
    with pytest.raises(CallError, match="the place of the dataset is empty"):
        open_store("")


def test_leftovers_of_killed_writes_go_and_nothing_else(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "folder"))
    store.remove_leftovers()
    store.write("kept", b"1")
    (tmp_path / "folder" / ".incoming-1").write_bytes(b"half")
    store.remove_leftovers()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["kept"]


def test_nothing_is_left_in_a_folder_when_a_write_fails(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "folder"))
    store.write("kept", b"1")
    with pytest.raises(StoreError):
        store.write("broken", tmp_path / "no-such-file")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["kept"]


def test_folder_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"file.*(Not a directory|File exists)"):
        open_store(str(tmp_path / "file")).write("name", b"1")


def test_prefix_does_not_see_its_neighbours(s3_bucket: str) -> None:
    open_store(s3_bucket).write("mine", b"1")
    open_store(s3_bucket + "-2").write("theirs", b"1")
    open_store(s3_bucket + "/deeper").write("below", b"1")
    assert open_store(s3_bucket + "/").list() == ("mine",)
    bucket = s3_bucket.rsplit("/", 1)[0]
    open_store(bucket).write("top", b"1")
    assert open_store(bucket).list() == ("top",)


def test_more_objects_than_one_page_are_listed(s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    names = [f"object-{i:05d}" for i in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.write(name, b""), names))
    assert store.list() == tuple(names)


@pytest.mark.usefixtures("reader")
def test_wrong_secret_is_explained(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = open_store(s3_bucket)
    for call in (lambda: store.exists("a"), lambda: store.read("a"), store.list, lambda: store.write("a", b"")):
        with pytest.raises(StoreError, match=r"SignatureDoesNotMatch.*check AWS_SECRET_ACCESS_KEY"):
            call()


@pytest.mark.usefixtures("reader")
def test_unknown_access_key_is_explained(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StoreError, match=r"InvalidAccessKeyId.*check AWS_ACCESS_KEY_ID"):
        open_store(s3_bucket).read("a")


@pytest.mark.usefixtures("reader")
def test_missing_credentials_are_explained(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"no S3 credentials.*set AWS_ACCESS_KEY_ID"):
        open_store(s3_bucket).read("a")


@pytest.mark.usefixtures("reader")
def test_missing_bucket_is_explained(s3_bucket: str) -> None:
    store = open_store("s3://no-such-bucket-here/prefix")
    for call in (lambda: store.exists("a"), lambda: store.read("a"), store.list):
        with pytest.raises(MissingBucketError, match=r"there is no bucket 'no-such-bucket-here' at http://127"):
            call()


def test_impossible_bucket_name_is_explained(s3_bucket: str) -> None:
    with pytest.raises(StoreError, match="check the bucket name"):
        open_store("s3://Not A Bucket/prefix").read("a")


def test_closed_port_fails_in_seconds(s3_bucket: str, closed_endpoint: str) -> None:
    start = time.monotonic()
    message = f"cannot reach {closed_endpoint}.*is the server up, and AWS_ENDPOINT_URL right"
    with pytest.raises(StoreError, match=message):
        open_store(s3_bucket).exists("a")
    assert time.monotonic() - start < 20


def test_endpoint_that_does_not_answer_fails_in_seconds(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.stores.object_store, "CONNECT_TIMEOUT", 0.3)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]  # fill the queue: from here on connecting gets no answer at all
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        start = time.monotonic()
        with pytest.raises(StoreError, match=f"cannot reach {url}"):
            open_store(s3_bucket).read("a")
        assert time.monotonic() - start < 20
        for one in waiting:
            one.close()


class CuttingProxy:
    """Passes bytes to a server and closes the connection in the middle of an answer, as long as there are cuts left."""

    def __init__(self, target: tuple[str, int], cut_after: int) -> None:
        self.cuts_left = 0
        self.cuts_done = 0
        self.ranges: list[bytes] = []
        self.on_cut = lambda: None
        self._target = target
        self._cut_after = cut_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                if not is_answer:
                    self.ranges += [line for line in data.split(b"\r\n") if line.lower().startswith(b"range:")]
                if is_answer and self.cuts_left and passed + len(data) > self._cut_after:
                    self.cuts_left -= 1
                    self.cuts_done += 1
                    target.sendall(data[: self._cut_after - passed])
                    self.on_cut()
                    break
                target.sendall(data)
                passed += len(data)
        except OSError:
            pass
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def proxy(s3_server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    host, port = s3_server.url.removeprefix("http://").split(":")
    proxy = CuttingProxy((host, int(port)), cut_after=700_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()


@pytest.mark.usefixtures("reader")
def test_a_body_cut_in_the_middle_is_continued(s3_bucket: str, proxy: CuttingProxy) -> None:
    content = os.urandom(3_000_000)
    store = open_store(s3_bucket)
    store.write("object", content)
    proxy.cuts_left = 3
    assert store.read("object") == content
    assert proxy.cuts_done == 3
    assert len(proxy.ranges) == 4  # the first request, and one for the rest after every cut
    proxy.cuts_left = 2
    assert store.read_range("object", 1_000, 2_000_000) == content[1_000:2_001_000]
    assert proxy.cuts_done == 5


def test_a_tls_failure_in_the_middle_is_a_cut_too(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.stores.object_store, "_with_threads", [0])  # boto3 reads
    content = os.urandom(3_000_000)
    store = open_store(s3_bucket)
    store.write("object", content)
    read, failures = urllib3.response.HTTPResponse.read, [True]

    def fail_once(self: urllib3.response.HTTPResponse, *arguments: object, **options: object) -> bytes:
        if self.tell() > 1_000_000 and failures:
            failures.pop()
            raise urllib3.exceptions.SSLError("bad record mac")
        return read(self, *arguments, **options)

    monkeypatch.setattr(urllib3.response.HTTPResponse, "read", fail_once)
    assert store.read("object") == content
    assert not failures


def test_a_body_cut_again_and_again_arrives_as_long_as_it_grows(s3_bucket: str, proxy: CuttingProxy) -> None:
    content = os.urandom(9_000_000)
    store = open_store(s3_bucket)
    store.write("object", content)
    proxy.cuts_left = 1000
    assert store.read("object") == content
    assert proxy.cuts_done > 10


@pytest.mark.usefixtures("reader")
def test_a_body_that_never_gets_on_is_told_with_what_is_missing(s3_bucket: str, proxy: CuttingProxy) -> None:
    store = PatientStore(open_store(s3_bucket).client, Patience(seconds=0.3, seconds_before_contact=0.3))
    store.write("object", bytes(9_000_000))
    proxy.cuts_left, proxy._cut_after = 1000, 0
    with pytest.raises(StoreError, match=r"object: cannot reach .*asked \d+ times in \d s"):
        store.read("object")


@pytest.mark.usefixtures("reader")
def test_an_object_replaced_between_two_halves_is_never_mixed(s3_bucket: str, proxy: CuttingProxy, s3_server) -> None:
    store = open_store(s3_bucket)
    store.write("object", b"a" * 3_000_000)
    bucket, key = s3_bucket.removeprefix("s3://").split("/")
    proxy.cuts_left = 1
    proxy.on_cut = lambda: s3_server.client().put_object(Bucket=bucket, Key=f"{key}/object", Body=b"b" * 3_000_000)
    with pytest.raises(StoreError, match="replaced while it was being read"):
        store.read("object")
