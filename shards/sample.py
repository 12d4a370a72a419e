"""The two kinds of sample, and what packing and verifying need of either."""

from collections.abc import Mapping

import google_crc32c

from shards.described import row_of_frame, row_of_scene
from shards.manifest import SampleKind
from shards.scene import Scene, check_scene, members_of_scene, scene_from_members
from shards.schema import Frame, check_frame, frame_from_members, members_of_frame
from shards.voxels import count_voxels

Sample = Frame | Scene


def members_of_sample(sample: Sample) -> dict[str, bytes]:
    """The files that hold a sample in a tar, by the name after the key."""
    return members_of_scene(sample) if isinstance(sample, Scene) else members_of_frame(sample)


def row_of_sample(sample: Sample, layout: Mapping[str, tuple[int, int]], data: bytes, dataset: int) -> bytes:
    """The row of a checked sample in the index, whose slice is `data`: as `shards.described.row_of_frame`."""
    crc32c = google_crc32c.value(data)
    if isinstance(sample, Scene):
        return row_of_scene(sample, layout, len(data), crc32c, dataset)
    return row_of_frame(sample, layout, len(data), crc32c, dataset)


def check_sample(sample: Sample, where: str) -> int:
    """Raise ShardError unless every array and number of a sample fits the others; `where` names it in messages.

    Returns:
        The voxels of a frame, as `shards.voxels` counts them; 0 of a scene.
    """
    if isinstance(sample, Scene):
        check_scene(sample, where)
        return 0
    return count_voxels(check_frame(sample, where), sample.depth_scale, sample.K_depth)


def sample_from_members(kind: SampleKind, key: str, members: Mapping[str, bytes]) -> Sample:
    """Read a sample back from its files.

    Raises:
        ShardError: they are not the files of a sample of that kind.
    """
    return scene_from_members(key, members) if kind == "scenes" else frame_from_members(key, members)
