"""An export by its name on the Hugging Face hub: huggingface_hub itself asks a server that answers as the hub does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from saved_checkpoint import save_checkpoint

from shards.reader import DatasetReader
from t4p.models.hub import fetched, spelt_out
from t4p.runs.checkpoint import CheckpointState
from t4p.tasks.model import load

OLDER = Path(__file__).resolve().parents[1] / "data" / "older"
EXPORT = (OLDER / "pretrain.safetensors").read_bytes()
ROUTE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
# What each repository answers: its file, or a status with the hub's word for it.
ANSWERS: dict[str, bytes | tuple[int, str]] = {
    "someone/chairs": EXPORT,
    "someone/letters": b"no tensors",
    "someone/empty": (404, "EntryNotFound"),
    "someone/secret": (401, "RepoNotFound"),
    "someone/gated": (403, "GatedRepo"),
}


class Hub(BaseHTTPRequestHandler):
    """The two requests that a download makes: HEAD for the file's hash, GET for its bytes."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        self.asked.append(f"{self.command} {self.path}")
        found = ROUTE.fullmatch(self.path)
        answer = (404, "RepoNotFound") if found is None else ANSWERS.get(found["repository"], (401, "RepoNotFound"))
        if found is not None and found["revision"] not in ("main", "v1"):
            answer = (404, "RevisionNotFound")
        if isinstance(answer, tuple):
            self.send_response(answer[0])
            self.send_header("X-Error-Code", answer[1])
            answer = b""
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{sha256(answer).hexdigest()}"')
            self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        return answer

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def asked_there(script: str, *arguments: str, cwd: Path, **environment: str) -> str:
    """What a fresh process prints, whose hub is the one of the environment."""
    asked = os.environ | {
        "HF_HOME": str(cwd / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": "2",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=cwd, env=asked, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_given() -> list[str]:
    """Requests for a file's bytes; huggingface_hub may ask other things of its own."""
    return [line for line in Hub.asked if line.startswith("GET") and "/resolve/" in line]


TELL = """
import json, sys
from t4p.errors import CheckpointError
from t4p.models.hub import fetched, spelt_out
told = {}
for named in sys.argv[1:]:
    try:
        told[named] = str(fetched(spelt_out(named)))
    except CheckpointError as error:
        told[named] = f"refused: {error}"
print(json.dumps(told))
"""

CLASSIFY = """
import sys, numpy as np, t4p
from pathlib import Path
from commands.scans import predict_scan, scan_call
from shards.reader import DatasetReader
from t4p.config.files import load_for_command
from t4p.errors import CheckpointError
from t4p.tasks.beforehand import look_before_evaluation, look_beforehand
from t4p.tasks.evaluate import evaluate
from t4p.tasks.starting_weights import name_beginning, terms_of_beginning
scene = DatasetReader(sys.argv[1]).read_scene(0, 0)
np.save("scores.npy", t4p.load(sys.argv[2]).classify(scene.points, scene.rgb)[1])
try:
    t4p.load(sys.argv[3])
except CheckpointError as error:
    print(error)

predict_scan(scan_call("someone/chairs", sys.argv[1], Path("said"), None, None, False), None)
data = [f"data.shards=[{sys.argv[1]}]", "data.ignored_labels=['*']", "data.num_workers=0"]
config = load_for_command("evaluate", [], ["model.exported=hf://someone/chairs", *data])
look_before_evaluation(config)
print(f"scored {evaluate(config)[1].miou:.6f}")
tuning = [*data, "run.dir=tuned", "model.labels=[wall, floor]", "train.global_batch_size=1"]
tuning.append(f"model.pretrained={sys.argv[2]}")
config = load_for_command("finetune", [], tuning)
look_beforehand(config)
config = name_beginning(config, print)
print("pinned", config.model.pretrained)
print("began with", *terms_of_beginning(config))
assert name_beginning(config, print) == config
for begun in ("ongoing", "older"):
    again = load_for_command("finetune", [], [*tuning, f"run.dir={begun}"])
    print(begun, name_beginning(again, print).model.pretrained)
tagged = load_for_command("finetune", [], [*tuning, "run.dir=ongoing", f"model.pretrained={sys.argv[2]}@v1"])
print("by its tag", name_beginning(tagged, print).model.pretrained)
"""


def test_an_export_of_the_hub_is_the_file_and_is_fetched_once(hub: str, tmp_path: Path) -> None:
    names = ("hf://someone/chairs", "hf://someone/letters")
    recorded = {"ongoing": f"{names[0]}@{'d' * 40}", "older": names[0]}
    for run, began in recorded.items():
        state = CheckpointState(1, 1, {"train": {"zero_stage": 1}, "model": {"pretrained": began}}, (), "", {})
        save_checkpoint(tmp_path / run / "checkpoints" / "step_00000001", state)
    said = asked_there(CLASSIFY, str(OLDER / "scenes"), *names, cwd=tmp_path, HF_ENDPOINT=hub)
    assert re.search("is no export, or one that is cut short; wanted a file that `t4p checkpoint export` wrote", said)
    scene = DatasetReader(str(OLDER / "scenes")).read_scene(0, 0)
    _, scores = load(OLDER / "pretrain.safetensors").classify(scene.points, scene.rgb)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), scores)
    assert np.load(tmp_path / "said" / "points.npz")["labels"].shape == scores.shape[:1]
    assert re.search(r"^scored 0\.\d+$", said, re.MULTILINE)
    assert "began with frames: not stated" in said
    commit = f"hf://someone/chairs@{'c' * 40}"
    assert f"hf://someone/chairs: {commit} is taken, its commit of now\npinned {commit}\n" in said
    for run, began in recorded.items():
        assert f"\n{run} {began}\n" in said, "the hub may have gone on since"
    assert f"by its tag {commit}\n" in said, "a tag is asked for again: one that has moved is another beginning"
    gets = files_given()
    wanted = [f"GET /{name.removeprefix('hf://')}/resolve/main/model.safetensors" for name in names]
    assert gets == wanted, "one file of each, and no other"
    names = ("someone/chairs", "hf://someone/chairs@main")
    told = json.loads(asked_there(TELL, *names, cwd=tmp_path, HF_ENDPOINT=hub))
    assert [Path(told[name]).read_bytes() == EXPORT for name in names] == [True, True]
    told = json.loads(asked_there(TELL, names[0], cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1"))
    assert Path(told[names[0]]).read_bytes() == EXPORT, "the cache answers where the hub does not"
    assert files_given() == gets


def test_what_the_hub_does_not_give_is_told_with_the_next_move(hub: str, tmp_path: Path) -> None:
    wanted = {
        "hf://someone/secret": f"{hub} has no someone/secret that it shows to you, and there is no such path here; ",
        "hf://someone/gated": "only to those it has let in; ask for access on its page",
        "hf://someone/empty": "holds no model.safetensors, as exports are called there; download the file",
        "hf://someone/chairs@gone": "has no such revision of someone/chairs; name a branch, a tag or a commit",
        "hf://someone": "is no name on the hub; wanted hf://OWNER/NAME or hf://OWNER/NAME@REVISION",
        "hf://a/b/c": "is no name on the hub",
        "nobody/nothing": "has no nobody/nothing that it shows to you",
    }
    told = json.loads(asked_there(TELL, *wanted, cwd=tmp_path, HF_ENDPOINT=hub))
    for name, text in wanted.items():
        assert told[name].startswith("refused: hf://"), told[name]
        assert text in told[name]
    offline = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "1"}
    told = json.loads(asked_there(TELL, "hf://someone/other", cwd=tmp_path, **offline))
    assert "could not be asked" in told["hf://someone/other"]
    assert "HF_HUB_OFFLINE, or bring the file here and name its path" in told["hf://someone/other"]


def test_only_what_cannot_be_a_path_here_is_taken_for_a_name_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert spelt_out("someone/chairs") == "hf://someone/chairs"
    assert spelt_out("someone/chairs@v1") == "hf://someone/chairs@v1"
    for path in (
        "runs/mine",
        "model.safetensors",
        "someone/model.safetensors",
        "/a/b",
        "./b",
        "a/b/c",
        "a",
        "hf://a/b",
    ):
        assert spelt_out(path) == path, "a run folder that is not there is no name of the hub"
    assert fetched("runs/mine") == Path("runs/mine")
