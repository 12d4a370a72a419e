"""Text files as other people's tools write them: read alike, or refused with the cause."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ShardError
from shards.sources.cameras import (
    Camera,
    camera_of_open3d,
    inverse_of_rigid,
    pinhole,
    product,
    read_camera,
    rigid_from_quaternion,
)
from shards.sources.raw_text import columns_of, content_lines, read_matrix, read_text

K = np.array([[517.3, 0.0, 318.6], [0.0, 516.5, 255.3], [0.0, 0.0, 1.0]])
MARKS = {"utf-8": b"", "utf-8-sig": b"", "utf-16": b"", "utf-16-be": b"\xfe\xff"}


def written(matrix: np.ndarray, rng: random.Random) -> str:
    """A matrix as some tool might write it."""
    blank = rng.choice([" ", "  ", "\t", ",", ", ", " ,", ";", "; "])
    end = rng.choice(["\n", "\r\n", "\n\n", " \r\n", "\r\n \r\n"])
    number = rng.choice(["%.9g", "%.18e", "%f"])
    lines = [blank.join(number % value for value in row) for row in matrix]
    head = rng.choice(["", "# fx 0 cx", "#\n# intrinsics, pixels", "\n\n"])
    return head + end + rng.choice(["", "  "]) + end.join(lines) + rng.choice(["", end, end + "# end"])


@pytest.mark.parametrize("seed", range(200))
def test_a_matrix_is_read_however_it_is_written(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    encoding = rng.choice(sorted(MARKS))
    path = tmp_path / "K.txt"
    path.write_bytes(MARKS[encoding] + written(K, rng).encode(encoding))
    np.testing.assert_allclose(read_matrix(path), K, rtol=1e-6)
    np.testing.assert_allclose(np.reshape(read_camera(path).K, (3, 3)), K, rtol=1e-6)


@pytest.mark.parametrize("text", ["517,3 0 318,6\n0 516,5 255,3\n0 0 1", "517,3;0;318,6\n0;516,5;255,3\n0;0;1"])
def test_a_decimal_comma_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "K.txt").write_text(text)
    with pytest.raises(
        ShardError, match=r"K.txt, line 1: '517,3' has a decimal comma; wanted numbers with a decimal po"
    ):
        read_matrix(tmp_path / "K.txt")


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "K.txt").write_bytes(b"5 0 \xff\xfe\x00")
    with pytest.raises(ShardError, match=r"K.txt: not a text file .*; save it as UTF-8"):
        read_text(tmp_path / "K.txt")


def test_lines_count_as_an_editor_counts_them() -> None:
    assert list(content_lines("# a\n\n b \r\n#c\nd")) == [(3, "b"), (5, "d")]
    assert columns_of("1.5, a.png ;2", "here") == ["1.5", "a.png", "2"]


class TestCameras:
    def test_a_size_says_what_the_numbers_count(self, tmp_path: Path) -> None:
        (tmp_path / "K.txt").write_text("1596 1596 959.5 719.5 1920 1440")
        camera = read_camera(tmp_path / "K.txt")
        assert camera == pinhole(1596, 1596, 959.5, 719.5, (1920, 1440))
        assert camera.matrix((256, 192), "here")[0].tolist() == pytest.approx([212.8, 0, 127.5])
        assert camera.matrix((1920, 1440), "here").tolist() == np.reshape(camera.K, (3, 3)).tolist()
        with pytest.raises(
            ShardError, match=r"here: the image is 640x360 and its intrinsics are for 1920x1440, which is"
        ):
            camera.matrix((640, 360), "here")

    @pytest.mark.parametrize("seed", range(50))
    def test_a_pixel_sees_the_same_at_every_size(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        size, other = (1920, 1440), (int(320 * rng.integers(1, 8)), 0)
        other = (other[0], other[0] * 3 // 4)
        camera = pinhole(*rng.uniform(800, 2000, 2), *rng.uniform(500, 1400, 2), size)
        corner = np.array([rng.uniform(0, 1), rng.uniform(0, 1), 1.0])  # of the image, as a share

        def direction(K: np.ndarray, size: tuple[int, int]) -> np.ndarray:
            return np.linalg.inv(K) @ [corner[0] * size[0] - 0.5, corner[1] * size[1] - 0.5, 1]

        here, there = (direction(camera.matrix(one, "here"), one) for one in (size, other))
        np.testing.assert_allclose(here, there, atol=1e-9)

    def test_open3d_writes_columns(self) -> None:
        fields = {"width": 640, "height": 480, "intrinsic_matrix": [600, 0, 0, 0, 601, 0, 320, 240, 1]}
        assert camera_of_open3d(fields, "here") == Camera((600, 0, 320, 0, 601, 240, 0, 0, 1), (640, 480))
        for broken in (
            {},
            fields | {"intrinsic_matrix": [1] * 8},
            fields | {"width": 0},
            [1],
            fields | {"height": "x"},
        ):
            with pytest.raises(ShardError, match="here: "):
                camera_of_open3d(broken, "here")

    def test_a_focal_length_below_0_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "K.txt").write_text("481.2 -480 319.5 239.5")
        with pytest.raises(ShardError, match=r"fy is -480; .* the y axis of the camera points up .*: write fy as 480"):
            read_camera(tmp_path / "K.txt")

    def test_a_quaternion_turns_as_its_matrix(self) -> None:
        quarter = rigid_from_quaternion((1, 2, 3), (0, 0, 0.5**0.5, 0.5**0.5))
        np.testing.assert_allclose(quarter @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)

    @pytest.mark.parametrize("seed", range(20))
    def test_rigid_transforms_are_inverted_and_chained_without_blas(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        first, second = (
            rigid_from_quaternion(rng.normal(size=3), quaternion / np.linalg.norm(quaternion))
            for quaternion in rng.normal(size=(2, 4))
        )
        np.testing.assert_allclose(product(inverse_of_rigid(first), second), np.linalg.inv(first) @ second, atol=1e-12)
