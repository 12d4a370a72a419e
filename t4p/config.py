"""Configuration: what can be set, and its defaults, as frozen trees. `t4p.config_files` reads them from files.

No torch in here: `launch` checks a configuration before a node is paid for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# The 20 classes of ScanNet's semantic benchmark, in the order of its evaluation script.
SCANNET_LABELS = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub",
    "other furniture",
)  # fmt: skip

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen part of the tree that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunConfig(Section):
    dir: str = Field(min_length=1, description="Run folder, shared by all ranks.")
    seed: int = Field(0, ge=0, lt=2**63)

    @field_validator("dir")
    @classmethod
    def _dir_is_a_folder(cls, run_dir: str) -> str:
        if "://" in run_dir:  # as a path, s3://bucket/run is the folder s3:/bucket/run of the current one
            raise ValueError(
                f"{run_dir}: run folders on object storage are not supported yet; name a folder that all ranks share"
            )
        return run_dir


class AugmentConfig(Section):
    """Random changes of the points of a training frame. The image stays as it is, and so do the pixel-point pairs."""

    rotation: bool = Field(True, description="Turn about the vertical axis by a uniform angle.")
    mirror: bool = Field(True, description="Mirror left and right with probability one half.")
    scale: Fraction = Field(0.1, description="Scale by a factor uniform in [1 - scale, 1 + scale].")
    color_jitter: Fraction = Field(0.05, description="Standard deviation of Gaussian noise on colours in [0, 1].")


class PointDataConfig(Section):
    """What every job reads, and how its points are made."""

    shards: tuple[str, ...] = Field(min_length=1, description="Packed datasets: folders or s3:// prefixes.")
    validation_shards: tuple[str, ...] = ()
    num_workers: int = Field(2, ge=0, description="Loader processes per rank; 0 loads in the training process.")
    streams: PositiveInt = Field(64, description="Canonical streams of the sample order; part of the resume state.")
    shuffle_block: PositiveInt = Field(2048, description="Samples shuffled together within a stream.")
    pixel_stride: PositiveInt = Field(1, description="Lift every k-th row and column of the depth image.")
    max_depth: PositiveFloat = Field(10.0, description="Readings beyond this many metres are dropped.")
    frame: Literal["camera", "world"] = Field("camera", description="Axes of the points; world only if its z is up.")
    max_skip_fraction: Fraction = Field(0.0, description="Share of broken samples a run puts up with.")
    augment: AugmentConfig = AugmentConfig()


class DataConfig(PointDataConfig):
    image_size: tuple[PositiveInt, PositiveInt] = Field((480, 640), description="(height, width) the towers see.")


class LabelledDataConfig(PointDataConfig):
    ignored_labels: tuple[str, ...] = Field(
        ("unlabelled",), description="Classes of the dataset that are not asked for; '*' is every one not in labels."
    )


class ClipConfig(Section):
    name: str = Field("RN50", description="An open_clip model name, or the path of an open_clip model JSON.")
    pretrained: str = Field("openai", description="An open_clip tag, the path of a weights file, or 'random'.")
    dense: Literal["value", "value-residual"] = Field(
        "value", description="How a ViT's last block gives dense features."
    )
    output_stride: Literal[32, 16, 8] = Field(
        32, description="Pixels per dense cell of a ResNet tower: finer cells cost more time. A ViT has its patches."
    )


class UNetConfig(Section):
    """A named plan, cut to `num_strides`; any list given here replaces the plan's."""

    plan: str = "Res16UNet34C"
    num_strides: PositiveInt = Field(4, description="Halvings of the resolution between the voxels and the bottleneck.")
    stem_channels: PositiveInt | None = None
    stem_kernel_size: Literal[3, 5] | None = None
    encoder_channels: tuple[PositiveInt, ...] | None = None
    encoder_blocks: tuple[PositiveInt, ...] | None = None
    decoder_channels: tuple[PositiveInt, ...] | None = None
    decoder_blocks: tuple[PositiveInt, ...] | None = None
    activation_checkpointing: bool = Field(
        False, description="Recompute each stage in the backward pass: less memory, a second forward pass of each."
    )


class TextQueryConfig(Section):
    num_heads: PositiveInt = 8
    mlp_ratio: PositiveFloat = 2.0
    alpha: float = Field(1.0, description="Weight of h3D in the aggregation alpha * h3D + beta * h3D_text_hat.")
    beta: float = Field(1.0, description="Weight of the queried text; 0 gives the plain U-Net.")
    template: str = "point cloud of a {}"


