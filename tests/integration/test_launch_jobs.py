"""Jobs over HTTP on a real cluster of three nodes: one head and two worker nodes, token authentication on."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from ray_cluster import start_ray_cluster

from launch.jobs.client import Cluster, Token
from launch.jobs.jobs import exit_status, follow, plan_job, submit
from launch.jobs.spec import REQUIREMENTS_FILE, JobSpec
from shards.packing.pack import pack
from t4p.config.files import load_config
from t4p.errors import ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.kill, pytest.mark.alone]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds; a job takes about 20 on two idle cores
STARTUP_LIMIT = 25.0  # seconds from submission to the first step, above what importing the libraries takes


@dataclass(frozen=True)
class Site:
    """The cluster as a user has it: an address, a token, and packed shards that every node sees."""

    url: str
    token_path: Path
    token: str
    shards: str

    def environ(self, **changes: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}
        return {**inherited, "PYTHONPATH": str(ROOT), "TERM": "dumb", **token, **changes}

    def start(self, *arguments: str, **changes: str) -> subprocess.Popen:
        """`t4p launch ...` as a process."""
        return subprocess.Popen(
            [sys.executable, "-m", "commands.main", "launch", *arguments],
            env=self.environ(**changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, *arguments: str) -> dict:
        """The answer of `t4p launch ... --address URL --json`."""
        # The option outranks what Ray's own client would listen to.
        elsewhere = {"RAY_ADDRESS": "127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
        status, out, err = ended(self.start(*arguments, "--address", self.url, "--json", **elsewhere))
        assert status == 0, err
        return json.loads(out)

    def pretrain(self, run_dir: Path, *overrides: str) -> list[str]:
        given = [f"run.dir={run_dir}", f"data.shards=[{self.shards}]", "data.num_workers=0", "train.warmup_steps=0"]
        return [
            "pretrain",
            str(ROOT / "configs" / "smoke.yaml"),
            *given,
            *overrides,
            "--workers",
            "2",
            "--address",
            self.url,
        ]

    def spec(self, run_dir: Path, num_workers: int) -> JobSpec:
        overrides = [f"run.dir={run_dir}", f"data.shards=[{self.shards}]", "train.global_batch_size=8"]
        return plan_job(load_config([ROOT / "configs" / "smoke.yaml"], overrides), num_workers, (), {})

    def connect(self) -> Cluster:
        return Cluster(self.url, Token(self.token, "the test"))


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit status, output and errors."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tum_sample: Path) -> Iterator[Site]:
    shards = str(tmp_path_factory.mktemp("jobs") / "shards")
    pack("tum", tum_sample, shards)
    with pytest.MonkeyPatch.context() as patch:
        # Jobs call `python`: as on a cluster whose nodes start Ray with the environment activated.
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        with start_ray_cluster([1, 1]) as cluster:
            yield Site(cluster.dashboard_url, cluster.token_path, cluster.token_path.read_text(), shards)


def wait_for(what: Callable[[], object], *, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def train_workers(run_dir: Path) -> list[psutil.Process]:
    """The processes that write the logs of this run's ranks."""
    return [process for process in psutil.process_iter() if _writes_to(process, run_dir)]


