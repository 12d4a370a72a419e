from __future__ import annotations

import json
import shlex
import tomllib
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from launch.jobs.source import EXTRAS, read_requirements, read_source
from launch.jobs.spec import (
    CONFIG_FILE,
    REQUIREMENTS_FILE,
    JobSpec,
    build_job_spec,
    choose_forwarded,
    wanted_extras,
    world_sizes,
)
from launch.placement import WorkerResources
from t4p.config.files import load_config
from t4p.config.tasks import PretrainConfig
from t4p.data.course import Course, CourseSettings, Pool
from t4p.data.ranks import Nodes
from t4p.errors import ConfigError

ROOT = Path(__file__).resolve().parents[4]
NOON = datetime(2026, 11, 22, 12, 0, 7)
SOURCE = {"commands/main.py": b"print()\n", "configs/clip/tiny-vit32.json": b"{}"}
SECRET = "wJalrXUtnFEMI-not-to-be-seen"


def resolved(*overrides: str) -> PretrainConfig:
    return load_config(["configs/smoke.yaml"], ["run.dir=/mnt/runs/ScanNet v2", "data.shards=[s3://b/p]", *overrides])


def spec(config: PretrainConfig, num_workers: int = 2, forwarded: dict[str, str] | None = None) -> JobSpec:
    return build_job_spec(
        config,
        num_workers,
        source=SOURCE,
        requirements=("python>=3.11", "torch>=2.11"),
        version="0.1.0",
        forwarded=forwarded or {},
        now=NOON,
        suffix="a1b2",
    )


def test_a_job_is_named_after_its_run() -> None:
    assert spec(resolved()).job_id == "scannet-v2-20261122-120007-a1b2"
    assert spec(resolved("run.dir=/")).job_id == "run-20261122-120007-a1b2"
    assert len(spec(resolved(f"run.dir=/{'x' * 300}")).job_id) < 70, "it is part of file names"


def test_the_entrypoint_compares_versions_and_then_is_the_command_itself() -> None:
    check, train = spec(resolved(), 2).entrypoint.split(" && ")
    assert shlex.split(check) == ["python", "-m", "launch.jobs.versions", "t4p-requirements.txt"]
    assert shlex.split(train) == shlex.split(
        "exec python -m commands.main launch pretrain t4p-job.yaml --workers 2 --address auto"
    )
    assert spec(resolved()).entrypoint_num_cpus == 0, "it takes no worker's place"


def test_the_working_directory_holds_source_config_and_requirements(tmp_path: Path) -> None:
    config = resolved("train.learning_rate=1e-5")
    job = spec(config)
    assert set(job.files) == {*SOURCE, CONFIG_FILE, REQUIREMENTS_FILE}
    (tmp_path / CONFIG_FILE).write_bytes(job.files[CONFIG_FILE])
    assert load_config([tmp_path / CONFIG_FILE]) == config
    assert job.requirements == ("python>=3.11", "torch>=2.11")
    assert job.size_bytes == sum(map(len, job.files.values()))


def test_nothing_of_the_environment_is_sent_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    job = spec(resolved())
    assert set(job.env) == {"PYTHONUNBUFFERED", "RAY_JOB_STOP_WAIT_TIME_S"}
    everything = repr((job.env, job.files, job.metadata, job.entrypoint))
    assert SECRET not in everything


def test_named_variables_are_sent_and_stay_out_of_the_metadata() -> None:
    forwarded = choose_forwarded(["AWS_SECRET_ACCESS_KEY"], {"AWS_SECRET_ACCESS_KEY": SECRET, "OTHER": "x"})
    job = spec(resolved(), forwarded=forwarded)
    assert job.env["AWS_SECRET_ACCESS_KEY"] == SECRET
    assert job.forwarded == ("AWS_SECRET_ACCESS_KEY",)
    assert "OTHER" not in job.env
    assert SECRET not in repr((job.metadata, job.entrypoint, job.files))


def test_a_named_variable_that_is_not_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="--forward-env HF_TOKEN: not set in this environment"):
        choose_forwarded(["HOME", "HF_TOKEN"], {"HOME": "/root"})


def test_metadata_are_strings_that_tell_runs_apart() -> None:
    one, other = spec(resolved()).metadata, spec(resolved("run.seed=1")).metadata
    assert one["t4p_version"] == "0.1.0"
    assert one["run_dir"] == "/mnt/runs/ScanNet v2"
    assert one["num_workers"] == "2"
    assert one["config_sha256"] != other["config_sha256"]
    assert all(isinstance(value, str) for value in one.values()), "Ray takes no other"
    assert json.loads(json.dumps(dict(one))) == one


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("run.dir=runs/scannet", "run.dir: 'runs/scannet'"),
        ("run.dir=~/runs", "run.dir: '~/runs'"),
        ("data.shards=[/mnt/a, packed/b]", "data.shards: 'packed/b'"),
        ("data.validation_shards=[../val]", "data.validation_shards: '../val'"),
        ("model.clip.name=my/clip.json", "model.clip.name: 'my/clip.json'"),
        ("model.clip.pretrained=weights.safetensors", "model.clip.pretrained: 'weights.safetensors'"),
        ("model.clip.pretrained=downloads/rn50", "model.clip.pretrained: 'downloads/rn50'"),
        ("train.resume=checkpoints/step_00000010", "train.resume: 'checkpoints/step_00000010'"),
    ],
)
def test_a_relative_path_is_refused_by_its_key(override: str, key: str) -> None:
    with pytest.raises(ConfigError, match="1 path") as refused:
        spec(resolved(override))
    assert key in str(refused.value)
    assert "absolute" in str(refused.value)


