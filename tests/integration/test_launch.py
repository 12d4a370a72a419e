"""`t4p launch` as users type it, on real Ray: one long run that suffers every fault in turn; what a cluster refuses.

The run goes as far as Ctrl-C on a private Ray and to its end as two jobs on a cluster of a head and two nodes, with
token authentication on. It is told once (tests/faults.py); the tests look at what was seen on the way, and compare it
in the end with one of two bare ranks, without Ray, that nobody disturbed. How each fault is handled is proved without
Ray, in tests/unit/launch.
"""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faults import (
    STEP_TIMEOUT,
    AsJobs,
    OnPrivateRay,
    Road,
    assert_every_loss_was_told,
    run_as_jobs,
    run_on_private_ray,
    run_uninterrupted,
)
from launched_run import ROOT, assert_same_run, cpu_of_children
from live_processes import is_running
from ray_site import Site, ended, start_ray_site

from launch.jobs.jobs import exit_status, follow, plan_job, submit
from launch.jobs.spec import REQUIREMENTS_FILE, JobSpec
from shards.packing.pack import pack
from t4p.config.files import load_config
from t4p.errors import ConfigError
from t4p.runs.progress import last_in

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.kill, pytest.mark.alone]

# Steps of some 100 ms: a quarter of them is needed, the others are for when this process gets no turn for seconds or
# finds the workers late: once 64 steps were over before the first fault.
SHORT = Road(num_steps=256, rounds=1)
# CPU seconds of all that a job starts until its first step, as a multiple of what one interpreter takes to import what
# a worker imports: two workers, the driver, Ray's controller and six actors of its own.
STARTUP_LIMIT = 14.0  # 7.1 and 8.4 were seen, on a busy machine
REFUSAL_LIMIT = 8.0  # CPU seconds of one command


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tum_sample: Path) -> str:
    folder = str(tmp_path_factory.mktemp("tum") / "shards")
    pack("tum", tum_sample, folder)
    return folder


@pytest.fixture(scope="module")
def on_private_ray(shards: str, tmp_path_factory: pytest.TempPathFactory) -> OnPrivateRay:
    return run_on_private_ray(shards, tmp_path_factory.mktemp("faults") / "run", SHORT)


@pytest.fixture(scope="module")
def site(shards: str) -> Iterator[Site]:
    with start_ray_site(shards) as site:
        yield site


@pytest.fixture(scope="module")
def as_jobs(on_private_ray: OnPrivateRay, site: Site) -> AsJobs:
    return run_as_jobs(site, on_private_ray.run_dir, SHORT)


def test_each_loss_on_a_private_ray_is_told_in_one_line_and_looked_up_in_a_file(on_private_ray: OnPrivateRay) -> None:
    assert_every_loss_was_told(on_private_ray.losses)
    attempts = re.findall(r"^=+ attempt (\d) of launch", on_private_ray.story, re.MULTILINE)
    assert len(set(attempts)) >= 3, "what was lost can be looked up"
    assert on_private_ray.log.count("resuming from") == 3, "one log over all attempts"
    assert sorted(log.name for log in (on_private_ray.run_dir / "logs").glob("*.log")) == ["rank-0.log", "rank-1.log"]


def test_a_lost_loader_is_replaced_without_a_restart(on_private_ray: OnPrivateRay) -> None:
    killed, stopped = on_private_ray.of_loaders
    assert killed < 60
    assert stopped < STEP_TIMEOUT + 60
    for words in ("was killed (signal 9", "nothing came from the loader processes for 15 s"):
        assert words in on_private_ray.log


def test_a_stopped_rank_is_called_hung_with_the_stacks_of_who_waited(on_private_ray: OnPrivateRay) -> None:
    assert "rank 0: hung at step" in on_private_ray.story
    assert "---- thread t4p-watch" not in on_private_ray.story
    assert "t4p/train/loop.py" in on_private_ray.story


def test_ctrl_c_ends_a_launch_says_how_to_go_on_and_leaves_nothing_behind(on_private_ray: OnPrivateRay) -> None:
    assert on_private_ray.command.process.returncode == 130
    words = f"stopped by SIGINT: saved step {on_private_ray.saved}; the same command with train.resume=auto goes on"
    assert words in on_private_ray.command.output()
    assert on_private_ray.saved == on_private_ray.num_steps, "a last checkpoint, of the last step"
    assert on_private_ray.num_steps < SHORT.num_steps, "stopped in the middle, else this proves nothing"
    assert on_private_ray.left == []
    for attempt in (*(loss.attempt for loss in on_private_ray.losses), on_private_ray.last):
        assert not attempt.folder.exists()
        assert not any(is_running(worker.pid) for worker in attempt.workers)


def test_a_job_trains_on_two_nodes_and_begins_again_where_it_lost_a_worker(as_jobs: AsJobs) -> None:
    assert as_jobs.job_id.startswith("run-"), "named after its run folder"
    attempts = [as_jobs.losses[0].attempt, as_jobs.stopped_attempt, as_jobs.losses_of_last[0].attempt]
    assert [len(set(attempt.raylets)) for attempt in attempts] == [2, 2, 2]
    assert_every_loss_was_told(as_jobs.losses)


def test_a_job_is_listed_and_its_run_folder_is_its_own(as_jobs: AsJobs, on_private_ray: OnPrivateRay) -> None:
    (listed,) = as_jobs.listed
    assert listed["status"] == "RUNNING"
    assert listed["run_dir"] == str(on_private_ray.run_dir)
    assert listed["num_workers"] == "2"
    # A second job would spoil the first one's run folder; nothing is sent.
    status, _, err = as_jobs.second
    assert status == 2
    assert as_jobs.job_id in err
    assert "another run.dir" in err


