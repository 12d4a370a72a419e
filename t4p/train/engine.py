"""The DeepSpeed engine: one trainable module, wrapped. The only importer of deepspeed.

What is set here and why was measured with deepspeed 0.19.8; docs/architecture.md lists it.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# DeepSpeed picks its accelerator when it is imported, and on a machine without one may settle on a wrong backend.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops


@dataclass(frozen=True)
class EngineSettings:
    """What the engine needs to know of the training section."""

    zero_stage: int
    precision: str
    gradient_clipping: float
    weight_decay: float
    grad_accum_steps: int


def start_process_group(timeout: timedelta = timedelta(minutes=30)) -> None:
    """Join the process group that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe; alone without.

    Attaches to a group that is already there (Ray Train and torchrun start one or give the variables).
    """
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if "RANK" not in os.environ:
        # All five must be set, or DeepSpeed goes looking for mpi4py.
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    # Compiling the shared-memory operator takes 44 s, and gloo's own all-reduce does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", timeout=timeout, verbose=False)


def make_deterministic() -> None:
    """Make every operation of torch repeat its bits, or raise. Before the first use of CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def local_device() -> torch.device:
    """The device of this rank: its GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


class Engine:
    """A module under DeepSpeed: forward, backward, step, save, load.

    Attributes:
        module: the wrapped module, for what does not train (validation).
    """

    def __init__(self, module: nn.Module, settings: EngineSettings, world_size: int) -> None:
        """Wrap a module whose parameters are all trainable. Collective."""
        # DeepSpeed only checks that these three agree; how many frames a rank has is decided in order.py.
        batch_sizes = {
            "train_batch_size": settings.grad_accum_steps * world_size,
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": settings.grad_accum_steps,
        }
        config: dict[str, Any] = {
            **batch_sizes,
            "zero_optimization": {"stage": settings.zero_stage},
            # A torch optimizer: the configured Adam would compile FusedAdam (143 s).
            "zero_allow_untested_optimizer": True,
            "gradient_clipping": settings.gradient_clipping,  # 0 is off; left out it would be 1.0
            "steps_per_print": sys.maxsize,
            "wall_clock_breakdown": False,
        }
        if settings.precision == "bf16":
            # Not bf16.enabled, which casts every parameter, norms and temperatures included. The empty list keeps the
            # reduction of Linear gradients in fp32.
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        self._zero_stage = settings.zero_stage
        self._stage_0_norm = 0.0
        optimizer = torch.optim.AdamW(_decay_groups(module, settings.weight_decay), lr=0.0)
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=config, dist_init_required=False
        )

    @property
    def module(self) -> nn.Module:
        """The wrapped module."""
        return self._engine.module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The module's losses; the first is the one to minimise."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients, averaged over micro-batches and ranks."""
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> None:
        """Update the parameters if this was the last micro-batch of the step."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._zero_stage == 0 and self._engine.is_gradient_accumulation_boundary():
            # At stage 0 DeepSpeed clips without keeping the norm; the gradients are whole and averaged by now.
            gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
            self._stage_0_norm = float(torch.nn.utils.get_total_norm(gradients))
        self._engine.step()

    def gradient_norm(self) -> float:
        """The global norm of the last step's gradient, before clipping."""
        return self._stage_0_norm if self._zero_stage == 0 else float(self._engine.get_global_grad_norm())

    def save(self, checkpoints: Path, name: str) -> None:
        """Write DeepSpeed's files to `checkpoints/name`. Collective; not atomic: the caller writes the marker."""
        self._engine.save_checkpoint(str(checkpoints), tag=name, save_latest=False)

    def load(self, checkpoints: Path, name: str) -> None:
        """Restore module and optimizer. Collective; the world size must be the saved one."""
        self._engine.load_checkpoint(str(checkpoints), tag=name)


def _decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and temperatures do not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
