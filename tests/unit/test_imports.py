"""What each module loads, in fresh interpreters: what only looks at arguments and files stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from t4p.config.kinds import TASKS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "deepspeed", "open_clip", "ray", "webdataset", "MinkowskiEngine", "matplotlib")
# Modules that must stay light one by one; `/` at the end: every module of a package.
LIGHT = (
    "commands/",
    "launch/",
    "shards/",
    "t4p",
    "t4p.config/",
    "t4p.data.draws",
    "t4p.data.fetch",
    "t4p.data.order",
    "t4p.errors",
    "t4p.geometry",
    "t4p.metrics/",
)

# Imports one module after the other, and says which of them brought something heavy.
REPORT = """
import importlib, sys
heavy = set(sys.argv[1].split(","))
for module in sys.argv[2:]:
    before = heavy & sys.modules.keys()
    importlib.import_module(module)
    for name in sorted((heavy & sys.modules.keys()) - before):
        print(f"{module} loads {name}")
"""


def modules_of(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]


def loaded_by(modules: list[str], heavy: tuple[str, ...]) -> list[str]:
    """`MODULE loads NAME`, for each of the heavy names that importing these modules in turn loads."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT, ",".join(heavy), *modules], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_light_modules_load_nothing_heavy() -> None:
    modules = [
        module
        for name in LIGHT
        for module in (modules_of(name[:-1].replace(".", "/")) if name.endswith("/") else [name])
    ]
    assert loaded_by(modules, HEAVY) == []


def test_learning_code_loads_neither_ray_nor_the_floors_above() -> None:
    # The file of an optional package is loaded only where that is wanted.
    modules = [module for module in modules_of("t4p") if module != "t4p.models.sparse.minkowski"]
    assert loaded_by(modules, ("ray", "launch", "commands")) == []


def test_evaluation_needs_neither_deepspeed_nor_clip() -> None:
    tasks = [task.module for task in TASKS.values()]
    not_needed = ("deepspeed", "open_clip", "torchvision", "boto3", "webdataset")
    assert loaded_by(["t4p.tasks.evaluate", *tasks], not_needed) == []


def test_help_loads_no_group_and_no_package_but_typer_and_rich() -> None:
    code = "import sys, commands.main as m\ntry: m.main()\nexcept SystemExit: print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "Start jobs on Ray" in done.stdout, done.stderr
    loaded = set(done.stdout.splitlines())
    assert "typer" in loaded
    kept_out = {"numpy", "pydantic", "yaml", "psutil", "commands.launch", "commands.shards", "commands.checkpoint"}
    assert loaded & (kept_out | set(HEAVY)) == set()


# What a worker does: it looks through the image tower, trains, saves, loads. None of it needs torch's compiler, 5 CPU
# seconds of imports at every start. Whoever asks for it afterwards has it, and what was not imported for open_clip.
COMPILER = ("torch._dynamo", "torch._inductor", "sympy")
WORK = f"""
import sys
from pathlib import Path
import commands
import torch
from t4p.models.clip import build_zero_towers, load_towers
from t4p.train.engine import Engine, EngineSettings, start_process_group

class Losses(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
    def forward(self, x):
        return self.layer(x).sum(), x.sum()

build_zero_towers("configs/clip/tiny-rn.json")
load_towers("configs/clip/tiny-rn.json", "random").dense_features(torch.zeros(1, 3, 64, 64))
start_process_group()
engine = Engine(Losses(), EngineSettings(1, "fp32", 1.0, 0.1, 1), 1)
engine.backward(engine.forward(torch.ones(1, 2))[0])
engine.step(0.1)
engine.save(Path(sys.argv[1]), "step_1")
engine.load(Path(sys.argv[1]), "step_1")
print(*[name for name in {(*COMPILER, "timm")} if name in sys.modules], sep=",")
import timm.version
from torchvision.ops import roi_align as module  # the function, of the same name
held_back = sys.modules["torchvision.ops.roi_align"].is_compile_supported
answer = held_back("cpu")
import torch._dynamo.utils as real
print(real.is_compile_supported("cpu") is answer, Path(real.__file__).name, real.is_compile_supported is held_back)
"""


def test_a_worker_trains_and_saves_without_the_compiler_of_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["", "True utils.py False"]
