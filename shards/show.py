"""A sample as a picture for the eye: colour, depth with a bar in metres, labels where there are any."""

from pathlib import Path
from typing import Any

import numpy as np

from shards.images import decode_color, decode_depth, decode_labels
from shards.reader import DatasetReader
from shards.schema import Frame, ShardError, check_frame


def show(url: str, key: str, out: Path) -> Frame:
    """Write a PNG of one sample.

    Args:
        url: of the dataset.
        key: SCENE/FRAME, escaped or as the ids were.
        out: the PNG to write; its folder is created.

    Returns:
        The frame shown.

    Raises:
        CallError: no such dataset or sample.
        ShardError: the sample is broken, or `out` cannot be written.
    """
    dataset = DatasetReader(url)
    shard_index, sample_index = dataset.find(key)
    frame = dataset.read_frame(shard_index, sample_index)
    check_frame(frame, f"{dataset.url}, sample {dataset.key(shard_index, sample_index)}")
    figure = draw(frame, dataset.manifest.label_names)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png", dpi=100)
    except OSError as error:
        raise ShardError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    return frame


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


def _draw_labels(panel: Any, name: str, ids: np.ndarray, label_names: tuple[str, ...]) -> None:
    from matplotlib.patches import Patch

    present, dense = np.unique(ids, return_inverse=True)
    # Golden-ratio hues: neighbours in the list of ids look different, and an id looks the same in every frame.
    colors = np.array([_hue((0.618034 * float(value)) % 1.0) if value else (0.0, 0.0, 0.0) for value in present])
    panel.imshow(colors[dense.reshape(ids.shape)])
    panel.set_title(f"{name}, {len(present)} ids")
    names = [label_names[value] if value < len(label_names) else str(value) for value in present.tolist()]
    patches = [Patch(color=color, label=text) for color, text in zip(colors, names, strict=True)][:20]
    panel.legend(handles=patches, loc="upper left", fontsize=6, framealpha=0.7)


def _hue(hue: float) -> tuple[float, float, float]:
    import colorsys

    return colorsys.hsv_to_rgb(hue, 0.75, 0.95)
