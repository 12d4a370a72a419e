"""`t4p predict` and `t4p query`: a scan of the user's, and what a trained network says of it, as files and a page."""

from __future__ import annotations

import json
import os
import shlex
import sys
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
from commands.pages.scored_scene import SURE_FROM, numbered
from shards.doors.npz import RepeatedRows, write_npz
from shards.doors.ply import write_ply
from shards.doors.text import shown
from shards.errors import CallError, ResultError
from shards.results import write_result
from t4p.data.upright import METRES, UP_AXES, Unit, UpAxis
from t4p.models.hub import SCHEME, spelt_out
from t4p.tasks.described import Embedded

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
class _Asked:
    """A network, a scan, and the folder that takes what comes of them."""

    call: ScanCall
    model: Model
    scan: Scan
    folder: Path


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


@dataclass(frozen=True, eq=False)
class _Answer:
    """What is written of the points.

    Attributes:
        embedded: their features.
        words: what the page can be asked, with their embeddings.
        phrases: words that were asked.
        names: what the ids count: labels, phrases or objects.
        ids: (N,) int32, _NO_ID where none fits.
        scores: (R, K) float32 in [0, 1], and
        row_of_point: (N,) which of its rows each point has: points of one voxel share theirs.
        colors: (N, 3) uint8 of the PLY.
        painted: of the page.
    """

    embedded: Embedded
    words: dict[str, NDArray[np.float32]]
    phrases: Sequence[str]
    names: Sequence[str]
    ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    row_of_point: NDArray[np.integer]
    colors: NDArray[np.uint8]
    painted: _Painted


def _predict_objects(asked: _Asked) -> None:
    """Find the objects of a scan; objects.json beside the other files, which have the object of every point."""
    call, model, scan = asked.call, asked.model, asked.scan
    with _as_call_errors(call.scan):
        objects = model.find_objects(scan.points, scan.colors, least_score=SURE_FROM)
    words = model.embed_words(model.vocabulary)
    labels = [model.labels[label_id] for label_id in objects.label_ids]
    names = numbered(labels)
    of_point = np.full(len(scan.points), _NO_ID, np.int32)
    for place in reversed(range(len(names))):  # the surest last: a point is its
        of_point[objects.points_of[place]] = place
    scores = np.append(objects.scores, 0.0).astype(np.float32)  # _NO_ID is the last
    shown_ids = np.where(of_point == _NO_ID, len(names), of_point)
    palette = np.concatenate([label_colors(names), np.array([NO_LABEL], np.uint8)])
    painted = _Painted((*names, "no object"), palette, shown_ids, scores[of_point], objects.boxes)
    answer = _Answer(
        embedded=objects,
        words=words,
        phrases=(),
        names=names,
        ids=of_point,
        scores=scores[:, None],
        row_of_point=of_point,
        colors=palette[shown_ids],
        painted=painted,
    )
    _write(asked, answer)
    records = [
        {"label": label, "name": name, "score": float(score), "box": box.tolist()}
        for name, label, score, box in zip(names, labels, objects.scores, objects.boxes, strict=True)
    ]
    with write_result(asked.folder / OBJECTS, call.force) as partial:
        partial.write_text(json.dumps({"task": model.task, "objects": records}, indent=1), encoding="utf-8")
    typer.echo(f"{len(records)} objects with a score of {SURE_FROM:g} or more ({asked.folder / OBJECTS})")
    for record in records:
        typer.echo(f"  {shown(record['name'])}: {record['score']:.2f}")


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
    model = _load(call)
    if model.finds != "labels":
        if labels is not None:
            raise CallError(f"--labels is for networks that label points, and {shown(call.model)} finds {model.finds}")
        asked = _read(call, model)
        _predict_objects(asked)
        return asked.folder
    with _as_call_errors():
        names = model.labels if labels is None else model.spelled(labels, "labels")
    words = model.embed_words(tuple(dict.fromkeys((*names, *model.vocabulary))))
    asked = _read(call, model)
    scan = asked.scan
    with _as_call_errors(call.scan):
        described = model.describe(scan.points, scan.colors, None if labels is None else names)
    best = described.scores.argmax(axis=1)
    shares = _softmax_in_place(described.scores, model.logit_scale if model.scores_are_cosines else 1.0)
    rows, palette = described.voxel_of_point, label_colors(names)
    ids = best[rows]
    answer = _Answer(
        embedded=described,
        words=words,
        phrases=(),
        names=names,
        ids=ids.astype(np.int32),
        scores=shares,
        row_of_point=rows,
        colors=palette[ids],
        painted=_Painted(names, palette, ids, shares.max(axis=1, initial=0.0)[rows], NO_BOXES),
    )
    _write(asked, answer)
    _tell_shares(names, ids)
    return asked.folder


