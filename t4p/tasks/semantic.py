"""Semantic segmentation, fine-tuned without images: learnable prompts, a loss at the bottleneck, a head on the decoder.

Figure 4 of the paper: the 3D network of pre-training with the same FCs and Text Querying Module, its text the labels
behind learnable tokens, through the frozen text tower.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from t4p.config.network import SemanticModelConfig
from t4p.config.tasks import FinetuneLossConfig, SemanticConfig
from t4p.data.labelled import LabelledBatch, LabelledSample
from t4p.data.labels import IGNORED
from t4p.data.stream import ValidationStream
from t4p.distributed import all_reduce_sum
from t4p.errors import RunError
from t4p.losses.segmentation import balanced_cross_entropy
from t4p.metrics.semantic import confusion, scores
from t4p.models.exported import ExportedNetwork
from t4p.models.score_map import VoxelScores, compare_with_text, score_voxels
from t4p.runs.logs import StepRecord
from t4p.runs.progress import Show, print_line
from t4p.tasks.finetune import PromptedModule, embed_labels, finetune, label_recipe, prompt_labels, weights_as_begun

if TYPE_CHECKING:
    from t4p.models.clip import ClipTowers
    from t4p.models.prompts import PromptedLabels

__all__ = ["embed_labels", "problem_of_start", "run", "voxel_scores", "weights_at_start"]

MOST_STEPS_WITHOUT_LABEL = 100
BLOCK_VOXELS = 2**16

build_recipe = label_recipe  # under the name that it has in every task


class Segmented(NamedTuple):
    """Scores of a batch of points."""

    voxel_scores: Tensor  # (V, K) logits: of the head, with the words' where it begins with them
    score_map: Tensor  # (Vb, K) s = h3D_hat . t: cosine of bottleneck voxels with the labels, over the temperature


class SemanticModule(PromptedModule):
    """The 3D network with a head of one channel per label, and the prompt tokens."""

    def __init__(
        self, model: SemanticModelConfig, loss: FinetuneLossConfig, prompted: PromptedLabels, clip_dim: int
    ) -> None:
        super().__init__(model, loss, prompted, clip_dim, len(prompted.labels))
        self._head = model.head
        if self._head == "words":
            nn.init.zeros_(self.net.head.weight)
            nn.init.zeros_(self.net.head.bias)
            # Of every label, the voxels of both levels that all ranks have seen so far. A buffer: checkpoints have it.
            self.voxels_seen: Tensor
            self.register_buffer("voxels_seen", torch.zeros(len(prompted.labels), dtype=torch.int64))
        self._loss = loss

    def segment(
        self, voxel_coords: Tensor, voxel_features: Tensor, bottleneck_of_voxel: Tensor, text: Tensor
    ) -> Segmented:
        """Scores of every voxel for every label.

        Args:
            voxel_coords, voxel_features, bottleneck_of_voxel: (V, 4) int32, (V, C_in) and (V,), as in LabelledBatch.
            text: result of `embed_labels`.
        """
        expanded, decoded = self.net(voxel_coords, voxel_features, text)
        score_map = self.score_map(expanded, text)
        return Segmented(score_voxels(self._head, decoded, score_map, bottleneck_of_voxel), score_map)

    def forward(
        self,
        voxel_coords: Tensor,
        voxel_features: Tensor,
        bottleneck_of_voxel: Tensor,
        label_of_voxel: Tensor,
        label_of_bottleneck: Tensor,
    ) -> tuple[Tensor, ...]:
        """Both losses over the voxels of all ranks. Collective.

        Args:
            voxel_coords, voxel_features, bottleneck_of_voxel: (V, 4) int32, (V, C_in) and (V,), as in LabelledBatch.
            label_of_voxel: (V,) int64, or IGNORED.
            label_of_bottleneck: (Vb,) int64, or IGNORED.

        Returns:
            loss, loss_task, loss_aux: scalars; averaged over ranks they are the global ones.
            labelled_voxels: labelled voxels of this rank.
        """
        segmented = self.segment(voxel_coords, voxel_features, bottleneck_of_voxel, self.embed_labels())
        asked = self._labels_seen(label_of_voxel, label_of_bottleneck) if self._head == "words" else None
        balance = self._loss.class_balance
        loss_task = balanced_cross_entropy(segmented.voxel_scores, label_of_voxel, balance, asked)
        loss_aux = self.loss_of_score_map(segmented.score_map, label_of_bottleneck, asked)
        loss = loss_task + self._loss.weight_aux * loss_aux
        return loss, loss_task, loss_aux, (label_of_voxel != IGNORED).sum().to(loss.dtype)

    @torch.no_grad()
    def _labels_seen(self, *labels_of_voxels: Tensor) -> Tensor:
        """(K,) bool: what any rank has seen in any step until now. Collective.

        What nobody shows must not be pushed away as a negative of what is shown: pre-training may know it.
        """
        labels = torch.cat(labels_of_voxels)
        self.voxels_seen += all_reduce_sum(torch.bincount(labels[labels != IGNORED], minlength=len(self.voxels_seen)))
        return self.voxels_seen > 0


class SemanticTask:
    """What the module takes of a batch, and the scores on points."""

    term_names = ("loss", "loss_task", "loss_aux", "labelled_voxels")

    def __init__(
        self,
        labels: tuple[str, ...],
        device: torch.device,
        validation: ValidationStream[LabelledSample, LabelledBatch] | None,
    ) -> None:
        self._labels = labels
        self._device = device
        self._validation = validation
        self._steps_without_label = 0

    def inputs(self, batch: LabelledBatch) -> tuple[Tensor, ...]:
        """The arguments of SemanticModule."""
        batch = batch.to(self._device)
        return (
            batch.voxel_coords,
            batch.voxel_features,
            batch.bottleneck_of_voxel,
            batch.label_of_voxel,
            batch.label_of_bottleneck,
        )

    def check(self, record: StepRecord) -> None:
        """Refuse to go on where one step after the other has no label.

        A single one is no fault: with few labels, or rare ones, some batches have none and train nothing.
        """
        self._steps_without_label = 0 if record.terms["labelled_voxels"] else self._steps_without_label + 1
        if self._steps_without_label == MOST_STEPS_WITHOUT_LABEL:
            raise RunError(
                f"step {record.step}: for {MOST_STEPS_WITHOUT_LABEL} steps no sample of a batch had a point with a "
                "label of model.labels; look at one with `t4p shards show`, and check data.max_depth"
            )

    @torch.no_grad()
    def validate(self, module: nn.Module) -> Mapping[str, float]:
        """ScanNet's protocol on the points of the validation data: `miou`, `macc`, `accuracy`, and `iou/LABEL`."""
        if self._validation is None:
            return {}
        assert isinstance(module, SemanticModule)
        module.eval()
        text = module.embed_labels()
        num_labels = len(self._labels)
        counts = torch.zeros(num_labels, num_labels + 1, dtype=torch.int64)
        for batch in self._validation.batches():
            batch = batch.to(self._device)
            segmented = module.segment(batch.voxel_coords, batch.voxel_features, batch.bottleneck_of_voxel, text)
            predictions = segmented.voxel_scores.argmax(dim=1)[batch.voxel_of_point].cpu().numpy()
            truth = batch.label_of_point.cpu().numpy()
            counts += torch.from_numpy(confusion(predictions, truth, range(num_labels), (IGNORED,)))
        counts = all_reduce_sum(counts.to(self._device)).cpu()
        if not counts.sum():
            raise RunError(
                "validation: not one point of data.validation_shards has a label of model.labels; look at a sample "
                "with `t4p shards show`"
            )
        found = scores(counts.numpy(), range(num_labels))
        named = {"miou": found.miou, "macc": found.macc, "accuracy": found.accuracy}
        named |= {f"iou/{label}": found.iou[index] for index, label in enumerate(self._labels)}
        return {name: value for name, value in named.items() if math.isfinite(value)}  # nan: absent from the data


