"""What a job reads, and how its points are made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from t4p.config.section import Fraction, Listed, Places, PositiveFloat, PositiveInt, Problem, Section

USUAL_BLOCK = 8 << 20  # bytes

# Below 1: what no sample has is no feature.
Share = Annotated[float, Field(ge=0, lt=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]


class AugmentConfig(Section):
    """Random changes of the points of a training frame. The image stays as it is, and so do the pixel-point pairs."""

    rotation: bool = Field(True, description="Turn about the vertical axis by a uniform angle.")
    mirror: bool = Field(
        True, description="Mirror left and right with probability one half; with rotation, a flip along any direction."
    )
    scale: Fraction = Field(0.1, description="Scale by a factor uniform in [1 - scale, 1 + scale].")
    color_jitter: Fraction = Field(0.05, description="Standard deviation of Gaussian noise on colours in [0, 1].")


class LabelledAugmentConfig(AugmentConfig):
    """Random changes of the points of a training sample. Labels, instances and boxes go with them."""

    elastic: Fraction = Field(
        0.0,
        description="Share of the samples that are bent by smooth noise, on cells of 0.2 m and then of 0.8 m, as "
        "ScanNet's recipes do. Not for detection: a bent object has no box.",
    )
    position_jitter: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Standard deviation, metres, of Gaussian noise on positions, cut off at four of it.",
    )
    mix: Fraction = Field(
        0.0,
        description="Share of the samples that are joined with another of their dataset to one cloud (Mix3D, Nekrasov "
        "et al. 2021); each is a second sample to read.",
    )


class DropFeaturesConfig(Section):
    """Features that a training sample goes without, so that the network can do without them.

    What is dropped is 0 in all voxels of the sample, for a colour the grey in the middle. Validation drops nothing.
    """

    color: Share = Field(0.0, description="Share of the samples, drawn in every epoch, without colour.")
    height: Share = Field(0.0, description="Share of the samples, likewise, without height.")


NOTHING_DROPPED = DropFeaturesConfig()


class WeightedPlace(Section):
    """A dataset of a mixture."""

    url: str = Field(description="A packed dataset: a folder, or an s3://, gs:// or az:// prefix.")
    weight: PositiveFloat = Field(description="Its share of the samples, beside the weights of the others.")


def _place(value: Any) -> Any:
    """A text as it is, a dataset of a mixture as such; ValueError in one sentence for anything else."""
    if isinstance(value, str | WeightedPlace):
        return value
    try:
        return WeightedPlace.model_validate(value)
    except ValidationError:
        raise ValueError("wanted a folder or prefix, or {url: ..., weight: a number above 0}") from None


CacheDir = Annotated[
    str | None,
    Field(description="Folder of the node's cache of samples from object storage; by default in memory, else on disk."),
]
CacheBytes = Annotated[
    int | None,
    Field(ge=0, description="Bytes of that cache, at most half of what is free there; 0 reads nothing ahead."),
]


class PointDataConfig(Section):
    """What every job reads, and how its points are made."""

    shards: Annotated[tuple[Annotated[str | WeightedPlace, BeforeValidator(_place)], ...], Listed] = Field(
        min_length=1, description="Packed datasets, read as one; or a mixture, each as {url: ..., weight: ...}."
    )
    validation_shards: Places = Field((), description="Packed datasets that are scored and never trained on.")
    num_workers: int = Field(2, ge=0, description="Loader processes per rank; 0 loads in the training process.")
    streams: PositiveInt = Field(
        64, le=100_000, description="Canonical streams of the sample order; part of the resume state."
    )
    shuffle_block: PositiveInt = Field(USUAL_BLOCK, description="Bytes of a shard that are read at once and shuffled.")
    cache_dir: CacheDir = None
    cache_bytes: CacheBytes = None
    pixel_stride: PositiveInt = Field(1, description="Lift every k-th row and column of the depth image.")
    max_depth: PositiveFloat = Field(10.0, description="Readings beyond this many metres are dropped.")
    frame: Literal["camera", "world"] = Field("camera", description="Axes of the points; world only if its z is up.")
    max_skip_fraction: Fraction = Field(0.0, description="Share of broken samples a run puts up with.")
    augment: AugmentConfig = AugmentConfig()
    drop_features: DropFeaturesConfig = NOTHING_DROPPED

    @property
    def urls(self) -> tuple[str, ...]:
        """Places of the training data."""
        return tuple(place if isinstance(place, str) else place.url for place in self.shards)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weights of a mixture; None where all datasets are read as one."""
        weights = tuple(place.weight for place in self.shards if isinstance(place, WeightedPlace))
        return weights if len(weights) == len(self.shards) else None

    def rules(self) -> Iterator[Problem]:
        without = [place for place in self.shards if isinstance(place, str)]
        if 0 < len(without) < len(self.shards):
            yield Problem(
                ("shards",),
                f"{without[0]} has no weight and another dataset has one; give each of a mixture "
                "{url: ..., weight: ...}, or none",
            )


class DataConfig(PointDataConfig):
    image_size: tuple[PositiveInt, PositiveInt] = Field((480, 640), description="(height, width) the towers see.")


class LabelledDataConfig(PointDataConfig):
    augment: LabelledAugmentConfig = LabelledAugmentConfig()
    label_fraction: PositiveFraction = Field(
        1.0,
        description="Share of the scenes of every dataset that are trained on, drawn with run.seed; what a smaller "
        "share holds, a larger one does too (limited reconstructions, Hou et al. 2021).",
    )
    labels_per_scene: PositiveInt | None = Field(
        None,
        description="Labelled points that a scene keeps for training, drawn with run.seed, in every epoch the same; "
        "null is all (limited annotations, Hou et al. 2021). For semantic segmentation of whole scenes.",
    )
    ignored_labels: tuple[str, ...] = Field(
        ("unlabelled",), description="Classes of the dataset that are not asked for; '*' is every one not in labels."
    )


class EvaluatedDataConfig(Section):
    shards: Places = Field(min_length=1, description="Packed datasets with labels.")
    num_workers: int = Field(2, ge=0, description="Loader processes; 0 loads in the process itself.")
    cache_dir: CacheDir = None
    cache_bytes: CacheBytes = None
    ignored_labels: tuple[str, ...] = Field(
        LabelledDataConfig.model_fields["ignored_labels"].default,
        description=LabelledDataConfig.model_fields["ignored_labels"].description,
    )
    pixel_stride: PositiveInt = Field(1, description="For frames: give and score every k-th depth row and column.")
    max_depth: PositiveFloat = Field(10.0, description="For frames: readings beyond this many metres are left out.")
