"""The model card of an export: Markdown with the head that the Hugging Face hub reads, of what the file says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import yaml

from shards.doors.text import shown
from shards.terms import NO_TERMS
from t4p.config.clip_models import OUR_TOWERS, RANDOM_TOWERS
from t4p.config.data import LabelledDataConfig
from t4p.config.kinds import task_named
from t4p.config.network import FinetunedModelConfig
from t4p.config.run import FinetuneTrainConfig
from t4p.config.tasks import JobConfig

if TYPE_CHECKING:
    from t4p.models.exported import ExportedNetwork  # loads torch

CARD_SUFFIX = ".md"  # beside the export; a repository of the hub has it as README.md
_DOORS = {
    "labels": ("point-cloud-segmentation", "ids, scores = model.classify(points, colors)"),
    "masks": ("instance-segmentation", "masks, label_ids, scores = model.segment_instances(points, colors)"),
    "boxes": ("3d-object-detection", "boxes, label_ids, scores = model.detect(points, colors)"),
}
_WHAT = {
    "labels": "gives every point of a scan one of its labels",
    "masks": "finds the objects of a scan as masks over its points",
    "boxes": "finds the objects of a scan as boxes",
}


def model_card(exported: ExportedNetwork, title: str) -> str:
    """What the file says of itself; no figure that it does not hold.

    Args:
        title: name of the model.
    """
    head = yaml.safe_dump(_head(exported), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n".join(_body(exported, title)) + "\n"


def _head(exported: ExportedNetwork) -> dict[str, object]:
    terms = exported.terms
    ours = terms.towers in (OUR_TOWERS, RANDOM_TOWERS) and all(each.licence == NO_TERMS for each in terms.all_datasets)
    door, _ = _DOORS[task_named(exported.config.task).finds]
    licence = {"license": "apache-2.0"} if ours else {"license": "other", "license_name": "see-data-and-licences"}
    return {
        **licence,
        "library_name": "text4point",
        "tags": ["point-cloud", "3d", "clip", "open-vocabulary", door],
    }


def _body(exported: ExportedNetwork, title: str) -> Iterator[str]:
    config, terms = exported.config, exported.terms
    model, train = config.model, config.train
    task = task_named(config.task)
    yield f"# {shown(title)}"
    yield ""
    yield (
        f"A sparse 3D network ({model.unet.plan}, {model.unet.num_strides} strides, voxels of {model.voxel_size:g} m) "
        f"that {_WHAT[task.finds]}, and can be asked about it in words. Trained with Text4Point, task `{config.task}`; "
        "it needs no images."
    )
    yield from ("", "## Labels", "")
    for name, words in model.label_words.items():
        synonyms = "" if words == (name,) else f": {', '.join(map(shown, words))}"
        yield f"- {shown(name)}{synonyms}"
    yield from ("", "## How it was trained", "")
    yield f"- {exported.step:,} steps of {train.global_batch_size} samples, learning rate {train.learning_rate:g}"
    yield f"- inputs of a point: {', '.join(model.point_features)}"
    yield f"- against the CLIP towers {shown(model.clip.name)}, weights: {shown(model.clip.pretrained)}"
    if isinstance(model, FinetunedModelConfig):
        beginning = "from random weights" if model.pretrained is None else "from other weights"
        share = "" if exported.finetuned_share == 1 else f"; {exported.finetuned_share:g} of the weights are fine-tuned"
        yield f"- fine-tuned {beginning}{share}"
    yield from _what_it_learnt_from(config)
    versions = ", ".join(f"{shown(name)} {shown(version)}" for name, version in exported.versions.items())
    yield f"- versions: {versions or 'not noted'}"
    yield from (
        "",
        "## Data and licences",
        "",
        "As the datasets state it; what follows for weights is for you to judge.",
    )
    yield ""
    for each in terms.datasets:
        yield f"- trained on {shown(str(each), 300)}"
    for each in terms.began_with:
        yield f"- began with weights trained on {shown(str(each), 300)}"
    yield f"- CLIP towers {shown(model.clip.name)}: {shown(terms.towers, 300)}"
    yield from ("", "## How to use it", "", "```python", "import t4p", "")
    yield 'model = t4p.load("hf://OWNER/NAME")  # or the path of this file'
    yield _DOORS[task.finds][1]
    yield "```"
    yield ""
    yield "`points` are (N, 3) in metres with z up, `colors` (N, 3) uint8. Text4Point's docs/python.md has the rest."
    yield from ("", "## Limits", "")
    yield from (f"- {limit}" for limit in _limits(exported))


def _what_it_learnt_from(config: JobConfig) -> Iterator[str]:
    """Lines on what of the datasets was learnt from, and how: what is not as usual, and every augmentation."""
    data = config.data
    changes = [
        name if value is True else f"{name} {value:g}" for name, value in data.augment.model_dump().items() if value
    ]
    yield f"- augmentation: {', '.join(changes) or 'none'}"
    if isinstance(data, LabelledDataConfig):
        if data.label_fraction < 1:
            yield f"- a share of {data.label_fraction:g} of the scenes of every dataset (data.label_fraction)"
        if data.labels_per_scene is not None:
            yield f"- {data.labels_per_scene:,} labelled points of every scene (data.labels_per_scene)"
    if isinstance(config.train, FinetuneTrainConfig) and config.train.layer_decay < 1:
        yield f"- learning rate times {config.train.layer_decay:g} for each stage below the head (train.layer_decay)"


def _limits(exported: ExportedNetwork) -> Iterator[str]:
    config, terms = exported.config, exported.terms
    yield "No score stands here, because the file holds none: `t4p evaluate` scores it on a dataset with labels."
    if all(each.licence == NO_TERMS for each in terms.all_datasets):
        yield "It has seen procedural rooms only, and no real scan."
    if terms.towers == RANDOM_TOWERS:
        yield "Its CLIP towers have random weights: words mean nothing to it."
    if "color" in config.model.point_features and not config.data.drop_features.color:
        yield "It needs colour."
    if not task_named(config.task).any_words:
        yield "Its head knows its own labels; what it says of other words is what its encoder has kept."
