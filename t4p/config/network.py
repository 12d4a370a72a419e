"""The networks: the 3D one, the frozen CLIP beside it, and what is trained on top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from t4p.config.labels import SCANNET_LABELS, Labels, labels_with_synonyms, problems_of_labels, words_of
from t4p.config.plans import PLANS, build_plan
from t4p.config.section import PositiveFloat, PositiveInt, Problem, Section


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

    plan: str = Field("Res16UNet34C", description=f"Widths and depths by name: {', '.join(PLANS)}.")
    num_strides: PositiveInt = Field(4, description="Halvings of the resolution between the voxels and the bottleneck.")
    stem_channels: PositiveInt | None = Field(None, description="Width of the stem, at full resolution.")
    stem_kernel_size: Literal[3, 5] | None = Field(None, description="Voxels per side of the stem's kernel.")
    encoder_channels: tuple[PositiveInt, ...] | None = Field(
        None, description="Width per stride, finest first; the last is the bottleneck."
    )
    encoder_blocks: tuple[PositiveInt, ...] | None = Field(None, description="Residual blocks per stride, likewise.")
    decoder_channels: tuple[PositiveInt, ...] | None = Field(
        None, description="Width per stride, coarsest first; the last is at full resolution."
    )
    decoder_blocks: tuple[PositiveInt, ...] | None = Field(None, description="Residual blocks per stride, likewise.")
    activation_checkpointing: bool = Field(
        False, description="Recompute each stage in the backward pass: less memory, a second forward pass of each."
    )

    def rules(self) -> Iterator[Problem]:
        try:
            build_plan(self)
        except ValueError as error:
            yield Problem(("plan", "num_strides"), str(error))


class TextQueryConfig(Section):
    num_heads: PositiveInt = Field(8, description="Attention heads; a divisor of the width of the CLIP model.")
    mlp_ratio: PositiveFloat = Field(2.0, description="Hidden width of its MLP over that of the CLIP model.")
    alpha: float = Field(1.0, description="Weight of h3D in the aggregation alpha * h3D + beta * h3D_text_hat.")
    beta: float = Field(1.0, description="Weight of the queried text; 0 gives the plain U-Net.")
    template: str = Field("point cloud of a {}", description="The prompt; {} stands for the label.")


class Decoder2dConfig(Section):
    hidden_channels: PositiveInt = Field(128, description="Width of its hidden layers.")
    upsample: Literal[1, 2, 4, 8] = Field(4, description="Decoder pixels per CLIP cell, in each direction.")


class NetworkConfig(Section):
    """The 3D network and the words it is asked: the same in pre-training and in fine-tuning."""

    sparse_backend: Literal["auto", "native", "minkowski"] = Field(
        "auto", description="native is plain torch, and what auto takes; minkowski is the extra of that name."
    )
    voxel_size: PositiveFloat = Field(0.025, description="Edge of a voxel, metres.")
    norm: Literal["sync_batch", "batch", "layer"] = Field(
        "sync_batch", description="Statistics over the voxels of all ranks, of this rank, or of each voxel alone."
    )
    norm_group_size: PositiveInt | None = Field(
        None, description="sync_batch: ranks that share statistics, a divisor of the world size; all by default."
    )
    point_features: tuple[Literal["one", "color", "position", "height"], ...] = Field(
        ("color",),
        min_length=1,
        description="Inputs of a voxel: a constant, its mean colour, its place, its z alone (metres).",
    )
    labels: Labels | str = Field(
        SCANNET_LABELS,
        description="A list; or labels with their synonyms, {chair: [chair, armchair]}, whose mean embedding is the "
        "label's; or a file: one label per line, or such a mapping in .yaml.",
    )
    clip: ClipConfig = ClipConfig()
    unet: UNetConfig = UNetConfig()
    text_query: TextQueryConfig = TextQueryConfig()

    @field_validator("labels", mode="before")
    @classmethod
    def _with_synonyms(cls, labels: Any) -> Any:
        return labels_with_synonyms(labels) if isinstance(labels, Mapping) else labels

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the labels, in order."""
        return tuple(self.label_words)

    @property
    def label_words(self) -> dict[str, tuple[str, ...]]:
        """The synonyms of every label; of a configuration that was loaded, which has read a file of them."""
        assert not isinstance(self.labels, str)
        return words_of(self.labels)

    def rules(self) -> Iterator[Problem]:
        if len(set(self.point_features)) != len(self.point_features):
            yield Problem(("point_features",), f"names one twice: {list(self.point_features)}")
        if self.norm_group_size is not None and self.norm != "sync_batch":
            yield Problem(
                ("norm_group_size", "norm"),
                f"norm_group_size is for norm sync_batch, not for {self.norm}; leave it out",
            )
        yield from problems_of_labels(self.labels)


class ModelConfig(NetworkConfig):
    embed_dim_d: PositiveInt = Field(64, description="C: channels of z2D and z3D, where L_d compares them.")
    decoder2d: Decoder2dConfig = Decoder2dConfig()


class QueryDecoderConfig(Section):
    """The decoder of `model.masks: queries`."""

    num_queries: PositiveInt = Field(100, description="Masks that are proposed for a sample.")
    num_layers: PositiveInt = Field(3, description="Rounds of attention to the groups and among the queries.")
    num_heads: PositiveInt = Field(4, description="Attention heads; a divisor of dim.")
    dim: PositiveInt = Field(128, description="Width of a query.")

    def rules(self) -> Iterator[Problem]:
        if self.dim % self.num_heads:
            yield Problem(("dim", "num_heads"), f"dim ({self.dim}) must be a multiple of num_heads ({self.num_heads})")


class FinetunedModelConfig(NetworkConfig):
    """What every fine-tuning has: a beginning, and parts that keep it."""

    pretrained: str | None = Field(
        None,
        description="Checkpoint or run folder of a pre-training, or its `t4p checkpoint export`, also on the Hugging "
        "Face hub (hf://OWNER/NAME); none is from scratch.",
    )
    frozen: tuple[Literal["encoder", "decoder", "text_query"], ...] = Field(
        (),
        description="Parts that keep their pre-trained weights and norms; the encoder with its FC into CLIP's space, "
        "text_query with the FC behind it and the prompts. All three leave the head: a linear probe.",
    )
    prompt_tokens: PositiveInt | None = Field(
        None, description="Learnable tokens before a label; by default those of text_query.template, as they are there."
    )

    @field_validator("frozen")
    @classmethod
    def _in_one_order(cls, frozen: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(frozen)))  # or a resume would take another order for another run

    def rules(self) -> Iterator[Problem]:
        yield from super().rules()
        if self.frozen and self.pretrained is None:
            yield Problem(
                ("frozen", "pretrained"),
                f"frozen is {list(self.frozen)}, and without pretrained it would keep random weights; name a "
                "pre-training, or leave frozen out",
            )
        if "text_query" in self.frozen and self.prompt_tokens is not None:
            yield Problem(
                ("frozen", "prompt_tokens"),
                f"text_query is in frozen and prompt_tokens is {self.prompt_tokens}: random tokens that never train; "
                "leave prompt_tokens out, for those of text_query.template",
            )


class SemanticModelConfig(FinetunedModelConfig):
    head: Literal["linear", "words"] = Field(
        "linear",
        description="linear: the scores of a voxel are those of a linear layer on z3D. words: they are the score map "
        "at its bottleneck voxel plus a linear layer that begins at 0, so that (with the default prompt_tokens) the "
        "first prediction is the zero-shot one; labels that no sample has shown so far are in neither softmax.",
    )


class InstanceModelConfig(FinetunedModelConfig):
    masks: Literal["queries", "votes"] = Field(
        "queries",
        description="queries: a decoder of learnt queries over groups of voxels (SPFormer). votes: a class and an "
        "offset to the middle of its object for every voxel, clustered (PointGroup).",
    )
    groups: Literal["own", "given", "none"] = Field(
        "own",
        description="What masks are made of: our over-segmentation by normals and colour; that of the dataset, which "
        "must have one; or single voxels.",
    )
    mask_channels: PositiveInt = Field(64, description="Channels of z3D, whose means over groups the decoder sees.")
    decoder: QueryDecoderConfig = QueryDecoderConfig()


class DetectionModelConfig(FinetunedModelConfig):
    boxes: Literal["axis_aligned", "oriented"] = Field(
        "axis_aligned",
        description="axis_aligned: around the points of an instance, as on ScanNet; oriented: the dataset's boxes, "
        "turned about the vertical, as on SUN RGB-D.",
    )
    head_channels: PositiveInt = Field(128, description="Width of the box head on both of its levels.")


class EvaluatedModelConfig(Section):
    exported: str = Field(min_length=1, description="A file that `t4p checkpoint export` wrote; or hf://OWNER/NAME.")
    finds: Literal["masks"] | None = Field(
        None,
        description="What is scored: by default what its task finds. masks: of a network that labels points, the "
        "instances that its labels come to without a head for them: neighbouring groups of one label.",
    )
