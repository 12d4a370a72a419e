"""Configuration: what can be set, and its defaults, as frozen trees. `t4p.config.files` reads them from files.

No torch in here: `launch` checks a configuration before a node is paid for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from t4p.config.data import DataConfig, EvaluatedDataConfig, LabelledDataConfig, PointDataConfig
from t4p.config.network import (
    DetectionModelConfig,
    EvaluatedModelConfig,
    FinetunedModelConfig,
    InstanceModelConfig,
    ModelConfig,
    NetworkConfig,
    SemanticModelConfig,
)
from t4p.config.run import ClusterConfig, FinetuneTrainConfig, RunConfig, TrainConfig
from t4p.config.section import Fraction, PositiveFloat, PositiveInt, Problem, Section


class FinetuneLossConfig(Section):
    """The score map at the bottleneck, which every fine-tuning has."""

    weight_aux: float = Field(0.4, ge=0, description="Weight of the loss on the score map at the bottleneck.")
    logit_scale: PositiveFloat = Field(14.3, description="1 / temperature of the score map.")
    class_balance: Fraction = Field(0.5, description="p: a class counts by its frequency in the batch to the power -p.")


class InstanceLossConfig(FinetuneLossConfig):
    weight_class: PositiveFloat = Field(0.5, description="Weight of a query's, or a voxel's, class.")
    weight_mask: PositiveFloat = Field(1.0, description="Weight of a mask's cross-entropy and its Dice loss each.")
    weight_score: PositiveFloat = Field(0.5, description="Weight of the predicted overlap of a mask with its object.")
    weight_votes: PositiveFloat = Field(1.0, description="Weight of the offsets, for masks that are votes.")
    no_object: Fraction = Field(0.1, description="What a query without an object counts beside one that has one.")


class DetectionLossConfig(FinetuneLossConfig):
    weight_box: PositiveFloat = Field(1.0, description="Weight of 1 - DIoU of the boxes beside the focal loss.")
    top_k: PositiveInt = Field(6, description="Locations nearest to the middle of a box that are to say it.")


class LossConfig(Section):
    num_pairs_e: PositiveInt = Field(1024, description="Pairs of L_e drawn from one frame, at most.")
    num_pairs_d: PositiveInt = Field(4096, description="Pairs of L_d drawn from one frame, at most.")
    balance_e: Fraction = Field(
        0.0, description="p: a pair of L_e is drawn with the density of its CLIP feature in the frame to the power -p."
    )
    weight_e: float = Field(1.0, ge=0, description="Weight of L_e, at the bottleneck; 0 is L_d alone.")
    weight_d: float = Field(
        1.0,
        ge=0,
        description="Weight of L_d, at full resolution; 0 is L_e alone: both decoders rest and cost nothing.",
    )
    logit_scale_init: PositiveFloat = Field(14.3, description="Start of both multipliers: 1 / temperature (1 / 0.07).")
    logit_scale_max: PositiveFloat = Field(100.0, description="What both multipliers are clamped to.")

    def rules(self) -> Iterator[Problem]:
        if not (self.weight_e or self.weight_d):
            yield Problem(
                ("weight_e", "weight_d"),
                "weight_e and weight_d are both 0: there would be no loss; give one of them a weight",
            )
        if not 1.0 <= self.logit_scale_init <= self.logit_scale_max:
            yield Problem(
                ("logit_scale_init", "logit_scale_max"),
                f"logit_scale_init ({self.logit_scale_init:g}) must lie between 1 and "
                f"logit_scale_max ({self.logit_scale_max:g})",
            )


class JobConfig(Section):
    """Everything a training job reads. Saved, resolved, as `config.yaml` in the run folder."""

    task: str = Field(description="What is trained; the command and its schema follow from it.")
    run: RunConfig
    data: PointDataConfig
    model: NetworkConfig = NetworkConfig()
    train: TrainConfig = TrainConfig()
    cluster: ClusterConfig = ClusterConfig()


class PretrainConfig(JobConfig):
    """The configuration of `t4p pretrain`."""

    task: Literal["pretrain"] = Field("pretrain", description=JobConfig.model_fields["task"].description)
    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()


class FinetuneConfig(JobConfig):
    """What the configurations of `t4p finetune` have in common."""

    data: LabelledDataConfig
    model: FinetunedModelConfig = FinetunedModelConfig()
    loss: FinetuneLossConfig = FinetuneLossConfig()
    train: FinetuneTrainConfig = FinetuneTrainConfig()


class SemanticConfig(FinetuneConfig):
    """The configuration of `t4p finetune`: semantic segmentation of points."""

    task: Literal["semantic"] = Field("semantic", description=JobConfig.model_fields["task"].description)
    model: SemanticModelConfig = SemanticModelConfig()


class InstanceConfig(FinetuneConfig):
    """The configuration of `t4p finetune`: instance segmentation of points."""

    task: Literal["instance"] = Field("instance", description=JobConfig.model_fields["task"].description)
    model: InstanceModelConfig = InstanceModelConfig()
    loss: InstanceLossConfig = InstanceLossConfig()

    def rules(self) -> Iterator[Problem]:
        yield from _problems_of_labelled_points(self)


class DetectionConfig(FinetuneConfig):
    """The configuration of `t4p finetune`: boxes around objects."""

    task: Literal["detection"] = Field("detection", description=JobConfig.model_fields["task"].description)
    model: DetectionModelConfig = DetectionModelConfig()
    loss: DetectionLossConfig = DetectionLossConfig()

    def rules(self) -> Iterator[Problem]:
        yield from _problems_of_labelled_points(self)
        if elastic := self.data.augment.elastic:
            yield Problem(
                ("data.augment.elastic",),
                f"{elastic:g}, and a bent object has no box any more; leave it out for task detection",
            )


def _problems_of_labelled_points(config: FinetuneConfig) -> Iterator[Problem]:
    """Of a task whose objects are learnt whole."""
    if (count := config.data.labels_per_scene) is not None:
        yield Problem(
            ("data.labels_per_scene",),
            f"{count}, and {config.task} learns objects whole, of which single labelled points say little; leave it "
            "out, and take fewer scenes with data.label_fraction",
        )


class EvaluateConfig(Section):
    """The configuration of `t4p evaluate`. How points become voxels and features is the file's own configuration."""

    model: EvaluatedModelConfig
    data: EvaluatedDataConfig
