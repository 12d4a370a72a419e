"""What `t4p doctor` tries, one thing per process: a package that crashes or hangs must not hide the others.

Run as a program, `python -m commands.doctor.probes NAME FILE [ARGUMENT]`, it makes one probe and leaves the finding in
FILE. Each probe uses the thing as the project does, and imports it inside.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from commands.doctor.finding import Finding, State, find_out, write_finding
from commands.doctor.fixes import pip_install, project_requirements, required_python

if TYPE_CHECKING:
    from torch import Tensor

# Absolute, on sums of a dozen products of numbers about 1 in float32.
TOLERANCE = 1e-4
LOADER_SHARED_MEMORY = 2**30  # what a loader's queue of frames may come to; docker gives 64 MiB unless told otherwise
LEAST_DISK = 2**30


def probe_python() -> Finding:
    """Is this interpreter one of those that the project supports?"""
    from packaging.specifiers import SpecifierSet

    found = f"{platform.python_version()} at {sys.executable}"
    wanted = required_python()
    if SpecifierSet(wanted).contains(platform.python_version()):
        return Finding("works", found)
    return Finding("broken", f"{found}; wanted {wanted}", "make distclean && make env PYTHON=python3.11")


def probe_packages() -> Finding:
    """Are the packages that the project requires there, at versions that fit? None is imported."""
    from launch.jobs.versions import installed_version, version_problem, version_problems

    requirements = project_requirements()
    if not requirements:
        return Finding("skipped", "nothing here says what the project requires (it is not installed)", "make env")
    problems = version_problems(requirements)
    if not problems:
        return Finding("works", f"all {len(requirements)} required ones, at versions that fit")
    unfit = [line for line in requirements if version_problem(line, installed_version(_name(line))) is not None]
    state: State = "missing" if all("found none" in problem for problem in problems) else "broken"
    return Finding(state, "; ".join(problems), pip_install(unfit))


def probe_torch() -> Finding:
    """Does torch compute, forward and backward?"""
    import torch

    _check_torch_on(torch.device("cpu"))
    return Finding(
        "works",
        f"{torch.__version__}, {torch.get_num_threads()} thread(s) on {len(os.sched_getaffinity(0))} core(s)",
        figures={"threads": torch.get_num_threads(), "cores": len(os.sched_getaffinity(0))},
    )


def probe_gpu() -> Finding:
    """Are there GPUs that torch can use? None is nothing to repair."""
    import torch

    if not torch.cuda.is_available():
        if not Path("/dev/nvidiactl").exists():
            return Finding("missing", "none on this machine; everything runs on the CPU")
        if torch.version.cuda is None:
            fix = pip_install(["torch", "torchvision"], reinstall=True)
            return Finding("broken", f"there is one, but torch {torch.__version__} is built without CUDA", fix)
        return Finding(
            "broken",
            f"there is one, but torch, built for CUDA {torch.version.cuda}, cannot use it",
            "see with `nvidia-smi` whether the driver runs and is new enough for that CUDA (and whether "
            "CUDA_VISIBLE_DEVICES hides the GPU)",
        )
    found = []
    for index in range(torch.cuda.device_count()):
        _check_torch_on(torch.device("cuda", index))
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if properties.major >= 8 else "no bf16"
        found.append(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}")
    nccl = "no NCCL"
    if torch.distributed.is_nccl_available():
        nccl = "NCCL " + ".".join(map(str, torch.cuda.nccl.version()))
    names = "; ".join(found) if len(set(found)) > 1 else f"{len(found)} x {found[0]}"
    return Finding("works", f"{names}; CUDA {torch.version.cuda}, {nccl}", figures={"gpus": len(found)})


def probe_sparse(backend: Literal["native", "minkowski"]) -> Finding:
    """Does a strided convolution give the right features and gradients? Native is held against a dense one."""
    import torch

    from launch.jobs.versions import installed_version
    from t4p.models.sparse.pyramid import build_pyramid, require_backend

    require_backend(backend)
    generator = torch.Generator().manual_seed(0)
    occupied = torch.rand(8, 8, 8, generator=generator) < 0.3
    voxel_coords = torch.nn.functional.pad(occupied.nonzero(), (1, 0)).int()
    features = torch.randn(len(voxel_coords), 3, generator=generator)
    weight = torch.randn(8, 3, 4, generator=generator)

    def convolve(which: Literal["native", "minkowski"], device: torch.device) -> tuple[Tensor, ...]:
        inputs = [tensor.to(device).requires_grad_() for tensor in (features, weight)]
        output = build_pyramid(which, voxel_coords.to(device), 2).downsample(inputs[0], inputs[1], 0)
        return _with_gradients(output, inputs)

    cpu = torch.device("cpu")
    if backend == "native":
        reference = _dense_convolution(voxel_coords, features, weight)
    else:
        reference = convolve("native", cpu)
    devices = [cpu]
    if backend == "native" and torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    for device in devices:
        for found, wanted in zip(convolve(backend, device), reference, strict=True):
            error = float((found.detach().cpu() - wanted.detach()).abs().max())
            if not error < TOLERANCE:
                raise RuntimeError(f"a convolution on the {device.type} is off by {error:.2g}")
    where = " and the GPU" if len(devices) > 1 else ""
    if backend == "native":
        return Finding("works", f"plain torch; on the CPU{where} equal to a dense convolution, gradients too")
    return Finding("works", f"MinkowskiEngine {installed_version('MinkowskiEngine')}; equal to native, gradients too")


def probe_clip() -> Finding:
    """Do CLIP towers build, and give dense features and label embeddings? Random weights: nothing is downloaded."""
    import torch

    from launch.jobs.versions import installed_version
    from t4p.config.packaged import find_packaged
    from t4p.models.clip import load_towers

    for name in ("tiny-rn", "tiny-vit16"):
        towers = load_towers(str(find_packaged(f"configs/clip/{name}.json")), "random")
        side = 2 * towers.cell_size
        dense = towers.dense_features(torch.zeros(1, 3, side, side))
        labels = towers.encode_labels(["chair", "table"])
        if dense.shape != (1, towers.embed_dim, 2, 2) or labels.shape != (2, towers.embed_dim):
            raise RuntimeError(f"{name}: features of shape {tuple(dense.shape)}, labels {tuple(labels.shape)}")
        if not (dense.isfinite().all() and labels.isfinite().all()):
            raise RuntimeError(f"{name}: features that are not finite")
    return Finding("works", f"open_clip {installed_version('open_clip_torch')}; dense features of a ResNet and a ViT")


def probe_deepspeed() -> Finding:
    """Does the engine start, and take a step?"""
    import torch

    from launch.jobs.versions import installed_version
    from t4p.train.engine import Engine, EngineSettings, local_device, start_process_group, stop_process_group

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 8)

        def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
            return (self.linear(inputs).square().mean(),)

    start_process_group()
    backend = torch.distributed.get_backend()
    torch.manual_seed(0)
    engine = Engine(Loss().to(local_device()), EngineSettings(1, "fp32", 1.0, 0.0, 1), world_size=1)
    inputs = torch.ones(4, 8, device=local_device())
    losses = []
    for _ in range(2):
        (loss,) = engine.forward(inputs)
        losses.append(float(loss))
        engine.backward(loss)
        engine.step(1e-2)
    stop_process_group()
    if not losses[1] < losses[0]:
        raise RuntimeError(f"a step did not lower the loss: {losses[0]:g}, then {losses[1]:g}")
    return Finding("works", f"{installed_version('deepspeed')}; the engine took two steps at ZeRO-1 on {backend}")


def probe_ray() -> Finding:
    """Does a private Ray start, run one worker, and go without leaving anything behind?"""
    from launch.attempts import run_job
    from launch.jobs.versions import installed_version
    from launch.outcome import describe_cause
    from launch.processes.caretaker import processes_of
    from launch.worker import WorkerJob

    with tempfile.TemporaryDirectory(prefix="t4p-doctor-") as scratch:
        note = Path(scratch) / "note.json"
        job = WorkerJob("commands.doctor.probes:note_rank", {"note": str(note)}, 1)
        outcome = run_job(job, lambda: None, max_restarts=1)  # a busy machine may be too slow once
        if outcome.failures:
            raise RuntimeError(f"its worker failed: {describe_cause(outcome.failures[0])}")
        if outcome.problem:
            raise RuntimeError(outcome.problem)
        noted = json.loads(note.read_text(encoding="utf-8"))
    folder = Path(noted["folder"])
    left = [process.name() for process in processes_of(folder)]
    if left or folder.exists():
        raise RuntimeError(f"it left something behind: {', '.join(left) or folder}")
    return Finding("works", f"{installed_version('ray')}; a private Ray ran one worker and left nothing behind")


def note_rank(worker_config: dict[str, Any], report: Callable[[int, int, Mapping[str, float]], None]) -> None:
    """The worker of the Ray that is tried: says where that Ray lives (its output goes to a file there)."""
    report(1, 1, {})
    folder = Path(os.readlink("/proc/self/fd/1")).parent
    Path(worker_config["note"]).write_text(json.dumps({"folder": str(folder)}), encoding="utf-8")


def probe_webdataset() -> Finding:
    """Does its reader find what its writer wrote?"""
    import io

    from launch.jobs.versions import installed_version
    from shards.slices import archive_end, sample_slice, samples_of_tar

    sample = sample_slice("scene/frame", {"meta.json": b"{}"})
    read = list(samples_of_tar("probe", io.BytesIO(sample + archive_end(len(sample)))))
    if [(entry["__key__"], entry["meta.json"]) for entry in read] != [("scene/frame", b"{}")]:
        raise RuntimeError(f"read back {read}")
    return Finding("works", f"{installed_version('webdataset')}; a sample written and read back")


def probe_disk() -> Finding:
    """Is there room for a run here, and for temporary files?"""
    places = {"here": Path.cwd(), "for temporary files": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(place).free for name, place in places.items()}
    found = ", ".join(f"{_gib(free[name])} free {name} ({place})" for name, place in places.items())
    figures = {"free_gib": free["here"] / 2**30, "temporary_free_gib": free["for temporary files"] / 2**30}
    if min(free.values()) >= LEAST_DISK:
        return Finding("works", found, figures=figures)
    return Finding(
        "broken",
        f"{found}; wanted {_gib(LEAST_DISK)}",
        "make room, or use another disk: run.dir for runs, TMPDIR for temporary files",
        figures,
    )


def probe_shared_memory() -> Finding:
    """Loader processes hand batches over through /dev/shm; a container's is often tiny, and the loader dies of it."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("missing", "no /dev/shm", "docker run --shm-size=8g ..., or data.num_workers=0")
    free = shutil.disk_usage(place).free
    if free >= LOADER_SHARED_MEMORY:
        return Finding("works", f"{_gib(free)} free in /dev/shm", figures={"free_gib": free / 2**30})
    return Finding(
        "broken",
        f"{_gib(free)} free in /dev/shm, wanted {_gib(LOADER_SHARED_MEMORY)}: loader processes hand batches over there",
        "start the container with more (docker run --shm-size=8g ..., for Kubernetes an emptyDir with medium: Memory), "
        "or set data.num_workers=0",
        {"free_gib": free / 2**30},
    )