class Decoder2dConfig(Section):
    hidden_channels: PositiveInt = 128
    upsample: Literal[1, 2, 4, 8] = Field(4, description="Decoder pixels per CLIP cell, in each direction.")


class NetworkConfig(Section):
    """The 3D network and the words it is asked: the same in pre-training and in fine-tuning."""

    sparse_backend: Literal["auto", "native", "minkowski"] = "auto"
    voxel_size: PositiveFloat = Field(0.025, description="Edge of a voxel, metres.")
    norm: Literal["sync_batch", "batch", "layer"] = Field(
        "sync_batch", description="Statistics over the voxels of all ranks, of this rank, or of each voxel alone."
    )
    norm_group_size: PositiveInt | None = Field(
        None, description="sync_batch: ranks that share statistics, a divisor of the world size; all by default."
    )
    point_features: tuple[Literal["one", "color", "position", "height"], ...] = Field(("color",), min_length=1)
    labels: tuple[str, ...] | str = Field(SCANNET_LABELS, description="A list, or a file with one label per line.")
    clip: ClipConfig = ClipConfig()
    unet: UNetConfig = UNetConfig()
    text_query: TextQueryConfig = TextQueryConfig()

    @model_validator(mode="after")
    def _point_features_differ(self) -> Self:
        if len(set(self.point_features)) != len(self.point_features):
            raise ValueError(f"point_features names one twice: {list(self.point_features)}")
        return self

    @model_validator(mode="after")
    def _group_has_a_norm(self) -> Self:
        if self.norm_group_size is not None and self.norm != "sync_batch":
            raise ValueError(f"norm_group_size is for norm sync_batch, not for {self.norm}; leave it out")
        return self


class ModelConfig(NetworkConfig):
    embed_dim_d: PositiveInt = Field(64, description="C: channels of z2D and z3D, where L_d compares them.")
    decoder2d: Decoder2dConfig = Decoder2dConfig()


class SemanticModelConfig(NetworkConfig):
    head: Literal["linear", "words"] = Field(
        "linear",
        description="linear: the scores of a voxel are those of a linear layer on z3D. words: they are the score map "
        "at its bottleneck voxel plus a linear layer that begins at 0, so that (with the default prompt_tokens) the "
        "first prediction is the zero-shot one; labels that no sample has shown so far are in neither softmax.",
    )
    pretrained: str | None = Field(
        None,
        description="A pre-training checkpoint, or a file that `t4p checkpoint export` wrote; none is from scratch.",
    )
    frozen: tuple[Literal["encoder", "decoder"], ...] = Field(
        (),
        description="Parts that keep their pre-trained weights and norms; the encoder with its FC into CLIP's space.",
    )
    prompt_tokens: PositiveInt | None = Field(
        None, description="Learnable tokens before a label; by default those of text_query.template, as they are there."
    )

    @field_validator("frozen")
    @classmethod
    def _in_one_order(cls, frozen: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(frozen)))  # or a resume would take another order for another run

    @model_validator(mode="after")
    def _frozen_is_pretrained(self) -> Self:
        if self.frozen and self.pretrained is None:
            raise ValueError(
                f"frozen is {list(self.frozen)}, and without pretrained it would keep random weights; name a "
                "pre-training, or leave frozen out"
            )
        return self


class SemanticLossConfig(Section):
    weight_aux: float = Field(0.4, ge=0, description="Weight of the loss on the score map at the bottleneck.")
    logit_scale: PositiveFloat = Field(14.3, description="1 / temperature of the score map.")
    class_balance: Fraction = Field(0.5, description="p: a class counts by its frequency in the batch to the power -p.")


class LossConfig(Section):
    num_pairs_e: PositiveInt = Field(1024, description="Pairs of L_e drawn from one frame, at most.")
    num_pairs_d: PositiveInt = Field(4096, description="Pairs of L_d drawn from one frame, at most.")
    balance_e: Fraction = Field(
        0.0, description="p: a pair of L_e is drawn with the density of its CLIP feature in the frame to the power -p."
    )
    weight_e: float = Field(1.0, ge=0)
    weight_d: float = Field(1.0, ge=0, description="0 is L_e alone: both decoders stay as they are, and cost no time.")
    logit_scale_init: PositiveFloat = Field(14.3, description="Start of both multipliers: 1 / temperature (1 / 0.07).")
    logit_scale_max: PositiveFloat = 100.0

    @model_validator(mode="after")
    def _something_trains(self) -> Self:
        if not (self.weight_e or self.weight_d):
            raise ValueError("weight_e and weight_d are both 0: there would be no loss; give one of them a weight")
        return self

    @model_validator(mode="after")
    def _scale_in_range(self) -> Self:
        if not 1.0 <= self.logit_scale_init <= self.logit_scale_max:
            raise ValueError(
                f"logit_scale_init ({self.logit_scale_init:g}) must lie between 1 and "
                f"logit_scale_max ({self.logit_scale_max:g})"
            )
        return self


