"""What one sends a colleague who asks what is in a dataset: samples, a scene to turn, shares, paths, terms, origin."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from commands.pages.dataset_view import read_checked
from commands.pages.page import Fact, Figures, Gallery, Page, Picture, ScoreRow, ScoreTable, Tile, render_page
from commands.pages.palette import NO_LABEL, label_colors
from commands.pages.sample_view import names_of, view_sample
from commands.pages.scan_page import grey_by_height
from commands.pages.scene_pair import ColorLayer, NamedLayer, ScenePair
from commands.pages.scene_view import CUT_HEIGHT
from shards.described import HAS_POSE, FrameColumns
from shards.doors.text import shown
from shards.errors import ShardError
from shards.reader import DatasetReader, spread
from shards.results import write_result
from shards.scene import Scene
from shards.schema import unescape_id
from shards.summary import DEPTH_BINS, Summary, summarise
from shards.terms import NOT_STATED

NUM_LOOKS = 48  # samples that the shares are of
_NUM_SHOWN = 6  # samples in pictures
_MOST_SHARDS = 8  # whose poses are drawn
_MOST_PATHS = 9  # scenes
_PATH_PIXELS = 300  # of a picture of one path


def write_dataset_page(url: str, out: Path, command: str, force: bool) -> Page:
    """Write the page of a dataset.

    Args:
        url: place of the dataset.
        out: the file to write.
        command: what was called.
        force: replace a file that is there.

    Raises:
        CallError: no such dataset.
        ShardError: a sample that is shown is broken.
        ResultError: `out` cannot be written.
    """
    page = dataset_page(DatasetReader(url), command)
    with write_result(out, force) as partial:
        partial.write_text(render_page(page), encoding="utf-8")
    return page


def dataset_page(dataset: DatasetReader, command: str) -> Page:
    """What is known of a dataset without reading all of it."""
    summary, manifest = summarise(dataset, NUM_LOOKS), dataset.manifest
    samples = [read_checked(dataset, *place) for place in spread(dataset.samples_per_shard, _NUM_SHOWN)]
    names = names_of(samples, manifest.label_names)
    told = summary.lines()
    scene = _scene_to_turn(dataset)
    return Page(
        title=f"Dataset {dataset.url.rstrip('/').rpartition('/')[2]}",
        summary=f"{dataset.num_samples:,} {manifest.sample_kind} of {told['scenes']} scene(s), "
        f"{manifest.size_bytes / 1e6:,.0f} MB in {manifest.num_shards:,} shard(s). {manifest.licence or NOT_STATED}.",
        tiles=_tiles(dataset, summary),
        galleries=(*(view_sample(sample, names, small=True) for sample in samples), *_paths(dataset)),
        scenes=() if scene is None else (scene,),
        tables=tuple(_tables(summary)),
        figures=(Figures("In numbers", "", ("",), tuple((name, value) for name, value in told.items())),),
        facts=_facts(dataset),
        next_commands=(f"t4p shards verify {dataset.url}", f"t4p shards show {dataset.url} {dataset.key(0, 0)}"),
        command=command,
        data={"url": dataset.url, "num_samples": dataset.num_samples, "summary": told},
    )


def _tiles(dataset: DatasetReader, summary: Summary) -> tuple[Tile, ...]:
    kind = dataset.manifest.sample_kind
    tiles = [Tile(kind, f"{dataset.num_samples:,}", f"of {summary.lines()['scenes']} scene(s)")]
    if summary.depth is not None:
        near, middle, far = summary.depth
        tiles.append(Tile("median depth", f"{middle:.2f} m", f"{near:.2f} to {far:.2f} m (5 to 95 %)"))
    if summary.points is not None:
        tiles.append(Tile("points of a scene", f"{summary.points:,}", "median"))
    else:
        tiles.append(Tile("with a pose", f"{summary.pose_share:.0%}", f"of {summary.num_looks} frames that were read"))
    tiles.append(Tile("with labels", f"{summary.label_share:.0%}", f"{len(summary.label_shares)} labels occur"))
    return tuple(tiles)


def _tables(summary: Summary) -> list[ScoreTable]:
    where = f"In {summary.num_looks} samples, spread over the dataset."
    tables = []
    if summary.depth_shares:
        rows = zip(DEPTH_BINS, summary.depth_shares, strict=True)
        tables.append(_shares("Depth", f"Of the readings. {where}", "distance", list(rows)))
    if summary.label_shares:
        tables.append(_shares("Labels", f"Of what is labelled. {where}", "label", summary.label_shares))
    return tables


def _shares(heading: str, text: str, row_title: str, rows: Sequence[tuple[str, float]]) -> ScoreTable:
    return ScoreTable(heading, text, row_title, ("share",), tuple(ScoreRow(name, (share,)) for name, share in rows))


def _facts(dataset: DatasetReader) -> tuple[Fact, ...]:
    manifest = dataset.manifest
    facts = {
        "dataset": dataset.url,
        "terms": manifest.licence or NOT_STATED,
        "up": manifest.up_axis or "not known",
        "raw format": manifest.provenance.get("source_format", ""),
        "source": manifest.provenance.get("source", ""),
        "options": json.dumps(manifest.provenance.get("options", {})),
        "versions": json.dumps(manifest.provenance.get("versions", {})),
        "generation": str(manifest.generation),
        "hash of its shards": manifest.shards_sha256,
    }
    return tuple(Fact(name, shown(value)) for name, value in facts.items() if value)


def _scene_to_turn(dataset: DatasetReader) -> ScenePair | None:
    """The first scene; of frames those of the first one, put together by their poses. None where there are no poses."""
    if dataset.manifest.sample_kind == "scenes":
        scene = read_checked(dataset, 0, 0)
        assert isinstance(scene, Scene)
        return _pair(scene.scene_id, "", scene.points, scene.rgb, _labels(scene, dataset.manifest.label_names))
    from t4p.data.scan import read_scan  # torch

    name = unescape_id(dataset.key(0, 0).partition("/")[0])
    try:
        scan = read_scan(f"{dataset.url}#{name}")
    except ShardError:  # frames without poses
        return None
    return _pair(name, f"{scan.remarks[0]}. " if scan.remarks else "", scan.points, scan.colors, None)


def _labels(scene: Scene, names: Sequence[str]) -> tuple[NDArray[np.int64], list[str]] | None:
    if scene.semantic is None:
        return None
    ids = scene.semantic.astype(np.int64)
    all_names = [*names, *(f"id {one}" for one in range(len(names), int(ids.max(initial=0)) + 1))]
    return ids, all_names


def _pair(
    name: str,
    text: str,
    points: NDArray[np.float32],
    colors: NDArray[np.uint8] | None,
    labels: tuple[NDArray[np.int64], list[str]] | None,
) -> ScenePair:
    grey = grey_by_height(points)
    left = ColorLayer("height", grey) if colors is None else ColorLayer("colour", colors)
    if labels is None:
        names, palette = list[str](), np.zeros((0, 3), np.uint8)
        right: NamedLayer | ColorLayer = ColorLayer("height", _by_height(points))
    else:
        ids, names = labels
        palette = label_colors(names)
        if names and not ids.all():
            palette[0] = NO_LABEL
        right = NamedLayer("labels", ids)
    return ScenePair(
        heading=f"Scene {name}",
        text=f"{text}{len(points):,} points. What is above {CUT_HEIGHT:g} m and the near walls are left out.",
        points=points,
        names=names,
        colors=palette,
        layers=(left, right),
    )


def _by_height(points: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(N, 3) from blue, low, over green to yellow, high."""
    low, high = np.percentile(points[:, 2], (1, 99))
    share = np.clip((points[:, 2] - low) / max(float(high - low), 1e-6), 0, 1)[:, None]
    stops = np.array([[68, 1, 84], [49, 104, 142], [53, 183, 121], [253, 231, 37]], np.float64)
    place = share * (len(stops) - 1)
    below = np.clip(place.astype(int), 0, len(stops) - 2)
    return (stops[below[:, 0]] + (place - below) * (stops[below[:, 0] + 1] - stops[below[:, 0]])).astype(np.uint8)