def query_scan(call: ScanCall, phrases: Sequence[str]) -> Path:
    """Score how well phrases fit every point of a scan; write points.ply, points.npz and index.html.

    Returns:
        The folder.

    Raises:
        as `predict_scan`.
    """
    model = _load(call)
    with _as_call_errors():
        phrases = model.spelled(phrases)
    words = model.embed_words(tuple(dict.fromkeys((*model.vocabulary, *phrases))))
    asked = _read(call, model)
    scan = asked.scan
    with _as_call_errors(call.scan):
        embedded = Embedded(*model.embed_coarsely(scan.points, scan.colors))
    scores = model.score_features(embedded.features, phrases)
    rows = embedded.row_of_point
    highest = scores.max(axis=1)
    ids = np.where(highest > ABOVE, scores.argmax(axis=1), _NO_ID).astype(np.int32)
    grey = grey_by_height(scan.points) if scan.colors is None else scan.colors
    quiet = (70 + 0.5 * grey.mean(axis=1, dtype=np.float32))[:, None]
    colors = (quiet + (_HIGHLIGHT - quiet) * highest[rows, None]).astype(np.uint8)
    # The page's labels are those whose text is nearest; a phrase is shown by its own score.
    cosines = embedded.features @ np.stack([words[label] for label in model.labels]).T
    nearest = cosines.argmax(axis=1)
    share = _softmax_in_place(cosines, model.logit_scale).max(axis=1)
    answer = _Answer(
        embedded=embedded,
        words=words,
        phrases=phrases,
        names=phrases,
        ids=ids[rows],
        scores=scores,
        row_of_point=rows,
        colors=colors,
        painted=_Painted(model.labels, label_colors(model.labels), nearest[rows], share[rows], NO_BOXES),
    )
    _write(asked, answer)
    typer.echo(model.query_rule)
    for column, phrase in enumerate(phrases):
        above = float((scores[:, column] > ABOVE)[rows].mean())
        typer.echo(
            f"  {shown(phrase)}: {above:.1%} of the points above {ABOVE:g}, the highest {scores[:, column].max():.2f}"
        )
    return asked.folder


def _load(call: ScanCall) -> Model:
    """The network, after what is refused without reading anything."""
    if not spelt_out(call.model).startswith(SCHEME) and not Path(call.model).exists():
        raise CallError(
            f"{shown(call.model)}: no such file or folder; wanted what `t4p checkpoint export` wrote, a run "
            f"folder, or {SCHEME}OWNER/NAME of the Hugging Face hub"
        )
    if call.out is not None:
        _check_folder(call.out, call.force)
    import t4p
    from t4p.data.scan import place_of_scan

    place_of_scan(call.scan)
    return t4p.load(call.model)


def _read(call: ScanCall, model: Model) -> _Asked:
    """The scan that a network is asked about, and a folder that takes the results."""
    from t4p.data.scan import read_scan

    scan = read_scan(call.scan, call.unit, call.up)
    for remark in scan.remarks:
        typer.echo(f"{shown(scan.name)}: {shown(remark, 500)}", err=True)
    folder = call.out
    if folder is None:
        folder = Path("predictions") / scan.name
        _check_folder(folder, call.force)
    if scan.colors is None and model.needs_color:
        raise CallError(
            f"{shown(call.scan)}: has no colour, and {shown(call.model)} was trained with it (model.point_features); "
            "give a scan with colour, or a network that can do without: one trained with "
            "data.drop_features.color=0.5, or without colour (model.point_features=[one,height])"
        )
    return _Asked(call, model, scan, folder)


