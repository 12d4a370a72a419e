"""Encoded images in and out: sizes, strict decoding, and the one way this project encodes a depth image."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
import zstandard
from numpy.typing import NDArray
from PIL import Image

from shards.doors.text import shown
from shards.errors import ShardError
from shards.headers import PNG_SIGNATURE, check_jpeg_markers, check_png_chunks, jpeg_size, png_size

MAX_PIXELS = 50_000_000  # the largest cameras of phones; 150 MB as RGB
# A JPEG with a preview or a second view behind it, as phones write them (Pillow's MPO), is opened as a JPEG.
_COLOR_FORMATS = {"jpg": ("JPEG",), "png": ("PNG",)}
_RAW_DEPTH_FORMATS = ("PNG", "PPM", "TIFF")
_JPEG_QUALITY = 92
_EXIF_WITHIN, _EXIF_ORIENTATION, _EXIF_LOCATION = 1 << 17, 0x0112, 0x8825
# All the ways in which Pillow reports damaged bytes.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,  # a TIFF whose width is a fraction
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


# What else people have in the place of an image: kind, and the bytes that tell it at a place.
_OTHER_KINDS = (
    ("WebP image", 8, b"WEBP"),
    ("BMP image", 0, b"BM"),
    ("GIF image", 0, b"GIF8"),
    ("TIFF image", 0, b"II*\0"),
    ("TIFF image", 0, b"MM\0*"),
    ("HEIC or AVIF image", 4, b"ftyp"),
    ("JPEG XL image", 0, b"\xff\x0a"),
    ("JPEG 2000 image", 4, b"jP  "),
    ("OpenEXR image", 0, b"v/1\x01"),
    ("NumPy file", 0, b"\x93NUMPY"),
    ("PGM or PPM image", 0, b"P5"),
    ("PGM or PPM image", 0, b"P6"),
    ("PFM image", 0, b"Pf"),
    ("HDF5 file", 0, b"\x89HDF"),
    ("zip archive", 0, b"PK\x03\x04"),
)

# Raises ShardError where the (width, height) that a header announces is not that of the image.
Fits = Callable[[tuple[int, int]], None]


class BrokenImageError(ShardError):
    """Bytes that are not the image they should be; says what was found and wanted, the caller says where."""


def check_encoded(data: bytes, what: str, image_format: str, fits: Fits) -> None:
    """What can be known of an image without decoding it: its size, and that it is whole as its format tells.

    Args:
        data: the encoded image.
        what: it is, in messages.
        image_format: "jpg" or "png".
        fits: as in `open_image`.

    Raises:
        BrokenImageError: another kind of image, one of more than MAX_PIXELS, or cut, or damaged (of a PNG every bit is
            covered by its checksums, of a JPEG only the marks between its parts are looked at).
        ShardError: as `fits` does.
    """
    size = png_size(data) if image_format == "png" else jpeg_size(data)
    if size is None:
        raise BrokenImageError(f"{what} cannot be decoded: found {_describe(data)}, wanted a {image_format.upper()}")
    if not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise BrokenImageError(f"{what} is {size[0]}x{size[1]}; at most {MAX_PIXELS} pixels are read")
    fits(size)
    try:
        if image_format == "png":
            check_png_chunks(data)
        else:
            check_jpeg_markers(data)
    except ValueError as error:
        raise BrokenImageError(f"{what} cannot be decoded: found {_describe(data)} ({shown(error)})") from error


def is_depth_png(data: bytes) -> bool:
    """Whether the header announces a 16-bit grayscale PNG (nothing is decoded)."""
    return data[:8] == PNG_SIGNATURE and data[12:16] == b"IHDR" and data[24:26] == b"\x10\x00"


def decode_depth(
    data: bytes,
    fits: Fits | None = None,
    *,
    size: tuple[int, int] | None = None,
    no_reading: int = 0,
    check_chunks: bool = True,
) -> NDArray[np.uint16]:
    """Decode a packed depth image; the other arguments are those of `open_image`.

    Args:
        size: (width, height) of raw rows packed by zstd, which have no header that says it; None of a PNG.
        no_reading: value that means no reading besides 0.

    Returns:
        (H, W) uint16, in the units of the frame's depth_scale; 0 means no reading.

    Raises:
        BrokenImageError: not a 16-bit grayscale PNG (or a zstd frame of that size), or it does not decode.
    """
    if size is not None:
        depth = _unpack_rows(data, size, fits)
    elif is_depth_png(data):
        image = open_image(data, "depth", ("PNG",), fits, check_chunks=check_chunks)
        depth = np.asarray(image, dtype=np.uint16)
    else:
        raise BrokenImageError(f"depth cannot be decoded: found {_describe(data)}, wanted a 16-bit grayscale PNG")
    if no_reading and (invalid := depth == no_reading).any():
        depth = np.where(invalid, np.uint16(0), depth)
    return depth


def _unpack_rows(data: bytes, size: tuple[int, int], fits: Fits | None) -> NDArray[np.uint16]:
    """(H, W) uint16 out of a zstd frame of raw little-endian rows; the arguments are those of `decode_depth`."""
    width, height = size
    if not 0 < width * height <= MAX_PIXELS:
        raise BrokenImageError(f"depth is not decoded: {width}x{height}; at most {MAX_PIXELS} pixels are read")
    if fits is not None:
        fits(size)
    wanted = 2 * width * height
    try:
        # What the frame announces is what is allocated: looked at before.
        if (found := zstandard.get_frame_parameters(data).content_size) != wanted:
            raise BrokenImageError(
                f"depth is not decoded: a zstd frame of {found} bytes, {width}x{height} has {wanted}"
            )
        rows = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BrokenImageError(f"depth cannot be decoded: found {_describe(data)} ({shown(error)})") from error
    return np.frombuffer(rows, "<u2").reshape(height, width).astype(np.uint16, copy=False)


def decode_any_depth(data: bytes) -> NDArray[np.uint16]:
    """Decode a depth image of a raw dataset: one channel of integers up to 65535, PNG, PGM or TIFF.

    Raises:
        BrokenImageError: another kind of image, values out of range, or it does not decode.
    """
    image = open_image(data, "depth", _RAW_DEPTH_FORMATS)
    if image.mode not in ("I;16", "I;16B", "I;16L", "I"):
        raise BrokenImageError(
            f"depth cannot be decoded: found {_describe(data)} (Pillow mode {image.mode}), wanted one 16-bit channel"
        )
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise BrokenImageError(f"depth holds values from {values.min()} to {values.max()}, wanted 0 to 65535")
    return values.astype(np.uint16)


def encode_depth(depth: NDArray[np.uint16]) -> bytes:
    """Encode (H, W) uint16 as a 16-bit grayscale PNG; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    # Level 4 takes less than half the time of the usual 6 for 8 % more bytes (7-Scenes, one frame).
    Image.fromarray(np.ascontiguousarray(depth, dtype=np.uint16)).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_labels(labels: NDArray[np.integer]) -> bytes:
    """Encode (H, W) ids up to 65535 as a grayscale PNG, of 8 bits where they fit; equal ids give equal bytes."""
    buffer = io.BytesIO()
    bits = np.uint8 if labels.size == 0 or labels.max() < 256 else np.uint16
    Image.fromarray(np.ascontiguousarray(labels, dtype=bits)).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def encode_color(pixels: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """(h, w, 3) uint8, brought to (width, height), as a JPEG; equal pixels give equal bytes."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    image.save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def kind_of_color(data: bytes) -> str:
    """ "jpg" or "png": what a colour image is by its bytes, whatever its name.

    Everything that a decoder would change without a word is refused: sixteen bits of grey would come out white, and a
    picture that its EXIF says to turn does not lie on its depth as it is stored, or not as it is seen.

    Raises:
        BrokenImageError: another kind of image, or one of those.
    """
    if data[:3] == b"\xff\xd8\xff":
        kind = "jpg"
    elif data[:8] == PNG_SIGNATURE:
        kind = "png"
        if data[12:16] == b"IHDR" and data[24:25] == b"\x10" and data[25:26] in (b"\x00", b"\x04"):
            raise BrokenImageError(
                f"color is {_describe(data)}, of which a decoder would make white; wanted 8 bits a channel: is it the "
                "depth image, or infrared? Convert it, or give the colour image"
            )
    else:
        raise BrokenImageError(f"color is {_describe(data)}, wanted a JPEG or PNG; convert the images, and pack again")
    if (turn := _orientation(data)) != 1:
        raise BrokenImageError(
            f"color has EXIF orientation {turn}: programs show it turned or mirrored, and it is stored otherwise; if "
            "it lies on its depth as it is stored, remove the mark (exiftool -Orientation= FILES), else turn its "
            "pixels (jpegtran, or mogrify -auto-orient)"
        )
    return kind


def require_ids(data: bytes) -> None:
    """Raise BrokenImageError where the header of a label image announces colours instead of ids."""
    if data[:8] == PNG_SIGNATURE and data[25:26] in (b"\x02", b"\x04", b"\x06"):
        raise BrokenImageError(
            f"labels are {_describe(data)}, a picture of labels; wanted a grayscale or palette PNG of class ids: turn "
            "its colours back into ids by the legend that they were drawn with"
        )


def without_location(data: bytes) -> bytes:
    """A JPEG without its EXIF and XMP parts where these say where it was taken; else the bytes as they are.

    Not a pixel changes. What is no sound JPEG stays as it is, for others to refuse.
    """
    if not _says_location(data):
        return data
    kept, place = [data[:2]], 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":
        length = 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        part = data[place : place + length]
        if not (part[1:2] == b"\xe1" and part[4:].startswith((b"Exif\0", b"http://ns.adobe.com/"))):
            kept.append(part)
        place += length
    return b"".join([*kept, data[place:]])


def _says_location(data: bytes) -> bool:
    """Whether the EXIF of a JPEG has a GPS part, or its XMP speaks of GPS."""
    if data[:3] != b"\xff\xd8\xff":
        return False
    head = data[:_EXIF_WITHIN]
    if b"http://ns.adobe.com/" in head and b"GPS" in head:
        return True
    if b"Exif\0\0" not in head:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _EXIF_LOCATION in Image.open(io.BytesIO(data), formats=("JPEG",)).getexif()
    except _PILLOW_ERRORS:
        return False


def _orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG or PNG, 1 where there is none or it cannot be read."""
    if b"Exif\0\0" not in data[:_EXIF_WITHIN] and b"eXIf" not in data[:_EXIF_WITHIN]:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Image.open(io.BytesIO(data), formats=("JPEG", "PNG")).getexif().get(_EXIF_ORIENTATION, 1)
    except _PILLOW_ERRORS:
        return 1
    return found if isinstance(found, int) and 2 <= found <= 8 else 1


def pack_depth(depth: NDArray[np.uint16]) -> bytes:
    """(H, W) uint16 as a zstd frame of raw little-endian rows: decodes 6 times faster than a PNG, equal bytes."""
    # On four of five sensors smaller than PNG; higher levels cost more time than bytes.
    compressor = zstandard.ZstdCompressor(level=9, write_checksum=True, write_content_size=True)
    return compressor.compress(np.ascontiguousarray(depth, dtype="<u2").tobytes())


class ReducedColor(NamedTuple):
    """A colour image at a part of its size.

    Attributes:
        pixels: (h, w, 3) uint8; row r stands for the rows from r * reduction on, the last one for what is left.
        size: (height, width) of the whole image.
        reduction: 1, 2, 4 or 8.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    reduction: int


def decode_color(
    data: bytes, color_format: str, fits: Fits | None = None, *, check_chunks: bool = True
) -> NDArray[np.uint8]:
    """Decode a packed colour image, "jpg" or "png", to (H, W, 3) uint8; the other arguments are those of `open_image`.

    Raises:
        BrokenImageError: the bytes are of another kind, or do not decode.
    """
    return decode_reduced_color(data, color_format, None, fits, check_chunks=check_chunks).pixels


def decode_reduced_color(
    data: bytes,
    color_format: str,
    at_least: tuple[int, int] | None,
    fits: Fits | None = None,
    *,
    check_chunks: bool = True,
) -> ReducedColor:
    """Decode a packed colour image where fewer pixels will do: a JPEG is, in less time, at 1/2, 1/4 or 1/8 of its size.

    Args:
        at_least: (height, width) that must be left; None decodes all pixels. The rest as for `decode_color`.

    Raises:
        BrokenImageError: as `decode_color`.
    """
    if color_format == "jpg" and (reduced := _decode_jpeg(data, at_least, fits)) is not None:
        return reduced
    image = open_image(data, "color", _COLOR_FORMATS[color_format], fits, check_chunks=check_chunks)
    return ReducedColor(np.asarray(image.convert("RGB")), (image.height, image.width), 1)


def _decode_jpeg(data: bytes, at_least: tuple[int, int] | None, fits: Fits | None) -> ReducedColor | None:
    """By libjpeg-turbo, in half of Pillow's time; None for what Pillow should judge: anything unusual."""
    size = jpeg_size(data)
    if size is None or not 0 < size[0] * size[1] <= MAX_PIXELS:
        return None
    if fits is not None:
        fits(size)
    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in ("Gray", "YCbCr", "RGB"):
            return None
        # Not the fast transforms: the pixels are those that Pillow gives.
        width, height = size
        reduction = _reduction((height, width), at_least)
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data,
            fastdct=False,
            fastupsample=False,
            min_height=-(-height // reduction),
            min_width=-(-width // reduction),
            min_factor=reduction,
        )
    except ValueError:
        return None
    return ReducedColor(pixels, (height, width), reduction)


def _reduction(size: tuple[int, int], at_least: tuple[int, int] | None) -> int:
    """How many rows and columns may become one; both sizes are (height, width)."""
    if at_least is None:
        return 1
    fitting = (
        k for k in (8, 4, 2) if all(-(-whole // k) >= wanted for whole, wanted in zip(size, at_least, strict=True))
    )
    return next(fitting, 1)


def decode_labels(data: bytes, fits: Fits | None = None) -> NDArray[np.uint16]:
    """Decode a label image, 8- or 16-bit grayscale or palette PNG, to (H, W) uint16 ids; `fits` as in `open_image`.

    Raises:
        BrokenImageError: another kind of image, or it does not decode.
    """
    image = open_image(data, "labels", ("PNG",), fits)
    if image.mode not in ("L", "P", "I;16", "I"):
        raise BrokenImageError(f"labels cannot be decoded: found {_describe(data)}, wanted a grayscale PNG")
    return np.asarray(image).astype(np.uint16)


def open_image(
    data: bytes, what: str, formats: tuple[str, ...], fits: Fits | None = None, *, check_chunks: bool = True
) -> Image.Image:
    """The one way in for encoded images: the header alone says whether the pixels are decoded.

    Args:
        data: the encoded image.
        what: it is, in messages.
        formats: of Pillow, that it may have: others are not even looked for.
        fits: raises where the size is not the one that belongs to the image.
        check_chunks: hold every chunk of a PNG against its CRC, which Pillow does not do for those of pixels.

    Raises:
        BrokenImageError: another kind of image, one of more than MAX_PIXELS, or it does not decode.
        ShardError: as `fits` does.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is less
            image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise BrokenImageError(
            f"{what} is not decoded: {_describe(data)}; at most {MAX_PIXELS} pixels are read"
        ) from error
    except _PILLOW_ERRORS as error:
        raise BrokenImageError(
            f"{what} cannot be decoded: found {_describe(data)}, wanted a {' or '.join(formats)}"
        ) from error
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise BrokenImageError(
            f"{what} is not decoded: {_describe(data)} of {width}x{height}; at most {MAX_PIXELS} pixels are read"
        )
    if fits is not None:
        fits(image.size)
    try:
        if check_chunks and data[:8] == PNG_SIGNATURE:
            check_png_chunks(data)
        image.load()
    except _PILLOW_ERRORS as error:
        raise BrokenImageError(f"{what} cannot be decoded: found {_describe(data)} ({shown(error)})") from error
    return image


def _describe(data: bytes) -> str:
    """What the bytes look like, in words, from their header alone."""
    if not data:
        return "an empty file"
    if data[:8] == PNG_SIGNATURE and len(data) >= 26:
        width, height, bits, kind = struct.unpack(">IIBB", data[16:26])
        kinds = {0: "grayscale", 2: "RGB", 3: "palette", 4: "grayscale with alpha", 6: "RGBA"}
        return f"a {width}x{height} {bits}-bit {kinds.get(kind, 'unknown')} PNG of {len(data)} bytes"
    if data[:3] == b"\xff\xd8\xff":
        return f"a JPEG of {len(data)} bytes"
    for kind, place, mark in _OTHER_KINDS:
        if data[place : place + len(mark)] == mark:
            return f"a {kind} of {len(data)} bytes"
    return f"{len(data)} bytes starting with {data[:8]!r}"
