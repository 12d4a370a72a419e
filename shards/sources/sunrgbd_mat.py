"""The .mat files of SUN RGB-D, read by scipy: boxes of all views, labels of one, points of one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.images import BrokenImageError

META_FILE = "SUNRGBDMeta3DBB_v2.mat"
# The classes of the benchmark's 2D labels, by id.
LABELS = (
    *("unlabelled", "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor_mat"),
    *("clothes", "ceiling", "books", "fridge", "tv", "paper", "towel", "shower_curtain", "box", "whiteboard", "person"),
    *("night_stand", "toilet", "sink", "lamp", "bathtub", "bag"),
)
_ID_OF = {name: label_id for label_id, name in enumerate(LABELS)}
# Label, world from box as sixteen numbers row by row, full sizes in metres; world: x right, y ahead, z up.
ViewBox = tuple[str, tuple[float, ...], tuple[float, float, float]]
ViewBoxes = tuple[ViewBox, ...]


def read_meta(path: Path) -> dict[str, ViewBoxes]:
    """The boxes of every view, by the view's path below SUNRGBD/.

    A box has a centroid, the rows of `basis` for axes and half sizes along them.

    Raises:
        ShardError: it is no such file.
    """
    try:
        table = np.atleast_1d(_load(path.read_bytes())["SUNRGBDMeta"])
        return {_view_path(view.sequenceName): _boxes(view.groundtruth3DBB) for view in table}
    except (OSError, BrokenImageError, KeyError, AttributeError, TypeError, ValueError, IndexError) as error:
        raise ShardError(
            f"{path}: not the annotation of SUN RGB-D ({error!r}); download it again, or remove it, to pack without "
            "boxes"
        ) from error


def _view_path(name: str) -> str:
    return str(name).strip("/").removeprefix("SUNRGBD/")


def _boxes(found: Any) -> ViewBoxes:
    boxes = []
    for one in np.atleast_1d(found):
        if not hasattr(one, "coeffs"):  # an empty array: no box in this view
            continue
        axes = np.asarray(one.basis, np.float64).reshape(3, 3).T
        if np.linalg.det(axes) < 0:  # a box is its own mirror image
            axes = axes * [1.0, 1.0, -1.0]
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = axes, np.asarray(one.centroid, np.float64).ravel()
        width, length, height = (2 * abs(float(half)) for half in np.asarray(one.coeffs).ravel())
        boxes.append((str(one.classname), tuple(matrix.ravel().tolist()), (width, length, height)))
    return tuple(boxes)


def sunrgbd_labels(data: bytes) -> NDArray[np.uint16]:
    """(H, W) positions in LABELS of a view's seg.mat: `seglabel` counts its own `names` from 1; others become 0.

    Raises:
        BrokenImageError: it is no such file.
    """
    try:
        fields = _load(data)
        own = [str(name) for name in np.atleast_1d(fields["names"])]
        pixels = np.asarray(fields["seglabel"])
        ids = np.array([0, *(_ID_OF.get(name.strip().lower().replace(" ", "_"), 0) for name in own)], np.uint16)
        return ids[pixels.astype(np.int64)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BrokenImageError(f"labels cannot be decoded: not the seg.mat of a view ({error!r})") from error


def points_of_view(data: bytes) -> NDArray[np.float64]:
    """(N, 3) points of a view in VoteNet's export, metres: `instance`, of which the first three columns.

    Raises:
        BrokenImageError: it is no such file.
    """
    try:
        points = np.asarray(_load(data)["instance"], np.float64)
        if points.ndim != 2 or points.shape[1] < 3:
            raise ValueError(f"instance has shape {points.shape}")
        return points[:, :3]
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenImageError(f"depth cannot be decoded: no points as VoteNet exports them ({error!r})") from error


def _load(data: bytes) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        fields: dict[str, Any] = loadmat(io.BytesIO(data), struct_as_record=False, squeeze_me=True)
    except (MatReadError, NotImplementedError, ValueError, TypeError, EOFError, OSError, IndexError) as error:
        raise BrokenImageError(f"not a .mat file of version 5 ({error})") from error
    return fields
