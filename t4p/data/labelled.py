"""Labelled points for fine-tuning: a stored frame becomes voxels with labels, and joins others in a batch. No image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import ShardError
from shards.images import BrokenImageError, decode_labels
from shards.sample import Sample as StoredSample
from shards.scene import Scene
from shards.schema import Frame, size_of_labels
from t4p.config.data import NOTHING_DROPPED, DropFeaturesConfig, LabelledAugmentConfig, PointDataConfig
from t4p.config.network import NetworkConfig
from t4p.data import transforms
from t4p.data.decode import decode_frame
from t4p.data.draws import draw_key, sample_rng, sample_seed
from t4p.data.fetch import Catalogue
from t4p.data.few_labels import keep_labels
from t4p.data.labels import IGNORED, LabelTable, build_label_table
from t4p.data.lacking import lacks_labels
from t4p.data.mixing import Partners, shift_between, unless_broken
from t4p.data.placement import Placement, draw_placement
from t4p.data.tensors import as_tensor, moved
from t4p.data.warp import bend, shake


@dataclass(frozen=True, eq=False)
class LabelledCloud(transforms.PointCloud):
    """Points of which some have a label.

    Attributes:
        label_of_point: (N,) int64 index of the run's labels, or IGNORED.
    """

    label_of_point: Tensor


@dataclass(frozen=True, eq=False)
class LabelledFrame(LabelledCloud):
    """The labelled points of one frame and the image they are seen in.

    Attributes:
        image: (H, W, 3) uint8.
        pixel_of_point: (N, 2) int64, (row, col) in `image`.
        depth_pixel_of_point: (N, 2) int64, (row, col) in the depth image, on whose grid label images are.
        depth_size: its (height, width).
    """

    image: NDArray[np.uint8]
    pixel_of_point: Tensor
    depth_pixel_of_point: Tensor
    depth_size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class LabelledSample:
    """One frame or scene, ready to be joined with others.

    Attributes:
        key: key of the stored sample.
        voxel_coords: (V, 3) int32, unique, ascending in (x, y, z).
        voxel_features: (V, C) float32.
        label_of_voxel: (V,) int64, of most of its labelled points, or IGNORED.
        label_of_bottleneck: (Vb,) int64, likewise for the voxels of the bottleneck.
        bottleneck_of_voxel: (V,) int64.
        voxel_of_point: (N,) int64.
        label_of_point: (N,) int64, or IGNORED.
    """

    key: str
    voxel_coords: Tensor
    voxel_features: Tensor
    label_of_voxel: Tensor
    label_of_bottleneck: Tensor
    bottleneck_of_voxel: Tensor
    voxel_of_point: Tensor
    label_of_point: Tensor


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """B frames or scenes side by side; B may be 0. Rows are moved by the rows of the samples before.

    Attributes:
        keys: keys of the stored samples, in order.
        voxel_coords: (V, 4) int32, (sample, x, y, z), ascending.
        voxel_features: (V, C) float32.
        label_of_voxel: (V,) int64, or IGNORED.
        label_of_bottleneck: (Vb,) int64, or IGNORED.
        bottleneck_of_voxel: (V,) int64 row of the bottleneck.
        voxel_of_point: (N,) int64 row of `voxel_coords`.
        label_of_point: (N,) int64, or IGNORED.
    """

    keys: tuple[str, ...]
    voxel_coords: Tensor
    voxel_features: Tensor
    label_of_voxel: Tensor
    label_of_bottleneck: Tensor
    bottleneck_of_voxel: Tensor
    voxel_of_point: Tensor
    label_of_point: Tensor

    def to(self, device: torch.device) -> LabelledBatch:
        """The same batch with its tensors on `device`."""
        return moved(self, device)


@dataclass(frozen=True)
class LabelRecipe:
    """Stored frames or scenes to the batches of fine-tuning: see `t4p.data.stream.Recipe`.

    Attributes:
        tables: what the class ids of each dataset of the catalogue mean.
        pixel_stride: for frames, every k-th row and column of a depth image is lifted.
        max_depth: for frames, metres; readings beyond are dropped.
        in_world: frames go to the world of the dataset where they have poses, else to upright camera axes. Scenes are
            in their world already.
        voxel_size: metres.
        num_strides: halvings between the voxels and the bottleneck.
        augment: None for validation, which also leaves the voxel grid on the origin and drops no feature.
        drop_features: what samples go without, and how many of them.
        unlabelled: whether samples without labels are taken: all of their points are IGNORED.
        labels_per_scene: labelled points that a scene keeps; None keeps all.
        partners: who is mixed with whom; None for nobody.
    """

    tables: tuple[LabelTable, ...]
    pixel_stride: int
    max_depth: float
    in_world: bool
    voxel_size: float
    num_strides: int
    point_features: tuple[str, ...]
    augment: LabelledAugmentConfig | None
    seed: int
    drop_features: DropFeaturesConfig = NOTHING_DROPPED
    unlabelled: bool = False
    labels_per_scene: int | None = None
    partners: Partners | None = field(default=None, compare=False)

    def make(self, stored: StoredSample, dataset_index: int, key: str, epoch: int) -> LabelledSample:
        """Label, augment and voxelise one frame or scene; every draw is keyed by (seed, epoch, dataset, key).

        Where it has a partner, both are moved, each by its own draws, and one cloud from there on: the draws for the
        grid, the colours and what is dropped are those of this one. Beside a partner that is broken it stays alone.
        """
        cloud = self._moved(stored, dataset_index, key, epoch)

        def label(cloud: LabelledCloud) -> LabelledSample:
            return self.label(key, cloud, self.voxelize(cloud, dataset_index, key, epoch))

        def mix() -> LabelledSample | None:
            if (partner := self.partner(dataset_index, key, epoch)) is None:
                return None
            others = self._moved(partner[1], dataset_index, partner[0], epoch)
            return label(side_by_side(cloud, others, shift_between(cloud.points.numpy(), others.points.numpy())))

        mixed = unless_broken(mix)
        return label(cloud) if mixed is None else mixed

    def partner(self, dataset_index: int, key: str, epoch: int) -> tuple[str, StoredSample] | None:
        """The key and the sample that one is mixed with; raises as `Partners.read`."""
        return None if self.partners is None else self.partners.read(dataset_index, key, epoch)

    def read(self, stored: StoredSample, dataset_index: int, key: str) -> LabelledCloud:
        """The labelled points of one frame or scene; raises as `make`."""
        table = self.tables[dataset_index]
        if not isinstance(stored, Scene):
            return lift_labelled(
                stored, table, self.pixel_stride, self.max_depth, self.in_world, unlabelled=self.unlabelled
            )
        cloud = label_scene(stored, table, unlabelled=self.unlabelled)
        if self.labels_per_scene is None:
            return cloud
        labels = keep_labels(
            cloud.label_of_point.numpy(), self.labels_per_scene, self.seed, draw_key(dataset_index, key)
        )
        return replace(cloud, label_of_point=torch.from_numpy(labels))

    def place(self, dataset_index: int, key: str, epoch: int) -> Placement:
        """How the points of one sample are moved in one epoch, and what they go without."""
        return draw_placement(self.augment, self.seed, epoch, draw_key(dataset_index, key), self.drop_features)

    def move(self, cloud: LabelledCloud, dataset_index: int, key: str, epoch: int) -> LabelledCloud:
        """The points where the network sees them, float64: placed, bent and shaken."""
        points = transforms.placed(cloud.points, self.place(dataset_index, key, epoch))
        drawn_by = draw_key(dataset_index, key)
        if self.augment is not None and self.augment.elastic:
            rng = sample_rng(self.seed, epoch, drawn_by, "elastic")
            if rng.random() < self.augment.elastic:
                points = torch.from_numpy(bend(points.numpy(), rng))
        if self.augment is not None and self.augment.position_jitter:
            rng = sample_rng(self.seed, epoch, drawn_by, "position_jitter")
            points = torch.from_numpy(shake(points.numpy(), self.augment.position_jitter, rng))
        return LabelledCloud(points, cloud.colors, cloud.label_of_point)

    def voxelize(self, cloud: LabelledCloud, dataset_index: int, key: str, epoch: int) -> transforms.VoxelCloud:
        """The voxels of points that were moved, tinted."""
        seed = sample_seed(self.seed, epoch, draw_key(dataset_index, key), "colors")
        placement = self.place(dataset_index, key, epoch)
        return transforms.voxelize_cloud(cloud, self.voxel_size, self.num_strides, self.point_features, placement, seed)

    def _moved(self, stored: StoredSample, dataset_index: int, key: str, epoch: int) -> LabelledCloud:
        return self.move(self.read(stored, dataset_index, key), dataset_index, key, epoch)

    def label(self, key: str, cloud: LabelledCloud, voxels: transforms.VoxelCloud) -> LabelledSample:
        """The voxels with the labels of most of their points."""
        bottleneck_of_point = voxels.bottleneck_of_voxel[voxels.voxel_of_point]
        num_labels = self.tables[0].num_labels
        label_of_voxel, label_of_bottleneck = (
            transforms.majority_label(cloud.label_of_point, voxel_of_point, count, num_labels)
            for voxel_of_point, count in (
                (voxels.voxel_of_point, len(voxels.voxel_coords)),
                (bottleneck_of_point, voxels.num_bottleneck_voxels),
            )
        )
        return LabelledSample(
            key=key,
            voxel_coords=voxels.voxel_coords,
            voxel_features=voxels.voxel_features,
            label_of_voxel=label_of_voxel,
            label_of_bottleneck=label_of_bottleneck,
            bottleneck_of_voxel=voxels.bottleneck_of_voxel,
            voxel_of_point=voxels.voxel_of_point,
            label_of_point=cloud.label_of_point,
        )

    def join(self, samples: Sequence[LabelledSample]) -> LabelledBatch:
        """Join samples, moving every row index by the rows of those before."""
        coords = [torch.zeros(0, 4, dtype=torch.int32)]
        no_rows = torch.zeros(0, dtype=torch.int64)
        voxel_of_point, bottleneck_of_voxel = [no_rows], [no_rows]
        num_voxels = num_bottleneck_voxels = 0
        for sample_index, sample in enumerate(samples):
            coords.append(F.pad(sample.voxel_coords, (1, 0), value=sample_index))
            voxel_of_point.append(sample.voxel_of_point + num_voxels)
            bottleneck_of_voxel.append(sample.bottleneck_of_voxel + num_bottleneck_voxels)
            num_voxels += len(sample.voxel_coords)
            num_bottleneck_voxels += len(sample.label_of_bottleneck)
        no_features = torch.zeros(0, transforms.num_channels(self.point_features))
        return LabelledBatch(
            keys=tuple(sample.key for sample in samples),
            voxel_coords=torch.cat(coords),
            voxel_features=torch.cat([no_features, *(sample.voxel_features for sample in samples)]),
            label_of_voxel=torch.cat([no_rows, *(sample.label_of_voxel for sample in samples)]),
            label_of_bottleneck=torch.cat([no_rows, *(sample.label_of_bottleneck for sample in samples)]),
            bottleneck_of_voxel=torch.cat(bottleneck_of_voxel),
            voxel_of_point=torch.cat(voxel_of_point),
            label_of_point=torch.cat([no_rows, *(sample.label_of_point for sample in samples)]),
        )


def build_label_recipe(
    catalogue: Catalogue,
    data: PointDataConfig,
    model: NetworkConfig,
    labels: Sequence[str],
    ignored_labels: Sequence[str],
    *,
    augment: LabelledAugmentConfig | None,
    seed: int = 0,
    unlabelled: bool = False,
    labels_per_scene: int | None = None,
) -> LabelRecipe:
    """How the samples of a catalogue become labelled points for a network.

    Args:
        unlabelled: as in LabelRecipe; datasets without labels are taken then.
        augment, labels_per_scene: of what is trained on; None for validation.

    Raises:
        ConfigError: a dataset has no labels, or a class that is neither a label nor ignored.
    """
    return LabelRecipe(
        tables=build_label_tables(catalogue, labels, ignored_labels, unlabelled=unlabelled),
        pixel_stride=data.pixel_stride,
        max_depth=data.max_depth,
        in_world=data.frame == "world",
        voxel_size=model.voxel_size,
        num_strides=model.unet.num_strides,
        point_features=model.point_features,
        augment=augment,
        seed=seed,
        drop_features=data.drop_features,
        unlabelled=unlabelled,
        labels_per_scene=labels_per_scene,
        partners=Partners(catalogue, augment.mix, seed) if augment is not None and augment.mix else None,
    )


def build_label_tables(
    catalogue: Catalogue, labels: Sequence[str], ignored_labels: Sequence[str], *, unlabelled: bool = False
) -> tuple[LabelTable, ...]:
    """What the class ids of each dataset of a catalogue mean.

    Raises:
        ConfigError: a dataset has no labels, or a class that is neither a label nor ignored.
    """
    return tuple(
        build_label_table(names, labels, ignored_labels, url, unlabelled=unlabelled)
        for names, url in zip(catalogue.label_names, catalogue.urls, strict=True)
    )


def lift_labelled(
    frame: Frame,
    table: LabelTable,
    pixel_stride: int,
    max_depth: float,
    in_world: bool,
    image_size: tuple[int, int] | None = None,
    *,
    unlabelled: bool = False,
) -> LabelledFrame:
    """The points of a frame, each with its colour and the label of its depth pixel.

    Args:
        image_size: (height, width) of the image that is returned; None leaves it as it was recorded.
        unlabelled: take a frame without labels.

    Raises:
        ShardError: an image cannot be decoded, or the frame has no semantic labels.
        ValueError: a class id has no name.
    """
    if not unlabelled:
        _require_labels(frame, f"sample {frame.scene_id}/{frame.frame_id}")
    decoded = decode_frame(frame, image_size)
    lifted = transforms.lift_frame(decoded, pixel_stride, max_depth, in_world)
    height, width = decoded.depth.shape
    if frame.semantic is None:
        labels = np.full(len(lifted.points), IGNORED)
    else:
        ids = read_label_image(frame, "semantic", frame.semantic, lifted.depth_pixel_of_point, (height, width))
        labels = table.look_up(ids)
    return LabelledFrame(
        points=lifted.points,
        colors=lifted.colors,
        label_of_point=torch.from_numpy(labels),
        image=decoded.color,
        pixel_of_point=lifted.pixel_of_point,
        depth_pixel_of_point=lifted.depth_pixel_of_point,
        depth_size=(height, width),
    )


def read_label_image(
    frame: Frame, name: str, image: bytes, depth_pixel_of_point: Tensor, size: tuple[int, int]
) -> NDArray[np.integer]:
    """(N,) ids of the points of a frame, from `semantic.png` or `instance.png`.

    Args:
        name: which of both, for messages.
        depth_pixel_of_point: (N, 2) int64, (row, col).
        size: (height, width) of the depth image.

    Raises:
        ShardError: the image cannot be decoded, or is not on the depth grid.
    """
    height, width = size
    where = f"sample {frame.scene_id}/{frame.frame_id}"
    try:
        ids = decode_labels(image, size_of_labels(name, (width, height), where))
    except BrokenImageError as error:
        raise ShardError(f"{where}: {error}; pack it again") from error
    row, col = depth_pixel_of_point.numpy().T
    return ids[row, col]


def side_by_side(first: LabelledCloud, second: LabelledCloud, shift: NDArray[np.float64]) -> LabelledCloud:
    """The points of two clouds in one, those of the second moved by `shift`, (3,) metres."""
    return LabelledCloud(
        points=torch.cat([first.points, second.points + torch.from_numpy(shift)]),
        colors=torch.cat([first.colors, second.colors]),
        label_of_point=torch.cat([first.label_of_point, second.label_of_point]),
    )


def label_scene(scene: Scene, table: LabelTable, *, unlabelled: bool = False) -> LabelledCloud:
    """The points of a scene, as they are stored.

    Args:
        unlabelled: take a scene without labels.

    Raises:
        ShardError: the scene has no semantic labels.
        ValueError: a class id has no name.
    """
    if not unlabelled:
        _require_labels(scene, f"scene {scene.scene_id}")
    labels = np.full(len(scene.points), IGNORED) if scene.semantic is None else table.look_up(scene.semantic)
    return LabelledCloud(
        points=as_tensor(scene.points),
        colors=as_tensor(scene.rgb).float() / 255,
        label_of_point=torch.from_numpy(labels),
    )


def _require_labels(stored: StoredSample, where: str) -> None:
    """Raise ShardError where a sample has no labels; `where` names it."""
    if lacking := lacks_labels(stored):
        raise ShardError(f"{where}: {lacking} (or leave it out: in training data.max_skip_fraction does)")