class TrainConfig(Section):
    num_steps: PositiveInt = 60_000
    global_batch_size: PositiveInt = Field(32, description="Frames per optimizer step, over all ranks.")
    grad_accum_steps: PositiveInt = 1
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up, then a cosine to zero.")
    weight_decay: float = Field(0.01, ge=0)
    gradient_clipping: float = Field(1.0, ge=0, description="Largest gradient norm; 0 is off.")
    precision: Literal["fp32", "bf16"] = "fp32"
    zero_stage: Literal[0, 1, 2, 3] = 1
    checkpoint_every: PositiveInt = 1000
    keep_checkpoints: PositiveInt = Field(3, description="Whole checkpoints that stay; older ones are deleted.")
    validate_every: int = Field(0, ge=0, description="0 validates before the first and after the last step only.")
    resume: str = Field("auto", min_length=1, description="auto, never, or the path of a checkpoint.")
    deterministic: bool = False

    @model_validator(mode="after")
    def _steps_and_batches_fit(self) -> Self:
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be smaller than num_steps ({self.num_steps})")
        if self.global_batch_size % self.grad_accum_steps:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be a multiple of "
                f"grad_accum_steps ({self.grad_accum_steps})"
            )
        return self


class FinetuneTrainConfig(TrainConfig):
    head_learning_rate_scale: PositiveFloat = Field(
        1.0, description="Times learning_rate: the head has random weights where the rest may be pre-trained."
    )


class ClusterConfig(Section):
    """Where `t4p launch` places the workers, and what it puts up with. `t4p plan` sizes a run by it."""

    num_nodes: PositiveInt = 1
    gpus_per_node: int = Field(0, ge=0, description="Workers of a node, one GPU each; 0 is one worker on the CPU.")
    cpus_per_worker: PositiveInt = 1
    max_restarts: int = Field(3, ge=0, description="Times a run begins again after a lost worker or node.")

    @property
    def num_workers(self) -> int:
        """The world size."""
        return self.num_nodes * max(1, self.gpus_per_node)


class JobConfig(Section):
    """Everything a training job reads. Saved, resolved, as `config.yaml` in the run folder."""

    task: Literal["pretrain", "semantic"]
    run: RunConfig
    data: PointDataConfig
    model: NetworkConfig = NetworkConfig()
    train: TrainConfig = TrainConfig()
    cluster: ClusterConfig = ClusterConfig()


class PretrainConfig(JobConfig):
    """Of `t4p pretrain`."""

    task: Literal["pretrain"] = "pretrain"
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()


class FinetuneConfig(JobConfig):
    """Of `t4p finetune`: semantic segmentation of points."""

    task: Literal["semantic"] = "semantic"
    data: LabelledDataConfig
    model: SemanticModelConfig = SemanticModelConfig()
    loss: SemanticLossConfig = SemanticLossConfig()
    train: FinetuneTrainConfig = FinetuneTrainConfig()


class EvaluatedModelConfig(Section):
    exported: str = Field(min_length=1, description="A file that `t4p checkpoint export` wrote.")


class EvaluatedDataConfig(Section):
    shards: tuple[str, ...] = Field(min_length=1, description="Packed datasets with labels.")
    num_workers: int = Field(2, ge=0, description="Loader processes; 0 loads in the process itself.")
    ignored_labels: tuple[str, ...] = LabelledDataConfig.model_fields["ignored_labels"].default
    pixel_stride: PositiveInt = Field(1, description="Of frames: give and score every k-th depth row and column.")
    max_depth: PositiveFloat = Field(10.0, description="Of frames: readings beyond this many metres are left out.")


class EvaluateConfig(Section):
    """Of `t4p evaluate`. How points become voxels and features is the file's own configuration."""

    model: EvaluatedModelConfig
    data: EvaluatedDataConfig


def config_of_task(tree: Mapping[str, Any]) -> PretrainConfig | FinetuneConfig:
    """The configuration of the task that a dumped tree names.

    Raises:
        ValueError: it is of another version (a pydantic ValidationError).
    """
    return (FinetuneConfig if tree.get("task") == "semantic" else PretrainConfig).model_validate(tree)
