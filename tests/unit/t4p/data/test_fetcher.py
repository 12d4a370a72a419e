"""Reading ahead from a real S3 server: nothing missed, nothing twice, equal bytes, whoever dies on the way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from s3_server import S3Server

from shards.packing.existing import index_tars
from shards.packing.pack import pack
from shards.reader import ChangedTarError
from shards.stores.cache import NodeCache, open_cache
from t4p.data.board import Board
from t4p.data.course import Course, CourseSettings
from t4p.data.fetch import Catalogue
from t4p.data.fetcher import Fetcher, FetchJob
from t4p.data.fetcher_process import FetcherProcess
from t4p.data.needs import TrainingNeeds
from t4p.data.ranks import Nodes
from t4p.data.read_ahead import ReadAhead, plan_read_ahead
from t4p.data.shelf import Ahead, Shelf
from t4p.data.stream import StreamSettings, TrainingStream, ValidationStream

NUM_FRAMES, BATCH, STEPS = 60, 6, 20  # two epochs
BLOCK = 60_000  # bytes, some 8 samples


@pytest.fixture(scope="module")
def packed(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory, make_scene) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("raw")
    make_scene(folder / "raw" / "seq", NUM_FRAMES)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environ().items():
            patch.setenv(name, value)
        url = f"s3://{s3_server.make_bucket()}/frames"
        pack("seven-scenes", folder / "raw", url, shard_size_bytes=150_000)
        yield url


@dataclass
class Run:
    """One node's part of a run."""

    catalogue: Catalogue
    course: Course
    cache: NodeCache
    board: Board
    node: int = 0

    @property
    def job(self) -> FetchJob:
        return FetchJob(self.catalogue, self.needs, self.cache, self.board)

    @property
    def needs(self) -> TrainingNeeds:
        return TrainingNeeds(self.course, self.node, (0, STEPS))

    def read(self, shelf: Shelf | None = None, at_batch=lambda number: None) -> tuple[list[tuple[str, bytes]], Counter]:
        """(key, colour bytes) of every sample, in order; and how many came from where."""
        found, sources, shelf = [], Counter(), shelf or Shelf(self.cache, self.board)
        for number, batch in enumerate(self.needs.since(0)):
            at_batch(number)
            for need in batch:
                reader, shard, before = self.catalogue.locate(need.shard_index)
                ahead = Ahead(before + need.start, before + need.stop, number)
                taken = shelf.take(reader, shard, before + need.sample_index, ahead)
                sources["cache" if taken else "storage"] += 1
                key, sample = taken or reader.read_keyed(shard, before + need.sample_index)
                found.append((key, sample.color))
            self.board.put_progress(0, number + 1)
        return found, sources


@pytest.fixture
def make_run(packed: str, tmp_path: Path):
    def make(name: str = "run", limit_bytes: int | None = None, ranks: tuple[int, ...] = (0,), node: int = 0) -> Run:
        catalogue = Catalogue([packed])
        settings = CourseSettings(3, 6, BLOCK, BATCH, 1, Nodes(ranks))
        cache = open_cache(tmp_path / "cache", limit_bytes, print)
        return Run(catalogue, Course(catalogue.pools, settings), cache, Board(tmp_path / f"{name}.board", 1), node)

    return make


@pytest.fixture(scope="module")
def wanted(packed: str) -> list[tuple[str, bytes]]:
    """What is read without any of it."""
    catalogue = Catalogue([packed])
    course = Course(catalogue.pools, CourseSettings(3, 6, BLOCK, BATCH, 1, Nodes((0,))))
    found = []
    for batch in TrainingNeeds(course, 0, (0, STEPS)).since(0):
        for need in batch:
            key, sample = catalogue.read(need.shard_index, need.sample_index)
            found.append((key, sample.color))
    assert len(found) == STEPS * BATCH
    return found


def fetch_all(run: Run) -> int:
    """Read all ahead here and now, as if ranks were never waited for."""
    run.board.create(0)
    run.board.put_progress(0, 10**9)
    run.job.board.put_progress(0, 0)
    return Fetcher(run.job).run()


def test_all_comes_from_the_cache_by_few_requests(make_run, wanted) -> None:
    run = make_run()
    with FetcherProcess(run.job):
        found, sources = run.read()
    assert found == wanted
    assert sources["cache"] == len(wanted)
    counts = run.board.counts()
    assert 0 < counts.requests < 0.3 * len(wanted)  # of so few samples the index is a good part of it
    assert not run.board.path.exists()


