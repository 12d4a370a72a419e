"""Samples held against their own numbers without decoding an image: what packing asks of bytes that it only copies."""

from __future__ import annotations

from shards.errors import ShardError
from shards.headers import jpeg_size, png_size
from shards.images import MAX_PIXELS, BrokenImageError, check_encoded, is_depth_png
from shards.sample import Sample
from shards.scene import Scene, check_scene
from shards.schema import Frame, check_numbers, decode_frame_depth, size_of_camera, size_of_labels


def check_sample_headers(sample: Sample, where: str) -> None:
    """As `check_frame_headers`, of a sample of either kind: a scene has no images, and is held against its numbers."""
    if isinstance(sample, Scene):
        check_scene(sample, where)
    else:
        check_frame_headers(sample, where)


def check_image_heads(frame: Frame, where: str) -> None:
    """Hold the sizes that the first bytes of the images announce against a frame's numbers: nothing else is there yet.

    Raises:
        ShardError: an image is of another kind, too large, or its size does not fit its K.
    """
    check_numbers(frame, where)
    color = png_size(frame.color) if frame.color_format == "png" else jpeg_size(frame.color)
    depth = frame.depth_size or (png_size(frame.depth) if is_depth_png(frame.depth) else None)
    for name, size, K in (("color", color, frame.K_color), ("depth", depth, frame.K_depth)):
        if size is None or not 0 < size[0] * size[1] <= MAX_PIXELS:
            raise ShardError(
                f"{where}: {name} begins like no image that is read (size {size}); restore the file and pack again"
            )
        size_of_camera(name, K, where)(size)


def check_frame_headers(frame: Frame, where: str) -> None:
    """Hold what the headers of the images say against a frame's numbers, and the images against their checksums.

    Args:
        frame: to check.
        where: names the frame in messages: a key, a file.

    Raises:
        ShardError: an image is of another kind, size or length than it should be, or damaged as far as that shows
            without decoding; a size does not fit its K or the depth grid; a transform is not rigid.
    """
    check_numbers(frame, where)
    size: list[tuple[int, int]] = []

    def fits_depth(found: tuple[int, int]) -> None:
        size_of_camera("depth", frame.K_depth, where)(found)
        size.append(found)

    try:
        check_encoded(frame.color, "color", frame.color_format, size_of_camera("color", frame.K_color, where))
        if frame.depth_format == "zst" or not is_depth_png(frame.depth):
            # It has no header that says more, and is decoded in the time that the checksums of a PNG take; what is no
            # depth at all is described there too.
            height, width = decode_frame_depth(frame, where).shape
            size.append((width, height))
        else:
            check_encoded(frame.depth, "depth", "png", fits_depth)
        for name, data in (("semantic", frame.semantic), ("instance", frame.instance)):
            if data is not None:
                check_encoded(data, "labels", "png", size_of_labels(name, size[0], where))
    except BrokenImageError as error:
        raise ShardError(f"{where}: {error}; restore the file, or remove the frame, and pack again") from error
