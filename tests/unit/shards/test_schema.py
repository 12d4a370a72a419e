"""Keys that webdataset cuts where we do, frames that survive a round trip, and checks that name what is wrong."""

import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.images import encode_depth
from shards.schema import (
    LONGEST_MEMBER_BYTES,
    MEMBERS,
    Box,
    Frame,
    check_frame,
    escape_id,
    frame_from_members,
    members_of_frame,
    sample_key,
    unescape_id,
)

ids = st.one_of(
    st.text(min_size=1, max_size=12),
    st.text(alphabet="aA1-_.%/ 2E5F", min_size=1, max_size=12),
    st.binary(min_size=1, max_size=8).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)


def is_bytes(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


@settings(max_examples=500, deadline=None)
@given(ids.filter(is_bytes))
def test_escaping_round_trips_and_uses_few_letters(text: str) -> None:
    escaped = escape_id(text)
    assert re.fullmatch(r"([A-Za-z0-9-]|_[0-9A-F]{2})+", escaped)
    assert unescape_id(escaped).encode("utf-8", "surrogateescape") == text.encode("utf-8", "surrogateescape")


@settings(max_examples=500, deadline=None)
@given(ids.filter(is_bytes), ids.filter(is_bytes))
def test_different_ids_have_different_spellings(first: str, second: str) -> None:
    same = first.encode("utf-8", "surrogateescape") == second.encode("utf-8", "surrogateescape")
    assert (escape_id(first) == escape_id(second)) == same


@settings(max_examples=300, deadline=None)
@given(ids.filter(is_bytes), ids.filter(is_bytes), st.sampled_from(MEMBERS))
def test_webdataset_cuts_a_member_name_into_key_and_member(scene_id: str, frame_id: str, member: str) -> None:
    from webdataset.tariterators import base_plus_ext

    try:
        key = sample_key(scene_id, frame_id)
    except ShardError as error:
        assert "shorten" in str(error)  # noqa: PT017 - long escapes are the one legitimate refusal here
        return
    path = f"{key}.{member}"
    assert base_plus_ext(path) == (key, member)
    scene, frame_and_member = path.split("/")
    assert len(path) <= 100 or (len(scene) <= 155 and len(frame_and_member) <= 100)
    assert not re.match(r"__[^/]*__($|/)", path)  # webdataset skips such names without a word


def test_the_stamp_of_a_tum_frame_keeps_its_digits() -> None:
    assert sample_key("rgbd_fr1", "1305031102.175304") == "rgbd_5Ffr1/1305031102_2E175304"


def test_keys_that_do_not_fit_a_tar_name_are_refused() -> None:
    longest = 100 - 1 - LONGEST_MEMBER_BYTES
    assert sample_key("a" * 155, "b" * longest) == "a" * 155 + "/" + "b" * longest
    assert len(sample_key("a", "b" * (longest - 2))) == longest
    for scene, frame in ((156, 1), (156, longest), (155, longest + 1), (1, longest + 1)):
        with pytest.raises(ShardError, match=rf"has {scene} and {frame} bytes and .* room for 155 and {longest}; shor"):
            sample_key("a" * scene, "b" * frame)
    with pytest.raises(ShardError, match="an id is empty"):
        sample_key("a", "")


def test_a_full_frame_round_trips(full_frame: Frame) -> None:
    key = sample_key(full_frame.scene_id, full_frame.frame_id)
    members = members_of_frame(full_frame)
    assert set(members) == set(MEMBERS) - {"color.png", "depth.zst"}
    again = frame_from_members(key, members)
    assert members_of_frame(again) == members
    assert again.caption == full_frame.caption
    assert again.boxes is not None
    assert again.boxes[0].size == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(again.world_from_camera, full_frame.world_from_camera)
    check_frame(again, key)


def test_a_bare_frame_round_trips(bare_frame: Frame) -> None:
    members = members_of_frame(bare_frame)
    assert set(members) == {"color.jpg", "depth.png", "meta.json"}
    again = frame_from_members(sample_key("scene", "frame"), members)
    assert again.world_from_camera is None
    assert again.timestamp is None
    assert again.boxes is None
    assert again.caption is None


def test_numbers_in_meta_are_exact(bare_frame: Frame) -> None:
    K = bare_frame.K_depth * (1 + 1 / 3)
    members = members_of_frame(dataclasses.replace(bare_frame, K_depth=K, timestamp=1305031102.175304))
    again = frame_from_members("scene/frame", members)
    assert np.array_equal(again.K_depth, K)
    assert again.timestamp == 1305031102.175304


def test_broken_members_are_named(bare_frame: Frame) -> None:
    members = members_of_frame(bare_frame)
    meta = json.loads(members["meta.json"])

    def replaced(**changes: object) -> dict[str, bytes]:
        return {**members, "meta.json": json.dumps({**meta, **changes}).encode()}

    cases = [
        ({**members, "extra.bin": b""}, "unknown member extra.bin"),
        ({**members, "color.png": b""}, "wanted exactly one of"),
        (
            {name: data for name, data in members.items() if name != "depth.png"},
            "depth.png, depth.zst, found none",
        ),
        ({**members, "meta.json": b"{"}, "a text member is malformed"),
        (replaced(format_version=3), "format version 3, this program reads 1 and 2"),
        (replaced(no_reading=70_000), "wanted a value of 16 bits"),
        (replaced(K_depth=[[1, 2], [3, 4]]), "wanted a 3x3 matrix"),
        (replaced(frame_id="other"), "meta.json is of scene 'scene', frame 'other'"),
    ]
    for broken, message in cases:
        with pytest.raises(ShardError, match=re.escape(message)) as caught:
            frame_from_members("scene/frame", broken)
        assert "scene/frame" in str(caught.value)


def test_intrinsics_of_another_resolution_are_refused(bare_frame: Frame) -> None:
    for factor in (0.5, 2 / 3, 4 / 3, 1.5, 2.0):
        K = bare_frame.K_depth.copy()
        K[:2] *= factor
        with pytest.raises(ShardError, match=r"here: depth is 64x48 but K_depth has its principal point at .* about"):
            check_frame(dataclasses.replace(bare_frame, K_depth=K), "here")
        with pytest.raises(ShardError, match="here: color is 64x48 but K_color"):
            check_frame(dataclasses.replace(bare_frame, K_color=K), "here")


@pytest.mark.parametrize("entry", [(0, 0, 0.0), (1, 1, -480.0), (2, 2, 2.0), (1, 0, 1.0), (0, 2, np.nan)])
def test_a_matrix_that_is_no_pinhole_is_refused(bare_frame: Frame, entry: tuple[int, int, float]) -> None:
    K = bare_frame.K_depth.copy()
    K[entry[0], entry[1]] = entry[2]
    with pytest.raises(ShardError, match="wanted \\[\\[fx, s, cx\\]"):
        check_frame(dataclasses.replace(bare_frame, K_depth=K), "here")


@pytest.mark.parametrize(
    "matrix", [np.eye(4) * 2, np.diag([1.0, 1, -1, 1]), np.full((4, 4), np.nan), np.eye(4) + np.eye(4)[::-1]]
)
def test_a_transform_that_is_not_rigid_is_refused(bare_frame: Frame, matrix: np.ndarray) -> None:
    with pytest.raises(ShardError, match="here: world_from_camera is not"):
        check_frame(dataclasses.replace(bare_frame, world_from_camera=matrix), "here")


def test_labels_off_the_depth_grid_are_refused(bare_frame: Frame) -> None:
    labels = encode_depth(np.ones((96, 128), np.uint16))
    with pytest.raises(ShardError, match="the semantic image is 128x96, the depth image 64x48"):
        check_frame(dataclasses.replace(bare_frame, semantic=labels), "here")


def test_damaged_images_are_refused(bare_frame: Frame) -> None:
    with pytest.raises(ShardError, match="here: color cannot be decoded: found a JPEG of 500 bytes"):
        check_frame(dataclasses.replace(bare_frame, color=bare_frame.color[:500]), "here")
    with pytest.raises(ShardError, match=r"here: color cannot be decoded: found a JPEG .* wanted a PNG"):
        check_frame(dataclasses.replace(bare_frame, color_format="png"), "here")
    with pytest.raises(ShardError, match="here: depth cannot be decoded: found a 64x48 16-bit grayscale PNG of 2000"):
        check_frame(dataclasses.replace(bare_frame, depth=bare_frame.depth[:2000]), "here")
    with pytest.raises(ShardError, match="here: depth cannot be decoded: found an empty file"):
        check_frame(dataclasses.replace(bare_frame, depth=b""), "here")


@pytest.fixture
def bare_frame() -> Frame:
    return make_frame()


@pytest.fixture
def full_frame() -> Frame:
    labels = encode_depth(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) % 21)
    world_from_camera = np.eye(4)
    world_from_camera[:3, 3] = 1 / 3
    box = Box("chair", np.eye(4), (1.0, 2.0, 3.0))
    return dataclasses.replace(
        make_frame(),
        scene_id="scène 1/2",
        world_from_camera=world_from_camera,
        timestamp=0.5,
        semantic=labels,
        instance=labels,
        caption="ein Büro",
        boxes=(box,),
    )


def make_frame() -> Frame:
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(buffer, format="JPEG")
    K = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    return Frame(
        dataset="made",
        scene_id="scene",
        frame_id="frame",
        color=buffer.getvalue(),
        color_format="jpg",
        depth=encode_depth(rng.integers(0, 4000, (48, 64)).astype(np.uint16)),
        depth_scale=1000.0,
        K_depth=K,
        K_color=K,
        color_from_depth=np.eye(4),
    )
