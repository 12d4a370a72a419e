"""Points with objects, for instance segmentation and detection: which point is of which object, and their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import ShardError
from shards.sample import Sample as StoredSample
from shards.scene import Scene, SceneBox
from shards.schema import Box, Frame
from t4p.config.kinds import BoxesOf, GroupsOf
from t4p.data.boxes import bounds_of_instances, upright_boxes
from t4p.data.groups import group_points
from t4p.data.labelled import (
    LabelledBatch,
    LabelledCloud,
    LabelledFrame,
    LabelledSample,
    LabelRecipe,
    read_label_image,
    side_by_side,
)
from t4p.data.labels import IGNORED
from t4p.data.lacking import lacks_groups, lacks_objects
from t4p.data.lifting import out_from_camera
from t4p.data.mixing import shift_between, unless_broken
from t4p.data.placement import Placement
from t4p.data.tensors import moved
from t4p.data.transforms import majority_label

# Samples whose groups are kept in a loader: making them costs more than everything else, and no draw changes them.
MOST_KEPT = 64
NONE = -1  # what an instance, group or box index is where there is none


@dataclass(frozen=True, eq=False)
class _Objects:
    """The points of a sample before they become voxels, with what is known of its objects.

    Attributes:
        cloud: points as they are moved.
        instance_of_point: (N,) int64 row of `label_of_instance`, or NONE.
        label_of_instance: (M,) int64.
        group_of_point: (N,) from 0; None where every voxel is a group.
        boxes: (B, 7) metres, in the frame of the points.
        label_of_box: (B,).
    """

    cloud: LabelledCloud
    instance_of_point: Tensor
    label_of_instance: Tensor
    group_of_point: NDArray[np.int64] | None
    boxes: NDArray[np.float64]
    label_of_box: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ObjectSample:
    """One frame or scene with its objects, ready to be joined with others.

    Attributes:
        labelled: its voxels, points and labels.
        corner: (3,) float64 metres, the low corner of voxel (0, 0, 0) in the frame of the points. What follows is
            counted from it.
        instance_of_point: (N,) int64, the true instances of the sample numbered from 0, or NONE.
        instance_of_voxel: (V,) int64 row of `label_of_instance`, or NONE: that of most of its points.
        label_of_instance: (M,) int64, of the instances that have a voxel.
        group_of_voxel: (V,) int64 in 0 .. G - 1.
        instance_of_group: (G,) int64 row of `label_of_instance`, or NONE: that of most of its voxels.
        boxes: (B, 7) float32: middle, full extents, metres from `corner`; turn about the vertical.
        label_of_box: (B,) int64.
    """

    labelled: LabelledSample
    corner: Tensor
    instance_of_point: Tensor
    instance_of_voxel: Tensor
    label_of_instance: Tensor
    group_of_voxel: Tensor
    instance_of_group: Tensor
    boxes: Tensor
    label_of_box: Tensor


@dataclass(frozen=True, eq=False)
class ObjectBatch:
    """S frames or scenes side by side; S may be 0. Rows are moved by the rows of the samples before.

    Attributes:
        labelled: voxels, points and labels.
        corners: (S, 3) float64, as `ObjectSample.corner`.
        instance_of_point: (N,) int64, numbered within each sample as there, or NONE.
        instance_of_voxel: (V,) int64 row of `label_of_instance`, or NONE.
        label_of_instance, sample_of_instance: (M,) int64.
        group_of_voxel: (V,) int64 row of `instance_of_group`.
        instance_of_group: (G,) int64 row of `label_of_instance`, or NONE.
        sample_of_group: (G,) int64, ascending.
        boxes: (B, 7) float32, as `ObjectSample.boxes`, each from the corner of its own sample.
        label_of_box, sample_of_box: (B,) int64.
    """

    labelled: LabelledBatch
    corners: Tensor
    instance_of_point: Tensor
    instance_of_voxel: Tensor
    label_of_instance: Tensor
    sample_of_instance: Tensor
    group_of_voxel: Tensor
    instance_of_group: Tensor
    sample_of_group: Tensor
    boxes: Tensor
    label_of_box: Tensor
    sample_of_box: Tensor

    def to(self, device: torch.device) -> ObjectBatch:
        """The same batch with its tensors on `device`."""
        return replace(moved(self, device), labelled=self.labelled.to(device))


@dataclass(frozen=True)
class ObjectRecipe:
    """Stored frames or scenes to the batches of instance segmentation and detection: see `t4p.data.stream.Recipe`.

    Attributes:
        labels: how points become voxels with labels. An object is one of a label that is asked.
        label_names: the labels of the run; boxes are matched with them by name.
        groups_of: what masks are made of: our over-segmentation, that of the dataset, or single voxels. None where
            nobody asks: groups are single voxels then.
        boxes_of: what boxes are: bounds of the points of instances ("axis_aligned"; of the dataset's boxes where it has
            no instances), or the dataset's own ("oriented"). None where nobody asks: there are none then.
    """

    labels: LabelRecipe
    label_names: tuple[str, ...]
    groups_of: GroupsOf | None = None
    boxes_of: BoxesOf | None = None
    _kept: dict[tuple[int, str], NDArray[np.int32]] = field(default_factory=dict, compare=False, repr=False)

    def make(self, stored: StoredSample, dataset_index: int, key: str, epoch: int) -> ObjectSample:
        """Label, augment and voxelise one frame or scene, and find its objects; draws and mixing as in LabelRecipe."""
        objects = self._objects(stored, dataset_index, key, epoch)

        def mix() -> ObjectSample | None:
            if (partner := self.labels.partner(dataset_index, key, epoch)) is None:
                return None
            others = self._objects(partner[1], dataset_index, partner[0], epoch)
            return self._voxelize(_side_by_side(objects, others), dataset_index, key, epoch)

        mixed = unless_broken(mix)
        return self._voxelize(objects, dataset_index, key, epoch) if mixed is None else mixed

    def _voxelize(self, objects: _Objects, dataset_index: int, key: str, epoch: int) -> ObjectSample:
        """The voxels of points that were moved, with their objects."""
        recipe = self.labels
        voxels = recipe.voxelize(objects.cloud, dataset_index, key, epoch)
        instance_of_point, label_of_instance = objects.instance_of_point, objects.label_of_instance
        group_of_voxel = groups_of_voxels(objects.group_of_point, voxels.voxel_of_point, len(voxels.voxel_coords))
        boxes = objects.boxes.copy()
        boxes[:, :3] -= voxels.corner.numpy()

        num_instances, num_groups = len(label_of_instance), int(group_of_voxel.max()) + 1 if len(group_of_voxel) else 0
        instance_of_voxel = _most(instance_of_point, voxels.voxel_of_point, len(voxels.voxel_coords), num_instances)
        instance_of_group = _most(instance_of_voxel, group_of_voxel, num_groups, num_instances)
        kept, instance_of_voxel, instance_of_group = _only_seen(instance_of_voxel, instance_of_group, num_instances)
        return ObjectSample(
            labelled=recipe.label(key, objects.cloud, voxels),
            corner=voxels.corner,
            instance_of_point=instance_of_point,
            instance_of_voxel=instance_of_voxel,
            label_of_instance=label_of_instance[kept],
            group_of_voxel=group_of_voxel,
            instance_of_group=instance_of_group,
            boxes=torch.from_numpy(boxes).float(),
            label_of_box=torch.from_numpy(objects.label_of_box),
        )

    def join(self, samples: Sequence[ObjectSample]) -> ObjectBatch:
        """Join samples, moving every row index by the rows of those before."""
        no_rows = torch.zeros(0, dtype=torch.int64)
        num_instances = np.cumsum([0, *(len(sample.label_of_instance) for sample in samples)]).tolist()
        num_groups = np.cumsum([0, *(len(sample.instance_of_group) for sample in samples)]).tolist()

        def joined(name: str, starts: Sequence[int] | None = None) -> Tensor:
            rows = [getattr(sample, name) for sample in samples]
            if starts is not None:
                rows = [_moved_by(row, start) for row, start in zip(rows, starts, strict=False)]
            return torch.cat([no_rows, *rows])

        def samples_of(name: str) -> Tensor:
            lengths = torch.tensor([len(getattr(sample, name)) for sample in samples], dtype=torch.int64)
            return torch.arange(len(samples)).repeat_interleave(lengths)

        return ObjectBatch(
            labelled=self.labels.join([sample.labelled for sample in samples]),
            corners=torch.stack([torch.zeros(3, dtype=torch.float64), *(sample.corner for sample in samples)])[1:],
            instance_of_point=joined("instance_of_point"),
            instance_of_voxel=joined("instance_of_voxel", num_instances),
            label_of_instance=joined("label_of_instance"),
            sample_of_instance=samples_of("label_of_instance"),
            group_of_voxel=joined("group_of_voxel", num_groups),
            instance_of_group=joined("instance_of_group", num_instances),
            sample_of_group=samples_of("instance_of_group"),
            boxes=torch.cat([torch.zeros(0, 7), *(sample.boxes for sample in samples)]),
            label_of_box=joined("label_of_box"),
            sample_of_box=samples_of("boxes"),
        )

    def _objects(self, stored: StoredSample, dataset_index: int, key: str, epoch: int) -> _Objects:
        """The points and objects of one stored sample, where its own draws move them."""
        recipe = self.labels
        cloud, ids = self._read(stored, dataset_index, key)
        instance_of_point, label_of_instance = number_instances(cloud.label_of_point, ids)
        group_of_point = self._group(stored, cloud, (dataset_index, key))
        placement = recipe.place(dataset_index, key, epoch)
        boxes, label_of_box = self._boxes(stored, cloud, placement, instance_of_point, label_of_instance)
        moved_cloud = recipe.move(cloud, dataset_index, key, epoch)
        return _Objects(moved_cloud, instance_of_point, label_of_instance, group_of_point, boxes, label_of_box)

    def _read(
        self, stored: StoredSample, dataset_index: int, key: str
    ) -> tuple[LabelledCloud, NDArray[np.integer] | None]:
        """The labelled points, and the instance ids of the dataset: (N,), 0 for none; None where it has none.

        Raises:
            ShardError: there is neither what a mask nor what a box is learnt from.
        """
        cloud = self.labels.read(stored, dataset_index, key)
        ids: NDArray[np.integer] | None
        if isinstance(stored, Scene):
            ids = stored.instance
        else:
            ids = _instances_of_frame(stored, cloud) if stored.instance is not None else None
        lacking = lacks_objects(stored, self.boxes_of)
        if lacking and not (self.boxes_of is None and self.labels.unlabelled):
            raise ShardError(f"sample {key}: {lacking}, or leave it out (training does, within data.max_skip_fraction)")
        return cloud, ids

    def _group(self, stored: StoredSample, cloud: LabelledCloud, name: tuple[int, str]) -> NDArray[np.int64] | None:
        """(N,) group of every point; None where every voxel is one. Raises ShardError where none are given."""
        if self.groups_of in (None, "none"):
            return None
        of_point = self._kept.get(name)
        if of_point is None:
            of_point = self._group_points(stored, cloud, name[1])
            while len(self._kept) >= MOST_KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[name] = of_point
        return of_point.astype(np.int64)

    def _group_points(self, stored: StoredSample, cloud: LabelledCloud, key: str) -> NDArray[np.int32]:
        """(N,) group of every point as it was recorded, before any draw."""
        if self.groups_of == "own":
            return group_points(cloud.points, cloud.colors).numpy().astype(np.int32)
        if isinstance(stored, Scene) and stored.segments is not None:
            return np.unique(stored.segments, return_inverse=True)[1].astype(np.int32)
        raise ShardError(f"sample {key}: {lacks_groups(stored, self.groups_of)}")

    def _boxes(
        self,
        stored: StoredSample,
        cloud: LabelledCloud,
        placement: Placement,
        instance_of_point: Tensor,
        label_of_instance: Tensor,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(B, 7) boxes in the frame of the points as they are placed, and the label of each."""
        if self.boxes_of is None:
            return np.zeros((0, 7)), np.zeros(0, np.int64)
        # A view in which no instance is seen has no box, whatever else its room holds.
        if self.boxes_of == "axis_aligned" and stored.instance is not None and stored.semantic is not None:
            matrix = placement.matrix
            placed = cloud.points.double().numpy() @ matrix[:3, :3].T + matrix[:3, 3]
            bounds = bounds_of_instances(placed, instance_of_point.numpy(), len(label_of_instance))
            return bounds, label_of_instance.numpy()
        assert stored.boxes is not None  # or `_read` had refused it
        rows = {name: row for row, name in enumerate(self.label_names)}
        found = [box for box in _boxes_of(stored, stored.boxes, self.labels.in_world) if box.label in rows]
        boxes = upright_boxes(
            placement.matrix @ np.array([box.world_from_box for box in found]).reshape(-1, 4, 4),
            np.array([box.size for box in found]).reshape(-1, 3),
            axis_aligned=self.boxes_of == "axis_aligned",
        )
        return boxes, np.array([rows[box.label] for box in found], np.int64)


