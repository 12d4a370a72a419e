"""The table of tasks: what a row says is so, and nobody else knows which rows there are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from t4p.config.kinds import TASKS, config_of_task, schemas, task_named, tasks_of
from t4p.config.tasks import JobConfig, PretrainConfig, SemanticConfig
from t4p.errors import ConfigError

ROOT = Path(__file__).resolve().parents[4]
PROTOCOL = ("run", "embed_labels", "problem_of_start")
SCORES = {"labels": "voxel_scores", "masks": "score", "boxes": "score"}
TREES = {"run": {"dir": "a"}, "data": {"shards": ["b"]}}


def test_the_tasks_of_a_command_and_their_schemas() -> None:
    assert [task.name for task in tasks_of("finetune")] == ["semantic", "instance", "detection"]
    assert {command: names for command, (names, *_) in schemas().items()}["pretrain"] is PretrainConfig
    assert set(schemas()) == {"pretrain", "finetune", "evaluate"}


@pytest.mark.parametrize("name", TASKS)
def test_the_module_of_a_row_has_what_is_asked_of_it(name: str) -> None:
    task = task_named(name)
    assert all(callable(getattr(task.load(), function)) for function in (*PROTOCOL, SCORES[task.finds]))
    config = task.schema.model_validate({**TREES, "model": {"labels": ["a", "b", "c"]}})
    assert config.task == name
    assert task.out_dim(config) == {"pretrain": 64, "semantic": 3, "instance": 64, "detection": 1}[name]


def test_a_tree_is_read_by_the_schema_of_its_task() -> None:
    assert type(config_of_task({**TREES, "task": "semantic"})) is SemanticConfig
    assert type(config_of_task(TREES)) is PretrainConfig  # of a time when there was no other


@pytest.mark.parametrize("name", ["depth", None, 3, ["semantic"]])
def test_an_unknown_task_is_an_error(name: object) -> None:
    with pytest.raises(ConfigError, match=r"task is .*; known: pretrain, semantic, instance, detection"):
        config_of_task({**TREES, "task": name})


def test_nobody_else_knows_which_tasks_there_are() -> None:
    """No comparison with the name of a task, and no choice by the type of its configuration, outside of its module."""
    own = {ROOT / "t4p/config/kinds.py", ROOT / "t4p/config/tasks.py"}
    own |= {ROOT / f"{task.module.replace('.', '/')}.py" for task in TASKS.values()}
    names = {task.name for task in TASKS.values()}
    schemas_of_tasks = {task.schema.__name__ for task in TASKS.values()}
    assert issubclass(PretrainConfig, JobConfig)
    known = []
    for package in ("t4p", "launch", "commands"):
        for file in sorted((ROOT / package).rglob("*.py")):
            if file in own:
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Compare):
                    compared = [each for each in (node.left, *node.comparators) if isinstance(each, ast.Constant)]
                    known += [file.name for each in compared if each.value in names]
                elif isinstance(node, ast.IfExp | ast.If) and schemas_of_tasks & set(ast.unparse(node.test).split()):
                    known.append(file.name)
                elif isinstance(node, ast.IfExp | ast.If):
                    test = ast.unparse(node.test)
                    known += [file.name for each in schemas_of_tasks if f", {each})" in test]
    # load_exported: the 2D decoder and the temperatures of a pre-training; `t4p plan`: its pairs, and the towers' work.
    assert sorted(known) == ["exported.py", "job.py", "job.py", "main.py", "main.py"]
