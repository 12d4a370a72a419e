"""`t4p predict` and `t4p query`: what they leave, and what they refuse before the work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from commands.pages import point_cloud
from commands.scans import FILES, predict_scan, query_scan, scan_call
from shards.doors.ply import read_ply, write_ply
from shards.errors import CallError, ShardError
from t4p.data.boxes import points_inside
from t4p.errors import CheckpointError
from t4p.tasks.model import load

OLDER = Path(__file__).resolve().parents[2] / "data" / "older"
SCENE = f"{OLDER / 'scenes'}"
TUNED, PRETRAINED = OLDER / "semantic.safetensors", OLDER / "pretrain.safetensors"


def call(model: Path, scan: str, out: Path, **changes):
    return scan_call(
        str(model), scan, out, *(changes.get(name) for name in ("unit", "up")), changes.get("force", False)
    )


def data_of(page: Path) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    return json.loads(text)


def test_a_prediction_is_what_classify_says_in_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "b"
    predict_scan(call(TUNED, SCENE, out), None)
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    saved = np.load(out / "points.npz")
    model = load(TUNED)
    ids, _ = model.classify(saved["points"], saved["colors"])
    np.testing.assert_array_equal(saved["labels"], ids)
    np.testing.assert_allclose(saved["scores"].sum(axis=1), 1, atol=2e-3)
    assert tuple(saved["label_names"]) == model.labels
    embedded = model.embed(saved["points"], saved["colors"])
    np.testing.assert_allclose(saved["features"][saved["feature_of_point"]], embedded, atol=1e-3)
    written = read_ply(out / "points.ply")
    np.testing.assert_allclose(written.points, saved["points"])
    assert b"comment 0 = wall\n" in (out / "points.ply").read_bytes()
    data = data_of(out / "index.html")
    assert [label["name"] for label in data["labels"]] == list(model.labels)
    assert data["cloud"]["num_points"] == len(ids)
    said = capsys.readouterr()
    assert f"wrote {out / 'points.ply'}" in said.err
    assert "of the points" in said.out
    with pytest.raises(CallError, match=r"points\.ply: exists already; name another folder .*--force"):
        predict_scan(call(TUNED, SCENE, out), None)
    predict_scan(call(TUNED, SCENE, out, force=True), ["chair", "wall"])
    assert set(np.load(out / "points.npz")["labels"]) <= {0, 1}


def test_a_query_is_what_the_python_door_says_and_its_rule_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query_scan(call(PRETRAINED, SCENE, tmp_path), [" Chair", "floor"])
    saved, model = np.load(tmp_path / "points.npz"), load(PRETRAINED)
    scores = model.query(saved["points"], saved["colors"], ["chair", "floor"])
    np.testing.assert_allclose(saved["scores"], scores, atol=1e-3)
    highest = scores.max(axis=1)
    np.testing.assert_array_equal(saved["labels"], np.where(highest > 0.5, scores.argmax(axis=1), -1))
    assert data_of(tmp_path / "index.html")["phrases"] == ["chair", "floor"]
    assert model.query_rule in capsys.readouterr().out


@pytest.mark.parametrize("num_points", [1, 10])
def test_a_handful_of_points_has_a_page_too(tmp_path: Path, num_points: int) -> None:
    points = np.random.default_rng(0).random((num_points, 3)) * 0.01
    write_ply(tmp_path / "few.ply", points, np.zeros((num_points, 3), np.uint8), {})
    query_scan(call(PRETRAINED, str(tmp_path / "few.ply"), tmp_path), ["chair"])
    assert data_of(tmp_path / "index.html")["cloud"]["num_points"] == num_points


def test_the_first_points_of_a_page_are_fair_samples_of_it_and_there_is_a_most(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in (("NUM_ON_PHONE", 300), ("NUM_MOVING", 100)):
        monkeypatch.setattr(point_cloud, name, count)
    points = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    order = point_cloud.drawing_order(points, 900)
    assert len(set(order.tolist())) == len(order) == 900
    for part in (order[:100], order[100:300], order[300:]):
        assert abs(part.mean() - 500) < 60
        np.testing.assert_array_equal(part, np.sort(part), "neighbours stand together")


def test_what_cannot_be_asked_is_told_and_leaves_no_folder(tmp_path: Path) -> None:
    out, bare = tmp_path / "out", tmp_path / "bare.npz"
    np.savez(bare, points=np.random.default_rng(0).random((50, 3)))
    with pytest.raises(CallError, match=r"bare\.npz: has no colour, and .* was trained with it .*one,height"):
        predict_scan(call(TUNED, str(bare), out), None)
    with pytest.raises(CallError, match=r"labels \['dog'\]: the head of this network was fine-tuned for"):
        predict_scan(call(TUNED, SCENE, out), ["dog"])
    with pytest.raises(CallError, match=r"gone\.safetensors: no such file or folder"):
        predict_scan(call(tmp_path / "gone.safetensors", SCENE, out), None)
    with pytest.raises(CallError, match="--unit is 'inch', wanted one of m, cm, mm"):
        call(TUNED, SCENE, out, unit="inch")
    with pytest.raises(CallError, match="--up is 'w', wanted one of x, y, z, -x, -y, -z"):
        call(TUNED, SCENE, out, up="w")
    with pytest.raises(CallError, match=r"gone\.ply: no such file or folder"):
        predict_scan(call(bare, str(tmp_path / "gone.ply"), out), None)  # which is no export
    (tmp_path / "broken.ply").touch()  # read, it would be told first
    for phrases, message in (
        (["chair", "Chair"], "names twice: chair$"),
        (["", "wall"], r"is \['', 'wall'\], of which"),
    ):
        with pytest.raises(CallError, match=rf"^phrases {message}"):
            query_scan(call(PRETRAINED, str(tmp_path / "broken.ply"), out), phrases)
    with pytest.raises(CallError, match=r"^labels is empty"):
        predict_scan(call(PRETRAINED, str(tmp_path / "broken.ply"), out), [])
    with pytest.raises(CheckpointError, match=r"bare\.npz: is no export"):
        query_scan(call(bare, str(tmp_path / "broken.ply"), out), ["chair"])
    for place in (bare, bare / "below"):
        with pytest.raises(CallError, match=r"bare\.npz: is a file, wanted a folder .*; name another folder"):
            query_scan(call(PRETRAINED, str(tmp_path / "broken.ply"), place), ["chair"])
    (tmp_path / "points.npz").mkdir()
    with pytest.raises(CallError, match=r"points\.npz: exists already; name another folder with --out$"):
        query_scan(call(PRETRAINED, str(tmp_path / "broken.ply"), tmp_path, force=True), ["chair"])
    np.savez(bare, points=np.zeros((0, 3)))
    with pytest.raises(ShardError, match="holds no point"):
        predict_scan(call(TUNED, str(bare), out), None)
    assert not out.exists()


def test_the_edges_of_a_box_lie_on_it_and_are_its_own_points():
    box = np.array([1.0, 2.0, 0.5, 2.0, 1.0, 0.6, 0.7])
    edges = point_cloud.edges_of_box(box)
    inner, outer = box.copy(), box.copy()
    inner[3:6] -= 1e-6
    outer[3:6] += 1e-6
    assert points_inside(edges, outer).all()
    assert not points_inside(edges, inner).any()
    assert len(edges) > 4 * (2.0 + 1.0 + 0.6) / 0.008