def test_all_relative_paths_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match="3 path") as refused:
        spec(resolved("run.dir=a", "data.shards=[b, c]"))
    assert all(f"{path!r} is a relative path" in str(refused.value) for path in "abc")


@pytest.mark.parametrize(
    "override",
    [
        "train.resume=never",
        "train.resume=/mnt/runs/a/checkpoints/step_00000010",
        "model.clip.pretrained=openai",
        "model.clip.pretrained=/mnt/weights/rn50.pt",
        "model.clip.name=ViT-B-32",
        "data.shards=[s3://b/p, /mnt/shards]",
    ],
)
def test_paths_that_the_cluster_can_see_and_names_pass(override: str) -> None:
    assert spec(resolved(override)).files


def test_a_packaged_tower_that_is_not_shipped_is_refused() -> None:
    assert resolved().model.clip.name == "configs/clip/tiny-vit32.json"
    with pytest.raises(ConfigError, match=r"configs/clip/tiny-vit16\.json"):
        spec(resolved("model.clip.name=configs/clip/tiny-vit16.json"))


@pytest.mark.parametrize(
    ("overrides", "num_workers", "wanted"),
    [
        ((), 0, "--workers: 0; at least 1"),
        ((), 3, "train.global_batch_size: 2, and there are 3 workers"),
        (
            ("train.global_batch_size=12", "model.norm_group_size=4"),
            6,
            "model.norm_group_size: 4, and there are 6 workers",
        ),
    ],
)
def test_a_world_that_does_not_divide_is_refused(overrides: tuple[str, ...], num_workers: int, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        spec(resolved(*overrides), num_workers)


@given(num_workers=st.integers(1, 40), micro_batch=st.integers(1, 60), accum=st.integers(1, 3), step=st.integers(0, 50))
def test_frames_per_rank_are_those_of_the_order(num_workers: int, micro_batch: int, accum: int, step: int) -> None:
    batch = micro_batch * accum
    if num_workers > batch:
        return
    sizes = world_sizes(resolved(f"train.global_batch_size={batch}", f"train.grad_accum_steps={accum}"), num_workers)
    pool = Pool(np.array([batch * 2]), np.array([batch * 2000]))
    course = Course([pool], CourseSettings(0, 64, 1 << 20, batch, accum, Nodes.equal(num_workers, 4)))
    counts = [
        count
        for micro_step in range(accum)
        for count in np.bincount(course.micro_batch(step, micro_step).ranks, minlength=num_workers).tolist()
    ]
    assert sizes.micro_batches == accum
    assert sizes.frames_per_micro_batch == (min(counts), max(counts))


def test_a_worker_has_a_gpu_where_the_nodes_have_some() -> None:
    assert world_sizes(resolved(), 2).resources == WorkerResources(num_cpus=1, num_gpus=0)
    gpus = resolved("cluster.gpus_per_node=8", "cluster.cpus_per_worker=12")
    assert world_sizes(gpus, 2).resources == WorkerResources(num_cpus=12, num_gpus=1)


def test_a_spec_is_frozen_and_its_repr_short() -> None:
    job = spec(resolved())
    with pytest.raises(AttributeError):
        job.job_id = "another"  # type: ignore[misc]
    assert len(repr(job)) < 2000, "no file contents"


def test_the_shipped_source_is_the_packages_without_caches() -> None:
    source = read_source()
    assert {path.partition("/")[0] for path in source} == {"shards", "t4p", "launch", "commands", "configs"}
    assert {"commands/main.py", "launch/jobs/spec.py", "shards/stores/s3.py", "configs/smoke.yaml"} <= set(source)
    assert "configs/clip/tiny-vit32.json" in source
    assert not [path for path in source if "__pycache__" in path or "/." in path or path.endswith(".pyc")]
    assert yaml.safe_load(source["configs/smoke.yaml"])["run"]["dir"] == "runs/smoke"


def test_requirements_are_those_of_the_installed_project() -> None:
    plain, minkowski = read_requirements(()), read_requirements(("minkowski",))
    names = [requirement.partition("<")[0].partition(">")[0].partition("=")[0] for requirement in plain]
    assert names[0] == "python"
    assert {"torch", "deepspeed", "ray", "open_clip_torch"} <= set(names)
    assert not {"pytest", "MinkowskiEngine", "ruff"} & set(names)
    assert set(minkowski) - set(plain) == {"MinkowskiEngine==0.5.4"}


def test_requirements_are_those_of_every_extra_that_runs_a_job_and_of_none_that_tests_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from metadata as a build of pyproject.toml writes them, not from what may be installed from an older one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = tmp_path / "text4point-9.dist-info"
    folder.mkdir()
    lines = [
        "Metadata-Version: 2.4",
        "Name: text4point",
        "Version: 9",
        f"Requires-Python: {project['requires-python']}",
    ]
    lines += [f"Requires-Dist: {line}" for line in project["dependencies"]]
    for extra, wanted in project["optional-dependencies"].items():
        lines += [f'Requires-Dist: {line}; extra == "{extra}"' for line in wanted]
    (folder / "METADATA").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {Requirement(line).name for line in read_requirements(())}
    extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    assert names == {"python", *(Requirement(line).name for line in [*project["dependencies"], *extras])}
    assert {"ray", "deepspeed", "open_clip_torch", "boto3", "webdataset", "torch"} <= names


def test_a_backend_of_an_extra_is_wanted_in_the_cluster() -> None:
    assert wanted_extras(resolved()) == ()
    assert wanted_extras(resolved("model.sparse_backend=minkowski")) == ("minkowski",)