def probe_storage(url: str) -> Finding:
    """Does storage do what packing and training ask of it, and how fast?"""
    from commands.doctor.storage import try_storage

    return try_storage(url)


PROBES: Mapping[str, Callable[..., Finding]] = {
    "python": probe_python,
    "packages": probe_packages,
    "torch": probe_torch,
    "gpu": probe_gpu,
    "sparse": probe_sparse,
    "clip": probe_clip,
    "deepspeed": probe_deepspeed,
    "ray": probe_ray,
    "webdataset": probe_webdataset,
    "disk": probe_disk,
    "shared_memory": probe_shared_memory,
    "storage": probe_storage,
}


def _check_torch_on(device: Any) -> None:
    """Multiply matrices there, in bf16 and back."""
    import torch

    weight = torch.eye(64, device=device, requires_grad=True)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        torch.ones(64, 64, device=device).mul(2).matmul(weight).sum().backward()
    if weight.grad is None or not torch.equal(weight.grad, torch.full_like(weight, 128.0)):
        raise RuntimeError(f"a product on {device} has the wrong gradient")


def _dense_convolution(voxel_coords: Tensor, features: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Kernel 2, stride 2, on a dense grid of 8 cells per side: output at the occupied coarse cells, and gradients."""
    import torch

    inputs = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
    z, y, x = voxel_coords[:, 1:].long().flip(1).unbind(1)
    grid = torch.zeros(8, 8, 8, features.shape[1]).index_put((z, y, x), inputs[0])
    kernel = inputs[1].unflatten(0, (2, 2, 2)).permute(4, 3, 0, 1, 2)
    coarse = torch.nn.functional.conv3d(grid.permute(3, 0, 1, 2)[None], kernel, stride=2)[0]
    x, y, z = torch.unique(voxel_coords[:, 1:].long() // 2, dim=0).unbind(1)  # ascending, as the canonical order
    return _with_gradients(coarse[:, z, y, x].T, inputs)


def _with_gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    import torch

    return output, *torch.autograd.grad(output.square().sum(), inputs)


def _name(requirement: str) -> str:
    from packaging.requirements import Requirement

    return Requirement(requirement).name


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / 2**30:,.1f} GiB"


def main(name: str, path: Path, *arguments: str) -> None:
    """Make one probe."""
    # So that what a probe cleans up is cleaned up when it is told to end.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    write_finding(path, find_out(PROBES[name], *arguments))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
