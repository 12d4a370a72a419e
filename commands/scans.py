"""`t4p predict` and `t4p query`: a scan of the user's, and what a trained network says of it, as files and a page."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from numpy.typing import NDArray

from commands.pages.page import Fact
from commands.pages.palette import NO_LABEL, label_colors
from commands.pages.scan_page import MOST_POINTS, ScanAnswer, grey_by_height, render_scan
from commands.pages.scored_scene import SURE_FROM
from shards.doors.ply import write_ply
from shards.doors.text import shown
from shards.errors import CallError, ResultError
from shards.results import check_result, write_result
from t4p.data.upright import METRES, UP_AXES, Unit, UpAxis
from t4p.models.hub import SCHEME, spelt_out

if TYPE_CHECKING:  # both load torch
    from t4p.data.scan import Scan
    from t4p.tasks.model import Model

FILES = ("points.ply", "points.npz", "index.html")
OBJECTS = "objects.json"  # of networks that find objects
ABOVE = 0.5  # score from which a point counts as what a phrase asks for
_NO_ID = -1
_HIGHLIGHT = np.array([235, 72, 30], np.float32)  # as in the page


@dataclass(frozen=True)
class ScanCall:
    """What was asked on the command line.

    Attributes:
        model: path of an export or a run folder.
        scan: as for `read_scan`.
        out: folder of the results; None is predictions/NAME.
        unit, up: of the scan, None to guess.
        force: write over results that are there.
        command: the whole of it, for the page.
    """

    model: str
    scan: str
    out: Path | None
    unit: Unit | None
    up: UpAxis | None
    force: bool
    command: str


def scan_call(model: str, scan: str, out: Path | None, unit: str | None, up: str | None, force: bool) -> ScanCall:
    """What was asked, checked as far as it can be without reading anything.

    Raises:
        CallError: an unknown unit or axis.
    """
    if unit is not None and unit not in METRES:
        raise CallError(f"--unit is {unit!r}, wanted one of {', '.join(METRES)}")
    if up is not None and up not in UP_AXES:
        raise CallError(f"--up is {up!r}, wanted one of {', '.join(UP_AXES)}")
    command = shlex.join(["t4p", *sys.argv[1:]])
    return ScanCall(model, scan, out, unit, up, force, command)


@dataclass(frozen=True, eq=False)
class _Said:
    """What is written of the points.

    Attributes:
        names: what the ids count: labels or phrases.
        ids: (N,) int32, _NO_ID where none fits.
        scores: (N, K) float32 in [0, 1].
        colors: (N, 3) uint8 of the PLY.
    """

    names: Sequence[str]
    ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    colors: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Objects:
    """What a network that finds objects says of a scan: those above SURE_FROM, the surest first.

    Attributes:
        names: of each object: its label and a number.
        label_ids: (P,) rows of the network's labels.
        scores: (P,) in [0, 1].
        boxes: (P, 7) middle, full extents, metres; turn about the vertical. Of masks, the bounds of their points.
        of_point: (N,) int32 surest object that a point belongs to or, of boxes, lies in; _NO_ID for none.
    """

    names: tuple[str, ...]
    label_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    of_point: NDArray[np.int32]


def _find_objects(model: Model, scan: Scan) -> _Objects:
    from t4p.data.boxes import bounds_of_instances, points_inside

    points = scan.points.astype(np.float64)
    if model.finds == "masks":
        masks, label_ids, sureness = model.segment_instances(scan.points, scan.colors)
        masks = masks[sureness >= SURE_FROM]
        boxes = [bounds_of_instances(points, mask.astype(np.int64) - 1, 1) for mask in masks]
        boxes_of_objects = np.concatenate([np.zeros((0, 7)), *boxes])
        scores = sureness.astype(np.float64)
    else:
        boxes_of_objects, label_ids, scores = model.detect(scan.points, scan.colors)
        boxes_of_objects = boxes_of_objects[scores >= SURE_FROM]
        masks = np.array([points_inside(points, box) for box in boxes_of_objects], bool).reshape(-1, len(points))
    sure = scores >= SURE_FROM
    of_point = np.full(len(points), _NO_ID, np.int32)
    for place in reversed(range(len(masks))):  # the surest last: a point is its
        of_point[masks[place]] = place
    seen: Counter[str] = Counter()
    names = []
    for label_id in label_ids[sure]:
        label = model.labels[label_id]
        seen[label] += 1
        names.append(f"{label} {seen[label]}")
    return _Objects(tuple(names), label_ids[sure], scores[sure], boxes_of_objects, of_point)


def _predict_objects(call: ScanCall, model: Model, scan: Scan, folder: Path) -> None:
    """Find the objects of a scan; objects.json beside the other files, which have the object of every point."""
    with _as_call_errors(call):
        objects = _find_objects(model, scan)
        features, row_of_point = model.embed_coarsely(scan.points, scan.colors)
        words = model.embed_words(model.vocabulary)
    of_point = objects.of_point
    scores = np.append(objects.scores, 0.0).astype(np.float32)[of_point]  # _NO_ID is the last
    names = (*objects.names, "no object")
    shown_ids = np.where(of_point == _NO_ID, len(objects.names), of_point)
    palette = np.concatenate([label_colors(objects.names), np.array([NO_LABEL], np.uint8)])
    said = _Said(objects.names, of_point, scores[:, None], palette[shown_ids])
    painted = _Painted(names, palette, shown_ids, scores, objects.boxes)
    _write(call, folder, model, scan, said, features, row_of_point, words, painted, ())
    records = [
        {"label": model.labels[label], "name": name, "score": float(score), "box": box.tolist()}
        for name, label, score, box in zip(objects.names, objects.label_ids, objects.scores, objects.boxes, strict=True)
    ]
    with write_result(folder / OBJECTS, call.force) as partial:
        partial.write_text(json.dumps({"task": model.task, "objects": records}, indent=1), encoding="utf-8")
    typer.echo(f"{len(records)} objects with a score of {SURE_FROM:g} or more ({folder / OBJECTS})")
    for record in records:
        typer.echo(f"  {shown(record['name'])}: {record['score']:.2f}")


@dataclass(frozen=True, eq=False)
class _Painted:
    """What the page paints points as.

    Attributes:
        names: of labels, or of objects.
        colors: (K, 3) uint8, of each.
        ids: (N,) which each point has.
        shares: (N,) in [0, 1], how sure that is.
        boxes: (P, 7) drawn in the colours of the first P names.
    """

    names: Sequence[str]
    colors: NDArray[np.uint8]
    ids: NDArray[np.integer]
    shares: NDArray[np.float32]
    boxes: NDArray[np.float64]


NO_BOXES = np.zeros((0, 7))


def predict_scan(call: ScanCall, labels: Sequence[str] | None) -> Path:
    """Label every point of a scan, or find its objects; write points.ply, points.npz and index.html.

    Args:
        labels: words to choose from; None takes the network's own.

    Returns:
        The folder.

    Raises:
        CallError, ShardError: the scan cannot be read, or the network cannot be asked this of it.
        CheckpointError, ConfigError, ClipError: the network cannot be read.
        ResultError: the results cannot be written.
    """
    model, scan, folder = _prepare(call)
    if model.finds != "labels":
        if labels is not None:
            raise CallError(f"--labels is for networks that label points, and {shown(call.model)} finds {model.finds}")
        _predict_objects(call, model, scan, folder)
        return folder
    with _as_call_errors(call):
        ids, scores = model.classify(scan.points, scan.colors, labels)
        features, row_of_point = model.embed_coarsely(scan.points, scan.colors)
        names = model.labels if labels is None else tuple(labels)
        words = model.embed_words(tuple(dict.fromkeys((*names, *model.vocabulary))))
    scale = model.logit_scale if model.scores_are_cosines else 1.0
    shares = _softmax(scores * np.float32(scale))
    said = _Said(names, ids.astype(np.int32), shares, label_colors(names)[ids])
    painted = _Painted(names, label_colors(names), ids, shares[np.arange(len(ids)), ids], NO_BOXES)
    _write(call, folder, model, scan, said, features, row_of_point, words, painted, ())
    _tell_shares(names, ids)
    return folder


def query_scan(call: ScanCall, phrases: Sequence[str]) -> Path:
    """Score how well phrases fit every point of a scan; write points.ply, points.npz and index.html.

    Returns:
        The folder.

    Raises:
        as `predict_scan`.
    """
    model, scan, folder = _prepare(call)
    with _as_call_errors(call):
        words = model.embed_words(tuple(dict.fromkeys((*model.vocabulary, *phrases))))
        scores = model.score_phrases(features_and_rows := model.embed_coarsely(scan.points, scan.colors), phrases)
    features, row_of_point = features_and_rows
    best = scores.argmax(axis=1)
    highest = scores[np.arange(len(scores)), best]
    grey = grey_by_height(scan.points) if scan.colors is None else scan.colors
    quiet = (70 + 0.5 * grey.mean(axis=1, dtype=np.float32))[:, None]
    colors = quiet + (_HIGHLIGHT - quiet) * highest[:, None]
    ids = np.where(highest > ABOVE, best, _NO_ID).astype(np.int32)
    said = _Said(phrases, ids, scores, colors.astype(np.uint8))
    # The page's labels are those whose text is nearest; a phrase is shown by its own score.
    cosines = features @ np.stack([words[label] for label in model.labels]).T
    nearest = cosines.argmax(axis=1)
    share = _softmax(cosines * np.float32(model.logit_scale))[np.arange(len(nearest)), nearest]
    colors_of_labels = label_colors(model.labels)
    painted = _Painted(model.labels, colors_of_labels, nearest[row_of_point], share[row_of_point], NO_BOXES)
    _write(call, folder, model, scan, said, features, row_of_point, words, painted, phrases)
    typer.echo(model.query_rule)
    for column, phrase in enumerate(phrases):
        above = float((scores[:, column] > ABOVE).mean())
        typer.echo(
            f"  {shown(phrase)}: {above:.1%} of the points above {ABOVE:g}, the highest {scores[:, column].max():.2f}"
        )
    return folder


def _prepare(call: ScanCall) -> tuple[Model, Scan, Path]:
    """The network, the scan, and a folder that takes the results; the quick checks first."""
    if not spelt_out(call.model).startswith(SCHEME) and not Path(call.model).exists():
        raise CallError(
            f"{shown(call.model)}: no such file or folder; wanted what `t4p checkpoint export` wrote, a run "
            f"folder, or {SCHEME}OWNER/NAME of the Hugging Face hub"
        )
    from t4p.data.scan import read_scan

    scan = read_scan(call.scan, call.unit, call.up)
    for remark in scan.remarks:
        typer.echo(f"{shown(scan.name)}: {shown(remark, 500)}", err=True)
    folder = Path("predictions") / scan.name if call.out is None else call.out
    if folder.is_dir():
        for name in (*FILES, OBJECTS):
            check_result(folder / name, call.force)
    import t4p

    model = t4p.load(call.model)
    if scan.colors is None and model.needs_color:
        raise CallError(
            f"{shown(call.scan)}: has no colour, and {shown(call.model)} was trained with it (model.point_features); "
            "give a scan with colour, or a network that can do without: one trained with "
            "data.drop_features.color=0.5, or without colour (model.point_features=[one,height])"
        )
    return model, scan, folder


class _as_call_errors:
    """Around what a network is asked: what it refuses, the user has called for."""

    def __init__(self, call: ScanCall) -> None:
        self._call = call

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ValueError):
            raise CallError(f"{shown(self._call.scan)}: {error}") from error


def _write(
    call: ScanCall,
    folder: Path,
    model: Model,
    scan: Scan,
    said: _Said,
    features: NDArray[np.float32],
    row_of_point: NDArray[np.int64],
    words: dict[str, NDArray[np.float32]],
    painted: _Painted,
    phrases: Sequence[str],
) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"{folder}: cannot be made ({error}); name another --out") from error
    highest = said.scores.max(axis=1, initial=0.0)
    comments = [f"{name} = {shown(text)}" for name, text in enumerate(said.names)]
    if scan.offset.any():
        comments.append(f"offset {' '.join(f'{value:.0f}' for value in scan.offset)}, to be added to x, y, z")
    with write_result(folder / "points.ply", call.force) as partial:
        write_ply(partial, scan.points, said.colors, {"label": said.ids, "score": highest}, tuple(comments))
    with write_result(folder / "points.npz", call.force) as partial, partial.open("wb") as file:
        np.savez(
            file,
            points=scan.points,
            colors=grey_by_height(scan.points) if scan.colors is None else scan.colors,
            labels=said.ids,
            label_names=np.array(said.names),
            scores=said.scores.astype(np.float16),
            features=features.astype(np.float16),
            feature_of_point=row_of_point.astype(np.int32),
            rows=scan.rows,
            offset=scan.offset,
        )
    embeddings = np.stack(list(words.values()))
    columns = {word: column for column, word in enumerate(words)}
    about = f"{len(scan.points):,} points" + (
        "" if len(scan.points) <= MOST_POINTS else f", {MOST_POINTS:,} of them drawn by chance for this page"
    )
    answer = ScanAnswer(
        title=f"Scan {scan.name}",
        summary=f"What {Path(call.model).name} says of {about}.",
        points=scan.points,
        colors=scan.colors,
        labels=painted.names,
        label_colors=painted.colors,
        ids=painted.ids.astype(np.int64),
        shares=painted.shares,
        row_of_point=row_of_point,
        words=list(words),
        embeddings=embeddings,
        cosines=features @ embeddings.T,
        others=[columns[word] for word in model.vocabulary],
        logit_scale=model.logit_scale,
        phrases=phrases,
        rule=model.query_rule,
        facts=(
            Fact("network", f"{call.model} ({model.task})"),
            *(Fact("scan", remark) for remark in scan.remarks),
            Fact("labels", ", ".join(painted.names)),
        ),
        command=call.command,
        again=shlex.join(["t4p", "query", call.model, call.scan, "a word"]),
        boxes=painted.boxes,
    )
    with write_result(folder / "index.html", call.force) as partial:
        partial.write_text(render_scan(answer), encoding="utf-8")
    typer.echo(f"wrote {', '.join(str(folder / name) for name in FILES)}", err=True)


def _tell_shares(names: Sequence[str], ids: NDArray[np.int64]) -> None:
    shares = np.bincount(ids, minlength=len(names)) / max(len(ids), 1)
    for place in np.argsort(-shares, kind="stable"):
        if shares[place]:
            typer.echo(f"  {shown(names[place])}: {shares[place]:.1%} of the points")


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