def test_ctrl_c_ends_the_following_of_a_job_and_not_the_job(as_jobs: AsJobs, on_private_ray: OnPrivateRay) -> None:
    assert as_jobs.follower.process.returncode == 130
    said = as_jobs.follower.output()
    assert f"run folder: {on_private_ray.run_dir}" in said
    assert "the job goes on" in said
    assert f"stop {as_jobs.job_id}" in said
    assert as_jobs.still


def test_a_job_that_is_stopped_saves_and_ends_with_its_workers_and_once_more_does_no_harm(as_jobs: AsJobs) -> None:
    assert as_jobs.stopped == ["STOPPED"] * 3
    step, logged = as_jobs.saved
    assert step == logged, "a last checkpoint, of the last step"
    assert as_jobs.left == []


def test_a_job_that_loses_a_node_goes_on_with_another_to_its_end(as_jobs: AsJobs) -> None:
    said = as_jobs.last.output()
    assert as_jobs.last.process.returncode == 0, said
    assert_every_loss_was_told(as_jobs.losses_of_last)
    assert "submitted job run-" in said
    assert "versions fit: python" in said, "the log of the job itself"
    told = last_in(said)
    assert told is not None
    assert told.is_last, "the followed log shows how the training goes"
    assert "next: t4p checkpoint export" in said
    assert "runtime_resources/working_dir_files" in said, "the source that was shipped is what runs"
    assert "is SUCCEEDED" in said


def test_the_status_of_a_job_tells_how_far_its_training_is(as_jobs: AsJobs, site: Site) -> None:
    """By its log, over HTTP: a laptop does not see the run folder."""
    job_id = re.search(r"submitted job (\S+),", as_jobs.last.output())
    assert job_id is not None
    progress = site.ask("status", job_id[1])["progress"]
    assert progress == last_in(as_jobs.last.output()).to_json()
    assert (progress["step"], progress["seconds_left"]) == (SHORT.num_steps, 0)
    assert list(progress["losses"]) == ["loss", "loss_e", "loss_d"]


def test_the_run_that_suffered_everything_is_the_uninterrupted_one_bit_for_bit(
    as_jobs: AsJobs, on_private_ray: OnPrivateRay, shards: str, tmp_path: Path
) -> None:
    run_dir = on_private_ray.run_dir
    assert_same_run(run_dir, run_uninterrupted(shards, tmp_path / "run", SHORT), SHORT.num_steps)
    last = run_dir / "checkpoints" / f"step_{SHORT.num_steps:08d}"
    assert len(list(last.glob("zero_pp_rank_*_optim_states.pt"))) == 2, "one part per rank"
    assert sorted(kept.name for kept in (run_dir / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]
    # Of eight attempts, the first began at the beginning.
    assert (run_dir / "logs" / "rank-0.log").read_text().count("resuming from") == 7


def test_a_job_costs_a_few_imports_until_its_first_step(as_jobs: AsJobs) -> None:
    print(f"submission to first step {as_jobs.startup:.1f} CPU s, one set of imports {as_jobs.imports:.1f}")
    assert as_jobs.startup < STARTUP_LIMIT * as_jobs.imports


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
    before = cpu_of_children()
    try:
        for group in (cases[:3], cases[3:6], cases[6:9], cases[9:]):
            running = [site.start(*arguments, **changes) for arguments, changes, _ in group]
            for (arguments, _, wanted), process in zip(group, running, strict=True):
                status, out, err = ended(process)
                assert status == 2, (arguments, out, err)
                assert "Traceback" not in out + err
                assert [text for text in wanted if text not in err] == [], (arguments, err)
    finally:
        other.shutdown()
        for each in (deaf, closed, other.socket):
            each.close()
    assert cpu_of_children() - before < REFUSAL_LIMIT * len(cases)
    assert not (tmp_path / "run").exists()
    assert not [job for job in site.connect().jobs() if job.metadata["run_dir"] == str(tmp_path / "run")]


def test_what_the_nodes_or_a_worker_find_wrong_ends_the_launch_with_its_status(site: Site, tmp_path: Path) -> None:
    """Both as one types it on a node of the cluster, which may see other files than the others."""
    assert site.cluster is not None
    of_node = {**site.cluster.environ(), "COLUMNS": "200"}
    calls = {
        "wide": [f"data.shards=[{site.shards}]", "cluster.cpus_per_worker=2", "--workers", "2"],
        "nowhere": ["data.shards=[/no/such/shards]", "cluster.max_restarts=3", "--workers", "1"],
    }
    running = [
        site.start(
            "pretrain", "configs/smoke.yaml", f"run.dir={tmp_path / name}", *call, "--address", "auto", **of_node
        )
        for name, call in calls.items()
    ]
    (wide_status, _, wide_err), (status, out, err) = [ended(process) for process in running]
    assert wide_status == 1, wide_err
    assert "places for 0 of 2 workers, each with 2 CPU(s)" in wide_err
    assert status == 2, err
    assert err.startswith("error: /no/such/shards"), "and no word of a rank"
    assert "Traceback" not in err + out
    assert "restart" not in out
    assert not list((tmp_path / "nowhere").glob("checkpoints/*"))


def test_versions_are_compared_before_submission_and_again_in_the_job(site: Site, tmp_path: Path) -> None:
    cluster = site.connect()
    overrides = [f"run.dir={tmp_path / 'run'}", f"data.shards=[{site.shards}]"]
    spec = plan_job(load_config([ROOT / "configs" / "smoke.yaml"], overrides), 2, (), {})

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
    site = Site("http://127.0.0.1:1", tmp_path / "absent", str(tmp_path / "shards"), None)
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
