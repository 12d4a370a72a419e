"""What every fine-tuning has: the 3D network under learnable prompts, the loss of its score map, and how it begins.

Figure 4 of the paper: the 3D network of pre-training with the same FCs and Text Querying Module, its text the labels
behind learnable tokens, through the frozen text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from t4p.config.network import FinetunedModelConfig
from t4p.config.run import FinetuneTrainConfig
from t4p.config.tasks import FinetuneConfig, FinetuneLossConfig
from t4p.data.fetch import Catalogue
from t4p.data.few_labels import training_catalogue
from t4p.data.labelled import LabelRecipe, build_label_recipe
from t4p.data.labels import require_labels
from t4p.data.stream import Recipe, ValidationStream
from t4p.distributed import rank
from t4p.errors import CheckpointError, ConfigError
from t4p.losses.segmentation import balanced_cross_entropy
from t4p.models.exported import for_one_process
from t4p.models.hub import fetched
from t4p.models.score_map import compare_with_text
from t4p.models.text4point import Reading, build_text4point
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
from t4p.tasks.starting_weights import load_starting_weights, name_beginning, read_starting_weights, terms_of_beginning
from t4p.train.parameter_groups import GroupSettings, slow_parts_of

if TYPE_CHECKING:
    from t4p.models.clip import ClipTowers
    from t4p.models.prompts import PromptedLabels
    from t4p.train.engine import Engine

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")
Config = TypeVar("Config", bound=FinetuneConfig)


class PromptedModule(nn.Module):
    """The 3D network and the prompt tokens. `model.frozen` does not train.

    Attributes:
        read: how far the decoder goes for the head.
        head_parts: what learns at `train.head_learning_rate_scale`.
    """

    read: Reading = "voxels"
    head_parts: tuple[str, ...] = ("net.head",)

    def __init__(
        self,
        model: FinetunedModelConfig,
        loss: FinetuneLossConfig,
        prompted: PromptedLabels,
        clip_dim: int,
        out_dim: int,
    ) -> None:
        """
        Args:
            clip_dim: d, the width of CLIP's joint space.
            out_dim: C, the width of z3D.
        """
        super().__init__()
        self.net = build_text4point(model, clip_dim, out_dim)
        self.net.freeze(model.frozen)
        self.prompt_tokens: Tensor
        if "text_query" in model.frozen:  # as the parts that the network freezes: buffers, which checkpoints restore
            self.register_buffer("prompt_tokens", prompted.initial_tokens.clone())
        else:
            self.prompt_tokens = nn.Parameter(prompted.initial_tokens.clone())
        self._prompted = prompted  # holds the frozen text tower: no part of this module, of ZeRO, or of a checkpoint
        self._score_map = loss

    def embed_labels(self) -> Tensor:
        """(K, d) the labels behind the prompt tokens, unit-norm: what the network asks."""
        return self._prompted.embed(self.prompt_tokens)

    def stages(self) -> tuple[tuple[str, ...], ...]:
        """Names of the parts of each stage, from the stem to the last before the head, the prompts in the middle."""
        of_net = (tuple(f"net.{part}" for part in parts) for parts in self.net.stages(self.read))
        return tuple((*parts, "prompt_tokens") if "net.text_query" in parts else parts for parts in of_net)

    def groups(self, train: FinetuneTrainConfig) -> GroupSettings:
        """How the optimizer groups the parameters."""
        return GroupSettings(
            fast_parts=self.head_parts,
            fast_scale=train.head_learning_rate_scale,
            undecayed=("prompt_tokens",),
            slow_parts=slow_parts_of(self.stages(), train.layer_decay),
        )

    def score_map(self, expanded: Tensor, text: Tensor) -> Tensor:
        """(Vb, K) s = h3D_hat . t: cosines of bottleneck voxels (Vb, d) and labels (K, d), over the temperature."""
        return compare_with_text(expanded, text, self._score_map.logit_scale)

    def loss_of_score_map(self, score_map: Tensor, label_of_bottleneck: Tensor, asked: Tensor | None = None) -> Tensor:
        """The auxiliary loss, unweighted. Collective.

        Args:
            label_of_bottleneck: (Vb,) int64, or IGNORED.
            asked: as for `balanced_cross_entropy`.
        """
        return balanced_cross_entropy(score_map, label_of_bottleneck, self._score_map.class_balance, asked)


AnyModule = TypeVar("AnyModule", bound=PromptedModule)


def finetune(
    config: Config,
    build_module: Callable[[Config, ClipTowers], PromptedModule],
    build_recipe: Callable[[Config, Catalogue, bool], Recipe[Sample, Batch]],
    build_task: Callable[[Config, torch.device, ValidationStream[Sample, Batch] | None], Any],
    on_step: Callable[[StepRecord], None] | None,
    show: Show | None,
) -> None:
    """Fine-tune as one worker of those that the environment describes; alone without one. Collective.

    Args:
        build_module: random weights, the same in every process.
        build_recipe: how the samples of a catalogue become those of this job; whether they are trained on.
        build_task: what the loop asks of it, `t4p.train.loop.Task`.
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
    catalogue = training_catalogue(config.data, config.run.seed, print_line if rank() == 0 else lambda _: None)
    require_labels(catalogue.label_names, model.label_names, catalogue.urls)
    tell_missing_poses(config, catalogue)
    stream = build_training_stream(config, catalogue, build_recipe(config, catalogue, True))
    if rank() == 0 and not all(catalogue.label_names):
        bare = (url for url, names in zip(catalogue.urls, catalogue.label_names, strict=True) if not names)
        print_line(f"{', '.join(bare)}: no labels of points, so the loss of the score map (loss.weight_aux) is 0 there")
    validation = None
    if config.data.validation_shards:
        held_out = Catalogue(config.data.validation_shards)
        validation = build_validation_stream(config, held_out, build_recipe(config, held_out, False))
    module = build_module(config, towers.to(device)).to(device)

    def wrap(checkpoint: Path | None) -> Engine:
        if checkpoint is None and model.pretrained is not None:
            differing = load_pretrained(module, config, towers.sha256)
            if rank() == 0:
                for line in differing:
                    print_line(f"model.pretrained was trained otherwise: {line}")
        return build_engine(module, config.train, checkpoint, module.groups(config.train))

    task = build_task(config, device, validation)
    began_with = partial(terms_of_beginning, config)
    run_training(config, wrap, task, stream, catalogue, towers.sha256, on_step, show, began_with)