def run(config: SemanticConfig, on_step: Callable[[StepRecord], None] | None = None, show: Show | None = None) -> None:
    """Fine-tune as one worker of those that the environment describes; alone without one. Collective.

    Args, raises:
        As `t4p.tasks.finetune.finetune`.
    """
    if config.model.head == "words" and config.model.pretrained is None and os.environ.get("RANK", "0") == "0":
        print_line(
            "model.head is words, and there is no model.pretrained: random weights know no words; linear learns more"
        )
    finetune(config, build_module, build_recipe, build_task, on_step, show)


def build_module(config: SemanticConfig, towers: ClipTowers) -> SemanticModule:
    """Random weights, the same in every process: how a run begins without `model.pretrained`.

    Raises:
        ClipError: the prompts cannot work.
    """
    torch.manual_seed(config.run.seed)
    return SemanticModule(config.model, config.loss, prompt_labels(config, towers), towers.embed_dim)


def build_task(
    config: SemanticConfig, device: torch.device, validation: ValidationStream[LabelledSample, LabelledBatch] | None
) -> SemanticTask:
    """What the loop asks of it."""
    return SemanticTask(config.model.label_names, device, validation)


def problem_of_start(config: SemanticConfig) -> str | None:
    """Why an export cannot keep a share of what a run began with: it knew nothing. None where it can."""
    model = config.model
    if model.pretrained is None:
        return "began with random weights"
    if model.head != "words":
        return f"has model.head={model.head}, whose random weights say nothing at the beginning"
    if model.prompt_tokens is not None:
        return f"has model.prompt_tokens={model.prompt_tokens}, random ones that say nothing at the beginning"
    return None


def weights_at_start(config: SemanticConfig, towers: ClipTowers) -> Mapping[str, Tensor]:
    """What a fine-tuning without `problem_of_start` finds at its first step.

    Raises:
        CheckpointError: `model.pretrained` is not what the run began with any more.
    """
    return weights_as_begun(config, towers, build_module)


@torch.no_grad()
def voxel_scores(
    exported: ExportedNetwork, voxel_coords: Tensor, voxel_features: Tensor, bottleneck_of_voxel: Tensor
) -> VoxelScores:
    """The logits of the head, with the words' where it began with them.

    Args:
        voxel_coords, voxel_features, bottleneck_of_voxel: (V, 4) int32, (V, C_in) and (V,), as in LabelledBatch, on
            the network's device.
    """
    config, text = exported.config, exported.label_embeddings
    assert isinstance(config, SemanticConfig)
    expanded, scores = exported.net(voxel_coords, voxel_features, text)
    score_map = compare_with_text(expanded, text, config.loss.logit_scale)
    # In place, some at a time: of a large scan the scores are as large as anything.
    for own, bottleneck in zip(scores.split(BLOCK_VOXELS), bottleneck_of_voxel.split(BLOCK_VOXELS), strict=True):
        own.copy_(score_voxels(config.model.head, own, score_map, bottleneck))
    return VoxelScores(scores, expanded)
