"""A sample as a picture for the eye: colour, depth with a bar in metres, labels where there are any."""

from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ShardError
from shards.images import decode_color, decode_depth, decode_labels
from shards.reader import DatasetReader
from shards.sample import Sample, check_sample
from shards.scene import Scene
from shards.schema import Frame

_MAX_DRAWN_POINTS = 40_000
_CUT_HEIGHT = 2.0  # metres above the lowest point; what is higher would hide a room from above


def show(url: str, key: str, out: Path) -> Sample:
    """Write a PNG of one sample.

    Args:
        url: place of the dataset.
        key: SCENE/FRAME, escaped or as the ids were.
        out: the PNG to write; its folder is created.

    Returns:
        The sample shown.

    Raises:
        CallError: no such dataset or sample.
        ShardError: the sample is broken, or `out` cannot be written.
    """
    dataset = DatasetReader(url)
    shard_index, sample_index = dataset.find(key)
    is_scene = dataset.manifest.sample_kind == "scenes"
    read = dataset.read_scene if is_scene else dataset.read_frame
    sample: Sample = read(shard_index, sample_index)
    check_sample(sample, f"{dataset.url}, sample {dataset.key(shard_index, sample_index)}")
    label_names = dataset.manifest.label_names
    figure = draw_scene(sample, label_names) if isinstance(sample, Scene) else draw(sample, label_names)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png", dpi=100)
    except OSError as error:
        raise ShardError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    return sample


def draw(frame: Frame, label_names: tuple[str, ...]) -> Any:
    """A matplotlib figure of a checked frame, one panel per image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = [
        (name, decode_labels(data))
        for name, data in (("semantic", frame.semantic), ("instance", frame.instance))
        if data is not None
    ]
    figure = Figure(figsize=(5.2 * (2 + len(labels)), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 + len(labels), squeeze=False)[0]
    panels[0].imshow(decode_color(frame.color, frame.color_format))
    panels[0].set_title("color")
    depth = decode_depth(frame.depth) / frame.depth_scale
    image = panels[1].imshow(np.ma.masked_equal(depth, 0.0), cmap="viridis")
    panels[1].set_facecolor("black")
    panels[1].set_title(f"depth, {np.count_nonzero(depth) / depth.size:.0%} of the pixels have a reading (black: none)")
    figure.colorbar(image, ax=panels[1], label="metres", shrink=0.8)
    for panel, (name, ids) in zip(panels[2:], labels, strict=True):
        _draw_labels(panel, name, ids, label_names if name == "semantic" else ())
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
    posed = "world_from_camera known" if frame.world_from_camera is not None else "no pose"
    figure.suptitle(f"{frame.dataset}: {frame.scene_id} / {frame.frame_id} ({posed})", fontsize=10)
    return figure


def draw_scene(scene: Scene, label_names: tuple[str, ...]) -> Any:
    """A matplotlib figure of a checked scene: its points from above and from the side, in colour and by label."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = np.linspace(0, len(scene.points) - 1, min(len(scene.points), _MAX_DRAWN_POINTS)).astype(int)
    points = scene.points[drawn]
    points = points - points.min(axis=0)
    labels = [
        (name, ids[drawn])
        for name, ids in (("semantic", scene.semantic), ("instance", scene.instance))
        if ids is not None
    ]
    colorings = [("color", scene.rgb[drawn] / 255.0), *((name, _label_colors(ids)) for name, ids in labels)]
    figure = Figure(figsize=(5.2 * len(colorings), 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(colorings), squeeze=False)
    from_above = np.flatnonzero(points[:, 2] < _CUT_HEIGHT)
    from_above = from_above[np.argsort(points[from_above, 2], kind="stable")]  # the highest are painted last
    from_side = np.argsort(-points[:, 1], kind="stable")
    for (above, side), (name, colors) in zip(panels.T, colorings, strict=True):
        above.scatter(points[from_above, 0], points[from_above, 1], c=colors[from_above], s=1, linewidths=0)
        above.set_title(f"{name}, from above (up to {_CUT_HEIGHT:g} m)")
        side.scatter(points[from_side, 0], points[from_side, 2], c=colors[from_side], s=1, linewidths=0)
        side.set_title("from the side, metres")
        above.set_aspect("equal")
        side.set_aspect("equal")
    for panel, (name, ids) in zip(panels[0, 1:], labels, strict=True):
        _add_legend(panel, ids, label_names if name == "semantic" else ())
    num_boxes = "no boxes" if scene.boxes is None else f"{len(scene.boxes)} boxes"
    figure.suptitle(f"{scene.dataset}: {scene.scene_id} ({len(scene.points)} points, {num_boxes})", fontsize=10)
    return figure


def _draw_labels(panel: Any, name: str, ids: np.ndarray, label_names: tuple[str, ...]) -> None:
    panel.imshow(_label_colors(ids))
    panel.set_title(f"{name}, {len(np.unique(ids))} ids")
    _add_legend(panel, ids, label_names)


def _label_colors(ids: np.ndarray) -> np.ndarray:
    """(..., 3) a colour for every id, the same in every picture; black for 0."""
    present, dense = np.unique(ids, return_inverse=True)
    # Golden-ratio hues: neighbours in the list of ids look different.
    colors = np.array([_hue((0.618034 * float(value)) % 1.0) if value else (0.0, 0.0, 0.0) for value in present])
    return colors[dense.reshape(ids.shape)]


def _add_legend(panel: Any, ids: np.ndarray, label_names: tuple[str, ...]) -> None:
    from matplotlib.patches import Patch

    present = np.unique(ids)
    colors = _label_colors(present)
    names = [label_names[value] if value < len(label_names) else str(value) for value in present.tolist()]
    patches = [Patch(color=color, label=text) for color, text in zip(colors, names, strict=True)][:20]
    panel.legend(handles=patches, loc="upper left", fontsize=6, framealpha=0.7)


def _hue(hue: float) -> tuple[float, float, float]:
    import colorsys

    return colorsys.hsv_to_rgb(hue, 0.75, 0.95)
