"""The run itself: its folder, its steps, and where its workers are placed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from t4p.config.section import PositiveFloat, PositiveInt, Problem, Section


class RunConfig(Section):
    dir: str = Field(min_length=1, description="Run folder, shared by all ranks.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the first weights, the order of samples, and every draw.")

    @field_validator("dir")
    @classmethod
    def _dir_is_a_folder(cls, run_dir: str) -> str:
        if "://" in run_dir:  # as a path, s3://bucket/run is the folder s3:/bucket/run of the current one
            raise ValueError(
                f"{run_dir}: run folders on object storage are not supported yet; name a folder that all ranks share"
            )
        return run_dir


class TrainConfig(Section):
    num_steps: PositiveInt = Field(60_000, description="Optimizer steps of the whole run.")
    global_batch_size: PositiveInt = Field(32, description="Frames per optimizer step, over all ranks.")
    grad_accum_steps: PositiveInt = Field(
        1, description="Equal parts of a batch, one after the other; a pair has its negatives in its own part."
    )
    learning_rate: PositiveFloat = Field(1e-3, lt=1e38, description="Step size of AdamW, at the end of the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up, then a cosine to zero.")
    weight_decay: float = Field(0.01, ge=0, description="Decay of matrices; biases, norms and temperatures have none.")
    gradient_clipping: float = Field(1.0, ge=0, description="Largest gradient norm; 0 is off.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast; weights, norms and losses stay fp32."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="What DeepSpeed shards over ranks: 1 the optimizer, 2 and gradients, 3 and weights; 0 nothing."
    )
    checkpoint_every: PositiveInt = Field(1000, description="Steps between checkpoints; the last step makes one too.")
    keep_checkpoints: PositiveInt = Field(3, description="Whole checkpoints that stay; older ones are deleted.")
    validate_every: int = Field(0, ge=0, description="0 validates before the first and after the last step only.")
    save_on_stop: float = Field(
        60, ge=0, le=3600, description="Seconds that a last checkpoint may take at Ctrl-C or SIGTERM; 0 does not save."
    )
    step_timeout: PositiveFloat = Field(
        600, description="Seconds in which no rank gets on, after which all end; restarts go on."
    )
    resume: str = Field("auto", min_length=1, description="auto, never, or the path of a checkpoint or run folder.")
    deterministic: bool = Field(
        False, description="On a GPU: repeat every bit or raise. On a CPU a run repeats itself anyway."
    )

    def rules(self) -> Iterator[Problem]:
        if self.warmup_steps >= self.num_steps:
            yield Problem(
                ("warmup_steps", "num_steps"),
                f"warmup_steps ({self.warmup_steps}) must be smaller than num_steps ({self.num_steps})"
                f"; set train.warmup_steps={min(1, self.num_steps - 1)}",
            )
        if self.global_batch_size % self.grad_accum_steps:
            yield Problem(
                ("global_batch_size", "grad_accum_steps"),
                f"global_batch_size ({self.global_batch_size}) must be a multiple of "
                f"grad_accum_steps ({self.grad_accum_steps})",
            )


class FinetuneTrainConfig(TrainConfig):
    head_learning_rate_scale: PositiveFloat = Field(
        1.0, description="Times learning_rate: the head has random weights where the rest may be pre-trained."
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Times learning_rate, once for each stage from the head to that of a weight (BEiT's); 1 is off.",
    )


class ClusterConfig(Section):
    """Where `t4p launch` places the workers, and what it puts up with. `t4p plan` sizes a run by it."""

    num_nodes: PositiveInt = Field(1, description="Machines.")
    gpus_per_node: int = Field(0, ge=0, description="Workers of a node, one GPU each; 0 is one worker on the CPU.")
    cpus_per_worker: PositiveInt = Field(1, description="Cores that a worker reserves on its node.")
    max_restarts: int = Field(3, ge=0, description="Times a run begins again after a lost worker or node.")

    @property
    def num_workers(self) -> int:
        """The world size."""
        return self.num_nodes * max(1, self.gpus_per_node)
