"""The DeepSpeed engine: one trainable module, wrapped. The only importer of deepspeed.

What is set here and why was measured with deepspeed 0.19.8; docs/architecture.md lists it.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from shards.errors import needs_extra

# DeepSpeed picks its accelerator when it is imported, and on a machine without one may settle on a wrong backend.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

with needs_extra("train", "deepspeed", "training, and reading the checkpoints of a run,"):
    import deepspeed
    import deepspeed.ops
    import deepspeed.utils
    from deepspeed.checkpoint import ds_to_universal
    from deepspeed.runtime import compiler
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from t4p.errors import CheckpointError
from t4p.runs.checkpoint import first_line, parts_of_ranks
from t4p.train.adamw import AdamW
from t4p.train.buckets import BUCKET_SIZE, STAGE_3_WHOLE_BELOW
from t4p.train.loopback import LOOPBACK, join_on_loopback
from t4p.train.parameter_groups import ONE_RATE, GroupSettings, ParameterGroups, parameter_groups
from t4p.train.safe_reading import reading_is_not_running

# Whenever it makes an engine or reduces gradients, DeepSpeed asks whether the optimizer is its Muon. Importing Muon
# hands its functions to torch.compile, whose inductor takes 2 CPU seconds to import, 5 where nothing else has imported
# torch's compiler. Imported here without that: the same class, of which nobody makes one.
with patch.object(compiler, "compile", lambda: lambda function: function):
    import deepspeed.runtime.zero.muon.muon_optimizer

# What the optimizer's part of a checkpoint was seen to hold beside tensors and plain values: all three at stages 1 and
# 2, the first two at stage 3 and in universal checkpoints, none at stage 0. They are plain records.
SEEN_IN_CHECKPOINTS = (LossScaler, ZeroStageEnum, fragment_address)

OptimizerFactory = Callable[[ParameterGroups], torch.optim.Optimizer]


@dataclass(frozen=True)
class EngineSettings:
    """What the engine needs to know of the training section, and of the module's parameters."""

    zero_stage: int
    precision: str
    gradient_clipping: float
    weight_decay: float
    grad_accum_steps: int
    groups: GroupSettings = ONE_RATE


def start_process_group(timeout: timedelta = timedelta(minutes=30)) -> None:
    """Join the process group that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe; alone without.

    Attaches to a group that is already there (Ray Train and torchrun start one or give the variables).
    """
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if "RANK" not in os.environ:
        # All five must be set, or DeepSpeed goes looking for mpi4py.
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR=LOOPBACK, MASTER_PORT="0")
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    # Compiling the shared-memory operator takes 44 s, and gloo's own all-reduce does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    join_on_loopback(backend, timeout)
    deepspeed.init_distributed(backend, timeout=timeout, verbose=False)


def stop_process_group() -> None:
    """Leave the process group, at the end of a run that went well: some stage-3 processes abort at exit with it.

    Another run of the same process may start one again.
    """
    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()  # torch's would leave DeepSpeed with groups of the one that is gone


def make_deterministic() -> None:
    """Make every operation of torch repeat its bits, or raise. Before the first use of CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def local_device() -> torch.device:
    """The device of this rank: its GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def adamw(groups: ParameterGroups) -> torch.optim.Optimizer:
    """The optimizer of every run. torch's: the one that DeepSpeed builds would compile FusedAdam (143 s)."""
    return AdamW(groups, lr=0.0)


