"""The shipped small CLIP, and the functions that made it."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from recipes.small_clip.augment import random_colors, random_views
from recipes.small_clip.objective import TEMPLATES as TRAINING_TEMPLATES
from recipes.small_clip.objective import class_weights
from recipes.small_clip.rooms import CLASS_NAMES, TEST_ROOMS, TRAINING_ROOMS, VALIDATION_ROOMS, RoomSet, render_rooms
from recipes.small_clip.score import TEMPLATES, score_dense, score_one_answer, score_retrieval
from recipes.small_clip.train import MAX_BYTES
from recipes.small_clip.trainer import Recipe, Trainer, learning_rate_at, write_weights
from t4p.config.network import ClipConfig
from t4p.models.clip import load_towers
from t4p.models.towers import load_towers_from

CONFIG, WEIGHTS = "configs/clip/small-rooms.json", "configs/clip/small-rooms.safetensors"
FOLDER = Path(__file__).resolve().parents[3] / "configs" / "clip"
OTHER_ROOMS = RoomSet(seed=7, rooms=3)  # none that it was made with


@pytest.fixture(scope="module")
def frames():
    return render_rooms(OTHER_ROOMS)


@pytest.fixture(scope="module")
def towers():
    return load_towers_from(ClipConfig(name=CONFIG, pretrained=WEIGHTS, output_stride=8), seed=0)


def test_shipped_file_is_found_from_any_folder_and_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    towers = load_towers_from(ClipConfig(name=CONFIG, pretrained=WEIGHTS, output_stride=8), seed=0)
    assert towers.grid_size(120, 160) == (15, 20)
    assert sum(path.stat().st_size for path in FOLDER.glob("small-rooms*")) <= MAX_BYTES
    assert towers.model.token_embedding.weight.shape[0] == 49408  # the whole vocabulary: any word can be asked


def shipped_scores():
    return json.loads((FOLDER / "small-rooms.scores.json").read_text())


def test_shipped_scores_belong_to_the_shipped_file():
    scores = shipped_scores()
    content = (FOLDER / "small-rooms.safetensors").read_bytes()
    assert scores["weights"] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    seeds = {scores["recipe"][part]["seed"] for part in ("training", "validation", "test")}
    assert seeds == {TRAINING_ROOMS.seed, VALIDATION_ROOMS.seed, TEST_ROOMS.seed}
    assert set(scores["test"]["dense"]) == set(TEMPLATES)


@pytest.mark.parametrize("template", TEMPLATES)
def test_shipped_tower_names_the_places_of_rooms_it_has_not_seen(towers, frames, template):
    score, trivial = score_dense(towers, frames, template), score_one_answer(frames)
    assert trivial.miou < 0.05
    assert score.miou > 2 * trivial.miou
    assert score.miou > 0.5 * shipped_scores()["test"]["dense"][template]["miou"]  # three rooms vary


def test_shipped_text_tower_tells_the_classes_apart_in_either_wording(towers):
    cloud, photo = (towers.encode_labels(CLASS_NAMES, template) for template in TEMPLATES)
    similarity = cloud @ cloud.T - torch.eye(len(CLASS_NAMES))
    assert similarity.max() < 0.8
    assert torch.equal((cloud @ photo.T).argmax(dim=1), torch.arange(len(CLASS_NAMES)))


def test_retrieval_counts_more_hits_with_more_guesses(towers, frames):
    found = score_retrieval(towers, frames, ranks=(1, 3, 12))
    assert found["recall_at_1"] <= found["recall_at_3"] <= found["recall_at_12"] == 1.0
    assert found["num_captions"] <= 12


def test_training_lowers_both_losses_and_writes_a_file_that_loads(frames, tmp_path):
    recipe = Recipe(
        num_steps=20, warmup_steps=2, decay_steps=4, frozen_norm_steps=4, frames_per_step=3, captions_per_step=4,
        prompt_steps=20,
    )  # fmt: skip
    trainer = Trainer(FOLDER / "small-rooms.json", frames, recipe)
    losses = [trainer.step() for _ in range(recipe.num_steps)]
    dense, caption = [dense for dense, _ in losses], [caption for _, caption in losses if caption is not None]
    assert np.mean(dense[-5:]) < 0.9 * np.mean(dense[:3])
    assert len(caption) == 5
    write_weights(trainer.model, tmp_path / "weights.safetensors")
    towers = load_towers(str(FOLDER / "small-rooms.json"), str(tmp_path / "weights.safetensors"), output_stride=8)
    assert torch.isfinite(towers.dense_features(torch.zeros(1, 3, 120, 160))).all()


def test_text_tower_tells_classes_apart_before_it_meets_an_image(frames):
    def largest_similarity(prompt_steps):
        trainer = Trainer(FOLDER / "small-rooms.json", frames, Recipe(prompt_steps=prompt_steps))
        prompts = SimpleTokenizer(context_length=40)([f"a photo of a {name}" for name in CLASS_NAMES])
        with torch.no_grad():
            text = trainer.model.encode_text(prompts, normalize=True)
        return float((text @ text.T - 2 * torch.eye(len(text))).max())

    assert largest_similarity(0) > 0.9
    assert largest_similarity(60) < 0.7


def test_same_seed_gives_the_same_steps(frames):
    recipe = Recipe(num_steps=2000, frames_per_step=2, captions_per_step=2, prompt_steps=2)
    first, again = (Trainer(FOLDER / "small-rooms.json", frames, recipe) for _ in range(2))
    assert [first.step() for _ in range(2)] == [again.step() for _ in range(2)]
    other = Trainer(FOLDER / "small-rooms.json", frames, replace(recipe, seed=1))
    assert other.step() != first.step()


def test_labels_follow_their_images_through_random_views():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1, 4, (16, 15, 20)).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2).byte()
    colors = (labels * 60)[:, None].expand(-1, 3, -1, -1).contiguous()
    images, seen = random_views(colors, labels, generator)
    assert images.shape == (16, 3, 120, 160)
    assert seen.shape == (16, 60, 80)
    # Per image, brighter means a larger label, whatever the gains: compare with the mean colour of each label.
    small = images.mean(dim=1)[:, ::2, ::2]
    for image, label in zip(small, seen, strict=True):
        means = [image[label == value].mean() for value in (1, 2, 3)]
        assert means == sorted(means)
    assert (seen == 0).any()
    assert not (seen == 0).flatten(1).all(dim=1).any()


def test_random_colors_exchange_channels_and_stay_in_range():
    images = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(64, 3, 2, 2)
    changed = random_colors(images, torch.Generator().manual_seed(0))
    assert changed.min() > 0
    assert changed.max() <= 1
    assert len(set(changed[:, :, 0, 0].argmax(dim=1).tolist())) == 3


def test_class_weights_even_out_what_is_frequent():
    labels = torch.tensor([1] * 16 + [2] * 4 + [0] * 100, dtype=torch.uint8)
    weights = class_weights(labels)
    assert weights[1] / weights[0] == pytest.approx(2.0)
    assert (16 * weights[0] + 4 * weights[1]) / 20 == pytest.approx(1.0)
    assert weights[2:].sum() == 0


def test_learning_rate_rises_and_falls_to_nothing():
    recipe = Recipe(num_steps=100, warmup_steps=10, decay_steps=20, learning_rate=1.0)
    rates = [learning_rate_at(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:81]) == {1.0}
    assert rates[81:] == sorted(rates[81:], reverse=True)
    assert rates[-1] == pytest.approx(0.05)
    longer = [learning_rate_at(step, replace(recipe, num_steps=200)) for step in range(80)]
    assert rates[:80] == longer
    assert set(TEMPLATES) <= set(TRAINING_TEMPLATES)
