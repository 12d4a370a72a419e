"""`t4p.frames`: what a packed frame decodes to, by its key."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import CallError
from shards.reader import DatasetReader
from t4p.data.frames import frames

OLDER = Path(__file__).resolve().parents[3] / "data" / "older"


def test_every_frame_comes_once_in_the_order_of_packing_with_the_pixels_metres_and_matrices_that_were_packed() -> None:
    dataset = DatasetReader(str(OLDER / "frames"))
    found = list(frames(OLDER / "frames"))
    assert [frame.key for frame in found] == list(dataset.index(0).keys)
    for index, frame in enumerate(found):
        stored = dataset.read_frame(0, index)
        units = np.asarray(Image.open(io.BytesIO(stored.depth)))
        assert (frame.color.dtype, frame.color.shape) == (np.uint8, (48, 64, 3))
        np.testing.assert_array_equal(frame.color, np.asarray(Image.open(io.BytesIO(stored.color)).convert("RGB")))
        assert frame.depth.dtype == np.float32
        np.testing.assert_array_equal(frame.depth, units.astype(np.float32) / np.float32(stored.depth_scale))
        for name in ("K_color", "K_depth", "color_from_depth", "world_from_camera"):
            np.testing.assert_array_equal(getattr(frame, name), getattr(stored, name))
    assert len({frame.depth.tobytes() for frame in found}) == len(found)


@pytest.mark.parametrize(("url", "message"), [("scenes", "holds scenes, wanted RGB-D frames"), ("no", "no dataset")])
def test_what_holds_no_frames_is_refused_before_the_first_one(url: str, message: str) -> None:
    with pytest.raises(CallError, match=message):
        frames(str(OLDER / url))
