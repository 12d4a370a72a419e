"""What a stored sample lacks for a task, with a next move. No torch: it is asked before a training."""

from __future__ import annotations

from shards.sample import Sample as StoredSample
from shards.scene import Scene
from t4p.config.kinds import BoxesOf, GroupsOf, Needs


def lacks(stored: StoredSample, needs: Needs) -> str | None:
    """What keeps a task from learning from a sample; None for nothing."""
    labels = lacks_labels(stored) if needs.labels else None
    objects = lacks_objects(stored, needs.boxes) if needs.masks or needs.boxes else None
    return labels or objects or lacks_groups(stored, needs.groups)


def lacks_labels(stored: StoredSample) -> str | None:
    """What keeps labels from being learnt from a sample; None for nothing."""
    return None if stored.semantic is not None else "has no semantic labels; pack it with labels"


def lacks_objects(stored: StoredSample, boxes_of: BoxesOf | None) -> str | None:
    """What keeps objects from being learnt from a sample, and what to do about it; None for nothing.

    Args:
        boxes_of: as in ObjectRecipe; None for masks.
    """
    if boxes_of == "oriented":
        if stored.boxes is not None:
            return None
        return (
            "has no boxes, and model.boxes is oriented; set model.boxes=axis_aligned to learn the bounds of its "
            "instances"
        )
    if stored.instance is not None and stored.semantic is not None:
        return None
    if boxes_of == "axis_aligned":
        if stored.boxes is not None:
            return None
        return (
            "has neither boxes nor instance ids with their labels, from which boxes are learnt; pack it with one of "
            "them (frames: instance/ beside label/; scenes: `instance` in points.npz, or boxes)"
        )
    return (
        "has no instance ids, from which objects are learnt; pack it with them (frames: instance/ beside label/; "
        "scenes: `instance` in points.npz)"
    )


def lacks_groups(stored: StoredSample, groups_of: GroupsOf | None) -> str | None:
    """What keeps masks from being made of the groups that are asked of a sample; None for nothing."""
    if groups_of != "given" or (isinstance(stored, Scene) and stored.segments is not None):
        return None
    return "has no over-segmentation of its own (`segments`), and model.groups is given; set model.groups=own"
