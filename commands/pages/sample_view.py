"""A sample of a dataset in pictures: colour, depth in metres, labels, instances, boxes."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from commands.pages.page import Gallery, LegendEntry, Picture
from commands.pages.palette import NO_LABEL, color_instances, color_labels, label_colors
from commands.pages.scene_view import ColoredBox, RoomView
from shards.images import decode_color, decode_labels
from shards.sample import Sample
from shards.scene import Scene
from shards.schema import Box, Frame, decode_frame_depth

_MOST_DRAWN = 400_000  # points of a scene
_WIDTH = 640  # pixels of a picture of a frame; smaller images are enlarged by a whole factor
_MOST_LISTED = 24  # labels in a legend before it says how many more there are
_NEAR = 0.05  # metres ahead of the camera, where a box is cut
# viridis, from near to far.
_DEPTH_COLORS = ((68, 1, 84), (71, 45, 123), (59, 82, 139), (44, 114, 142), (33, 145, 140), (40, 174, 128),
                 (94, 201, 98), (173, 220, 48), (253, 231, 37))  # fmt: skip
_BAR_HEIGHT, _BAR_ROOM = 14, 40  # pixels of the scale below a depth image, and of it with its numbers


def view_sample(sample: Sample, names: Sequence[str], small: bool = False) -> Gallery:
    """A checked sample in pictures.

    Args:
        names: as `names_of` has them.
        small: whether it is one of many; instances are left out then where there are labels.
    """
    if isinstance(sample, Scene):
        heading, text, pictures = (
            f"{sample.dataset}: {sample.scene_id}",
            _describe_scene(sample),
            _of_scene(sample, names, small),
        )
    else:
        heading = f"{sample.dataset}: {sample.scene_id} / {sample.frame_id}"
        text, pictures = _describe_frame(sample), _of_frame(sample, names, small)
    return Gallery(heading, text, tuple(pictures), legend_of([sample], names), small)


def names_of(samples: Sequence[Sample], label_names: Sequence[str]) -> list[str]:
    """Names of class ids, by id, then those of boxes that no class has: each has a colour of its own.

    Args:
        label_names: names of the dataset's class ids, by id; ids beyond them are named after their number.
    """
    most = max((number for sample in samples for number in _present_ids(sample)), default=-1) + 1
    names = [*label_names, *(f"id {number}" for number in range(len(label_names), most))]
    of_boxes = (box.label for sample in samples for box in sample.boxes or ())
    return [*names, *dict.fromkeys(label for label in of_boxes if label not in names)]


def legend_of(samples: Sequence[Sample], names: Sequence[str]) -> tuple[LegendEntry, ...]:
    """The labels that the samples show, and the colour of each."""
    shown = {names[number] for sample in samples for number in _present_ids(sample)}
    shown |= {box.label for sample in samples for box in sample.boxes or ()}
    colors = dict(zip(names, label_colors(names).tolist(), strict=True))
    listed = [LegendEntry(name, _as_color(color)) for name, color in colors.items() if name in shown]
    if len(listed) > _MOST_LISTED:
        more = LegendEntry(f"and {len(listed) - _MOST_LISTED} more", NO_LABEL)
        listed = [*listed[:_MOST_LISTED], more]
    return tuple(listed)


def _present_ids(sample: Sample) -> list[int]:
    if sample.semantic is None:
        return []
    ids = sample.semantic if isinstance(sample, Scene) else decode_labels(sample.semantic)
    return np.unique(ids).tolist()


def _describe_scene(scene: Scene) -> str:
    extent = " x ".join(f"{length:.1f}" for length in np.ptp(scene.points, axis=0))
    boxes = "no boxes" if scene.boxes is None else f"{len(scene.boxes)} boxes"
    return f"{len(scene.points):,} points, {extent} m, {boxes}"


def _describe_frame(frame: Frame) -> str:
    posed = "no pose" if frame.world_from_camera is None else "with a pose"
    boxes = "" if frame.boxes is None else f", {len(frame.boxes)} boxes"
    caption = f'; "{frame.caption}"' if frame.caption else ""
    return f"{posed}{boxes}{caption}"


def _of_scene(scene: Scene, names: Sequence[str], small: bool) -> list[Picture]:
    drawn = np.linspace(0, len(scene.points) - 1, min(len(scene.points), _MOST_DRAWN)).astype(int)
    colors = dict(zip(names, label_colors(names).tolist(), strict=True))
    boxes = [ColoredBox(box.world_from_box, box.size, _as_color(colors[box.label])) for box in scene.boxes or ()]
    view = RoomView.of(scene.points[drawn], boxes=boxes)
    pictures = [Picture("colour", "the scene as it was scanned", view.draw(np.ascontiguousarray(scene.rgb[drawn])))]
    if scene.semantic is not None:
        labels = color_labels(scene.semantic[drawn].astype(int), names)
        pictures.append(Picture("labels", "the class of every point", view.draw(labels)))
    if scene.instance is not None and not (small and scene.semantic is not None):
        instances = color_instances(scene.instance[drawn])
        caption = f"instances: {_count_instances(scene.instance)}"
        pictures.append(Picture(caption, "the object of every point", view.draw(instances)))
    if boxes:
        png = view.draw(np.ascontiguousarray(scene.rgb[drawn] // 2 + 127), boxes)
        pictures.append(Picture(f"boxes: {len(boxes)}", "the box of every object", png))
    return pictures


def _of_frame(frame: Frame, names: Sequence[str], small: bool) -> list[Picture]:
    whole = Image.fromarray(decode_color(frame.color, frame.color_format))
    color = _fit(whole)
    depth = decode_frame_depth(frame, f"{frame.scene_id}/{frame.frame_id}") / frame.depth_scale
    readings = depth[depth > 0]
    ends = (float(readings.min()), float(readings.max())) if readings.size else (0.0, 0.0)
    pictures = [
        Picture("colour", "the colour image", _png(color)),
        Picture(
            f"depth {ends[0]:.2f} to {ends[1]:.2f} m, {readings.size / depth.size:.0%} of the pixels",
            "the depth image, coloured by distance; black where there is no reading",
            _png(_draw_depth(depth, ends)),
        ),
    ]
    if frame.semantic is not None:
        labels = color_labels(decode_labels(frame.semantic).astype(int), names)
        pictures.append(
            Picture("labels", "the class of every pixel", _png(_fit(Image.fromarray(labels), Image.Resampling.NEAREST)))
        )
    if frame.instance is not None and not (small and frame.semantic is not None):
        ids = decode_labels(frame.instance)
        instances = Image.fromarray(color_instances(ids))
        caption = f"instances: {_count_instances(ids)}"
        pictures.append(Picture(caption, "the object of every pixel", _png(_fit(instances, Image.Resampling.NEAREST))))
    if frame.boxes:
        colors = dict(zip(names, label_colors(names).tolist(), strict=True))
        pictures.append(
            Picture(
                f"boxes: {len(frame.boxes)}",
                "the box of every object",
                _png(_draw_boxes(color, color.width / whole.width, frame, colors)),
            )
        )
    return pictures


def _draw_depth(depth: NDArray[np.float64], ends: tuple[float, float]) -> Image.Image:
    """Colours by distance, black where there is no reading, and a scale in metres below."""
    near, far = ends
    anchors = np.array(_DEPTH_COLORS, float)
    stops = np.linspace(0, 1, len(anchors))

    def colored(share: NDArray[np.float64]) -> NDArray[np.uint8]:
        return np.stack([np.interp(share, stops, channel) for channel in anchors.T], axis=-1).astype(np.uint8)

    shown = colored((depth - near) / max(far - near, 1e-9))
    image = _fit(Image.fromarray(np.where((depth > 0)[..., None], shown, 0).astype(np.uint8)), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (image.width, image.height + _BAR_ROOM), "white")
    sheet.paste(image)
    bar = np.broadcast_to(np.linspace(0, 1, image.width), (_BAR_HEIGHT, image.width))
    sheet.paste(Image.fromarray(colored(bar)), (0, image.height + 4))
    drawing, font = ImageDraw.Draw(sheet), ImageFont.load_default(image.width / 32)
    for share, anchor in ((0.0, "la"), (0.25, "ma"), (0.5, "ma"), (0.75, "ma"), (1.0, "ra")):
        at = (share * (image.width - 1), image.height + _BAR_HEIGHT + 6)
        drawing.text(at, f"{near + share * (far - near):.1f} m", fill="black", font=font, anchor=anchor)
    return sheet


def _draw_boxes(color: Image.Image, scale: float, frame: Frame, colors: dict[str, list[int]]) -> Image.Image:
    """The edges of every box over a paler colour image, cut where they pass the camera.

    Args:
        scale: size of the image in that of the colour camera.
    """
    image = Image.blend(color, Image.new("RGB", color.size, "white"), 0.4)
    drawing, width = ImageDraw.Draw(image), max(2, round(color.width / 160))
    for box in frame.boxes or ():
        for line in _edges_in_image(box, frame):
            scaled = [scale * (at + 0.5) for at in line]  # whole coordinates are the middles of pixels
            drawing.line(scaled, fill=(30, 30, 30), width=width + 2)
            drawing.line(scaled, fill=_as_color(colors[box.label]), width=width)
    return image


def _edges_in_image(box: Box, frame: Frame) -> list[tuple[float, float, float, float]]:
    """Column and row of both ends of the edges that lie ahead of the colour camera."""
    lines = []
    for ends in ColoredBox(frame.color_from_depth @ box.camera_from_box, box.size, (0, 0, 0)).edges:
        near, far = sorted(ends, key=lambda end: end[2])
        if far[2] <= _NEAR:
            continue
        if near[2] < _NEAR:
            near = near + (_NEAR - near[2]) / (far[2] - near[2]) * (far - near)
        (u, v), (w, x) = ((frame.K_color @ end)[:2] / end[2] for end in (near, far))
        lines.append((float(u), float(v), float(w), float(x)))
    return lines


def _fit(image: Image.Image, how: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    if image.width > _WIDTH:
        return image.resize((_WIDTH, round(image.height * _WIDTH / image.width)), how)
    factor = max(1, _WIDTH // image.width)
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.convert("RGB").save(out, format="png")
    return out.getvalue()


def _count_instances(ids: NDArray[np.integer]) -> int:
    return int(np.count_nonzero(np.unique(ids)))


def _as_color(color: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in color)
    return red, green, blue