class Engine:
    """A module under DeepSpeed: forward, backward, step, save, load.

    Attributes:
        module: the wrapped module. At stage 3 its parameters are empty but inside `whole_module` and `forward`.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: EngineSettings,
        world_size: int,
        *,
        leaf_classes: Sequence[type[nn.Module]] = (),
        build_optimizer: OptimizerFactory = adamw,
        load_universal: bool = False,
    ) -> None:
        """Wrap a module whose parameters are all trainable. Collective.

        Args:
            leaf_classes: modules of these classes are gathered as a whole at stage 3. Needed where the modules inside
                are not simply called with tensors; they themselves must be, and by nothing but a call.
            build_optimizer: maker of an optimizer of groups of parameters with their weight decay.
            load_universal: what `load` will be given is a universal checkpoint.

        Raises:
            ValueError: stage 3, and the module contains none of the leaf classes.
        """
        # DeepSpeed only checks that these three agree; how many frames a rank has is decided in order.py.
        batch_sizes = {
            "train_batch_size": settings.grad_accum_steps * world_size,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": settings.grad_accum_steps,
        }
        config: dict[str, Any] = {
            **batch_sizes,
            "zero_optimization": {
                "stage": settings.zero_stage,
                "reduce_bucket_size": BUCKET_SIZE,
                "allgather_bucket_size": BUCKET_SIZE,
                "stage3_param_persistence_threshold": STAGE_3_WHOLE_BELOW,
            },
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": settings.gradient_clipping,  # 0 is off; left out it would be 1.0
            "steps_per_print": sys.maxsize,
            "wall_clock_breakdown": False,
            "checkpoint": {"load_universal": load_universal},
        }
        if settings.precision == "bf16":
            # Not bf16.enabled, which casts every parameter, norms and temperatures included. The empty list keeps the
            # reduction of Linear gradients in fp32.
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        self._zero_stage = settings.zero_stage
        self._gradient_clipping = settings.gradient_clipping
        self._load_universal = load_universal
        self._stage_0_norm = 0.0
        if settings.zero_stage == 3 and leaf_classes:
            _make_leaves(module, leaf_classes)
        groups, self._learning_rate_scales = parameter_groups(module, settings.weight_decay, settings.groups)
        self._optimizer = build_optimizer(groups)
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=self._optimizer, config=config, dist_init_required=False
        )

    @property
    def module(self) -> nn.Module:
        """The wrapped module."""
        return self._engine.module

    @contextmanager
    def whole_module(self) -> Iterator[nn.Module]:
        """The wrapped module with all of its parameters in place, to be used without gradients. Collective to enter.

        Inside, ranks may call it, or any method or part of it, as often as each of them likes: no parameter travels.
        """
        if self._zero_stage < 3:
            yield self.module
            return
        # The hooks would give back the parameters after the first call and wait for every rank at the second.
        with deepspeed.zero.GatheredParameters(list(self.module.parameters())), _forward_hooks_removed(self.module):
            yield self.module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The module's losses; the first is the one to minimise."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients, averaged over micro-batches and ranks."""
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> None:
        """Update the parameters if this was the last micro-batch of the step."""
        for group, scale in zip(self._engine.optimizer.param_groups, self._learning_rate_scales, strict=True):
            group["lr"] = learning_rate * scale
        if self._zero_stage == 0 and self._engine.is_gradient_accumulation_boundary():
            # At stage 0 DeepSpeed clips without keeping the norm; the gradients are whole and averaged by now.
            gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
            self._stage_0_norm = float(torch.nn.utils.get_total_norm(gradients))
        self._engine.step()

    def gradient_norm(self) -> float:
        """The global norm of the last step's gradient, before clipping."""
        return self._stage_0_norm if self._zero_stage == 0 else float(self._engine.get_global_grad_norm())

    def statistics_are_finite(self) -> bool:
        """Whether the buffers of this rank are finite: running statistics overflow before the losses do."""
        return _are_finite(self.module.buffers())

    def is_finite(self) -> bool:
        """Whether all that this rank holds of weights, buffers and the optimizer's state is finite."""
        # At stage 3 a parameter is empty here, and this rank's part of it lies in `ds_tensor`.
        weights = (getattr(parameter, "ds_tensor", parameter) for parameter in self.module.parameters())
        # The optimizer's own fp32 parts are the keys of its state; DeepSpeed empties its groups at stage 3.
        states = (value for part, state in self._optimizer.state.items() for value in (part, *state.values()))
        return _are_finite((*weights, *states, *self.module.buffers()))

    def save(self, checkpoints: Path, name: str) -> None:
        """Write DeepSpeed's files to `checkpoints/name`. Collective; not atomic: the caller writes the marker."""
        self._engine.save_checkpoint(str(checkpoints), tag=name, save_latest=False)

    def num_part_files(self, world_size: int) -> Mapping[str, int]:
        """How many files of each pattern `save` writes where each rank writes its own part."""
        return parts_of_ranks(self._zero_stage, world_size)

    def load(self, checkpoints: Path, name: str) -> None:
        """Restore module and optimizer. Collective.

        The world size must be the saved one, unless the checkpoint is universal or of stage 0.

        Raises:
            CheckpointError: it holds objects that no checkpoint of ours does; they are not made.
        """
        groups = [{key: group[key] for key in group if key != "params"} for group in self._optimizer.param_groups]
        with reading_is_not_running(checkpoints / name, SEEN_IN_CHECKPOINTS):
            self._engine.load_checkpoint(str(checkpoints), tag=name)
            if self._zero_stage in (1, 2):  # which take the limit of the run that wrote it
                self._engine.optimizer.clip_grad = self._gradient_clipping
            if self._load_universal:
                self._mend_universal_load(groups, checkpoints / name)

    def _mend_universal_load(self, groups: Sequence[dict[str, Any]], checkpoint: Path) -> None:
        """What DeepSpeed 0.19.8 leaves out or gets wrong when it loads a universal checkpoint.

        Args:
            groups: the hyperparameters of the optimizer's groups, as configured.
        """
        # Stage 3 gives every group the hyperparameters of the first, so that norms and biases would decay too, ...
        for group, own in zip(self._optimizer.param_groups, groups, strict=True):
            group.update(own)
        # ... and one step counter to all of them, which then counts once for each.
        for state in self._optimizer.state.values():
            if "step" in state:
                state["step"] = torch.as_tensor(state["step"]).clone()
        # No stage restores buffers: they would keep their initial values.
        saved = _saved_states(checkpoint)
        buffers = dict(self.module.named_buffers())
        with torch.no_grad():
            for name in saved["buffer_names"]:
                buffers[name].copy_(saved["module"][name])


