"""One rank of test_resume_worlds: real runs in one process, and notes of what went in and out of each."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed.utils
import torch

from t4p.config.files import load_config
from t4p.config.run import TrainConfig
from t4p.config.tasks import PretrainConfig
from t4p.data.batch import Batch, PairRecipe
from t4p.data.fetch import Catalogue
from t4p.data.stream import TrainingStream, ValidationStream
from t4p.distributed import rank
from t4p.errors import RunError
from t4p.runs.logs import RunLog, StepRecord
from t4p.tasks import pretrain
from t4p.train import loop
from t4p.train.engine import Engine
from t4p.train.loop import LoopSettings


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        notes: folder for what is noted; None notes only the error that ends the run.
        overrides: of configs/smoke.yaml; `{rank}` stands for the rank.
        last_step: the run is broken off in the step after.
        killed_writing: rank 1 is killed with half of its first file in a checkpoint of this name on disk.
    """

    notes: str
    overrides: list[str]
    last_step: int
    killed_writing: str | None = None


class Stopped(Exception):
    """A run that was meant to end early did."""


def snapshot(engine: Engine, task: pretrain.PretrainTask, batch: Batch) -> dict[str, dict[str, torch.Tensor]]:
    """Everything that a checkpoint must bring back, whole, and what the network makes of one batch. Collective."""
    found: dict[str, dict[str, torch.Tensor]] = {"parameters": {}, "exp_avg": {}, "exp_avg_sq": {}}
    optimizer = engine._engine.optimizer
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        # DeepSpeed links the state after the step of the first group, when the second has none yet.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in engine.module.named_parameters():
        whole = deepspeed.utils.safe_get_full_fp32_param(parameter)
        at_stage_0 = whole is None  # where DeepSpeed leaves parameters and optimizer as torch has them
        found["parameters"][name] = (parameter.detach() if at_stage_0 else whole).clone()
        for key in ("exp_avg", "exp_avg_sq"):
            if at_stage_0:
                state = optimizer.state[parameter][key]
            else:
                state = deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
            found[key][name] = state.clone()
    groups = engine._optimizer.param_groups
    steps = [float(state["step"]) for state in engine._optimizer.state.values()]
    found["optimizer"] = {
        "weight_decay": torch.tensor([group["weight_decay"] for group in groups]),
        "betas": torch.tensor([group["betas"] for group in groups]),
        "steps": torch.tensor([min(steps), max(steps)]),
    }
    found["buffers"] = {name: buffer.clone() for name, buffer in engine.module.named_buffers()}
    with engine.whole_module() as module, torch.no_grad():
        module.eval()
        found["weights"] = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        outputs = module.embed(*task.inputs(batch))
        found["outputs"] = {name: value.clone() for name, value in outputs._asdict().items()}
    return found


def fixed_batch(config: PretrainConfig) -> Batch:
    """One frame that is the same on every rank of every run, with all of its pairs."""
    towers = pretrain.load_towers_from(config.model.clip, config.run.seed)
    settings = replace(pretrain.build_sample_settings(config, towers), num_pairs_e=None, num_pairs_d=None, augment=None)
    return next(ValidationStream(Catalogue(config.data.urls), PairRecipe(settings), 0).batches())


def noting(notes: Path, config: PretrainConfig, last_step: int) -> Callable[..., None]:
    """What stands in for `train` in one run: the same, with snapshots before it and after `last_step`, and the keys."""

    def train(
        engine: Engine,
        task: pretrain.PretrainTask,
        stream: TrainingStream,
        train_config: TrainConfig,
        settings: LoopSettings,
        log: RunLog | None,
    ) -> None:
        batch = fixed_batch(config)
        if settings.start_step:  # the optimizer has no state before its first step
            torch.save(snapshot(engine, task, batch), notes / f"before-{rank()}.pt")
        keys: list[tuple[str, ...]] = []
        inputs = task.inputs

        def noted_inputs(batch: Batch) -> tuple[torch.Tensor, ...]:
            keys.append(tuple(batch.keys))
            return inputs(batch)

        def on_step(record: StepRecord) -> None:
            if record.step == last_step:
                (notes / f"keys-{rank()}.json").write_text(json.dumps(keys))
                torch.save(snapshot(engine, task, batch), notes / f"after-{rank()}.pt")
            elif record.step > last_step:
                raise Stopped

        task.inputs = noted_inputs  # type: ignore[method-assign]
        try:
            train_unnoted(engine, task, stream, train_config, replace(settings, on_step=on_step), log)
        finally:
            task.inputs = inputs  # type: ignore[method-assign]

    return train


def killing(name: str) -> Callable[..., None]:
    """What stands in for `torch.save` on a rank that is killed while it writes a checkpoint."""

    def save(value: Any, path: Any, *arguments: Any, **options: Any) -> None:
        if f"/{name}/" in str(path):
            buffer = io.BytesIO()
            save_whole(value, buffer)
            Path(path).write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        save_whole(value, path, *arguments, **options)

    return save


train_unnoted = loop.train
save_whole = torch.save


def main() -> None:
    """Do each Run of the JSON list in argv[1] in turn; a RunError is noted, and what comes after it still done."""
    own_rank = int(os.environ["RANK"])
    for run in (Run(**fields) for fields in json.loads(sys.argv[1])):
        notes = Path(run.notes)
        notes.mkdir(parents=True, exist_ok=True)
        overrides = [override.replace("{rank}", str(own_rank)) for override in run.overrides]
        config = load_config(["configs/smoke.yaml"], overrides)
        loop.train = noting(notes, config, run.last_step)
        if run.killed_writing and own_rank == 1:
            torch.save = killing(run.killed_writing)
        try:
            pretrain.run(config)
        except Stopped:
            pass
        except RunError as error:
            (notes / f"error-{own_rank}.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's farewell takes seconds, and after stage 3 it sometimes aborts
