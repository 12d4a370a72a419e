"""Frames at the size the towers see: pixels stay where K says they are, whatever part of a JPEG was decoded."""

import io

import numpy as np
import pytest
from PIL import Image

from shards.images import encode_depth
from shards.schema import Frame
from t4p.data.decode import decode_frame, with_color_of


def make_frame(size: tuple[int, int]) -> Frame:
    """A colour that says where its ray points: red is x / z, green y / z, in steps of 1/100."""
    height, width = size
    K = np.array([[width * 0.9, 0, width / 2 + 1.3], [0, width * 0.9, height / 2 - 2.2], [0, 0, 1]])
    rows, cols = np.mgrid[:height, :width]
    rays = np.stack([(cols - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1], np.zeros(size)], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray((rays * 100 + 128).round().astype(np.uint8)).save(buffer, "JPEG", quality=98, subsampling=0)
    depth = encode_depth(np.full((48, 64), 1000, np.uint16))
    K_depth = np.array([[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]])
    return Frame("test", "room", "0", buffer.getvalue(), "jpg", depth, 1000.0, K_depth, K, np.eye(4))


@pytest.mark.parametrize("size", [(480, 640), (483, 645), (968, 1296), (121, 163)])
@pytest.mark.parametrize("color_size", [(240, 320), (96, 128), None])
def test_the_ray_of_a_pixel_is_that_of_its_colour(size, color_size):
    found = decode_frame(make_frame(size), color_size)
    height, width = found.color.shape[:2]
    assert (height, width) == (color_size or size)
    rows, cols = np.mgrid[2 : height - 2, 2 : width - 2]
    x, y = (cols - found.K_color[0, 2]) / found.K_color[0, 0], (rows - found.K_color[1, 2]) / found.K_color[1, 1]
    inner = (found.color[2:-2, 2:-2].astype(float) - 128) / 100
    pixel = 1 / found.K_color[0, 0]
    for seen, wanted in ((inner[..., 0], x), (inner[..., 1], y)):
        assert abs((seen - wanted).mean()) < 0.1 * pixel + 3e-4  # a thirtieth of a step of colour: JPEG's rounding
        assert abs(seen - wanted).max() < pixel + 0.05


def test_a_part_of_a_jpeg_looks_like_the_whole_one_made_smaller():
    frame = make_frame((483, 645))
    found, whole = decode_frame(frame, (96, 128)), with_color_of(decode_frame(frame), (96, 128))
    np.testing.assert_array_equal(found.K_color, whole.K_color)
    assert abs(found.color.astype(int) - whole.color.astype(int)).max() <= 3
