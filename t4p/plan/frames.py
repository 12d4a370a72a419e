"""The frames that a plan is made with: real ones of the dataset where it can be read, else one of a drawn room."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.errors import CallError, ShardError
from shards.schema import Frame
from t4p.data.batch import PairRecipe
from t4p.data.fetch import Catalogue
from t4p.data.sample import SampleSettings
from t4p.data.stream import Recipe
from t4p.plan.stages import time_stages

MAX_REAL_FRAMES = 8
# Below ScanNet's own colour size (1296x968), which is resized on loading; its depth has this size, and about this field
# of view.
_ROOM_IMAGE = (480, 640)
_ROOM_FOCAL_LENGTH = 577.0  # pixels
_DEPTH_NOISE = 0.003  # metres; a noiseless PNG would be a tenth of a real one


@dataclass(frozen=True, eq=False)
class FrameFigures:
    """What frames, or samples of a fine-tuning, are like, for memory and for loading.

    Attributes:
        source: where they come from, in words.
        largest: the frame with the most voxels, which memory has to hold; a batch of it, as the task has them.
        largest_voxels: its voxels.
        mean_voxels: over the frames looked at.
        stored_bytes: bytes of a frame in object storage, the mean of the dataset.
        load_seconds: CPU time to fetch, decode, lift and pair one frame in one process of this machine.
        num_samples: samples that are trained on; None without a dataset.
        problem: why the dataset could not be read; None if it was.
    """

    source: str
    largest: Any
    largest_voxels: int
    mean_voxels: float
    stored_bytes: float
    load_seconds: float
    num_samples: int | None
    problem: str | None


def look_at_frames(urls: Sequence[str], settings: SampleSettings) -> FrameFigures:
    """Load a few frames of the datasets as training would; where they cannot be read, a drawn room."""
    try:
        return _of_datasets(urls, settings)
    except (ShardError, CallError, ValueError) as error:
        return _of_room(settings, problem=str(error).splitlines()[0])


def room_frame() -> Frame:
    """The corner of a room of 5.4 x 4.8 x 2.7 m with a table and a cupboard, as a depth camera at eye level sees it.

    With 2.9 m of mean depth it has 27,000 voxels of 2.5 cm; real frames of rooms had 13,000 to 28,000.
    """
    height, width = _ROOM_IMAGE
    depth = _room_depth(height, width)
    rng = np.random.default_rng(0)
    noisy = depth + rng.normal(0, _DEPTH_NOISE, depth.shape) * (depth / 2) ** 2
    # A pattern and some grain: the size of the JPEG of a photograph.
    rows, cols = np.mgrid[:height, :width]
    shade = 128 + 60 * np.sin(depth * 9) + 20 * np.sin(cols / 7) * np.sin(rows / 11)
    color = np.stack([shade, shade * 0.9 + 10, shade * 0.8 + 20], axis=-1) + rng.normal(0, 5, (height, width, 1))
    K = np.array([[_ROOM_FOCAL_LENGTH, 0, width / 2], [0, _ROOM_FOCAL_LENGTH, height / 2], [0, 0, 1]])
    return Frame(
        dataset="room",
        scene_id="room",
        frame_id="0",
        color=_encode(np.clip(color, 0, 255).astype(np.uint8), "JPEG"),
        color_format="jpg",
        depth=_encode(np.rint(noisy * 1000).astype(np.uint16), "PNG"),
        depth_scale=1000.0,
        K_depth=K,
        K_color=K,
        color_from_depth=np.eye(4),
    )


def _of_datasets(urls: Sequence[str], settings: SampleSettings) -> FrameFigures:
    return figures_of(Catalogue(urls), PairRecipe(settings), lambda batch: len(batch.voxel_coords), "frames")


def figures_of(
    catalogue: Catalogue, recipe: Recipe[Any, Any], num_voxels: Callable[[Any], int], kind: str
) -> FrameFigures:
    """Load a few samples as training would.

    Args:
        num_voxels: of a batch.
        kind: what the samples are, in words.

    Raises:
        ShardError, CallError: the dataset is missing or damaged.
        ValueError: it is empty, or a sample cannot be used.
    """
    places = catalogue.spread(MAX_REAL_FRAMES)
    if not places:
        raise ValueError("the dataset is empty")
    times, samples = time_stages(catalogue, recipe, places)
    total_samples = catalogue.num_samples
    return FrameFigures(
        source=f"{len(places)} of the {total_samples:,} {kind} of data.shards",
        largest=max(samples, key=num_voxels),
        largest_voxels=max(map(num_voxels, samples)),
        mean_voxels=float(np.mean([num_voxels(sample) for sample in samples])),
        stored_bytes=int(catalogue.bytes_per_shard.sum()) / total_samples,
        load_seconds=times.cpu,
        num_samples=total_samples,
        problem=None,
    )


def _of_room(settings: SampleSettings, problem: str) -> FrameFigures:
    frame, recipe = room_frame(), PairRecipe(settings)
    seconds = []
    for _ in range(2):  # the first one loads libraries
        started = time.process_time()
        sample = recipe.join([recipe.make(frame, 0, "room/0", 0)])
        seconds.append(time.process_time() - started)
    return FrameFigures(
        source="one frame of a drawn room",
        largest=sample,
        largest_voxels=len(sample.voxel_coords),
        mean_voxels=float(len(sample.voxel_coords)),
        stored_bytes=float(len(frame.color) + len(frame.depth)),
        load_seconds=min(seconds),
        num_samples=None,
        problem=problem,
    )


def _room_depth(height: int, width: int) -> NDArray[np.float64]:
    """(H, W) metres along the optical axis: the nearest of the room's inside and the outsides of two boxes."""
    rows, cols = np.mgrid[:height, :width]
    right, down = (cols - width / 2) / _ROOM_FOCAL_LENGTH, (rows - height / 2) / _ROOM_FOCAL_LENGTH
    pitch, yaw = np.deg2rad(25), np.deg2rad(40)  # looking down into a corner
    ahead, up = np.cos(pitch) - down * np.sin(pitch), -down * np.cos(pitch) - np.sin(pitch)
    rays = np.stack([right * np.cos(yaw) + ahead * np.sin(yaw), ahead * np.cos(yaw) - right * np.sin(yaw), up], -1)
    rays = np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    camera = np.array([2.0, 1.6, 1.6])
    _, depth = _crossings(camera, rays, np.zeros(3), np.array([5.4, 4.8, 2.7]))
    for low, high in (((3.3, 3.0, 0.0), (4.3, 3.8, 0.75)), ((4.8, 2.0, 0.0), (5.4, 3.6, 1.9))):
        enters, leaves = _crossings(camera, rays, np.array(low), np.array(high))
        depth = np.where((enters < leaves) & (enters > 0), np.minimum(depth, enters), depth)
    return depth


def _crossings(
    origin: NDArray[np.float64], rays: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where rays enter and leave a box, in multiples of the ray; it is missed where they enter after they leave."""
    to_low, to_high = (low - origin) / rays, (high - origin) / rays
    return np.minimum(to_low, to_high).max(-1), np.maximum(to_low, to_high).min(-1)


def _encode(pixels: NDArray[np.uint8] | NDArray[np.uint16], format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=format)
    return buffer.getvalue()
