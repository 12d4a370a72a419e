"""`t4p.load`: a trained network that is given points and says what they are, or where they lie in CLIP's space."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from t4p.config.clip_models import words_file, words_not_learnt
from t4p.config.kinds import task_named
from t4p.data.boxes import bounds_of, rows_inside
from t4p.data.placement import AS_RECORDED
from t4p.data.tensors import as_tensor
from t4p.data.transforms import PointCloud, VoxelCloud, voxelize_cloud
from t4p.errors import CheckpointError
from t4p.models.exported import ExportedNetwork, load_exported_network
from t4p.models.hub import fetched, spelt_out
from t4p.models.towers import load_towers_from
from t4p.runs.checkpoint import newest_of_run
from t4p.runs.terms import Terms
from t4p.tasks.described import Described, Embedded, FoundObjects, PointsOfVoxels
from t4p.tasks.evaluate import voxel_scores
from t4p.tasks.given import Points, checked_colors, checked_groups, checked_points, checked_words
from t4p.tasks.query import query_scores, rule_of_scores, spelling

# The method of a Model by what its network finds.
DOORS = {"labels": "classify", "masks": "segment_instances", "boxes": "detect"}


class Model:
    """A trained network; `load` makes one. Arrays or tensors go in, numpy arrays come out.

    Points become voxels and features exactly as in training and in `t4p evaluate`: in float32, on a grid that begins at
    the origin, with the run's voxel size and features.
    """

    def __init__(self, exported: ExportedNetwork) -> None:
        self._exported = exported

    def __repr__(self) -> str:
        return f"Model(task={self.task!r}, step={self._exported.step}, labels={list(self.labels)})"

    @property
    def task(self) -> str:
        """What it was trained for, as `task` in its configuration."""
        return self._exported.config.task

    @property
    def finds(self) -> str:
        """What it says of points: "labels" (`classify`), "masks" (`segment_instances`) or "boxes" (`detect`)."""
        return task_named(self.task).finds

    @property
    def labels(self) -> tuple[str, ...]:
        """The K words that `classify` asks by default."""
        return self._exported.labels

    @property
    def synonyms(self) -> dict[str, tuple[str, ...]]:
        """The words whose mean embedding is that of each label; a label without any has its own name."""
        return self._exported.config.model.label_words

    @property
    def label_of(self) -> dict[str, str]:
        """The label of every synonym."""
        return {word: label for label, words in self.synonyms.items() for word in words}

    @property
    def terms(self) -> Terms:
        """What it was trained on, and under which licences."""
        return self._exported.terms

    @torch.inference_mode()
    def embed(self, points: Points, colors: Points | None = None) -> NDArray[np.float32]:
        """Where every point lies in the space of CLIP's text: h3D_hat of its bottleneck voxel.

        Args:
            points: (N, 3) metres, z up; numpy, torch or nested lists; N may be 0.
            colors: (N, 3), uint8 or floats in [0, 1]; not needed where the network has no feature of colour, or was
                trained with `data.drop_features.color`: it sees then what it saw of a sample without.

        Returns:
            (N, d) float32, unit-norm. Points of one bottleneck voxel have the same row.

        Raises:
            ValueError: shapes, types or values are not those above, or colours are missing; nothing was computed.
        """
        features, row_of_point = self.embed_coarsely(points, colors)
        return features[row_of_point]

    @torch.inference_mode()
    def embed_coarsely(
        self, points: Points, colors: Points | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """`embed` without its repetitions: a row for every bottleneck voxel, and which of them each point has.

        Args:
            points, colors: as for `embed`.

        Returns:
            features: (Vb, d) float32, unit-norm.
            row_of_point: (N,) int64.

        Raises:
            ValueError: as `embed`.
        """
        voxels = self._voxels_of(points, colors)
        coords, features = self._tensors(voxels)
        expanded, _ = self._exported.net(coords, features, self._exported.label_embeddings, read="bottleneck")
        embedded = _embedded(voxels, expanded)
        return embedded.features, embedded.row_of_point

    def classify(
        self, points: Points, colors: Points | None = None, labels: Sequence[str] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Which word fits every point best.

        Args:
            points, colors: as for `embed`.
            labels: K words to choose from, by default `self.labels`. After pre-training any words: for those that are
                not in `self.labels` the text tower of the run is loaded (the extra `train`). A fine-tuned head knows
                its own: some of `self.labels`.

        Returns:
            ids: (N,) int64 index of the best word among the labels, as `t4p evaluate` has it.
            scores: (N, K) float32. After pre-training the cosine similarity of h3D_hat and the word's text embedding,
                in [-1, 1]; after fine-tuning the logits of the head at the point's voxel, of any size.

        Raises:
            ValueError: as `embed`; no label or one twice; words that a fine-tuned head does not know; a network that
                finds objects.
            MissingExtraError: open_clip, which reads new words, is not installed.
            ClipError, CheckpointError: the text tower of the run cannot be had, or is another one now.
        """
        described = self.describe(points, colors, labels)
        # The best of a voxel, then of its points: the same as evaluation.
        rows = described.voxel_of_point
        return described.scores.argmax(axis=1)[rows], described.scores[rows]

    @torch.no_grad()
    def describe(self, points: Points, colors: Points | None = None, labels: Sequence[str] | None = None) -> Described:
        """What `classify` and `embed` say, in one pass and without repetitions: what fits into memory for large scans.

        Args, raises:
            As `classify`.
        """
        self._require("labels")
        voxels = self._voxels_of(points, colors)
        asked = self.labels if labels is None else self.spelled(labels, "labels")
        if task_named(self.task).any_words:
            asking = replace(self._exported, labels=asked, label_embeddings=self._embed_words(asked))
            columns = None
        else:
            asking = self._exported
            columns = None if labels is None else [self.labels.index(label) for label in asked]
        coords, features = self._tensors(voxels)
        scores, expanded = voxel_scores(asking, coords, features, voxels.bottleneck_of_voxel)
        scores = scores if columns is None else scores[:, columns]
        return Described(
            **vars(_embedded(voxels, expanded)),
            scores=scores.float().cpu().numpy(),
            voxel_of_point=voxels.voxel_of_point.numpy(),
        )

    @torch.no_grad()
    def segment_instances(
        self, points: Points, colors: Points | None = None, groups: Points | None = None
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float32]]:
        """The objects of a scan, each as the points that it is made of; of a network fine-tuned for `instance`.

        Args:
            points, colors: as for `embed`.
            groups: (N,) integer number of the group of every point, an over-segmentation that masks are made of; by
                default our own, by normals and colour.

        Returns:
            masks: (P, N) bool, the surest first; they may overlap.
            label_ids: (P,) int64 index in `self.labels`.
            scores: (P,) float32 in [0, 1].

        Raises:
            ValueError: as `embed`; groups are not a number for every point, or the network makes masks of votes,
                without groups; the network is of another task.
        """
        self._require("masks")
        found = self.find_objects(points, colors, groups)
        masks = np.zeros((len(found.points_of), len(found.row_of_point)), bool)
        for mask, rows in zip(masks, found.points_of, strict=True):
            mask[rows] = True
        return masks, found.label_ids, found.scores.astype(np.float32)

    @torch.no_grad()
    def detect(
        self, points: Points, colors: Points | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """Boxes around the objects of a scan; of a network fine-tuned for `detection`.

        Args:
            points, colors: as for `embed`.

        Returns:
            boxes: (n, 7) middle x, y, z and full extents along the box's own axes in metres, in the points' frame;
                the turn about the vertical, counter-clockwise. The surest first.
            label_ids: (n,) int64 index in `self.labels`.
            scores: (n,) in [0, 1].

        Raises:
            ValueError: as `embed`; the network is of another task.
        """
        self._require("boxes")
        found, _ = task_named(self.task).load().boxes_of_points(self._exported, self._voxels_of(points, colors))
        return found.boxes, found.class_ids, found.scores

    @torch.no_grad()
    def find_objects(
        self,
        points: Points,
        colors: Points | None = None,
        groups: Points | None = None,
        least_score: float = 0.0,
    ) -> FoundObjects:
        """What `segment_instances` or `detect` finds, and what `embed` says, in one pass and without repetitions.

        Args:
            points, colors, groups: as for `segment_instances`; of a network for boxes, `groups` is None.
            least_score: of the objects that are wanted.

        Raises:
            ValueError: as these; the network finds no objects, or boxes, and there are groups.
        """
        if self.finds == "labels":
            self._require("masks")
        if self.finds == "boxes" and groups is not None:
            raise ValueError(
                "groups are what masks are made of, and this network finds boxes; leave them out, or load the export "
                "of a run with task: instance"
            )
        cloud = self._cloud_of(points, colors)
        voxels = self._voxelize(cloud, has_color=colors is not None)
        task = task_named(self.task).load()
        if self.finds == "boxes":
            found, expanded = task.boxes_of_points(self._exported, voxels)
            sure = found.scores >= least_score
            label_ids, scores, boxes = found.class_ids[sure], found.scores[sure], found.boxes[sure]
            points_of = tuple(rows_inside(cloud.points.double().numpy(), boxes))
        else:
            of_point = None if groups is None else checked_groups(groups, len(cloud.points))
            masks, expanded = task.masks_of_points(self._exported, cloud, voxels, of_point)
            masks = [mask for mask in masks if mask.score >= least_score]
            label_ids = np.array([mask.class_id for mask in masks], np.int64)
            scores = np.array([mask.score for mask in masks], np.float64)
            lookup = PointsOfVoxels(voxels.voxel_of_point.numpy(), len(voxels.voxel_coords))
            points_of = tuple(lookup.rows(mask.voxels) for mask in masks)
            boxes = bounds_of(cloud.points.numpy(), points_of)
        return FoundObjects(
            **vars(_embedded(voxels, expanded)), label_ids=label_ids, scores=scores, boxes=boxes, points_of=points_of
        )

    def query(self, points: Points, colors: Points | None, phrases: Sequence[str]) -> NDArray[np.float32]:
        """How well each phrase fits every point, weighed against `self.labels` and `self.neutral_words`.

        Args:
            points, colors: as for `embed`.
            phrases: Q words or phrases; for those that are neither labels nor neutral words the text tower of the run
                is loaded (the extra `train`).

        Returns:
            (N, Q) float32 in [0, 1]: the share of the phrase in a softmax over it, the labels and the neutral words
            (`self.query_rule`). Points of one bottleneck voxel have the same row.

        Raises:
            ValueError: as `embed`; no phrase or one twice; a word that the text tower of the run has never seen.
            MissingExtraError, ClipError, CheckpointError: as `classify`.
        """
        self.embed_words(phrases)  # a word that it does not know is told before the work
        features, row_of_point = self.embed_coarsely(points, colors)
        return self.score_features(features, phrases)[row_of_point]

    def score_features(self, features: NDArray[np.float32], phrases: Sequence[str]) -> NDArray[np.float32]:
        """`query` of the features (Vb, d) of `embed_coarsely`: (Vb, Q)."""
        others = self.embed_words(self.vocabulary)
        return query_scores(features, self.embed_words(phrases), others, self.logit_scale, self.label_of)

    @property
    def neutral_words(self) -> tuple[str, ...]:
        """Words that fit anything, whose embeddings the file holds; older files hold none."""
        return tuple(self._exported.neutral)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """What `query` weighs a phrase against, and can be asked without a text tower: labels and neutral words."""
        labels = {spelling(label) for label in self.labels}
        return (*self.labels, *(word for word in self.neutral_words if spelling(word) not in labels))

    @property
    def logit_scale(self) -> float:
        """What `query` multiplies cosines with: the multiplier that the network was trained with."""
        return self._exported.logit_scale

    @property
    def query_rule(self) -> str:
        """How `query` scores, in words."""
        return rule_of_scores(self.labels, self.neutral_words, self.logit_scale)

    @property
    def scores_are_cosines(self) -> bool:
        """Whether the scores of `classify` are cosines, as after pre-training, or the logits of a head."""
        return task_named(self.task).any_words

    @property
    def needs_color(self) -> bool:
        """Whether colours are among the inputs of the network and it has not learnt to do without them."""
        config = self._exported.config
        return "color" in config.model.point_features and not config.data.drop_features.color

    def embed_words(self, words: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Where words lie in the space of CLIP's text: (d,) float32, unit-norm, by word.

        Raises:
            ValueError: no word or one twice; one that the text tower of the run has never seen.
            MissingExtraError, ClipError, CheckpointError: as `classify`.
        """
        embedded = F.normalize(self._embed_words(self.spelled(words)).float(), dim=1).cpu().numpy()
        return dict(zip(words, embedded, strict=True))

    def spelled(self, words: Sequence[str], what: Literal["phrases", "labels"] = "phrases") -> tuple[str, ...]:
        """Words that can be asked, as the network spells those that it knows: case and spaces do not count.

        Args:
            what: they are to be; a fine-tuned head knows its own labels only.

        Raises:
            ValueError: no word or one twice; one that the head does not know, or the text tower has never seen.
        """
        known = (*self.labels, *self.neutral_words)
        asked = checked_words(words, what, (*known, *self.label_of))
        if what == "labels" and not self.scores_are_cosines:
            if unknown := [label for label in asked if label not in self.labels]:
                raise ValueError(
                    f"labels {unknown}: the head of this network was fine-tuned for {list(self.labels)} and knows no "
                    "other words; ask for some of these, or load the export of a pre-training, which can be asked "
                    "anything"
                )
            return asked
        clip = self._exported.config.model.clip
        if strange := words_not_learnt(clip, [word for word in asked if word not in known]):
            raise ValueError(
                f"the words {', '.join(map(repr, strange))}: the text tower of this network ({clip.name}) was never "
                f"trained with them, so what it says of them is noise; ask for {list(self.vocabulary)} or what else "
                f"{words_file(clip)} lists, or a network that was pre-trained against a CLIP of the whole language"
            )
        return asked

    def _require(self, wanted: str) -> None:
        found = self.finds
        if found != wanted:
            raise ValueError(
                f"{DOORS[wanted]} gives {wanted}, and this network was trained with task: {self.task}, for {found}; "
                f"call {DOORS[found]}, or load the export of another run"
            )

    def _cloud_of(self, points: Points, colors: Points | None) -> PointCloud:
        xyz = checked_points(points, self._exported.config.model.voxel_size)
        if colors is None and self.needs_color:
            raise ValueError(
                "colors are missing: this network was trained with the features "
                f"{list(self._exported.config.model.point_features)}; give (N, 3) uint8, or floats in [0, 1], or load "
                "a network that can do without: one trained with data.drop_features.color=0.5"
            )
        rgb = np.zeros_like(xyz) if colors is None else checked_colors(colors, len(xyz))
        return PointCloud(as_tensor(xyz), as_tensor(rgb))

    def _voxels_of(self, points: Points, colors: Points | None) -> VoxelCloud:
        return self._voxelize(self._cloud_of(points, colors), has_color=colors is not None)

    def _voxelize(self, cloud: PointCloud, *, has_color: bool) -> VoxelCloud:
        model = self._exported.config.model
        placement = AS_RECORDED if has_color else replace(AS_RECORDED, dropped=("color",))
        return voxelize_cloud(cloud, model.voxel_size, model.unet.num_strides, model.point_features, placement)

    def _tensors(self, voxels: VoxelCloud) -> tuple[Tensor, Tensor]:
        """(V, 4) coordinates of the one scene, and (V, C) features, on the network's device."""
        device = self._exported.label_embeddings.device
        return F.pad(voxels.voxel_coords, (1, 0)).to(device), voxels.voxel_features.to(device)

    def _embed_words(self, labels: Sequence[str]) -> Tensor:
        """(K, d) text embeddings: those of the file, and of the text tower for new words."""
        exported, device = self._exported, self._exported.label_embeddings.device
        known = {**exported.neutral, **dict(zip(exported.labels, exported.label_embeddings, strict=True))}
        if new := [label for label in labels if label not in known]:
            clip = exported.config.model.clip
            towers = load_towers_from(clip, exported.config.run.seed)
            if towers.sha256 != exported.towers_sha256:
                raise CheckpointError(
                    f"labels {new}: the network was trained against towers with sha256 {exported.towers_sha256[:12]}, "
                    f"and {clip.name} with {clip.pretrained} has {towers.sha256[:12]} here; put those weights back, or "
                    f"ask for words of {list(exported.labels)}"
                )
            embedded = towers.encode_labels(new, exported.config.model.text_query.template).to(device)
            known |= dict(zip(new, embedded, strict=True))
        return torch.stack([known[label] for label in labels])


def _embedded(voxels: VoxelCloud, expanded: Tensor) -> Embedded:
    """What `embed` says of points, given h3D_hat (Vb, d)."""
    unit = F.normalize(expanded.float(), dim=1).cpu().numpy()
    return Embedded(unit, voxels.bottleneck_of_voxel[voxels.voxel_of_point].numpy())


def load(path: str | Path, device: torch.device | str = "cpu") -> Model:
    """Read a trained network.

    Args:
        path: a file that `t4p checkpoint export` wrote, of any task; or a run folder (its newest whole checkpoint) or
            one checkpoint in it, for which the extra `train` and the run's CLIP weights must be there; or the name of
            an export on the Hugging Face hub, `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION`, or OWNER/NAME where no
            path here begins with OWNER (the extra `hub`).
        device: where it computes.

    Raises:
        CheckpointError: it is none of these, is damaged, or the hub cannot be asked.
        ConfigError: its configuration needs something that is not here.
        MissingExtraError: of a checkpoint: DeepSpeed or open_clip is not installed; of the hub: huggingface_hub.
    """
    path = fetched(spelt_out(path))
    return Model(export_of_run(path, device) if path.is_dir() else load_exported_network(path, device))


def export_of_run(folder: Path, device: torch.device | str) -> ExportedNetwork:
    """What `t4p checkpoint export` would write of a run folder, or of one checkpoint: both ways give one network.

    Raises:
        CheckpointError, ConfigError, MissingExtraError: as `load`.
    """
    newest, passed_over = newest_of_run(folder)
    checkpoint = newest or folder
    for reason in passed_over:
        warnings.warn(f"passed over for {checkpoint.name}: {reason}", stacklevel=3)
    from t4p.tasks.export import export_checkpoint  # DeepSpeed and open_clip, which an export does without

    with tempfile.TemporaryDirectory(prefix="t4p-load-") as scratch:
        exported = Path(scratch) / f"{checkpoint.name}.safetensors"
        export_checkpoint(checkpoint, exported)
        return load_exported_network(exported, device)
