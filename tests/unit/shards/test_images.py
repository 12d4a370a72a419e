"""Depth images in and out."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from shards.headers import check_jpeg_markers, jpeg_size
from shards.images import (
    BrokenImageError,
    decode_any_depth,
    decode_color,
    decode_depth,
    decode_labels,
    decode_reduced_color,
    encode_depth,
    is_depth_png,
    pack_depth,
)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("seed", range(20))
def test_depth_round_trips_through_png_and_is_the_same_bytes_twice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = rng.integers(0, 65536, rng.integers(1, 40, 2)).astype(np.uint16)
    data = encode_depth(depth)
    assert is_depth_png(data)
    assert data == encode_depth(depth.copy(order="F"))
    assert decode_depth(data).dtype == np.uint16
    np.testing.assert_array_equal(decode_depth(data), depth)
    np.testing.assert_array_equal(decode_any_depth(data), depth)


@pytest.mark.parametrize("seed", range(10))
def test_depth_round_trips_through_zstd(seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = rng.integers(0, 65536, rng.integers(1, 40, 2)).astype(np.uint16)
    data, (height, width) = pack_depth(depth), depth.shape
    np.testing.assert_array_equal(decode_depth(data, size=(width, height)), depth)
    assert decode_depth(data, size=(width, height)).dtype == np.uint16
    without = decode_depth(data, size=(width, height), no_reading=int(depth[0, 0]))
    np.testing.assert_array_equal(without, np.where(depth == depth[0, 0], 0, depth))
    with pytest.raises(BrokenImageError, match=rf"a zstd frame of {2 * width * height} bytes, {width + 1}x"):
        decode_depth(data, size=(width + 1, height))
    for broken in (data[:-1], data[: len(data) // 2], data + b"x", b"", data[:20] + bytes([data[20] ^ 1]) + data[21:]):
        with pytest.raises(BrokenImageError, match=r"depth (cannot be|is not) decoded"):
            decode_depth(broken, size=(width, height))


def test_colour_has_the_pixels_that_pillow_gives() -> None:
    rng = np.random.default_rng(0)
    for shape in ((48, 64, 3), (33, 17, 3), (20, 30)):
        smooth = np.cumsum(rng.integers(-3, 4, shape), axis=0).astype(np.uint8)
        for options in ({}, {"subsampling": 0}, {"progressive": True}, {"quality": 40}):
            buffer = io.BytesIO()
            Image.fromarray(smooth).save(buffer, format="JPEG", **options)
            data = buffer.getvalue()
            wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            np.testing.assert_array_equal(decode_color(data, "jpg"), wanted)
            assert jpeg_size(data) == (shape[1], shape[0])
            check_jpeg_markers(data)
            check_jpeg_markers(data + data)  # a second image behind it, as phones have
            for cut in (10, len(data) // 2, len(data) - 1):
                with pytest.raises(ValueError, match=r"cut short|no mark|without"):
                    check_jpeg_markers(data[:cut])


@pytest.mark.parametrize(
    ("size", "at_least", "reduction"),
    [
        ((96, 128), None, 1),
        ((96, 128), (49, 64), 1),
        ((96, 128), (48, 64), 2),
        ((96, 128), (20, 30), 4),
        ((97, 131), (13, 17), 8),
        ((97, 131), (13, 18), 4),
    ],
)
def test_a_jpeg_may_come_at_a_part_of_its_size_and_each_pixel_stands_where_it_should(size, at_least, reduction) -> None:
    rows, cols = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([rows * 2, cols, np.full(size, 100)], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=98, subsampling=0)
    found = decode_reduced_color(buffer.getvalue(), "jpg", at_least)
    assert (found.size, found.reduction) == (size, reduction)
    assert found.pixels.shape == (-(-size[0] // reduction), -(-size[1] // reduction), 3)
    # Row r of the reduced image has its centre at (r + 1 / 2) * reduction - 1 / 2 of the whole one.
    inner = found.pixels[1:-1, 1:-1].astype(float)
    row, col = (np.arange(1, extent - 1) * reduction + (reduction - 1) / 2 for extent in found.pixels.shape[:2])
    assert abs(inner[..., 0] - 2 * row[:, None]).max() < 4
    assert abs((inner[..., 0] - 2 * row[:, None]).mean()) < 0.25
    assert abs((inner[..., 1] - col).mean()) < 0.25


@pytest.mark.parametrize("kind", ["PPM", "TIFF"])
def test_other_sixteen_bit_images_can_be_depth(kind: str) -> None:
    depth = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    np.testing.assert_array_equal(decode_any_depth(encoded(depth, kind)), depth)


def test_what_is_not_depth_is_described() -> None:
    gray = np.zeros((20, 30), np.uint8)
    with pytest.raises(
        BrokenImageError, match=r"found a 30x20 8-bit grayscale PNG of .* wanted a 16-bit grayscale PNG"
    ):
        decode_depth(encoded(gray, "PNG"))
    with pytest.raises(BrokenImageError, match="found a 30x20 8-bit RGB PNG of"):
        decode_any_depth(encoded(np.zeros((20, 30, 3), np.uint8), "PNG"))
    with pytest.raises(BrokenImageError, match="found a JPEG of"):
        decode_depth(encoded(gray, "JPEG"))
    with pytest.raises(BrokenImageError, match=r"found 5 bytes starting with b'hello'"):
        decode_any_depth(b"hello")
    with pytest.raises(BrokenImageError, match="values from -1 to 0, wanted 0 to 65535"):
        decode_any_depth(encoded(np.array([[0, -1]], np.int32), "TIFF"))


def test_every_truncation_of_a_depth_image_is_noticed() -> None:
    data = encode_depth(np.random.default_rng(0).integers(0, 9000, (24, 32)).astype(np.uint16))
    for length in [*range(0, len(data), 37), len(data) - 1]:
        with pytest.raises(BrokenImageError):
            decode_depth(data[:length])
    decode_depth(data + b"more")  # what follows the end mark is not the image's


@pytest.mark.parametrize("seed", range(20))
def test_every_flipped_bit_of_a_png_is_noticed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = encode_depth(rng.integers(0, 9000, (24, 32)).astype(np.uint16))
    color = encoded(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8), "PNG")
    for position in rng.integers(8, len(depth), 40).tolist():
        for data, decode in ((depth, decode_depth), (color, lambda data: decode_color(data, "png"))):
            flipped = bytearray(data)
            flipped[position] ^= 1 << int(rng.integers(8))
            with pytest.raises(BrokenImageError):
                decode(bytes(flipped))


def test_a_jpeg_of_a_phone_is_a_jpeg() -> None:
    buffer = io.BytesIO()
    pixels = np.zeros((24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format="MPO", save_all=True, append_images=[Image.fromarray(pixels)])
    with Image.open(buffer) as image:
        assert image.format == "MPO"
    assert np.array_equal(decode_color(buffer.getvalue(), "jpg"), pixels)
    with pytest.raises(BrokenImageError, match="wanted a JPEG"):
        decode_color(encoded(pixels, "PNG"), "jpg")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_keep_their_ids(dtype: type) -> None:
    ids = np.arange(200, dtype=dtype).reshape(10, 20)
    assert decode_labels(encoded(ids, "PNG")).tolist() == ids.tolist()
    with pytest.raises(BrokenImageError, match="wanted a grayscale PNG"):
        decode_labels(encoded(np.zeros((4, 4, 3), np.uint8), "PNG"))


def test_a_tiff_whose_width_is_a_fraction_is_told() -> None:
    data = bytearray(encoded(np.ones((4, 5), np.uint16), "TIFF"))
    entry = struct.pack("<HHI", 256, 4, 1)  # ImageWidth, one number of 32 bits
    assert entry in data
    at = data.index(entry)
    data[at : at + 8] = struct.pack("<HHI", 256, 5, 1)  # a rational
    with pytest.raises(BrokenImageError, match="depth cannot be decoded"):
        decode_any_depth(bytes(data))
