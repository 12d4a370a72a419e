"""The frames of a micro-batch become voxels and pairs, on any device: one sort of all points, and one of what it finds.

A key of the first sort is (frame, voxel, decoder pixel): equal keys are a pair of L_d, and what is in front a voxel.
A key of the second is (frame, bottleneck voxel, CLIP cell), of the pairs that the first has found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t4p.data.hashing import draw_words, smallest_of_frames
from t4p.data.lifting import Lift, SeparablePixels, look_up_pixels
from t4p.data.sample import PreparedFrame, SampleSettings
from t4p.data.tensors import numbers_beside
from t4p.data.transforms import dropped_channels, jittered, voxel_features
from t4p.data.voxels import (
    FIXED_POINT,
    Groups,
    KeyLayout,
    Tally,
    cells_along,
    group,
    joined,
    merge_equal,
    merge_neighbours,
)

_CHANNEL_BITS = 21  # of each colour's sum, three to a word: over MOST_POINTS_OF_PIXEL points
_PIXELS_IN_CACHE = 1 << 15  # of which a CPU makes points at once: ten arrays of 128 kB
_FAR_OFF = 1 << 40  # beyond every voxel


@dataclass(frozen=True, eq=False)
class Pairs:
    """Distinct pairs of a voxel and a place in the image, by ascending frame, voxel and place.

    Attributes:
        frame: (P,) int64.
        voxel: (P,) int64 row among the voxels of all frames.
        place: (P,) int64 in the image of its frame.
        num_points: (P,) int64 points that lie in both.
        words: (P,) int64, drawn for each.
    """

    frame: Tensor
    voxel: Tensor
    place: Tensor
    num_points: Tensor
    words: Tensor

    def at(self, rows: Tensor) -> Pairs:
        """Some of them."""
        return Pairs(self.frame[rows], self.voxel[rows], self.place[rows], self.num_points[rows], self.words[rows])


@dataclass(frozen=True, eq=False)
class PairedFrames:
    """The voxels and pairs of a micro-batch.

    Attributes:
        voxel_coords: (V, 4) int32, (frame, x, y, z), ascending, from 0 in every frame.
        voxel_features: (V, C) float32.
        pairs_e: of bottleneck voxels and CLIP cells.
        pairs_d: of voxels and decoder pixels.
    """

    voxel_coords: Tensor
    voxel_features: Tensor
    pairs_e: Pairs
    pairs_d: Pairs


def pair_frames(frames: Sequence[PreparedFrame], settings: SampleSettings) -> PairedFrames:
    """Lift, voxelise and pair the frames, at least one, on the device of their tensors. Waits for it twice.

    Raises:
        ValueError: they are too many for their extent.
    """
    cell_of_pixel, layout, coarse_layout = _layouts(frames, settings)
    pixels, num_pixels_of_frame = merge_equal(_tally(frames, layout, settings), layout)
    first_of_frames = layout.first_of_frames(pixels.keys)
    frame, place = layout.frames(pixels.keys), layout.places(pixels.keys)
    coords = layout.coords(pixels.keys)
    from_zero = _from_zero(coords, frame, len(frames))
    coarse = torch.sort(
        coarse_layout.packed(frame, [axis >> settings.num_strides for axis in from_zero], cell_of_pixel[place])
    )
    voxels, coarse_voxels, cells = group(
        (pixels.keys >> layout.place_bits, coarse.values >> coarse_layout.place_bits, coarse.values), first_of_frames
    )

    seeds = numbers_beside(frame, [each.seeds for each in frames], torch.int64)
    low = numbers_beside(frame, [each.low for each in frames], torch.int64)
    # A voxel is known by where it is, not by how far from the first of its frame: one more would change all draws.
    code = _code([axis + low[:, k][frame] for k, axis in enumerate(coords)])
    pairs_d = Pairs(frame, voxels.of_row, place, pixels.num_points, draw_words(seeds[:, 1][frame], code, place))
    keys_e = cells.firsts(coarse.values)
    frame_e, place_e = coarse_layout.frames(keys_e), coarse_layout.places(keys_e)
    pairs_e = Pairs(
        frame=frame_e,
        voxel=cells.firsts(coarse_voxels.of_row),
        place=place_e,
        num_points=cells.sums(pixels.num_points[coarse.indices]),
        words=draw_words(seeds[:, 0][frame_e], _code(coarse_layout.coords(keys_e)), place_e),
    )
    frame_of_voxel = voxels.firsts(frame)
    words = draw_words(seeds[:, 2][frame_of_voxel], voxels.firsts(code))
    return PairedFrames(
        voxel_coords=torch.stack([frame_of_voxel, *(voxels.firsts(axis) for axis in from_zero)], dim=1).int(),
        voxel_features=_features(frames, settings.point_features, pixels, voxels, words, frame_of_voxel),
        pairs_e=_drawn(pairs_e, cells.num_of_frame, settings.num_pairs_e),
        pairs_d=_drawn(pairs_d, num_pixels_of_frame, settings.num_pairs_d),
    )


def _layouts(frames: Sequence[PreparedFrame], settings: SampleSettings) -> tuple[Tensor, KeyLayout, KeyLayout]:
    """The CLIP cell of every decoder pixel, and the layouts of the two keys."""
    (rows, cols), (cell_rows, cell_cols) = settings.decoder_grid, settings.cell_grid
    device = frames[0].image.device
    cell_row = torch.arange(rows, device=device) * cell_rows // rows
    cell_col = torch.arange(cols, device=device) * cell_cols // cols
    cell_of_pixel = (cell_row[:, None] * cell_cols + cell_col).view(-1)
    x_bits, y_bits, z_bits = (max(frame.xyz_bits[axis] for frame in frames) for axis in range(3))
    fine, coarse = (
        KeyLayout(len(frames), (x_bits, y_bits, z_bits), (num_places - 1).bit_length())
        for num_places in (rows * cols, cell_rows * cell_cols)
    )
    return cell_of_pixel, fine, coarse


def _tally(frames: Sequence[PreparedFrame], layout: KeyLayout, settings: SampleSettings) -> Tally:
    """The points of all frames, counted by key as far as that is cheap."""
    on_cpu = frames[0].image.device.type == "cpu"
    parts = []
    for number, frame in enumerate(frames):
        height, width = frame.lift.depth.shape
        num_rows = max(1, _PIXELS_IN_CACHE // width) if on_cpu else height
        for top in range(0, height, num_rows):
            points = _points_of(frame, frame.lift.of_rows(top, top + num_rows), number, layout, settings)
            # While they are in the cache: it leaves a third to be sorted. An accelerator would have to be waited for.
            parts.append(merge_neighbours(points) if on_cpu else points)
    return joined(parts)


def _points_of(frame: PreparedFrame, lift: Lift, number: int, layout: KeyLayout, settings: SampleSettings) -> Tally:
    """The pixels of some rows of a frame, those of `lift`: each for itself, with a point or not.

    Returns:
        Sums are of 'color' three channels in a word, each from 0 to 255; of 'position' or 'height' each axis in
        fixed-point metres from the origin.
    """
    depth, has_reading = lift.metres()
    row, col, is_seen = look_up_pixels(lift, depth, has_reading)
    axes = [lift.points.component(k, depth).float() for k in range(3)]
    cells = [
        cells_along(axis, settings.voxel_size, shift)
        for axis, shift in zip(axes, frame.placement.grid_shift, strict=True)
    ]
    (height, width), (pixel_rows, pixel_cols) = settings.image_size, settings.decoder_grid
    keys = layout.pack_cells(cells, frame.low)
    keys += row * pixel_rows // height * pixel_cols + (number << layout.frame_shift)
    keys += col * pixel_cols // width
    keys.masked_fill_(~is_seen, layout.nothing)
    values = []
    if "color" in settings.point_features:
        if isinstance(lift.pixels, SeparablePixels):
            seen = frame.image.index_select(0, row[:, 0]).index_select(1, col[0])
        else:
            seen = frame.image[row, col]
        red, green, blue = (seen[..., channel].long() for channel in range(3))
        values.append(red.add_(green, alpha=1 << _CHANNEL_BITS).add_(blue, alpha=1 << 2 * _CHANNEL_BITS))
    if {"position", "height"} & set(settings.point_features):
        values += [torch.round(axis.double() * FIXED_POINT).long() for axis in axes]
    return Tally(keys.view(-1), keys.new_ones(1).expand(keys.numel()), tuple(each.view(-1) for each in values))


def _from_zero(coords: Sequence[Tensor], frame: Tensor, num_frames: int) -> list[Tensor]:
    """(N,) coordinates of voxels, moved so that they begin at 0 in every frame."""
    moved = []
    for axis in coords:
        # The least of integers, which is the same in whatever order an accelerator comes to them.
        lowest = axis.new_full((num_frames,), _FAR_OFF).scatter_reduce_(0, frame, axis, "amin")
        moved.append(axis - lowest[frame])
    return moved


def _drawn(pairs: Pairs, num_of_frame: list[int], at_most: int | None) -> Pairs:
    """At most that many pairs of every frame, uniformly; None keeps all."""
    if at_most is None or max(num_of_frame) <= at_most:
        return pairs
    return pairs.at(smallest_of_frames(pairs.words, pairs.frame, num_of_frame, at_most))


def _features(
    frames: Sequence[PreparedFrame],
    kinds: Sequence[str],
    tally: Tally,
    voxels: Groups,
    words: Tensor,
    frame_of_voxel: Tensor,
) -> Tensor:
    """(V, C) float32: see `voxel_features`.

    Args:
        tally: with the sums of what `_points_of` gives.
        words: (V,) int64, drawn for the colour of each voxel.
    """
    num_points = voxels.sums(tally.num_points)[:, None]
    colors = positions = num_points.new_zeros(len(num_points), 3, dtype=torch.float32)
    sums = list(tally.sums)
    if "color" in kinds:
        packed = sums.pop(0)
        channels = [(packed >> (channel * _CHANNEL_BITS)) & ((1 << _CHANNEL_BITS) - 1) for channel in range(3)]
        means = torch.stack([voxels.sums(channel) for channel in channels], dim=1).double() / (255 * num_points)
        placements = [(*frame.placement.tint, frame.placement.jitter) for frame in frames]
        drawn = numbers_beside(num_points, placements, torch.float32)[frame_of_voxel]
        colors = jittered(means.float(), num_points, words, tint=drawn[:, :3], jitter=drawn[:, 3:])
    if sums:
        local = torch.stack([voxels.sums(axis) for axis in sums], dim=1).double() / (FIXED_POINT * num_points)
        positions = (local + torch.stack([frame.origin for frame in frames])[frame_of_voxel]).float()
    features = voxel_features(colors, positions, kinds)
    dropped = [dropped_channels(kinds, frame.placement.dropped) for frame in frames]
    if not any(map(any, dropped)):
        return features
    return features.masked_fill(numbers_beside(features, dropped, torch.bool)[frame_of_voxel], 0)


def _code(coords: Sequence[Tensor]) -> Tensor:
    """What draws know a voxel by: its coordinates in one int64."""
    x, y, z = coords
    return (x << 40) + (y << 20) + z
