"""Semantic segmentation, fine-tuned without images: learnable prompts, a loss at the bottleneck, a head on the decoder.

Figure 4 of the paper: the 3D network of pre-training with the same FCs and Text Querying Module, its text the labels
behind learnable tokens, through the frozen text tower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from t4p.config.data import AugmentConfig
from t4p.config.network import SemanticModelConfig
from t4p.config.tasks import FinetuneConfig, SemanticLossConfig
from t4p.data.fetch import Catalogue
from t4p.data.labelled import LabelledBatch, LabelledSample, LabelRecipe, build_label_recipe
from t4p.data.labels import IGNORED, require_labels
from t4p.data.stream import ValidationStream
from t4p.distributed import all_reduce_sum, rank
from t4p.errors import CheckpointError, ConfigError, RunError
from t4p.losses.segmentation import balanced_cross_entropy
from t4p.metrics.semantic import confusion, scores
from t4p.models.exported import ExportedNetwork, for_one_process
from t4p.models.score_map import compare_with_text, score_voxels
from t4p.models.text4point import build_text4point
from t4p.models.towers import load_towers_from
from t4p.runs.logs import StepRecord
from t4p.runs.progress import Show, print_line
from t4p.tasks.job import (
    build_engine,
    build_training_stream,
    build_validation_stream,
    run_training,
    start_worker,
    tell_missing_poses,
)
from t4p.tasks.starting_weights import load_starting_weights, name_beginning, read_starting_weights

if TYPE_CHECKING:
    from t4p.models.clip import ClipTowers
    from t4p.models.prompts import PromptedLabels
    from t4p.train.engine import Engine

MOST_STEPS_WITHOUT_LABEL = 100


class Segmented(NamedTuple):
    """Scores of a batch of points."""

    voxel_scores: Tensor  # (V, K) logits: of the head, with the words' where it begins with them
    score_map: Tensor  # (Vb, K) s = h3D_hat . t: cosine of bottleneck voxels with the labels, over the temperature


class SemanticModule(nn.Module):
    """The 3D network with a head of one channel per label, and the prompt tokens. `model.frozen` does not train."""

    def __init__(
        self, model: SemanticModelConfig, loss: SemanticLossConfig, prompted: PromptedLabels, clip_dim: int
    ) -> None:
        super().__init__()
        self.net = build_text4point(model, clip_dim, len(prompted.labels))
        self.net.freeze(model.frozen)
        self.prompt_tokens = nn.Parameter(prompted.initial_tokens.clone())
        self._head = model.head
        if self._head == "words":
            nn.init.zeros_(self.net.head.weight)
            nn.init.zeros_(self.net.head.bias)
            # Of every label, the voxels of both levels that all ranks have seen so far. A buffer: checkpoints have it.
            self.voxels_seen: Tensor
            self.register_buffer("voxels_seen", torch.zeros(len(prompted.labels), dtype=torch.int64))
        self._prompted = prompted  # holds the frozen text tower: no part of this module, of ZeRO, or of a checkpoint
        self._loss = loss

    def embed_labels(self) -> Tensor:
        """(K, d) the labels behind the prompt tokens, unit-norm: what `segment` asks."""
        return self._prompted.embed(self.prompt_tokens)

    def segment(
        self, voxel_coords: Tensor, voxel_features: Tensor, bottleneck_of_voxel: Tensor, text: Tensor
    ) -> Segmented:
        """Scores of every voxel for every label.

        Args:
            voxel_coords, voxel_features, bottleneck_of_voxel: (V, 4) int32, (V, C_in) and (V,), as in LabelledBatch.
            text: result of `embed_labels`.
        """
        expanded, decoded = self.net(voxel_coords, voxel_features, text)
        score_map = compare_with_text(expanded, text, self._loss.logit_scale)
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
        loss_aux = balanced_cross_entropy(segmented.score_map, label_of_bottleneck, balance, asked)
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


def run(config: FinetuneConfig, on_step: Callable[[StepRecord], None] | None = None, show: Show | None = None) -> None:
    """Fine-tune as one worker of those that the environment describes; alone without one. Collective.

    Args:
        on_step: called on every rank after every step.
        show: told on rank 0 how it goes; by default plain lines are printed.

    Raises:
        ConfigError, ClipError: the configuration cannot work; no step has been taken.
        ShardError, DataError, CheckpointError: what the run reads is missing or damaged.
    """
    device = start_worker(config.train)
    config = name_beginning(config, print_line)
    model = config.model
    towers = load_towers_from(model.clip, config.run.seed)
    catalogue = Catalogue(config.data.urls, config.data.weights)
    require_labels(catalogue.label_names, model.label_names, catalogue.urls)
    tell_missing_poses(config, catalogue)
    stream = build_training_stream(config, catalogue, build_recipe(config, catalogue, config.data.augment))
    validation = build_validation(config)

    if model.head == "words" and model.pretrained is None and rank() == 0:
        print_line(
            "model.head is words, and there is no model.pretrained: random weights know no words; linear learns more"
        )
    module = build_module(config, towers.to(device)).to(device)

    def wrap(checkpoint: Path | None) -> Engine:
        if checkpoint is None and model.pretrained is not None:
            differing = load_pretrained(module, config, towers.sha256)
            if rank() == 0:
                for line in differing:
                    print_line(f"model.pretrained was trained otherwise: {line}")
        return build_engine(
            module,
            config.train,
            checkpoint,
            fast_part="net.head",
            fast_scale=config.train.head_learning_rate_scale,
            undecayed=("prompt_tokens",),
        )

    task = SemanticTask(model.label_names, device, validation)
    run_training(config, wrap, task, stream, catalogue.shards_sha256, towers.sha256, on_step, show)


def build_module(config: FinetuneConfig, towers: ClipTowers) -> SemanticModule:
    """Random weights, the same in every process: how a run begins without `model.pretrained`.

    Raises:
        ClipError: the prompts cannot work.
    """
    model = config.model
    torch.manual_seed(config.run.seed)
    return SemanticModule(model, config.loss, prompt_labels(config, towers), towers.embed_dim)


def prompt_labels(config: FinetuneConfig, towers: ClipTowers) -> PromptedLabels:
    """The labels of a run, ready to be put behind any prompt tokens.

    Raises:
        ClipError: the prompts cannot work.
    """
    from t4p.models.prompts import PromptedLabels  # open_clip, which reading an export must not need

    model = config.model
    return PromptedLabels(towers, model.label_names, model.text_query.template, model.prompt_tokens)


def load_pretrained(module: SemanticModule, config: FinetuneConfig, towers_sha256: str) -> tuple[str, ...]:
    """Put the weights of `model.pretrained`, which is set, into a module as it was built.

    Returns:
        As `load_starting_weights`.

    Raises:
        CheckpointError: they cannot be read.
        ConfigError: they do not fit.
    """
    assert config.model.pretrained is not None
    start = read_starting_weights(Path(config.model.pretrained))
    return load_starting_weights(module.net, start, config, towers_sha256)


def embed_labels(config: FinetuneConfig, towers: ClipTowers, weights: Mapping[str, Tensor]) -> Tensor:
    """(K, d) the labels behind the prompt tokens that were learnt: the label embeddings of its export."""
    return prompt_labels(config, towers).embed(weights["prompt_tokens"])


def problem_of_start(config: FinetuneConfig) -> str | None:
    """Why an export cannot keep a share of what a run began with: it knew nothing. None where it can."""
    model = config.model
    if model.pretrained is None:
        return "began with random weights"
    if model.head != "words":
        return f"has model.head={model.head}, whose random weights say nothing at the beginning"
    if model.prompt_tokens is not None:
        return f"has model.prompt_tokens={model.prompt_tokens}, random ones that say nothing at the beginning"
    return None


def weights_at_start(config: FinetuneConfig, towers: ClipTowers) -> Mapping[str, Tensor]:
    """What a fine-tuning without `problem_of_start` finds at its first step.

    Raises:
        CheckpointError: `model.pretrained` is not what the run began with any more.
    """
    model = config.model
    with torch.random.fork_rng(devices=[]):
        module = build_module(config.model_copy(update={"model": for_one_process(model)}), towers)
    try:
        load_pretrained(module, config, towers.sha256)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(
            f"a share of the fine-tuned weights needs those that the run began with, model.pretrained="
            f"{model.pretrained}: {error}; put them back, and call from the folder where the run was started"
        ) from error
    return module.state_dict()


@torch.no_grad()
def voxel_scores(
    exported: ExportedNetwork, voxel_coords: Tensor, voxel_features: Tensor, bottleneck_of_voxel: Tensor
) -> Tensor:
    """(V, K) float32: the logits of the head, with the words' where it began with them.

    Args:
        voxel_coords, voxel_features, bottleneck_of_voxel: (V, 4) int32, (V, C_in) and (V,), as in LabelledBatch, on
            the network's device.
    """
    config, text = exported.config, exported.label_embeddings
    assert isinstance(config, FinetuneConfig)
    expanded, decoded = exported.net(voxel_coords, voxel_features, text)
    score_map = compare_with_text(expanded, text, config.loss.logit_scale)
    return score_voxels(config.model.head, decoded, score_map, bottleneck_of_voxel)


def build_recipe(config: FinetuneConfig, catalogue: Catalogue, augment: AugmentConfig | None) -> LabelRecipe:
    """How the samples of a catalogue become those of this job; `augment` is None for validation.

    Raises:
        ConfigError: the classes of a dataset are not those of the configuration.
    """
    return build_label_recipe(
        catalogue,
        config.data,
        config.model,
        config.model.label_names,
        config.data.ignored_labels,
        augment=augment,
        seed=config.run.seed,
    )


def build_validation(config: FinetuneConfig) -> ValidationStream[LabelledSample, LabelledBatch] | None:
    """Every validation sample, unaugmented; None where no validation data is configured."""
    if not config.data.validation_shards:
        return None
    catalogue = Catalogue(config.data.validation_shards)
    return build_validation_stream(config, catalogue, build_recipe(config, catalogue, None))
