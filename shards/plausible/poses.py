"""What the poses of a scene are: right, of a nameable other convention or unit, or of no use that shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from shards.packing.selection import spread
from shards.plausible.facts import View
from shards.plausible.pairs import FEWEST_POINTS, Differences, Fit, differences, finer, fit_of, without_motion
from shards.plausible.readings import OPENGL_AXES, Reading, cameras, mirrored, rare, units

_FITS = (0.03, 0.6)  # error at most, near at least: real sensors and trackers have 0.003 to 0.024, and 0.7 to 0.99
_LEAST_OVERLAP = 0.15  # of points; sparse depth (28 % of pixels) of a shelf has 0.36
# Another reading is believed if it has at most so much of the error, and meets more; or, where the told one nearly
# fits, far less of the error.
_SHARPER, _FAR_SHARPER = 0.5, 0.25
_DOUBTFUL_ERROR = 0.012
_SURE_NEAR = 0.88
_FLAT, _FLAT_SHARE = 0.02, 0.95  # of depth, and of the readings that are so near one plane
_MOST_PAIRS, _WIDEST_PAIRS = 12, 4


@dataclass(frozen=True)
class PoseProof:
    """What carrying depth from frame to frame says of a scene.

    Attributes:
        is_known: the frames that were looked at overlap, and the camera moved enough to tell right from wrong.
        given: of the poses as they are told.
        best: another reading that is clearly better; None where there is none.
        best_fit: of it.
        still: as if the camera had not moved.
        inverted, flipped: of two usual mistakes.
        num_pairs: that moved.
    """

    is_known: bool
    given: Fit
    best: Reading | None
    best_fit: Fit | None
    still: Fit
    inverted: Fit
    flipped: Fit
    num_pairs: int

    @property
    def fits(self) -> bool:
        """The told poses carry depth onto depth."""
        return fits(self.given)


def fits(fit: Fit) -> bool:
    """Depth meets depth as of real sensors, where it meets any."""
    return fit.error <= _FITS[0] and fit.near >= _FITS[1] and fit.overlap >= _LEAST_OVERLAP


def prove(views: Sequence[View]) -> PoseProof | None:
    """Carry depth between the frames of one scene; None without two frames with poses and depth."""
    posed = [view for view in views if view.world_from_camera is not None and _shows_surfaces(view)]
    pairs = sorted(combinations(posed, 2), key=lambda pair: pair[1].position - pair[0].position)
    # Of neighbours and of frames far apart, which show more and overlap less: bounded, whatever the scene.
    pairs = [pairs[place] for place in spread(range(len(pairs)), _MOST_PAIRS)]
    if not pairs:
        return None
    # Where standing still fits worst, the camera moved most: what is right there is right.
    widest = sorted(pairs, key=lambda pair: -fit_of([without_motion(*pair)]).error)[:_WIDEST_PAIRS]
    given = fit_of([differences(a, b, (Reading(),))[0] for a, b in widest])
    if fits(given) and given.error <= _DOUBTFUL_ERROR and given.near >= _SURE_NEAR:  # nothing is sharper by much
        return _prove(pairs, (Reading(), Reading(is_inverse=True), Reading(axes=OPENGL_AXES)))
    # Of a plane, and nothing else, depth lands on depth by cameras and motions that it was not seen with.
    is_flat = all(is_one_plane(view) for view in posed)
    proof = _prove(pairs, (Reading(), *mirrored(), *units(), *(() if is_flat else cameras())))
    if proof.fits or proof.best is not None or is_flat:
        return proof
    # So many readings that one of a plane fits by chance: of these nothing but the error of a good sensor is believed.
    rarer = _prove(pairs, (Reading(), *mirrored(), *rare()))
    if rarer.best_fit is not None and rarer.best_fit.error > _DOUBTFUL_ERROR:
        return proof
    return rarer


def _shows_surfaces(view: View) -> bool:
    return not view.coding.is_noise and int((view.depth > 0).sum()) >= FEWEST_POINTS


def is_one_plane(view: View) -> bool:
    """Whether nearly all readings of a view lie in one plane: over the image the inverse of their depth is linear."""
    rows, columns = np.nonzero(view.depth)
    inverse = 1 / view.depth[rows, columns]
    linear = np.stack([rows, columns, np.ones(len(rows))], axis=1)
    plane, *_ = np.linalg.lstsq(linear, inverse, rcond=None)
    return bool((np.abs(linear @ plane / inverse - 1) < _FLAT).mean() > _FLAT_SHARE)


def _prove(pairs: Sequence[tuple[View, View]], readings: Sequence[Reading]) -> PoseProof:
    table = [differences(a, b, readings) for a, b in pairs]
    still = [without_motion(a, b) for a, b in pairs]
    moving = [i for i in range(len(pairs)) if _shows_motion(still[i], table[i])]
    chosen = moving or list(range(len(pairs)))
    scores = [fit_of([table[i][k] for i in chosen]) for k in range(len(readings))]
    given = scores[0]
    best, best_fit = _best(readings[1:], scores[1:])
    if best is not None and len(near_by := finer(best)) > 1:
        trials = [differences(*pairs[i], near_by) for i in chosen]
        best, best_fit = _best(near_by, [fit_of([trial[k] for trial in trials]) for k in range(len(near_by))])
    is_better = bool(moving) and best_fit is not None and _is_sharper(best_fit, given)
    return PoseProof(
        is_known=bool(moving),
        given=given,
        best=best if is_better else None,
        best_fit=best_fit if is_better else None,
        still=fit_of([still[i] for i in chosen]),
        inverted=scores[readings.index(Reading(is_inverse=True))],
        flipped=scores[readings.index(Reading(axes=OPENGL_AXES))],
        num_pairs=len(moving),
    )


def _shows_motion(still: Differences, readings: Sequence[Differences]) -> bool:
    """Some reading of a pair fits, and standing still fits clearly worse."""
    found = [fit_of([one]) for one in readings]
    at_rest = fit_of([still])
    good = [fit for fit in found if fits(fit)]
    if not good:
        return False
    error, near = min(fit.error for fit in good), max(fit.near for fit in good)
    return at_rest.error > 2.5 * error and at_rest.near < near - 0.1


def _best(readings: Sequence[Reading], scores: Sequence[Fit]) -> tuple[Reading | None, Fit | None]:
    """The one by which the most points meet their like; of those that nearly do, the most usual comes first."""
    good = [i for i, fit in enumerate(scores) if fits(fit)]
    if not good:
        return None, None
    most = max(scores[i].near - 10 * scores[i].error for i in good)
    first = next(i for i in good if scores[i].near - 10 * scores[i].error >= most - 0.005)
    return readings[first], scores[first]


def _is_sharper(best: Fit, given: Fit) -> bool:
    if best.error <= _SHARPER * given.error and best.near >= given.near + 0.05:
        return True
    return given.error > _DOUBTFUL_ERROR and best.error <= _FAR_SHARPER * given.error and best.near >= given.near


def step(views: Sequence[View]) -> float:
    """Metres that the camera moves from one frame to the next: the median over those looked at; nan without."""
    posed = [view for view in views if view.world_from_camera is not None]
    steps = [
        float(np.linalg.norm(b.world_from_camera[:3, 3] - a.world_from_camera[:3, 3])) / (b.position - a.position)
        for a, b in pairwise(posed)
        if a.world_from_camera is not None and b.world_from_camera is not None
    ]
    return float(np.median(steps)) if steps else float("nan")
