"""What a job reads, and how its points are made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from t4p.config.section import Fraction, Places, PositiveFloat, PositiveInt, Section


class AugmentConfig(Section):
    """Random changes of the points of a training frame. The image stays as it is, and so do the pixel-point pairs."""

    rotation: bool = Field(True, description="Turn about the vertical axis by a uniform angle.")
    mirror: bool = Field(True, description="Mirror left and right with probability one half.")
    scale: Fraction = Field(0.1, description="Scale by a factor uniform in [1 - scale, 1 + scale].")
    color_jitter: Fraction = Field(0.05, description="Standard deviation of Gaussian noise on colours in [0, 1].")


class PointDataConfig(Section):
    """What every job reads, and how its points are made."""

    shards: Places = Field(min_length=1, description="Packed datasets: folders or s3:// prefixes.")
    validation_shards: Places = Field((), description="Packed datasets that are scored and never trained on.")
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


class EvaluatedDataConfig(Section):
    shards: Places = Field(min_length=1, description="Packed datasets with labels.")
    num_workers: int = Field(2, ge=0, description="Loader processes; 0 loads in the process itself.")
    ignored_labels: tuple[str, ...] = Field(
        LabelledDataConfig.model_fields["ignored_labels"].default,
        description=LabelledDataConfig.model_fields["ignored_labels"].description,
    )
    pixel_stride: PositiveInt = Field(1, description="For frames: give and score every k-th depth row and column.")
    max_depth: PositiveFloat = Field(10.0, description="For frames: readings beyond this many metres are left out.")