def test_a_second_run_reads_what_the_first_one_has_read(make_run, wanted) -> None:
    first, second = make_run("first"), make_run("second")
    assert fetch_all(first) == 0
    assert fetch_all(second) == 0
    found, sources = second.read()
    assert (found, sources["storage"]) == (wanted, 0)
    assert second.board.counts().requests == 0
    assert second.board.counts().hits > 0.9 * len(wanted)


def test_two_runs_at_once_share_a_cache_that_is_too_small(make_run, wanted) -> None:
    runs = [make_run(f"run-{i}", limit_bytes=4 * BLOCK) for i in range(2)]
    with FetcherProcess(runs[0].job), FetcherProcess(runs[1].job):
        for run in runs:
            found, _ = run.read()
            assert found == wanted
            assert run.cache.used_bytes() <= run.cache.limit_bytes + BLOCK  # both may have looked at once


@pytest.mark.parametrize("headers_only", [False, True])
def test_tars_that_lie_elsewhere_under_other_names_are_read_ahead_too(
    make_run,
    packed: str,
    wanted,
    s3_server: S3Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    headers_only: bool,
) -> None:
    bucket, _, prefix = packed.removeprefix("s3://").partition("/")
    elsewhere, client = s3_server.make_bucket(), s3_server.client()
    for entry in client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
        if (name := Path(entry["Key"]).name).endswith(".tar"):
            source = {"Bucket": bucket, "Key": entry["Key"]}
            client.copy_object(Bucket=elsewhere, Key=f"tars/their-{name}", CopySource=source)
    index_tars(f"s3://{elsewhere}/tars", str(tmp_path / "index"), counts=False, headers_only=headers_only)
    run = make_run()
    run.catalogue = Catalogue([str(tmp_path / "index")])
    assert fetch_all(run) == 0
    assert run.board.counts().requests > 0
    found, sources = run.read()
    assert (found, sources["storage"]) == (wanted, 0)
    if not headers_only:
        return
    key = "tars/their-shard-000000.tar"
    before = client.get_object(Bucket=elsewhere, Key=key)["Body"].read()
    client.put_object(Bucket=elsewhere, Key=key, Body=before[:-1] + b"x")
    for entry in run.cache.folder.glob("*.samples"):
        entry.unlink()
    again = make_run("again")
    again.catalogue = Catalogue([str(tmp_path / "index")])
    assert fetch_all(again) == 0
    assert "their-shard-000000.tar: is another object than the one whose headers" in capsys.readouterr().out
    with pytest.raises(ChangedTarError, match=r"their-shard-000000.tar: is another object"):
        again.read()


def test_room_for_few_samples_is_told(packed: str, tmp_path: Path) -> None:
    said: list[str] = []
    plan_read_ahead(Catalogue([packed]), str(tmp_path / "cache"), 1, "run", said.append)
    assert len(said) == 1
    assert "1 bytes of samples may be kept there, too few to read ahead" in said[0]
    plan_read_ahead(Catalogue([packed]), str(tmp_path / "cache"), None, "run", said.append)
    assert len(said) == 1


def test_the_second_rank_of_a_node_takes_what_the_first_one_has_read_ahead(packed: str, wanted, tmp_path: Path) -> None:
    cache, ranks = open_cache(tmp_path / "cache", None, print), Nodes((0, 0))
    streams = [
        TrainingStream(
            Catalogue([packed]),
            Bytes(),
            StreamSettings(0, 6, BLOCK, BATCH, 1, rank, ranks, 3, 0.0, read_ahead=ReadAhead(cache, "run")),
        )
        for rank in range(2)
    ]
    found = [batch for both in zip(*(stream.batches(0, STEPS) for stream in streams), strict=True) for batch in both]
    assert Counter(sample for batch in found for sample in batch) == Counter(wanted)
    second = streams[1]._catalogue.remote_stores[0]
    opened = 4  # requests, to open the dataset
    assert second.num_requests <= opened
    assert (streams[0].fetched.requests > 0, streams[1].fetched.requests) == (True, 0)


def test_each_node_reads_its_own(make_run, wanted) -> None:
    keys = []
    for node in range(2):
        run = make_run(f"node-{node}", ranks=(0, 1), node=node)
        assert fetch_all(run) == 0
        found, sources = run.read()
        assert sources["storage"] == 0
        keys += [key for key, _ in found]
    assert Counter(keys) == Counter(key for key, _ in wanted)


