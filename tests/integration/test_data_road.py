"""From a real S3 server that fails and is far away, by fetcher, cache and loaders: the same samples for everybody."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
import torch
from fault_proxy import FaultProxy
from forks import Fork, forks
from s3_server import S3Server
from slanted_plane import SAMPLES, write_seven_scenes
from small_model import SMALL

from shards.packing.pack import pack
from shards.sample import Sample
from shards.stores.cache import open_cache
from t4p.data.batch import Batch, PairRecipe
from t4p.data.fetch import Catalogue
from t4p.data.ranks import Nodes
from t4p.data.read_ahead import ReadAhead
from t4p.data.stream import StreamSettings, TrainingStream

NUM_FRAMES, BATCH, STEPS = 50, 8, 12  # two epochs of six steps
TRAINED = 8  # steps of a training that is killed
Found = dict[str, str]  # of one step: digest of all tensors of each sample, by its key


class OneByOne:
    """Every sample as a batch of its own, so that tensors can be held against those of another world."""

    def make(self, stored: Sample, dataset_index: int, key: str, epoch: int) -> Batch:
        recipe = PairRecipe(SAMPLES)
        return recipe.join([recipe.make(stored, dataset_index, key, epoch)])

    def join(self, samples: Sequence[Batch]) -> Found:
        return {sample.keys[0]: digest(sample) for sample in samples}


def digest(batch: Batch) -> str:
    hashed = hashlib.sha256()
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            hashed.update(f"{name}{value.dtype}{tuple(value.shape)}".encode() + value.numpy().tobytes())
    return hashed.hexdigest()


def read(url: str, cache: Path | None, world_size: int, num_workers: int, first: int, last: int) -> list[Found]:
    """What the ranks of a world find in steps [first, last), all ranks side by side on two nodes at most."""
    nodes = Nodes.equal(world_size, max(1, world_size // 2))
    ahead = None if cache is None else ReadAhead(open_cache(cache, 4 << 20, print), uuid4().hex)
    steps: list[Found] = [{} for _ in range(first, last)]
    problems: list[BaseException] = []

    def be_rank(rank: int) -> None:
        settings = StreamSettings(num_workers, 8, 20_000, BATCH, 1, rank, nodes, 5, 0.0, read_ahead=ahead)
        try:
            stream = TrainingStream(Catalogue([url]), OneByOne(), settings)
            with closing(stream.batches(first, last)) as batches:
                for step, found in zip(steps, batches, strict=True):
                    assert not step.keys() & found.keys()
                    step.update(found)
        except BaseException as problem:
            problems.append(problem)

    ranks = [threading.Thread(target=be_rank, args=(rank,)) for rank in range(world_size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=180)
        assert not rank.is_alive(), "a rank hangs"
    if problems:
        raise problems[0]
    return steps


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, module_s3_bucket: str) -> tuple[str, str]:
    """The same dataset in a folder and on S3, in several shards, its voxels counted."""
    folder = tmp_path_factory.mktemp("road")
    write_seven_scenes(folder / "raw", NUM_FRAMES)
    for url in (str(folder / "shards"), module_s3_bucket):
        pack("seven-scenes", folder / "raw", url, shard_size_bytes=150_000, check="full")
    return str(folder / "shards"), module_s3_bucket


@pytest.fixture(scope="module")
def wanted(packed: tuple[str, str]) -> list[Found]:
    """What one rank without loaders reads from the folder."""
    steps = read(packed[0], None, 1, 0, 0, STEPS)
    assert all(len(step) == BATCH for step in steps)
    for epoch in (steps[:6], steps[6:]):
        assert len({key for step in epoch for key in step}) == 6 * BATCH
    return steps


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # more than there are cores
@pytest.mark.parametrize(
    ("world_size", "num_workers", "then_world", "then_workers"),
    [(1, 0, 2, 2), (2, 3, 4, 0), (4, 2, 1, 3)],
)
def test_any_world_reads_the_same_through_delays_and_faults_and_goes_on_with_what_another_left(
    packed, wanted, s3_server: S3Server, tmp_path, monkeypatch, world_size, num_workers, then_world, then_workers
):
    stop = 3 + world_size  # anywhere
    with FaultProxy(s3_server.url, rate=0.3, seed=world_size) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        begun = read(packed[1], tmp_path / "cache", world_size, num_workers, 0, stop)
        rest = read(packed[1], tmp_path / "elsewhere", then_world, then_workers, stop, STEPS)
        assert proxy.faults.total() >= 3, (proxy.faults, proxy.num_requests)
    assert begun == wanted[:stop]
    assert rest == wanted[stop:]
    assert not [child for child in psutil.Process().children() if "fetcher" in " ".join(child.cmdline())]


def train(url: str, run_dir: Path, environ: dict[str, str] | None = None) -> Fork:
    """Begin a training, or go on with it."""
    call = [
        *("-m", "commands.main", "pretrain", "configs/smoke.yaml", *SMALL, f"train.num_steps={TRAINED}"),
        *("train.warmup_steps=2", "train.checkpoint_every=2", "train.global_batch_size=4", "data.num_workers=1"),
        *("data.pixel_stride=2", "data.shuffle_block=20000"),
        *(f"data.shards=[{url}]", f"run.dir={run_dir}", f"data.cache_dir={run_dir.parent / 'cache'}"),
    ]
    return forks().start(call, run_dir.with_suffix(".said"), environment=environ or os.environ)


def losses(run_dir: Path) -> list[tuple[int, float]]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(line["step"], line["loss"]) for line in found]


@pytest.fixture(scope="module")
def undisturbed(packed: tuple[str, str], forked_python, tmp_path_factory: pytest.TempPathFactory):
    """The losses of a training from the folder."""
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(packed[0], run_dir).wait(300) == 0, run_dir.with_suffix(".said").read_text()
    assert [step for step, _ in losses(run_dir)] == list(range(1, TRAINED + 1))
    return losses(run_dir)


@pytest.mark.kill
@pytest.mark.parametrize("moment", [11, *(pytest.param(n, marks=pytest.mark.soak) for n in range(20) if n != 11)])
def test_a_rank_killed_while_it_trains_from_storage_goes_on_as_if_nothing_had_been(
    packed, undisturbed, s3_server: S3Server, tmp_path, moment: int
):
    after_step, then = moment // 3, 0.1 * (moment % 3)  # seconds: between two steps, and while the fetcher begins
    with FaultProxy(s3_server.url, 1.0, moment, ("late",)) as proxy:
        environ = {**os.environ, "AWS_ENDPOINT_URL": proxy.url}
        training = train(packed[1], tmp_path / "run", environ)
        deadline = time.monotonic() + 240
        while len(losses(tmp_path / "run")) < after_step or not any((tmp_path / "cache" / "runs").glob("*.board")):
            assert training.poll() is None, (tmp_path / "run.said").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        family = psutil.Process(training.pid).children(recursive=True)
        time.sleep(then)
        os.kill(training.pid, signal.SIGKILL)  # it alone: what it has started is to notice
        training.wait()
        _, left = psutil.wait_procs(family, timeout=30)
        assert not left
        assert train(packed[1], tmp_path / "run", environ).wait(300) == 0, (tmp_path / "run.said").read_text()
    assert losses(tmp_path / "run") == undisturbed


@pytest.mark.soak
def test_two_hundred_epochs_of_a_small_dataset_leave_memory_descriptors_and_shared_memory_as_they_were(
    packed, tmp_path
):
    process, nodes = psutil.Process(), Nodes((0,))
    ahead = ReadAhead(open_cache(tmp_path / "cache", 4 << 20, print), uuid4().hex)
    settings = StreamSettings(2, 8, 20_000, BATCH, 1, 0, nodes, 5, 0.0, read_ahead=ahead)
    stream = TrainingStream(Catalogue([packed[1]]), OneByOne(), settings)
    after: list[tuple[int, int, int]] = []
    with closing(stream.batches(0, 200 * 6)) as batches:
        for step, _ in enumerate(batches):
            if step in (20 * 6, 180 * 6):  # later, fetcher and loaders are done and gone, and their share is others'
                family = [process, *process.children(recursive=True)]
                family = [one for one in family if one.name() != "weed"]  # the server's memory is its own matter
                shared = len(os.listdir("/dev/shm"))
                memory = sum(one.memory_full_info().pss for one in family)
                after.append((memory, sum(one.num_fds() for one in family), shared))
                print("bytes, descriptors, files in shared memory:", after[-1])
    (memory, descriptors, shared), (memory_later, descriptors_later, shared_later) = after
    assert memory_later < 1.1 * memory + (16 << 20)
    # Entries of the cache stay open, 256 a loader at most, and connections: 7 more or less at any look. One that is
    # lost each epoch would make 160.
    assert descriptors_later <= descriptors + 32
    assert shared_later <= shared + 4