def label_recipe(
    config: FinetuneConfig,
    catalogue: Catalogue,
    trains: bool,
    ignored_labels: Sequence[str] | None = None,
    *,
    unlabelled: bool = False,
) -> LabelRecipe:
    """How the points of a catalogue get labels and become voxels; what is trained on is augmented, and loses labels.

    Args:
        ignored_labels: instead of those of the configuration.
        unlabelled: take samples without labels, too.

    Raises:
        ConfigError: the classes of a dataset are not those of the configuration.
    """
    return build_label_recipe(
        catalogue,
        config.data,
        config.model,
        config.model.label_names,
        config.data.ignored_labels if ignored_labels is None else ignored_labels,
        augment=config.data.augment if trains else None,
        seed=config.run.seed,
        unlabelled=unlabelled,
        labels_per_scene=config.data.labels_per_scene if trains else None,
    )


def prompt_labels(config: FinetuneConfig, towers: ClipTowers) -> PromptedLabels:
    """The labels of a run, ready to be put behind any prompt tokens.

    Raises:
        ClipError: the prompts cannot work.
    """
    from t4p.models.prompts import PromptedLabels  # open_clip, which reading an export must not need

    model = config.model
    return PromptedLabels(towers, model.label_words, model.text_query.template, model.prompt_tokens)


def load_pretrained(module: PromptedModule, config: FinetuneConfig, towers_sha256: str) -> tuple[str, ...]:
    """Put the weights of `model.pretrained`, which is set, into a module as it was built.

    Returns:
        As `load_starting_weights`.

    Raises:
        CheckpointError: they cannot be read.
        ConfigError: they do not fit.
    """
    assert config.model.pretrained is not None
    start = read_starting_weights(fetched(config.model.pretrained))
    return load_starting_weights(module.net, start, config, towers_sha256)


def embed_labels(config: FinetuneConfig, towers: ClipTowers, weights: Mapping[str, Tensor]) -> Tensor:
    """(K, d) the labels behind the prompt tokens that were learnt: the label embeddings of its export."""
    return prompt_labels(config, towers).embed(weights["prompt_tokens"])


def weights_as_begun(
    config: Config, towers: ClipTowers, build_module: Callable[[Config, ClipTowers], PromptedModule]
) -> Mapping[str, Tensor]:
    """What a fine-tuning with `model.pretrained` finds at its first step.

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