def _paths(dataset: DatasetReader) -> tuple[Gallery, ...]:
    """Where the cameras were, scene by scene, from above; nothing without poses."""
    if dataset.manifest.sample_kind == "scenes":
        return ()
    places: dict[str, list[NDArray[np.float64]]] = {}
    for shard in range(min(_MOST_SHARDS, dataset.manifest.num_shards)):
        columns, keys = FrameColumns.of(dataset.rows(shard)), dataset.index(shard).keys
        for key, flags, pose, sound in zip(keys, columns.flags, columns.world_from_camera, columns.sound, strict=True):
            if sound and flags & HAS_POSE:
                places.setdefault(unescape_id(key.partition("/")[0]), []).append(pose)
    pictures = [
        _picture_of_path(name, np.stack(poses)) for name, poses in list(places.items())[:_MOST_PATHS] if len(poses) > 1
    ]
    text = "From above; a stroke looks where the camera looked, green first, red last."
    return (Gallery("Paths of the camera", text, tuple(pictures), small=True),) if pictures else ()


def _picture_of_path(name: str, world_from_camera: NDArray[np.float64]) -> Picture:
    png, bar = draw_path(world_from_camera)
    caption = f"{name}: {len(world_from_camera)} frames; the bar is {bar:g} m"
    return Picture(caption, f"path of the camera in {name}, from above", png)