def _check_folder(folder: Path, force: bool) -> None:
    """Refuse a folder that cannot take the results, or holds some."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise CallError(f"{shown(there)}: is a file, wanted a folder for the results; name another folder with --out")
    for name in (*FILES, OBJECTS):
        path = folder / name
        if path.is_dir() or (not force and os.path.lexists(path)):
            again = "" if path.is_dir() else ", or write over it with --force"
            raise CallError(f"{shown(path)}: exists already; name another folder with --out{again}")


class _as_call_errors:
    """Around what a network is asked: what it refuses, the user has called for; of a scan, which is named first."""

    def __init__(self, scan: str | None = None) -> None:
        self._where = "" if scan is None else f"{shown(scan)}: "

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ValueError):
            raise CallError(f"{self._where}{error}") from error


def _write(asked: _Asked, answer: _Answer) -> None:
    call, scan, folder = asked.call, asked.scan, asked.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultError(f"{folder}: cannot be made ({error}); name another --out") from error
    highest = answer.scores.max(axis=1, initial=0.0)[answer.row_of_point]
    comments = [f"{name} = {shown(text)}" for name, text in enumerate(answer.names)]
    if scan.offset.any():
        comments.append(f"offset {' '.join(f'{value:.0f}' for value in scan.offset)}, to be added to x, y, z")
    with write_result(folder / "points.ply", call.force) as partial:
        write_ply(partial, scan.points, answer.colors, {"label": answer.ids, "score": highest}, tuple(comments))
    arrays: dict[str, NDArray[Any] | RepeatedRows] = {
        "points": scan.points,
        "colors": grey_by_height(scan.points) if scan.colors is None else scan.colors,
        "labels": answer.ids,
        "label_names": np.array(answer.names),
        "scores": RepeatedRows(answer.scores.astype(np.float16), answer.row_of_point),
        "features": answer.embedded.features.astype(np.float16),
        "feature_of_point": answer.embedded.row_of_point.astype(np.int32),
        "rows": scan.rows,
        "offset": scan.offset,
    }
    with write_result(folder / "points.npz", call.force) as partial:
        write_npz(partial, arrays)
    with write_result(folder / "index.html", call.force) as partial:
        partial.write_text(render_scan(_answer_of_page(asked, answer)), encoding="utf-8")
    typer.echo(f"wrote {', '.join(str(folder / name) for name in FILES)}", err=True)


def _answer_of_page(asked: _Asked, answer: _Answer) -> ScanAnswer:
    call, model, scan = asked.call, asked.model, asked.scan
    embedded, words, painted = answer.embedded, answer.words, answer.painted
    embeddings = np.stack(list(words.values()))
    columns = {word: column for column, word in enumerate(words)}
    about = f"{len(scan.points):,} points" + (
        "" if len(scan.points) <= MOST_POINTS else f", {MOST_POINTS:,} of them drawn by chance for this page"
    )
    return ScanAnswer(
        title=f"Scan {scan.name}",
        summary=f"What {Path(call.model).name} says of {about}.",
        points=scan.points,
        colors=scan.colors,
        labels=painted.names,
        label_colors=painted.colors,
        ids=painted.ids.astype(np.int64),
        shares=painted.shares,
        row_of_point=embedded.row_of_point,
        words=list(words),
        embeddings=embeddings,
        cosines=embedded.features @ embeddings.T,
        others=[columns[word] for word in model.vocabulary],
        label_of=[columns.get(model.label_of.get(word, word), column) for word, column in columns.items()],
        logit_scale=model.logit_scale,
        phrases=answer.phrases,
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


def _tell_shares(names: Sequence[str], ids: NDArray[np.int64]) -> None:
    shares = np.bincount(ids, minlength=len(names)) / max(len(ids), 1)
    for place in np.argsort(-shares, kind="stable"):
        if shares[place]:
            typer.echo(f"  {shown(names[place])}: {shares[place]:.1%} of the points")


def _softmax_in_place(logits: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Of each row of (R, K) times `scale`: the same array, which of a large scan is as large as anything."""
    logits *= np.float32(scale)
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits
