"""The card of an export says what its file says, whatever stands in it, and nothing of what nobody stated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.card import model_card
from shards.terms import NO_TERMS, NOT_STATED, DatasetTerms
from t4p.config.clip_models import OUR_TOWERS, RANDOM_TOWERS, terms_of_towers
from t4p.config.network import ClipConfig
from t4p.models.exported import ExportedNetwork, load_exported_network, read_terms
from t4p.runs.terms import Terms

OLDER = Path(__file__).resolve().parents[2] / "data" / "older"
OURS = DatasetTerms("rooms", "synthetic", 480, NO_TERMS)
THEIRS = DatasetTerms("fr1", "tum", 1200, "CC BY 4.0")


@pytest.fixture(scope="module")
def exported() -> ExportedNetwork:
    return load_exported_network(OLDER / "pretrain.safetensors")


def head_and_body(exported: ExportedNetwork, **changes: Any) -> tuple[dict[str, Any], str]:
    _, head, body = model_card(replace(exported, **changes), "a model").split("---\n", 2)
    return yaml.safe_load(head), body


def test_of_an_older_export_the_datasets_are_named_and_their_terms_are_not_stated(exported: ExportedNetwork) -> None:
    (dataset,) = exported.terms.datasets
    assert (dataset.licence, exported.terms.towers, exported.terms.began_with) == (NOT_STATED, NOT_STATED, ())
    head, body = head_and_body(exported)
    assert head["license"] == "other"
    assert f"\n- trained on {dataset.name}: not stated\n" in body
    assert "procedural rooms only" not in body
    assert read_terms(OLDER / "pretrain.safetensors") == exported.terms


def test_what_is_made_of_our_own_is_under_our_licence_and_what_anybody_elses_is_under_theirs(
    exported: ExportedNetwork,
) -> None:
    head, body = head_and_body(exported, terms=Terms((OURS,), (OURS,), OUR_TOWERS))
    assert head == {
        "license": "apache-2.0",
        "library_name": "text4point",
        "tags": ["point-cloud", "3d", "clip", "open-vocabulary", "point-cloud-segmentation"],
    }
    assert "It has seen procedural rooms only, and no real scan." in body
    for terms in (
        Terms((OURS, THEIRS), (), OUR_TOWERS),
        Terms((OURS,), (THEIRS,), OUR_TOWERS),
        Terms((OURS,), (), NOT_STATED),
    ):
        assert head_and_body(exported, terms=terms)[0]["license"] == "other"
    head, body = head_and_body(exported, terms=Terms((OURS,), (THEIRS,), RANDOM_TOWERS))
    assert "datasets" not in head, "the formats that are packed are no datasets of the hub"
    assert "\n- began with weights trained on fr1 (tum, 1,200 samples): CC BY 4.0\n" in body
    assert "words mean nothing to it" in body
    assert "procedural rooms only" not in body


def test_how_much_of_the_data_was_learnt_from_and_how_is_said() -> None:
    tuned = load_exported_network(OLDER / "semantic.safetensors")
    _, body = head_and_body(tuned)
    assert "\n- augmentation: rotation, mirror, scale 0.1, color_jitter 0.05\n" in body
    assert not [word for word in ("label_fraction", "labels_per_scene", "layer_decay") if word in body]
    few = {"label_fraction": 0.2, "labels_per_scene": 20}
    few["augment"] = tuned.config.data.augment.model_copy(update={"rotation": False, "elastic": 0.5})
    changes = {
        "data": tuned.config.data.model_copy(update=few),
        "train": tuned.config.train.model_copy(update={"layer_decay": 0.9}),
        "model": tuned.config.model.model_copy(update={"pretrained": "another.safetensors"}),
    }
    _, body = head_and_body(tuned, config=tuned.config.model_copy(update=changes))
    for line in (
        "- fine-tuned from other weights",
        "- augmentation: mirror, scale 0.1, color_jitter 0.05, elastic 0.5",
        "- a share of 0.2 of the scenes of every dataset (data.label_fraction)",
        "- 20 labelled points of every scene (data.labels_per_scene)",
        "- learning rate times 0.9 for each stage below the head (train.layer_decay)",
    ):
        assert f"\n{line}\n" in body, line


def test_text_of_others_stays_on_its_line(exported: ExportedNetwork) -> None:
    hostile = DatasetTerms("x", "a\n---\nb", 1, "free\n# for all")
    head, body = head_and_body(exported, terms=Terms((hostile,), (), "mine\n\n# yours"))
    assert head["license"] == "other"
    assert not [line for line in body.splitlines() if line in ("# for all", "# yours", "---")]


def test_terms_come_back_from_json_and_what_is_none_is_refused() -> None:
    terms = Terms((OURS, THEIRS), (THEIRS,), OUR_TOWERS)
    assert Terms.parse(terms.to_json()) == terms
    assert terms.all_datasets == (OURS, THEIRS)
    tree = {"data": {"shards": ["s3://bucket/a/", {"url": "/data/b", "weight": 2}]}, "model": {"pretrained": "runs/x"}}
    named = Terms().naming(tree)
    assert [each.name for each in named.datasets] == ["a", "b"]
    assert [str(each) for each in named.began_with] == ["x: not stated"]
    assert terms.naming(tree) == terms
    for broken in (
        {"towers": 5},
        {"datasets": [{"name": 1}]},
        {"datasets": [{"name": "a", "num_samples": -1}]},
        {"datasets": [{"title": "a"}]},
        {"colour": "red"},
    ):
        with pytest.raises((TypeError, ValueError)):
            Terms.parse(broken)


def test_towers_are_ours_random_or_of_a_licence_that_nobody_states() -> None:
    ours = ClipConfig(name="configs/clip/small-rooms.json", pretrained="configs/clip/small-rooms.safetensors")
    assert terms_of_towers(ours) == OUR_TOWERS
    assert terms_of_towers(ClipConfig(name="configs/clip/tiny-rn.json", pretrained="random")) == RANDOM_TOWERS
    assert terms_of_towers(ClipConfig()) == NOT_STATED
