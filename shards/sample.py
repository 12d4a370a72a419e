"""The two kinds of sample, and what packing and verifying need of either."""

from collections.abc import Mapping

from shards.manifest import SampleKind
from shards.scene import Scene, check_scene, members_of_scene, scene_from_members
from shards.schema import Frame, check_frame, frame_from_members, members_of_frame

Sample = Frame | Scene


def members_of_sample(sample: Sample) -> dict[str, bytes]:
    """The files that hold a sample in a tar, by the name after the key."""
    return members_of_scene(sample) if isinstance(sample, Scene) else members_of_frame(sample)


def check_sample(sample: Sample, where: str) -> None:
    """Raise ShardError unless every array and number of a sample fits the others; `where` names it in messages."""
    if isinstance(sample, Scene):
        check_scene(sample, where)
    else:
        check_frame(sample, where)


def sample_from_members(kind: SampleKind, key: str, members: Mapping[str, bytes]) -> Sample:
    """Read a sample back from its files.

    Raises:
        ShardError: they are not the files of a sample of that kind.
    """
    return scene_from_members(key, members) if kind == "scenes" else frame_from_members(key, members)