def draw_path(world_from_camera: NDArray[np.float64]) -> tuple[bytes, float]:
    """A picture of where a camera was, from above.

    Args:
        world_from_camera: (n, 4, 4) metres.

    Returns:
        A PNG, and the length in metres of the bar in it.
    """
    at, ahead = world_from_camera[:, :3, 3], world_from_camera[:, :3, 2]
    # A camera is carried level: its own vertical, on the average, is that of the world.
    up = np.abs(world_from_camera[:, :3, 1].mean(axis=0)).argmax()
    x, y = (axis for axis in range(3) if axis != up)
    flat, look = at[:, [x, y]], ahead[:, [x, y]]
    low, high = flat.min(axis=0), flat.max(axis=0)
    extent = max(float((high - low).max()), 0.1)
    size, margin = 4 * _PATH_PIXELS, 0.12  # drawn large and made smaller: smooth lines
    scale = size * (1 - 2 * margin) / extent
    pixels = (flat - (low + high) / 2) * scale
    pixels = np.stack([size / 2 + pixels[:, 0], size / 2 - pixels[:, 1]], axis=1)
    image = Image.new("RGB", (size, size), "white")
    drawing = ImageDraw.Draw(image)
    drawing.line([tuple(pixel) for pixel in pixels.tolist()], fill=(150, 150, 156), width=6)
    for place, (pixel, direction) in enumerate(zip(pixels, look, strict=True)):
        share = place / max(len(pixels) - 1, 1)
        color = (round(40 + 180 * share), round(160 - 110 * share), 60)
        end = pixel + np.array([direction[0], -direction[1]]) * size * 0.05
        drawing.line([tuple(pixel.tolist()), tuple(end.tolist())], fill=color, width=8)
    bar = 10.0 ** np.floor(np.log10(extent))
    drawing.line([(size * 0.04, size * 0.97), (size * 0.04 + scale * bar, size * 0.97)], fill=(60, 60, 66), width=8)
    buffer = io.BytesIO()
    image.resize((_PATH_PIXELS, _PATH_PIXELS), Image.Resampling.LANCZOS).save(buffer, format="PNG")
    return buffer.getvalue(), float(bar)