def _writes_to(process: psutil.Process, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/{process.pid}/fd/1").startswith(f"{folder}/logs/")
    except OSError:
        return False


def import_seconds() -> float:
    """Of an interpreter that imports what a worker imports."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, deepspeed, ray, open_clip"], check=True, capture_output=True)
    return time.monotonic() - began


def num_running() -> int:
    """Threads of the whole machine that run or wait for a core at this moment."""
    (line,) = [line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("procs_running")]
    return int(line.split()[1])


def test_a_job_trains_on_two_nodes_is_looked_after_stopped_and_resumed(site: Site, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first_line = run_dir / "metrics.jsonl"
    imports, running = [import_seconds()], []
    began = time.monotonic()
    job_id = site.ask(*site.pretrain(run_dir, "train.num_steps=2000", "train.checkpoint_every=2"))["job_id"]
    assert job_id.startswith("run-"), "named after its run folder"
    follower = site.start("logs", job_id, "--follow", "--address", site.url)
    try:

        def has_begun() -> bool:
            running.append(num_running())
            return follower.poll() is not None or (first_line.exists() and bool(first_line.read_bytes()))

        wait_for(has_begun)
        assert follower.poll() is None, follower.communicate()
        startup = time.monotonic() - began

        # Spread: each rank is a child of another raylet.
        workers = train_workers(run_dir)
        assert len(workers) == 2
        raylets = [worker.parent() for worker in workers]
        assert [raylet.name() for raylet in raylets if raylet is not None] == ["raylet", "raylet"]
        assert raylets[0] != raylets[1]

        (listed,) = [job for job in site.ask("list")["jobs"] if job["job_id"] == job_id]
        assert listed["status"] == "RUNNING"
        assert listed["run_dir"] == str(run_dir)
        assert listed["num_workers"] == "2"

        # Ctrl-C ends the looking, not the job.
        follower.send_signal(signal.SIGINT)
        status, out, err = ended(follower)
    finally:
        follower.kill()
        follower.wait()
    assert status == 130
    assert f"run folder: {run_dir}" in out
    assert "the job goes on" in err
    assert f"stop {job_id}" in out
    assert all(worker.is_running() for worker in workers)

    # A second job would spoil the first one's run folder; nothing is sent.
    status, _, err = ended(site.start(*site.pretrain(run_dir, "train.num_steps=4")))
    assert status == 2
    assert job_id in err
    assert "another run.dir" in err

    imports.append(import_seconds())
    stopping = time.monotonic()
    assert site.ask("stop", job_id)["status"] == "STOPPED"
    assert time.monotonic() - stopping < 60
    wait_for(lambda: not train_workers(run_dir), patience=60)
    assert site.ask("status", job_id)["status"] == "STOPPED"
    assert site.ask("stop", job_id)["status"] == "STOPPED", "again does no harm"

    # The same run folder goes on from the last checkpoint, and --follow ends with the job's own exit status.
    markers = sorted(run_dir.glob("checkpoints/*/COMPLETE.json"))
    assert markers
    last = int(markers[-1].parent.name.removeprefix("step_")) + 3
    status, out, err = ended(
        site.start(*site.pretrain(run_dir, f"train.num_steps={last}", "train.checkpoint_every=2"), "--follow")
    )
    assert status == 0, out + err
    assert "submitted job run-" in out
    assert "versions fit: python" in out, "the log of the job itself"
    assert "runtime_resources/working_dir_files" in out, "the source that was shipped is what runs"
    assert "is SUCCEEDED" in err
    steps = [json.loads(line)["step"] for line in first_line.read_text().splitlines()]
    assert steps == list(range(1, last + 1))

    # On a busy machine everything takes longer, by about the threads per core.
    load = max(1.0, sum(running) / len(running) / (os.cpu_count() or 1))
    bare = sum(imports) / len(imports)
    print(f"submission to first step {startup:.1f} s, bare imports {bare:.1f} s, {load:.1f} threads per core")
    assert startup - bare < STARTUP_LIMIT * load


class _NoRay(http.server.BaseHTTPRequestHandler):
    """Answers 501 to everything."""

    def log_message(self, *arguments: object) -> None:
        pass


def test_what_the_cluster_refuses_ends_in_one_message_before_anything_is_sent(site: Site, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("f" * 64)
    call = site.pretrain(tmp_path / "run")
    deaf = socket.socket()  # takes connections and never answers
    deaf.bind(("127.0.0.1", 0))
    deaf.listen()
    closed = socket.socket()  # bound, so that nobody else listens there
    closed.bind(("127.0.0.1", 0))
    other = http.server.HTTPServer(("127.0.0.1", 0), _NoRay)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    nowhere = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in (deaf, closed, other.socket)]
    wrong_token = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    help_on_tokens = ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN=")
    no_file = str(tmp_path / "absent")
    cases: list[tuple[list[str], dict[str, str], tuple[str, ...]]] = [
        (call, {"RAY_AUTH_TOKEN_PATH": no_file}, ("no token", no_file, *help_on_tokens)),
        (call, wrong_token, ("refused the token", str(tmp_path / "token"), *help_on_tokens)),
        (call, {"RAY_AUTH_MODE": "disabled"}, ("wants a token", *help_on_tokens)),
        (["list", "--address", site.url], wrong_token, ("refused the token",)),
        *[(["list", "--address", url], {}, (url, "no Ray")) for url in nowhere],
        (["status", "nonesuch", "--address", site.url], {}, ("no job nonesuch",)),
        (["stop", "nonesuch", "--address", site.url], {}, ("no job nonesuch",)),
        (
            [*call, "train.global_batch_size=8", "--workers", "3"],
            {},
            ("places for 2 of 3 workers", "1 CPU(s)", "--workers"),
        ),
        ([*call, "cluster.gpus_per_node=8"], {}, ("places for 0 of 2 workers", "1 GPU")),
        ([*call, "train.learning_rate=-1"], {"RAY_AUTH_TOKEN_PATH": no_file}, ("train.learning_rate",)),
    ]
    try:
        for group in (cases[:3], cases[3:6], cases[6:9], cases[9:]):
            began = time.monotonic()
            running = [site.start(*arguments, **changes) for arguments, changes, _ in group]
            for (arguments, _, wanted), process in zip(group, running, strict=True):
                status, out, err = ended(process)
                assert status == 2, (arguments, out, err)
                assert "Traceback" not in out + err
                assert [text for text in wanted if text not in err] == [], (arguments, err)
            assert time.monotonic() - began < 60, "a refusal takes seconds"
    finally:
        other.shutdown()
        for each in (deaf, closed, other.socket):
            each.close()
    assert not (tmp_path / "run").exists()
    assert not [job for job in site.connect().jobs() if job.metadata["run_dir"] == str(tmp_path / "run")]


def test_versions_are_compared_before_submission_and_again_in_the_job(site: Site, tmp_path: Path) -> None:
    cluster = site.connect()
    spec = site.spec(tmp_path / "run", 2)

    def wanting(*requirements: str) -> JobSpec:
        return replace(spec, files={**spec.files, REQUIREMENTS_FILE: "\n".join(requirements).encode()})

    with pytest.raises(ConfigError, match=r"ray: found 2\.\S+, wanted >=99") as refused:
        submit(cluster, wanting("ray>=99"))
    assert site.url in str(refused.value)
    assert cluster.jobs() == [job for job in cluster.jobs() if job.job_id != spec.job_id], "nothing was sent"

    submit(cluster, wanting("python>=3.11", "torch>=99", "nonesuch>=1"))
    printed: list[str] = []
    job = follow(cluster, spec.job_id, printed.append)
    log = "".join(printed)
    assert (job.status, job.exit_code, exit_status(job)) == ("FAILED", 2, 2)
    assert "2 package(s)" in log
    assert "torch: found" in log
    assert "wanted >=99" in log
    assert "nonesuch: found none, wanted >=1" in log
    assert not (tmp_path / "run").exists()

    status, out, err = ended(site.start("logs", spec.job_id, "--follow", "--address", site.url))
    assert status == 2, err
    assert out == log
    assert "exit status 2" in err
    # Without --follow nothing failed: the log was shown. The address may come from the environment.
    asked = [("logs", spec.job_id), ("list",), ("status", spec.job_id)]
    answers = [ended(each) for each in [site.start(*words, RAY_API_SERVER_ADDRESS=site.url) for words in asked]]
    assert [status for status, _, _ in answers] == [0, 0, 0], answers
    (_, shown, _), (_, listed, _), (_, told, _) = answers
    assert shown == log
    assert [line.split()[1] for line in listed.splitlines() if line.startswith(spec.job_id)] == ["FAILED"]
    assert dict(line.split(maxsplit=1) for line in told.splitlines())["exit_code"] == "2"


def test_a_dry_run_prints_everything_and_reaches_no_network(tmp_path: Path) -> None:
    site = Site("http://127.0.0.1:1", tmp_path / "absent", "", str(tmp_path / "shards"))
    call = [*site.pretrain(tmp_path / "run", "train.global_batch_size=6"), "--dry-run", "--forward-env", "SECRET"]
    status, out, err = ended(site.start(*call, "--json", SECRET="not to be seen"))
    assert status == 0, err
    plan = json.loads(out)
    assert plan["entrypoint"].endswith("commands.main launch pretrain t4p-job.yaml --workers 2 --address auto")
    assert plan["workers"]["frames_per_micro_batch_per_rank"] == [3, 3]
    assert plan["workers"]["cpus_per_worker"] == 1
    assert plan["working_dir"]["size_bytes"] > 100_000
    assert "SECRET" in plan["env"]
    assert "not to be seen" not in out
    status, text, err = ended(site.start(*call, SECRET="not to be seen"))
    assert status == 0, err
    assert plan["entrypoint"] in text
    assert "frames_per_micro_batch_per_rank: 3, 3" in text
    assert "not to be seen" not in text
    assert not (tmp_path / "run").exists()
