"""What the facts of a scene mean: a verdict, what was found, its likely cause, and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shards.plausible.facts import Cloud, View
from shards.plausible.poses import PoseProof, prove, step
from shards.plausible.readings import AS_GIVEN_AXES, OPENGL_AXES, Reading
from shards.schema import PRINCIPAL_POINT_SHARE, Matrix
from shards.summary import USUAL_MEDIAN

Verdict = Literal["cannot be right", "suspicious", "cannot be known", "fine"]
VERDICTS: tuple[Verdict, ...] = ("cannot be right", "suspicious", "cannot be known", "fine")  # the worst first
POSSIBLE_MEDIAN = (0.1, 20.0)  # metres, of what RGB-D cameras see
_USUAL_SCALES = (1000.0, 5000.0, 10_000.0, 4000.0, 100.0, 1.0)  # the likelier first
_TURNED_BITS = 3  # SUN RGB-D turns the 16 bits of depth left by so many
_FEWEST_READINGS = 300  # of a scene
_OFF_CENTRE = 0.03  # of the width and height, both in the same direction
_USUAL_VIEW = (20.0, 140.0)  # degrees across
_LONGEST_STEP = 20.0  # metres from frame to frame
_POSSIBLE_EXTENT, _USUAL_EXTENT = (0.05, 1000.0), (0.5, 100.0)  # metres, the longest side of a scene
_IGNORE_MARKS = (255, 65535)


@dataclass(frozen=True)
class Finding:
    """One thing that was held against the others.

    Attributes:
        what: was looked at: depth, bits, cameras, poses, up, labels or size.
        verdict: on it.
        found: the numbers.
        cause: likely; "" where nothing is wrong.
        mend: the next move; "" where there is none.
    """

    what: str
    verdict: Verdict
    found: str
    cause: str = ""
    mend: str = ""


def judge_views(views: Sequence[View], label_names: Sequence[str] = (), up_axis: str | None = None) -> list[Finding]:
    """All that a few frames of one scene show.

    Args:
        views: in the order of the scene.
        label_names: of class ids, by id; empty where nobody names them.
        up_axis: of the world of the poses, such as "+z"; None where nobody says.
    """
    proof = prove(views)
    bits = judge_bits(views)
    findings = [judge_depth(views), bits, judge_cameras(views), judge_poses(views, proof)]
    if bits.verdict == "cannot be right":  # then sizes and poses only repeat it
        findings = [finding for finding in findings if finding is bits or finding.what == "cameras"]
    findings += [judge_up(views, up_axis), judge_labels([view.class_ids for view in views], label_names)]
    return findings


def judge_cloud(cloud: Cloud, label_names: Sequence[str] = ()) -> list[Finding]:
    """All that a whole scene shows."""
    longest = max(cloud.extent)
    found = "extent " + " x ".join(f"{side:.3g}" for side in cloud.extent) + " m"
    verdict: Verdict = "fine"
    if not _USUAL_EXTENT[0] <= longest <= _USUAL_EXTENT[1]:
        verdict = "suspicious" if _POSSIBLE_EXTENT[0] <= longest <= _POSSIBLE_EXTENT[1] else "cannot be right"
    size = Finding("size", verdict, found)
    if verdict != "fine":
        cause = "points are not in metres"
        if _USUAL_EXTENT[0] <= longest / 1000 <= _USUAL_EXTENT[1]:
            cause = "points are in millimetres"
        size = Finding("size", verdict, found, cause, "bring the points to metres and pack again")
    return [size, judge_labels([cloud.class_ids], label_names)]


def judge_depth(views: Sequence[View]) -> Finding:
    """Whether a camera sees so far."""
    known = [view for view in views if not view.coding.is_noise]
    if sum(int((view.depth > 0).sum()) for view in known) < _FEWEST_READINGS:
        return Finding("depth", "cannot be known", "too few readings, or no surfaces in them")
    median = float(np.median([view.median for view in known if view.share > 0]))
    share = float(np.mean([view.share for view in known]))
    found = f"median depth {median:.3g} m, {share:.0%} of the pixels have a reading"
    (least, most), (near, far) = POSSIBLE_MEDIAN, USUAL_MEDIAN
    if near < median < far:
        return Finding("depth", "fine", found)
    verdict: Verdict = "suspicious" if least <= median <= most else "cannot be right"
    units = median * known[0].depth_scale
    scale = next((scale for scale in _USUAL_SCALES if near < units / scale < far), None)
    mend = "give the units per metre with --depth-scale"
    if scale is not None:
        mend = f"--depth-scale {scale:g}, which would make it {units / scale:.3g} m"
    return Finding("depth", verdict, found, f"depth scale {known[0].depth_scale:g} is not that of these images", mend)


def judge_bits(views: Sequence[View]) -> Finding:
    """Whether the 16 bits of depth are where they belong."""
    known = [view for view in views if view.coding.is_known]
    if not known:
        return Finding("bits", "cannot be known", "too few different values")
    if np.mean([view.coding.is_swapped for view in known]) > 0.5:
        found = "neighbours differ far less with the two bytes of every value exchanged"
        return Finding(
            "bits", "cannot be right", found, "bytes in the wrong order", "write 16-bit images anew, swapped"
        )
    bits = int(np.median([view.coding.step_bits for view in known]))
    scale, median = known[0].depth_scale, float(np.median([view.median for view in known]))
    if bits != _TURNED_BITS or scale % 8000 == 0:  # where eight units are a millimetre, or a part, they are meant
        return Finding("bits", "fine", "values use all their bits" if bits == 0 else f"values go by {1 << bits}")
    found = f"values go by 8, as if turned by {_TURNED_BITS} bits; median depth {median:.3g} m, else {median / 8:.3g} m"
    return Finding(
        "bits",
        "cannot be right" if median / 8 > USUAL_MEDIAN[0] / 2 and median > USUAL_MEDIAN[1] / 2 else "suspicious",
        found,
        "depth images of SUN RGB-D, whose 16 bits are turned left by 3",
        "pack them as sunrgbd, or write (v >> 3) | (v << 13) into the images",
    )


def judge_cameras(views: Sequence[View]) -> Finding:
    """Whether K can be of images of these sizes."""
    findings = [finding for view in views for finding in _of_cameras(view)]
    if not findings:
        return Finding("cameras", "fine", "K fits the sizes of the images")
    return min(findings, key=lambda finding: VERDICTS.index(finding.verdict))


def _of_cameras(view: View) -> list[Finding]:
    color, depth = view.color_size, view.size
    if color is not None and color != depth and np.allclose(view.K_color, view.K_depth, rtol=1e-6):
        share = depth[0] / color[0], depth[1] / color[1]
        return [
            Finding(
                "cameras",
                "cannot be right",
                f"one K for colour of {_size(color)} and depth of {_size(depth)}",
                "it is of one of the two",
                f"give each its own: those of depth are those of colour, columns times {share[0]:.4g} and rows times "
                f"{share[1]:.4g}, where both see the same",
            )
        ]
    found = []
    for name, K, size in (("colour", view.K_color, color), ("depth", view.K_depth, depth)):
        if size is not None and (finding := _of_camera(name, K, size)) is not None:
            found.append(finding)
    return found


def _of_camera(name: str, K: Matrix, size: tuple[int, int]) -> Finding | None:
    shares = (K[0, 2] + 0.5) / size[0], (K[1, 2] + 0.5) / size[1]
    low, high = PRINCIPAL_POINT_SHARE
    off = [share - 0.5 for share in shares]
    guess = (round(2 * K[0, 2] + 1), round(2 * K[1, 2] + 1))
    found = f"{name} is {_size(size)}, principal point of its K at ({K[0, 2]:.4g}, {K[1, 2]:.4g})"
    cause, mend = f"K of an image of about {_size(guess)}", "give the K of this size with --intrinsics"
    if not all(low <= share <= high for share in shares):
        return Finding("cameras", "cannot be right", found, cause, mend)
    if min(map(abs, off)) > _OFF_CENTRE and off[0] * off[1] > 0:
        return Finding("cameras", "suspicious", found, cause, mend)
    degrees = float(np.degrees(2 * np.arctan(size[0] / 2 / K[0, 0])))
    if not _USUAL_VIEW[0] < degrees < _USUAL_VIEW[1]:
        found = f"{name} of {_size(size)} would be {degrees:.0f} degrees across, by fx {K[0, 0]:.4g}"
        return Finding("cameras", "suspicious", found, "focal length of another image", mend)
    if abs(K[0, 0] / K[1, 1] - 1) > 0.05:
        found = f"fx {K[0, 0]:.4g} and fy {K[1, 1]:.4g} of {name} of {_size(size)} differ"
        return Finding(
            "cameras", "suspicious", found, "K of an image of another shape, or pixels that are not square", mend
        )
    return None


def judge_poses(views: Sequence[View], proof: PoseProof | None) -> Finding:
    """Whether depth of one frame lands on the depth of another by their poses."""
    if sum(view.world_from_camera is not None for view in views) < 2:
        return Finding("poses", "cannot be known", "fewer than two frames with a pose")
    if proof is None:
        return Finding("poses", "cannot be known", "fewer than two frames with a pose and depth")
    metres, median = step(views), float(np.median([view.median for view in views if view.share > 0]))
    moves = f"reprojected depth is off by {_share(proof.given.error)}, {proof.given.near:.0%} within 5 %"
    if proof.best is not None and proof.best_fit is not None:
        cause, mend = _explained(proof.best, views, median)
        found = f"{moves}; read otherwise by {_share(proof.best_fit.error)}, {proof.best_fit.near:.0%} within 5 %"
        return Finding("poses", "cannot be right", found, cause, mend)
    moves += f" (inverted {_share(proof.inverted.error)}, flipped {_share(proof.flipped.error)})"
    if metres > _LONGEST_STEP and metres > 5 * median:
        return Finding(
            "poses",
            "cannot be right",
            f"the camera jumps {metres:.3g} m from frame to frame",
            "translations of the poses in millimetres"
            if metres / 1000 < _LONGEST_STEP
            else "translations not in metres",
            "divide the translations by 1000 and pack again",
        )
    if proof.fits and proof.is_known:
        return Finding("poses", "fine", moves)
    if proof.fits:
        return Finding("poses", "cannot be known", f"{moves}; the camera moves too little to tell")
    if proof.still.overlap < 0.05 or any(view.coding.is_noise for view in views):
        return Finding("poses", "cannot be known", "too few readings, or no surfaces in them")
    return Finding(
        "poses",
        "suspicious",
        moves,
        "poses are not those of these frames, or drift, or the scene moves; no usual other reading of them fits either",
        "look at a few frames with `t4p shards show`; without pose files they are packed without poses",
    )


def _explained(reading: Reading, views: Sequence[View], median: float) -> tuple[str, str]:
    """Cause and mend of poses that fit by another reading."""
    if reading.focal != 1:
        fx = views[0].K_depth[0, 0]
        return f"fx {fx:.4g} should be about {fx * reading.focal:.4g}: K of another image", "give it with --intrinsics"
    causes, mends = [], []
    if reading.is_transposed:
        causes, mends = ["rotations stand transposed"], ["transpose the 3x3 rotations"]
    if reading.w_first:
        order = ("w x y z", "x y z w")[:: reading.w_first]
        causes, mends = [f"quaternions are {order[0]}, and were read as {order[1]}"], ["reorder them"]
    if reading.is_inverse:
        causes, mends = ["poses are world to camera"], ["invert every pose"]
    if reading.axes == OPENGL_AXES:
        causes.append("camera axes of OpenGL and ARKit: y up, z back")
        mends.append("multiply by diag(1, -1, -1, 1) from the right")
    elif reading.axes != AS_GIVEN_AXES:
        causes.append(f"camera axes of the poses: {reading.axes_in_words()}")
        mends.append("turn them to x right, y down, z ahead")
    if reading.ratio != 1:
        scale = views[0].depth_scale * reading.ratio
        near, far = USUAL_MEDIAN
        by_depth = f"--depth-scale {scale:.3g} (depth would be {median / reading.ratio:.3g} m)"
        by_poses = f"multiply the translations by {reading.ratio:.3g}"
        depth_is_odd = not near < median < far
        depth_may_be = near < median / reading.ratio < far
        if depth_may_be and depth_is_odd:
            causes, mends = [*causes, f"depth scale {views[0].depth_scale:g} is wrong"], [*mends, by_depth]
        elif not depth_may_be:
            in_mm = " in millimetres" if 0.0008 < reading.ratio < 0.00125 else " in another unit than depth"
            causes, mends = [*causes, f"translations{in_mm}"], [*mends, by_poses]
        else:
            causes.append("depth and translations in different units")
            mends.append(f"{by_depth}, or {by_poses}")
    return "; ".join(causes), "; ".join(mends)


def judge_up(views: Sequence[View], up_axis: str | None) -> Finding:
    """Whether people held the camera upright in a world with this axis up."""
    ups = [-view.world_from_camera[:3, 1] for view in views if view.world_from_camera is not None]
    if up_axis is None or not ups:
        return Finding("up", "cannot be known", "no poses, or a world whose up axis nobody states")
    mean = np.mean(ups, axis=0)
    axis = "xyz".index(up_axis[1])
    along = float(mean[axis]) * (-1 if up_axis[0] == "-" else 1)
    found = f"the top of the images points along {up_axis} by {along:.2f} (1 is upright)"
    other = int(np.argmax(np.abs(mean)))
    if along < -0.4 or (along < 0.3 and other != axis and abs(mean[other]) > 0.8):
        seems = ("+" if mean[other] > 0 else "-") + "xyz"[other]
        return Finding(
            "up", "suspicious", found, f"up seems to be {seems}", "turn the world of the poses, or see `show`"
        )
    return Finding("up", "fine", found)


def judge_labels(ids_of_samples: Sequence[tuple[int, ...] | None], label_names: Sequence[str]) -> Finding:
    """Whether every class id has a name."""
    ids = sorted({one for found in ids_of_samples if found is not None for one in found})
    if not ids or not label_names:
        return Finding("labels", "cannot be known", "no labels, or none that are named")
    unnamed = [one for one in ids if one >= len(label_names)]
    if not unnamed:
        return Finding("labels", "fine", f"{len(ids)} class ids, all with names")
    shown = ", ".join(map(str, unnamed[:8])) + (", ..." if len(unnamed) > 8 else "")
    found = f"class ids {shown} beside {len(label_names)} names (0 to {len(label_names) - 1})"
    if set(unnamed) <= set(_IGNORE_MARKS):
        cause, mend = (
            f"{shown} marks pixels to ignore",
            "paint them as an id whose name says so, such as 0 'unlabelled'",
        )
    else:
        cause, mend = "names of another list of classes", "name every id, one a line, by its number from 0"
    return Finding("labels", "cannot be right", found, cause, f"{mend}, and pack again")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _share(error: float) -> str:
    return f"{error:.1%}" if error < 10 else "far"