def _are_finite(values: Iterable[Any]) -> bool:
    """Whether all numbers of those values that are tensors are finite; no memory beside them, one look per device."""
    tensors: dict[torch.device, list[Tensor]] = {}
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            tensors.setdefault(value.device, []).append(value.detach())
    # The largest magnitude is inf or nan where one number is.
    largest = (torch.stack(torch._foreach_norm(each, ord=math.inf)) for each in tensors.values())
    return all(bool(each.isfinite().all()) for each in largest)


def convert_to_universal(checkpoint: Path, destination: Path) -> None:
    """Write the universal form of a checkpoint of stage 1, 2 or 3 into a folder. One process alone; not atomic.

    Leaves a file `latest_universal` beside the destination, which nobody here reads.

    Raises:
        CheckpointError: as `Engine.load`.
    """
    arguments = Namespace(
        input_folder=str(checkpoint),
        output_folder=str(destination),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with _silence(), reading_is_not_running(checkpoint, SEEN_IN_CHECKPOINTS):
        ds_to_universal.main(arguments)


def saved_weights(checkpoint: Path, zero_stage: int) -> dict[str, Tensor]:
    """The module's parameters (fp32) and buffers by name, of a checkpoint that `Engine.save` wrote. One process alone.

    Args:
        zero_stage: that wrote it.

    Raises:
        CheckpointError: as `Engine.load`, or it is not of this stage.
    """
    with reading_is_not_running(checkpoint, SEEN_IN_CHECKPOINTS):
        try:
            saved = _saved_states(checkpoint)
            if zero_stage == 0:
                return saved["module"]
            with _silence():
                weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
            # The buffers as they are: DeepSpeed makes them fp32.
            return {**weights, **{name: saved["module"][name] for name in saved["buffer_names"]}}
        except pickle.UnpicklingError:
            raise  # reading_is_not_running has the words
        except Exception as error:  # what a file that is no saved tensors raises is any error of torch and DeepSpeed
            raise CheckpointError(
                f"{checkpoint}: its files are not those of a checkpoint of ZeRO stage {zero_stage} "
                f"({type(error).__name__}: {first_line(error)}); name another checkpoint"
            ) from error


def _saved_states(directory: Path) -> dict[str, Any]:
    """What rank 0 wrote of the module: its buffers at least, and its parameters unless stage 3 keeps them apart."""
    files = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")  # stages 0 to 2, stage 3
    path = next(directory / name for name in files if (directory / name).is_file())
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


@contextmanager
def _silence() -> Iterator[None]:
    """DeepSpeed's converters print a line per file, and draw progress bars."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _make_leaves(module: nn.Module, leaf_classes: Sequence[type[nn.Module]]) -> None:
    for leaf in deepspeed.utils.set_z3_leaf_modules(module, list(leaf_classes)):
        # Before DeepSpeed's own hooks, which see what this one returns.
        leaf.register_forward_pre_hook(_require_gradients)


def _require_gradients(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A leaf's parameters come back and its gradients are reduced when the gradients of its inputs are ready.

    So all inputs must have one: without any, backward meets empty parameters; with some, it may end too early.
    """
    if not torch.is_grad_enabled():
        return inputs
    return tuple(
        value.detach().requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad
        else value
        for value in inputs
    )


@contextmanager
def _forward_hooks_removed(module: nn.Module) -> Iterator[None]:
    kept = [(part, part._forward_pre_hooks, part._forward_hooks) for part in module.modules()]
    for part, before, after in kept:
        part._forward_pre_hooks, part._forward_hooks = type(before)(), type(after)()
    try:
        yield
    finally:
        for part, before, after in kept:
            part._forward_pre_hooks, part._forward_hooks = before, after
