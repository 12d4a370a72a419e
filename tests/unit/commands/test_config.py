"""`t4p config keys` and `t4p config show`, as somebody types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from commands.main import main
from t4p.config.files import dump_config, load_config

ROOT = Path(__file__).resolve().parents[3]
SMOKE = ["configs/smoke.yaml", "data.shards=[x]"]


@pytest.fixture
def t4p(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr("sys.argv", ["t4p", "config", *argv])
        with pytest.raises(SystemExit) as end:
            main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


def test_keys_have_default_type_and_meaning(t4p) -> None:
    status, said, _ = t4p("keys", "train")
    assert status == 0
    assert "  train.num_steps = 60000  (whole number above 0)\n      Optimizer steps of the whole run." in said
    assert "model." not in said
    _, said, _ = t4p("keys")
    assert "  run.dir must be given  (text)\n" in said
    assert "\nmodel.unet: A named plan" in said


def test_keys_of_another_task_and_for_programs(t4p) -> None:
    keys = json.loads(t4p("keys", "model.head", "--task", "semantic", "--json")[1])["keys"]
    assert [(key["name"], key["default"]) for key in keys] == [("model.head", "linear")]
    assert json.loads(t4p("keys", "--task", "evaluate", "--json")[1])["keys"][0]["name"] == "model.exported"
    status, _, said = t4p("keys", "--task", "juggle")
    assert (status, said) == (
        2,
        "error: --task is 'juggle'; known: pretrain, semantic, instance, detection, evaluate\n",
    )


def test_show_prints_what_a_run_would_use(t4p) -> None:
    status, said, problems = t4p("show", *SMOKE, "train.learning_rate=1e-2")
    assert (status, problems) == (0, "")
    assert said.startswith("# as `t4p pretrain` reads it\n")
    assert said.partition("\n")[2] == dump_config(load_config(SMOKE[:1], [*SMOKE[1:], "train.learning_rate=1e-2"]))


def test_show_tells_every_problem_with_what_was_given_and_ends_with_status_2(t4p) -> None:
    status, said, problems = t4p(
        "show", *SMOKE[:1], "train.num_steps=abc", "model.labels=[a, a]", "train.foo=1", "cluster.gpus_per_node=3"
    )
    assert status == 2
    lines = problems.splitlines()
    assert lines[0] == f"{len(lines) - 1} problem(s) in the configuration"
    for begins in (
        "  data.shards: missing",
        "  train.num_steps: wanted a whole number, got abc",
        "  train.foo: unknown key",
        "  model.labels: named twice: a",
    ):
        assert sum(line.startswith(begins) for line in lines) == 1, problems
    assert any("3" in line and "2" in line for line in lines[1:] if "global_batch_size" in line), "3 workers, 2 frames"
    shown = yaml.safe_load(said)
    assert (shown["train"]["num_steps"], shown["data"]["shards"], shown["model"]["labels"]) == ("abc", None, ["a", "a"])


def test_show_of_a_section_that_is_missing_as_a_whole(t4p) -> None:
    status, said, problems = t4p("show", "run.dir=x")
    assert status == 2
    assert "data" in problems
    assert yaml.safe_load(said)["train"]["num_steps"] == 60_000


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (SMOKE, "pretrain"),
        (["configs/finetune/rooms.yaml", "data.shards=[x]"], "finetune"),
        (["tests/data/older/runs/semantic/config.yaml"], "finetune"),
        (["model.exported=x", "data.shards=y"], "evaluate"),
    ],
)
def test_show_finds_the_command_that_reads_it(t4p, arguments: list[str], command: str) -> None:
    status, said, problems = t4p("show", *arguments, "--json")
    assert json.loads(said)["command"] == command, problems
    assert (status, json.loads(said)["problems"]) == (0, [])


def test_show_refuses_what_it_cannot_read(t4p, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [")
    for file in ("nowhere.yaml", str(tmp_path / "bad.yaml")):
        status, said, problems = t4p("show", file)
        assert (status, said) == (2, "")
        assert problems.startswith(f"error: {file}")
