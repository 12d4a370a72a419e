"""`pip install .` without extras: what it brings is enough for looking at data and asking trained networks.

Everything that it does not bring is blocked in a fresh interpreter, and so is what Windows does not have.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
OLDER = ROOT / "tests" / "data" / "older"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_ON_WINDOWS = {"fcntl", "resource"}
OPTIONAL = {
    "boto3",
    "deepspeed",
    "huggingface_hub",
    "open_clip",
    "psutil",
    "ray",
    "tensorboard",
    "torchvision",
    "webdataset",
}

# Runs each call as the command line would, and asks the door likewise. Prints [status or error, said] of each.
SCRIPT = """
import contextlib, importlib.abc, io, json, sys

blocked, calls = set(json.loads(sys.argv[1])), json.loads(sys.argv[2])

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in blocked]:
    del sys.modules[name]
sys.meta_path.insert(0, Blocker())

import t4p
from commands.main import main

def command(*argv):
    sys.argv = ["t4p", *argv]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            return end.code, said.getvalue()

def door(expression):
    try:
        return 0, repr(eval(expression, {"t4p": t4p, "first": lambda things: next(iter(things))}))
    except Exception as error:
        return f"{type(error).__name__}", str(error)

answers = [command(*call) if isinstance(call, list) else door(call) for call in calls]
print(json.dumps({"answers": answers, "blocked": sorted(blocked & {n.partition(".")[0] for n in sys.modules})}))
"""

SCENES, FRAMES = str(OLDER / "scenes"), str(OLDER / "frames")
MODEL = f"t4p.load({str(OLDER / 'pretrain.safetensors')!r})"
BATCH = f"first(t4p.stream({FRAMES!r}, batch_size=1, pixel_stride=4))"
SMOKE = ["configs/smoke.yaml", f"data.shards=[{FRAMES}]"]
WORKS: dict[str, list[str] | str] = {
    "info": ["shards", "info", FRAMES, "--json"],
    "pack": ["shards", "pack", "synthetic", "seed=1,rooms=1,frames=1,width=32,height=24", "packed"],
    "show": ["shards", "show", FRAMES, "room-5-00000/0000", "--out", "shown.png"],
    "evaluate": [
        "evaluate",
        f"model.exported={OLDER / 'semantic.safetensors'}",
        f"data.shards=[{SCENES}]",
        "data.ignored_labels=['*']",
        "--json",
    ],
    "evaluate to a page": [
        "evaluate",
        f"model.exported={OLDER / 'semantic.safetensors'}",
        f"data.shards=[{SCENES}]",
        "data.ignored_labels=['*']",
        "--page",
        "scores.html",
    ],
    "predict": ["predict", str(OLDER / "semantic.safetensors"), SCENES, "--out", "predicted"],
    "query": ["query", str(OLDER / "pretrain.safetensors"), SCENES, "chair", "--out", "asked"],
    "contact sheet": ["shards", "show", SCENES, "--out", "sheet.html"],
    "list": ["shards", "list", FRAMES],
    "help": ["--help"],
    "keys": ["config", "keys", "train"],
    "show configuration": ["config", "show", *SMOKE],
    "dry run": ["launch", "pretrain", *SMOKE, "run.dir=unused", "--dry-run"],
    "embed": f"{MODEL}.embed({BATCH}.points, {BATCH}.colors).shape",
    "classify": f"{MODEL}.classify({BATCH}.points, {BATCH}.colors)[0].shape",
    "frames": f"first(t4p.frames({FRAMES!r})).key",
    "network": "type(t4p.network('configs/smoke.yaml')).__name__",
    "contrastive_loss": "t4p.contrastive_loss.__name__",
}
MISSES: dict[str, tuple[str, list[str] | str]] = {
    "train": ("train", ["pretrain", *SMOKE, "run.dir=unused"]),
    "launch": ("launch", ["launch", "pretrain", *SMOKE, "run.dir=unused"]),
    "info of storage": ("storage", ["shards", "info", "s3://bucket/prefix"]),
    "verify": ("storage", ["shards", "verify", FRAMES]),
    "export": (
        "train",
        ["checkpoint", "export", str(OLDER / "runs/pretrain/checkpoints/step_00000002"), "out.safetensors"],
    ),
    "frames of storage": ("storage", "t4p.frames('s3://bucket/prefix')"),
    "other words": ("train", f"{MODEL}.classify({BATCH}.points, {BATCH}.colors, labels=['dog'])"),
    "a query of other words": ("train", f"{MODEL}.query({BATCH}.points, {BATCH}.colors, ['dog'])"),
    "a run folder": ("train", f"t4p.load({str(OLDER / 'runs/pretrain')!r})"),
    "a name of the hub": ("hub", "t4p.load('hf://someone/chairs')"),
}


def light_distributions() -> set[str]:
    """What pip installs for the project without extras, of what is installed here."""
    found: set[str] = set()
    todo = [Requirement(line) for line in PROJECT["dependencies"]]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        asked = f"{name}[{','.join(sorted(wanted.extras))}]"
        if asked in found:
            continue
        found |= {name, asked}
        try:
            lines = requires(name) or []
        except PackageNotFoundError:  # of another system
            continue
        extras = ("", *wanted.extras)
        listed = [Requirement(line) for line in lines]
        todo += [r for r in listed if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return found


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory, clean_environ: dict[str, str]) -> dict[str, tuple[int | str, str]]:
    """What every call came to."""
    kept = light_distributions() | {canonicalize_name(PROJECT["name"])}
    blocked = NOT_ON_WINDOWS | {
        module
        for module, distributions in packages_distributions().items()
        if not {canonicalize_name(name) for name in distributions} & kept
    }
    assert blocked >= OPTIONAL, "these are installed, and no light installation has them"
    calls = [*WORKS.values(), *(call for _, call in MISSES.values())]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(sorted(blocked)), json.dumps(calls)],
        cwd=tmp_path_factory.mktemp("light"),
        env=clean_environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["blocked"] == [], "blocked, and loaded all the same"
    return dict(zip([*WORKS, *MISSES], map(tuple, told["answers"]), strict=True))


@pytest.mark.parametrize("name", WORKS)
def test_a_light_installation_is_enough(name: str, light: dict[str, tuple[int | str, str]]) -> None:
    status, said = light[name]
    assert status == 0, said


def test_what_it_says_is_right(light: dict[str, tuple[int | str, str]]) -> None:
    assert json.loads(light["info"][1])["num_samples"] == 4
    assert json.loads(light["evaluate"][1])["task"] == "semantic"
    assert light["embed"][1].endswith(", 16)")


@pytest.mark.parametrize("name", MISSES)
def test_what_it_lacks_is_said_in_one_message_that_names_the_extra(
    name: str, light: dict[str, tuple[int | str, str]]
) -> None:
    extra, call = MISSES[name]
    status, said = light[name]
    assert status == (2 if isinstance(call, list) else "MissingExtraError"), said
    assert f"pip install 'text4point[{extra}]'" in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
