"""`t4p.load`: what it says of points is what evaluation says, and what it cannot be given is refused in words."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.reader import DatasetReader
from t4p.config.data import DropFeaturesConfig, EvaluatedDataConfig
from t4p.data.decode import decode_frame
from t4p.data.transforms import lift_frame
from t4p.errors import CheckpointError
from t4p.models.exported import ExportedNetwork, load_exported_network
from t4p.tasks.evaluate import label_points
from t4p.tasks.model import Model, load

ROOT = Path(__file__).resolve().parents[4]
OLDER = ROOT / "tests" / "data" / "older"


@pytest.fixture(scope="module", params=["pretrain", "semantic"])
def exported(request: pytest.FixtureRequest) -> ExportedNetwork:
    """An export whose words lie far apart, so that points differ: those of a random text tower hardly do."""
    found = load_exported_network(OLDER / f"{request.param}.safetensors")
    embeddings = found.net(torch.zeros(1, 4, dtype=torch.int32), torch.rand(1, 3), found.label_embeddings)[0]
    apart = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    apart -= apart @ embeddings.T @ embeddings / embeddings.square().sum()  # across what all embeddings share
    return replace(found, label_embeddings=torch.nn.functional.normalize(apart, dim=1))


@pytest.fixture(scope="module")
def model(exported: ExportedNetwork) -> Model:
    return Model(exported)


@pytest.fixture(scope="module")
def pretrained() -> Model:
    return load(str(OLDER / "pretrain.safetensors"))


@pytest.fixture(scope="module")
def tuned() -> Model:
    return load(OLDER / "semantic.safetensors")


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray]:
    stored = DatasetReader(str(OLDER / "scenes")).read_scene(0, 0)
    return stored.points, stored.rgb


def evaluated(exported: ExportedNetwork, data: str, **changes) -> np.ndarray:
    """What `t4p evaluate` says of every point."""
    scored = EvaluatedDataConfig(shards=(str(OLDER / data),), num_workers=0, ignored_labels=("*",), **changes)
    return np.concatenate([predicted.numpy() for predicted, _ in label_points(exported, scored)])


def test_classify_says_of_a_scene_what_evaluate_says(exported, model: Model, scene) -> None:
    ids, scores = model.classify(*scene)
    assert (ids.dtype, scores.dtype, scores.shape) == (np.int64, np.float32, (len(scene[0]), 4))
    np.testing.assert_array_equal(ids, evaluated(exported, "scenes"))
    assert len(np.unique(ids)) > 1
    np.testing.assert_array_equal(ids, scores.argmax(axis=1))


def test_classify_says_of_the_points_of_frames_what_evaluate_says(exported, model: Model) -> None:
    dataset = DatasetReader(str(OLDER / "frames"))
    lifted = [
        lift_frame(decode_frame(dataset.read_frame(0, index)), 2, 3.0, False) for index in range(dataset.num_samples)
    ]
    found = np.concatenate([model.classify(frame.points, frame.colors)[0] for frame in lifted])
    np.testing.assert_array_equal(found, evaluated(exported, "frames", pixel_stride=2, max_depth=3.0))


def test_embeddings_are_unit_norm_and_their_cosines_with_the_words_are_the_zero_shot_scores(pretrained, scene) -> None:
    embeddings = pretrained.embed(*scene)
    words = load_exported_network(OLDER / "pretrain.safetensors").label_embeddings.numpy()
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (len(scene[0]), 16))
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(embeddings @ words.T, pretrained.classify(*scene)[1], atol=1e-6)
    # Points within a bottleneck voxel of 0.1 m x 2^2 share their row; there are far fewer rows than points.
    assert 10 < len(np.unique(embeddings, axis=0)) < len(embeddings) / 10


def test_the_scores_of_a_fine_tuned_head_are_its_logits_and_some_of_its_labels_their_columns(tuned, scene) -> None:
    _, scores = tuned.classify(*scene)
    assert not (np.abs(scores) <= 1).all()
    ids, some = tuned.classify(*scene, labels=["chair", "floor"])
    np.testing.assert_array_equal(some, scores[:, [3, 1]])
    np.testing.assert_array_equal(ids, some.argmax(axis=1))


def test_a_fine_tuned_head_knows_no_other_words(tuned, scene) -> None:
    with pytest.raises(ValueError, match=r"labels \['dog'\]: the head of this network was fine-tuned for \['wall'"):
        tuned.classify(*scene, labels=["chair", "dog"])


def test_a_pre_training_is_asked_any_words_through_the_text_tower_of_its_run(
    pretrained, scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    from t4p.models.towers import load_towers_from

    monkeypatch.chdir(ROOT)  # the CLIP of the run is a path
    exported = load_exported_network(OLDER / "pretrain.safetensors")
    ids, scores = pretrained.classify(*scene, labels=["dog", "wall", "a red chair"])
    words = load_towers_from(exported.config.model.clip, 0).encode_labels(["dog", "wall", "a red chair"])
    np.testing.assert_allclose(scores, pretrained.embed(*scene) @ words.numpy().T, atol=1e-6)
    np.testing.assert_array_equal(ids, scores.argmax(axis=1))
    with pytest.raises(CheckpointError, match="was trained against towers with sha256 other"):
        Model(replace(exported, towers_sha256="other")).classify(*scene, labels=["dog"])


def test_a_phrase_scores_its_share_among_the_labels_and_the_neutral_words_and_phrases_do_not_compete(
    exported: ExportedNetwork, scene
) -> None:
    neutral = {"thing": torch.nn.functional.normalize(torch.arange(16.0), dim=0)}
    model = Model(replace(exported, neutral=neutral, logit_scale=5.0))
    assert model.vocabulary == (*model.labels, "thing")
    scores = model.query(*scene, ["chair", "thing"])
    others = torch.cat([exported.label_embeddings, neutral["thing"][None]]).numpy()
    cosines = 5.0 * model.embed(*scene) @ others.T
    shares = np.exp(cosines) / np.exp(cosines).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, shares[:, [model.labels.index("chair"), 4]], atol=1e-5)
    np.testing.assert_allclose(model.query(*scene, ["thing"])[:, 0], scores[:, 1], atol=1e-6)
    assert scores.dtype == np.float32
    for words in (["the 4 labels", "thing"], ["5 times"]):
        assert all(word in model.query_rule for word in words)


def test_a_synonym_is_not_weighed_against_its_label(exported: ExportedNetwork, scene) -> None:
    label_words = {label: (label, "seat") if label == "chair" else (label,) for label in exported.labels}
    config = exported.config.model_copy(
        update={"model": exported.config.model.model_copy(update={"labels": label_words})}
    )
    seat = torch.nn.functional.normalize(torch.arange(16.0), dim=0)
    model = Model(replace(exported, config=config, neutral={"seat": seat}, logit_scale=5.0))
    others = [exported.label_embeddings[row] for row, label in enumerate(exported.labels) if label != "chair"]
    cosines = 5.0 * model.embed(*scene) @ torch.stack([seat, *others]).numpy().T
    shares = np.exp(cosines) / np.exp(cosines).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.query(*scene, ["seat"])[:, 0], shares[:, 0], atol=1e-5)


def test_case_and_spaces_of_a_word_do_not_count(exported: ExportedNetwork, scene) -> None:
    label_words = {label: (label, "seat") if label == "chair" else (label,) for label in exported.labels}
    config = exported.config.model_copy(
        update={"model": exported.config.model.model_copy(update={"labels": label_words})}
    )
    words = torch.nn.functional.normalize(torch.arange(32.0).reshape(2, 16), dim=1)
    neutral = {"an arm  rest": words[0], "seat": words[1], "Wall": words[0]}
    model = Model(replace(exported, config=config, neutral=neutral, logit_scale=5.0))
    own, other = ["chair", "seat", "an arm  rest", "Wall"], [" Chair", "SEAT", "An arm\trest ", "Wall"]
    assert model.spelled(other) == tuple(own)
    assert model.vocabulary == (*model.labels, "an arm  rest", "seat"), "Wall is a label"
    np.testing.assert_array_equal(model.query(*scene, other), model.query(*scene, own))
    assert list(model.embed_words(other)) == other
    for found, same in zip(
        model.classify(*scene, labels=["FLOOR", "chair "]),
        model.classify(*scene, labels=["floor", "chair"]),
        strict=True,
    ):
        np.testing.assert_array_equal(found, same)
    for twice in (["Chair", "chair "], ["Dog", "dog"]):
        with pytest.raises(ValueError, match=r"phrases names twice: (chair|Dog)"):
            model.spelled(twice)


def test_whoever_asks_a_word_that_the_tower_has_never_seen_is_told_where_its_words_are_listed(exported) -> None:
    model = exported.config.model
    clip = model.clip.model_copy(update={"name": "configs/clip/small-rooms.json"})
    config = exported.config.model_copy(update={"model": model.model_copy(update={"clip": clip})})
    with pytest.raises(ValueError, match=r"the words 'dog': .* or what else .*configs/clip/small-rooms\.words\.json"):
        Model(replace(exported, config=config)).spelled(["chair", "a dog"])


def test_another_phrase_is_one_more_in_its_own_softmax(pretrained, scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the CLIP of the run is a path
    scores = pretrained.query(*scene, ["a red chair", "wall"])
    embedded = pretrained.embed_words(["a red chair", *pretrained.labels])
    cosines = pretrained.logit_scale * pretrained.embed(*scene) @ np.stack(list(embedded.values())).T
    np.testing.assert_allclose(scores[:, 0], np.exp(cosines[:, 0]) / np.exp(cosines).sum(axis=1), atol=1e-5)
    with pytest.raises(ValueError, match="phrases is empty, wanted at least one word"):
        pretrained.query(*scene, [])


def test_tensors_and_floats_are_the_same_points(model: Model, scene) -> None:
    points, colors = scene
    wanted = model.classify(points, colors)
    given = (torch.from_numpy(points).double().requires_grad_(), torch.from_numpy(colors).float() / 255)
    for found, same in zip(model.classify(*given), wanted, strict=True):
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, same)


def test_no_points_give_no_rows(model: Model) -> None:
    nothing = np.zeros((0, 3))
    ids, scores = model.classify(nothing, nothing)
    assert (ids.shape, scores.shape, model.embed(nothing, nothing).shape) == ((0,), (0, 4), (0, 16))


POINTS, COLORS = np.zeros((5, 3)), np.zeros((5, 3), np.uint8)


@pytest.mark.parametrize(
    ("points", "colors", "message"),
    [
        (POINTS, None, r"colors are missing: this network was trained with the features \['color'\].*drop_features"),
        (np.zeros((5, 4)), COLORS, r"points are float64 of shape \(5, 4\), wanted numbers \(N, 3\)"),
        (np.zeros(3), COLORS, r"shape \(3,\)"),
        (POINTS.astype(str), COLORS, "points are <U32"),
        (np.array([[0, 0, np.nan], [0, np.inf, 0], [0, 0, 0]]), COLORS[:3], "2 of 3 points are not finite"),
        (POINTS + 5e6, COLORS, r"5e\+06 m from the origin, where float32 cannot tell voxels of 0.1 m apart"),
        (
            np.array([[0, 0, 0], [0, 9e7, 0], [1e300, 0, 0]]),
            COLORS[:3],
            "2 of 3 points, the first of them row 1, lie up",
        ),
        (POINTS, COLORS[:4], r"colors have shape \(4, 3\), wanted \(5, 3\)"),
        (POINTS, COLORS.astype(np.int64), "colors are int64, wanted uint8, or floats"),
        (POINTS, COLORS + 255.0, r"floats from 255 to 255, wanted \[0, 1\]; divide by 255"),
        (POINTS, POINTS * np.nan, r"wanted \[0, 1\]"),
    ],
)
def test_points_and_colors_that_cannot_be_meant_are_refused(model: Model, points, colors, message: str) -> None:
    for method in (model.embed, model.classify):
        with pytest.raises(ValueError, match=message):
            method(points, colors)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "labels is empty"), ("chair", r"wanted a list of words"), (["wall", "wall"], "names twice: wall")],
)
def test_labels_that_cannot_be_meant_are_refused(model: Model, labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.classify(POINTS, COLORS, labels=labels)


def test_colors_are_not_asked_for_where_no_feature_is_a_colour(pretrained, scene) -> None:
    exported = load_exported_network(OLDER / "pretrain.safetensors")
    three_others = exported.config.model.model_copy(update={"point_features": ("position",)})
    placed = Model(replace(exported, config=exported.config.model_copy(update={"model": three_others})))
    without = placed.embed(scene[0])
    np.testing.assert_array_equal(without, placed.embed(*scene))
    assert not np.array_equal(without, pretrained.embed(*scene))


def test_colors_may_be_left_out_where_the_run_dropped_them_and_are_what_they_were_then(exported, scene) -> None:
    data = exported.config.data.model_copy(update={"drop_features": DropFeaturesConfig(color=0.5)})
    model = Model(replace(exported, config=exported.config.model_copy(update={"data": data})))
    points, colors = scene
    without = model.classify(points)[1]
    middle_grey = np.full(points.shape, 0.5)  # 0 on the way from [0, 1] to [-1, 1]
    np.testing.assert_array_equal(without, model.classify(points, middle_grey)[1])
    np.testing.assert_array_equal(model.classify(points, colors)[1], Model(exported).classify(points, colors)[1])
    assert not np.array_equal(without, model.classify(points, colors)[1])
    assert Model(exported).needs_color
    assert not model.needs_color


def test_a_run_folder_gives_the_network_of_its_newest_whole_checkpoint(
    scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the CLIP of the run is a path
    run = tmp_path / "run"
    shutil.copytree(OLDER / "runs" / "pretrain", run)
    newer = run / "checkpoints" / "step_00000003"
    newer.mkdir()  # cut short
    with pytest.warns(UserWarning, match="passed over for step_00000002: .*step_00000003: no COMPLETE"):
        found = load(run)
    assert (found.task, found.labels) == ("pretrain", ("wall", "floor", "ceiling", "chair"))
    assert "step=2" in repr(found)
    embeddings = found.embed(*scene)
    np.testing.assert_array_equal(embeddings, load(run / "checkpoints" / "step_00000002").embed(*scene))
    assert not np.array_equal(embeddings, load(OLDER / "pretrain.safetensors").embed(*scene)), "that is of step 4"


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder; name a run folder, or one of"):
        load(tmp_path)
    (tmp_path / "checkpoints" / "step_00000004").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"without a whole checkpoint; .*\n.*step_00000004: no COMPLETE"):
        load(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "nowhere.safetensors")