def test_of_some_scenes_alone_nothing_else_is_read_ahead(
    make_run, s3_server: S3Server, tmp_path: Path, make_scene
) -> None:
    for scene in range(5):
        make_scene(tmp_path / "raw" / f"seq-{scene}", 5)
    url = f"s3://{s3_server.make_bucket()}/scenes"
    pack("seven-scenes", tmp_path / "raw", url, shard_size_bytes=60_000)
    whole = Catalogue([url])
    chosen = whole.scenes()[0][1::2]
    run = make_run()
    run.catalogue = whole.of_scenes([chosen])
    run.course = Course(run.catalogue.pools, run.course.settings)
    assert fetch_all(run) == 0
    found, sources = run.read()
    assert sources["storage"] == 0
    (store,) = {id(store): store for store in run.catalogue.remote_stores}.values()
    num_requests, shelf = store.num_requests, Shelf(run.cache, run.board)
    for number, batch in enumerate(run.needs.since(0)):
        for need in batch:
            run.catalogue.read(need.shard_index, need.sample_index, Ahead(need.start, need.stop, number), shelf)
    assert store.num_requests == num_requests, "loaders find what was read ahead"
    per_epoch = 6  # of ten, a whole batch
    assert len({key for key, _ in found}) > per_epoch
    assert {key.partition("/")[0] for key, _ in found} == set(chosen)
    reader = whole.locate(0)[0]
    assert all(reader.read_sample(*reader.find(key)).color == color for key, color in found)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_storage_that_fails_is_asked_again_and_changes_nothing(
    make_run, wanted, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    with FaultProxy(s3_server.url, rate, 5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        run = make_run()
        with FetcherProcess(run.job):
            found, sources = run.read()
            counts = run.board.counts()
        assert found == wanted
        assert proxy.faults.total()
        assert counts.faults.total()
        assert sources["cache"] > 0.5 * len(wanted)


def test_a_damaged_entry_is_read_again_and_goes(make_run, wanted) -> None:
    run = make_run()
    assert fetch_all(run) == 0
    for path in run.cache.folder.glob("*.samples"):
        data = bytearray(path.read_bytes())
        data[-600] ^= 1  # within the last member of the last sample
        path.write_bytes(data)
    found, sources = run.read()
    assert found == wanted
    assert 0 < sources["storage"] < len(wanted)
    for path in run.cache.folder.glob("*.samples"):
        path.write_bytes(b"nothing")
    assert run.read()[1]["storage"] == len(wanted)


def test_an_object_that_is_replaced_is_named(
    make_run, packed: str, s3_server: S3Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    bucket, _, prefix = packed.removeprefix("s3://").partition("/")
    key = f"{prefix}/shard-000000.tar"
    client = s3_server.client()
    before = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    taken = Fetcher._note

    def replace_it(self: Fetcher, outcome) -> None:
        if outcome.is_there and outcome.wanted.shard_index == 0:
            client.put_object(Bucket=bucket, Key=key, Body=before[:-1] + b"x")
        taken(self, outcome)

    monkeypatch.setattr("t4p.data.fetcher.IN_FLIGHT", 1)
    monkeypatch.setattr(Fetcher, "_note", replace_it)
    try:
        assert fetch_all(run) == 0
    finally:
        client.put_object(Bucket=bucket, Key=key, Body=before)
    assert "shard-000000.tar: the object was replaced while it was being read" in capsys.readouterr().out


def test_a_cache_on_a_full_disk_is_told_once_and_samples_are_read_one_by_one(
    make_run, wanted, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=200k tmpfs {folder} 2>/dev/null"):
        pytest.skip("needs the right to mount a small file system")
    try:
        (folder / "cache").mkdir(mode=0o700)
        run = make_run()
        run.cache = NodeCache(folder / "cache", 10**9)
        with FetcherProcess(run.job) as process:
            found, sources = run.read()
            deadline = time.monotonic() + 20
            while process._thread.is_alive() and time.monotonic() < deadline:
                time.sleep(0.05)
        assert found == wanted
        assert sources["storage"]
        said = capfd.readouterr().out
        assert said.count("the cache of samples takes no more (No space left on device)") in (1, 2)
        assert "another one takes its place" not in said
    finally:
        os.system(f"umount -l {folder}")  # entries are still open


@pytest.mark.parametrize("number", [0, 7, *(pytest.param(n, marks=pytest.mark.soak) for n in range(1, 20) if n != 7)])
def test_a_fetcher_that_is_killed_or_hangs_costs_a_moment(
    make_run, wanted, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    run, hurt = make_run(limit_bytes=3 * BLOCK), []
    with FetcherProcess(run.job) as process:

        def hurt_it(now: int) -> None:
            while now == number and not hurt:
                if process.pid and run.board.has_beaten:
                    with suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL if number else signal.SIGSTOP)
                    hurt.append(process.pid)
                time.sleep(0.01)

        started = time.monotonic()
        found, _ = run.read(at_batch=hurt_it)
        assert found == wanted
        assert time.monotonic() - started < 30
        deadline = time.monotonic() + 20
        while process.pid == hurt[0] and process._process.returncode != 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        was_done = process._process.returncode == 0  # with all that is needed, late in the run
        assert was_done or process.pid != hurt[0]
    assert was_done or f"fetcher process {hurt[0]}" in capfd.readouterr().out


class Bytes:
    """A recipe that changes nothing."""

    def make(self, stored, dataset_index: int, key: str, epoch: int) -> tuple[str, bytes]:
        return key, stored.color

    def join(self, samples):
        return list(samples)


@pytest.mark.parametrize(
    "kill_at", [None, 5, *(pytest.param(n, marks=pytest.mark.soak) for n in range(STEPS) if n != 5)]
)
def test_loaders_take_what_was_read_ahead_and_may_be_killed(
    packed: str, wanted, tmp_path: Path, kill_at: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = open_cache(tmp_path / "cache", None, print)
    settings = StreamSettings(2, 6, BLOCK, BATCH, 1, 0, Nodes((0,)), 3, 0.0, read_ahead=ReadAhead(cache, "run"))
    stream = TrainingStream(Catalogue([packed]), Bytes(), settings)
    found = []
    for number, batch in enumerate(stream.batches(0, STEPS)):
        found += batch
        if number == kill_at:
            loader = multiprocessing.active_children()[0]
            os.kill(loader.pid, signal.SIGKILL)
    assert sorted(found) == sorted(wanted)
    assert [key for key, _ in found] == [key for key, _ in wanted]
    assert not any((cache.folder / "runs").iterdir())
    assert stream.fetched.requests < 0.5 * len(wanted)
    was_missed = "was killed (signal 9" in capfd.readouterr().out
    is_early = kill_at is not None and kill_at < STEPS - 7  # later, its last batches may be there already
    assert was_missed if is_early else kill_at is not None or not was_missed


def test_validation_is_read_ahead_and_what_one_look_has_read_the_next_one_finds(packed: str, tmp_path: Path) -> None:
    cache, nodes = open_cache(tmp_path / "cache", None, print), Nodes((0, 0))
    catalogues = [Catalogue([packed]) for _ in nodes.of_rank]
    wanted = [
        (catalogues[0].key(shard, sample), catalogues[0].fetch(shard, sample).color)
        for shard, count in enumerate(catalogues[0].samples_per_shard)
        for sample in range(count)
    ]
    ranks = [
        ValidationStream(catalogue, Bytes(), 0, rank, nodes, read_ahead=ReadAhead(cache, "run"), block_bytes=BLOCK)
        for rank, catalogue in enumerate(catalogues)
    ]

    def requests(rank: int) -> int:  # of this process
        return sum(store.num_requests for store in catalogues[rank].remote_stores)

    def look() -> list[tuple[str, bytes]]:
        parts: list[list[tuple[str, bytes]]] = [[], []]
        for both in zip_longest(*(rank.batches() for rank in ranks), fillvalue=[]):
            for part, batch in zip(parts, both, strict=True):
                part += batch
        assert not any((cache.folder / "runs").iterdir())
        return parts[0] + parts[1]

    to_open = requests(1)
    assert look() == wanted
    assert requests(1) < to_open + 0.2 * NUM_FRAMES / 2  # its node's first rank has what it needs read
    before = requests(0), requests(1)
    assert look() == wanted
    assert (requests(0), requests(1)) == before


def test_a_fetcher_that_beats_while_its_requests_hang_is_waited_for_a_moment(
    make_run, wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, over = make_run(), threading.Event()
    monkeypatch.setattr("t4p.data.shelf.WAITS_FOR", 0.01)
    run.board.create(0)

    def beat() -> None:
        while not over.wait(0.05):
            run.board.beat()

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        found, sources = run.read()
    finally:
        over.set()
        beating.join()
    assert (found, sources["cache"]) == (wanted, 0)


def test_without_a_fetcher_nobody_waits(make_run, wanted) -> None:
    run = make_run()
    started = time.monotonic()
    found, sources = run.read()
    assert (found, sources["cache"]) == (wanted, 0)
    assert time.monotonic() - started < 10