def groups_of_voxels(group_of_point: NDArray[np.int64] | None, voxel_of_point: Tensor, num_voxels: int) -> Tensor:
    """(V,) int64 group of most points of every voxel, numbered from 0 without gaps.

    Args:
        group_of_point: (N,) from 0 without gaps; None makes every voxel a group.
        voxel_of_point: (N,) int64; every voxel has a point.
    """
    if group_of_point is None:
        return torch.arange(num_voxels)
    num_groups = int(group_of_point.max(initial=-1)) + 1
    most = majority_label(torch.from_numpy(group_of_point), voxel_of_point, num_voxels, num_groups)
    return torch.unique(most, return_inverse=True)[1]


def number_instances(label_of_point: Tensor, ids: NDArray[np.integer] | None) -> tuple[Tensor, Tensor]:
    """The true instances of a sample: a pair of a label that is asked and an instance id above 0.

    Args:
        label_of_point: (N,) int64, or IGNORED.
        ids: (N,) instance ids, 0 for none; None is none at all.

    Returns:
        instance_of_point: (N,) int64 in 0 .. M - 1 by label, then id; or NONE.
        label_of_instance: (M,) int64.
    """
    of_point = torch.full_like(label_of_point, NONE)
    if ids is None:
        return of_point, label_of_point[:0]
    id_of_point = torch.from_numpy(ids.astype(np.int64))
    held = (label_of_point != IGNORED) & (id_of_point > 0)
    most = int(id_of_point.max()) + 1 if len(id_of_point) else 1
    pairs, of_held = torch.unique(label_of_point[held] * most + id_of_point[held], return_inverse=True)
    of_point[held] = of_held
    return of_point, pairs // most


def _side_by_side(first: _Objects, second: _Objects) -> _Objects:
    """The points and objects of two samples as those of one, the second's moved over the first's."""
    shift = shift_between(first.cloud.points.numpy(), second.cloud.points.numpy())
    groups = None
    if first.group_of_point is not None and second.group_of_point is not None:
        num_groups = int(first.group_of_point.max(initial=NONE)) + 1
        groups = np.concatenate([first.group_of_point, second.group_of_point + num_groups])
    boxes = np.concatenate([first.boxes, second.boxes])
    boxes[len(first.boxes) :, :3] += shift
    num_instances = len(first.label_of_instance)
    return _Objects(
        cloud=side_by_side(first.cloud, second.cloud, shift),
        instance_of_point=torch.cat([first.instance_of_point, _moved_by(second.instance_of_point, num_instances)]),
        label_of_instance=torch.cat([first.label_of_instance, second.label_of_instance]),
        group_of_point=groups,
        boxes=boxes,
        label_of_box=np.concatenate([first.label_of_box, second.label_of_box]),
    )


def _boxes_of(stored: StoredSample, boxes: Sequence[Box] | Sequence[SceneBox], in_world: bool) -> list[SceneBox]:
    """The boxes of a frame or scene in the frame of its points, before they are moved."""
    if isinstance(stored, Scene):
        return [box for box in boxes if isinstance(box, SceneBox)]
    matrix = out_from_camera(stored, in_world)
    return [SceneBox(box.label, matrix @ box.camera_from_box, box.size) for box in boxes if isinstance(box, Box)]


def _instances_of_frame(frame: Frame, cloud: LabelledCloud) -> NDArray[np.integer]:
    assert isinstance(cloud, LabelledFrame)
    assert frame.instance is not None
    return read_label_image(frame, "instance", frame.instance, cloud.depth_pixel_of_point, cloud.depth_size)


def _most(of_item: Tensor, place_of_item: Tensor, num_places: int, num_values: int) -> Tensor:
    """(num_places,) what most items of each place have; NONE counts as one of the values."""
    return majority_label(of_item + 1, place_of_item, num_places, num_values + 1) - 1


def _only_seen(of_voxel: Tensor, of_group: Tensor, num_instances: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leave out instances that no group shows: no mask can be them.

    Returns:
        kept: (M',) rows of those that are left, and both index tensors, numbered anew.
    """
    kept = torch.unique(of_group[of_group != NONE])
    new = torch.full((num_instances + 1,), NONE)
    new[kept] = torch.arange(len(kept))
    return kept, new[of_voxel], new[of_group]  # the last of `new` is that of NONE


def _moved_by(rows: Tensor, start: int) -> Tensor:
    return torch.where(rows == NONE, NONE, rows + start)
