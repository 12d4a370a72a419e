"""Pre-training: both contrastive losses between the pixels of frozen CLIP and the voxels of the 3D network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t4p.config.check import problem_of_image_size
from t4p.config.network import ModelConfig
from t4p.config.tasks import LossConfig, PretrainConfig
from t4p.data.batch import Batch, PairRecipe, PreparedBatch, PreparedRecipe
from t4p.data.draws import sample_rng
from t4p.data.fetch import Catalogue
from t4p.data.sample import PreparedFrame, SampleSettings
from t4p.data.stream import ValidationStream
from t4p.distributed import all_reduce_sum
from t4p.errors import ConfigError, RunError
from t4p.losses.balanced_draw import draw_balanced
from t4p.losses.contrastive import contrastive_loss_of_ends, distinct_ends
from t4p.losses.logit_scale import clamped_logit_scale
from t4p.metrics.retrieval import NUM_CANDIDATES, choose_candidates, top1_retrieval
from t4p.models.decoder2d import Decoder2d
from t4p.models.exported import ExportedNetwork
from t4p.models.score_map import VoxelScores, compare_with_text
from t4p.models.text4point import build_text4point
from t4p.models.towers import load_towers_from
from t4p.runs.logs import StepRecord
from t4p.runs.progress import Show
from t4p.tasks.job import (
    build_engine,
    build_training_stream,
    build_validation_stream,
    run_training,
    start_worker,
    tell_missing_poses,
)
from t4p.train.parameter_groups import GroupSettings

if TYPE_CHECKING:
    from t4p.models.clip import ClipTowers
    from t4p.train.engine import Engine


class PairEmbeddings(NamedTuple):
    """Unit-norm float32 embeddings of the two ends of every pair; row i of one belongs to row i of the other."""

    points_e: Tensor  # (Pe, d)
    cells_e: Tensor  # (Pe, d)
    points_d: Tensor  # (Pd, C)
    pixels_d: Tensor  # (Pd, C)


class PretrainModule(nn.Module):
    """Everything that trains: the 3D network, the 2D decoder and the two temperatures; losses inside its forward."""

    def __init__(self, model: ModelConfig, loss: LossConfig, clip_dim: int) -> None:
        super().__init__()
        self.net = build_text4point(model, clip_dim, model.embed_dim_d)
        self.decoder2d = Decoder2d(
            clip_dim, model.decoder2d.hidden_channels, model.embed_dim_d, upsample=model.decoder2d.upsample
        )
        self.log_logit_scale_e = nn.Parameter(torch.tensor([math.log(loss.logit_scale_init)]))
        self.log_logit_scale_d = nn.Parameter(torch.tensor([math.log(loss.logit_scale_init)]))
        self._loss = loss

    @property
    def untrained(self) -> tuple[str, ...]:
        """Names of the parameters that no loss reaches: those behind the bottleneck, where L_d has no weight."""
        if self._loss.weight_d:
            return ()
        behind = ("net.text_query.", "net.reduce.", "net.unet.decoder.", "net.head.", "decoder2d.")
        return tuple(name for name, _ in self.named_parameters() if name.startswith(behind))

    def embed(
        self,
        voxel_coords: Tensor,
        voxel_features: Tensor,
        clip_features: Tensor,
        text: Tensor,
        pairs_e: Tensor,
        pairs_d: Tensor,
        uniforms_e: Tensor,
    ) -> PairEmbeddings:
        """The two ends of every pair, all of L_e's too; arguments as in `forward`."""
        expanded, decoded = self.net(voxel_coords, voxel_features, text)
        return PairEmbeddings(
            *_ends(expanded, clip_features, pairs_e), *_ends(decoded, self.decoder2d(clip_features), pairs_d)
        )

    def forward(
        self,
        voxel_coords: Tensor,
        voxel_features: Tensor,
        clip_features: Tensor,
        text: Tensor,
        pairs_e: Tensor,
        pairs_d: Tensor,
        uniforms_e: Tensor,
    ) -> tuple[Tensor, ...]:
        """Both losses over the pairs of all ranks. Collective.

        Plain tensors in and out, because DeepSpeed's hooks see nothing else.

        Args:
            voxel_coords, voxel_features: (V, 4) int32 and (V, C_in), as in Batch.
            clip_features: (F, d, Hc, Wc) of the frozen image tower.
            text: (K', d) of the frozen text tower.
            pairs_e: (2, Pe) rows of the bottleneck, and of the flattened CLIP cells.
            pairs_d: (2, Pd) rows of the voxels, and of the flattened decoder pixels.
            uniforms_e: (Pe,) in (0, 1], uniform: of the pairs of L_e, which they draw if `balance_e` is set.

        Returns:
            loss, loss_e, loss_d, logit_scale_e, logit_scale_d: scalars; averaged over ranks they are the global ones.
                Without a weight of L_d the decoders do not run, and loss_d is 0.
            num_pairs_e, num_pairs_d: pairs of this rank.
        """
        if self._loss.balance_e:
            drawn = draw_balanced(clip_features, pairs_e[1], uniforms_e, self._loss.num_pairs_e, self._loss.balance_e)
            pairs_e = pairs_e[:, drawn]
        with_d = self._loss.weight_d > 0
        expanded, decoded = self.net(voxel_coords, voxel_features, text, read="voxels" if with_d else "bottleneck")
        pixels = self.decoder2d(clip_features) if with_d else None
        scale_e = clamped_logit_scale(self.log_logit_scale_e, 1.0, self._loss.logit_scale_max)
        scale_d = clamped_logit_scale(self.log_logit_scale_d, 1.0, self._loss.logit_scale_max)
        loss_e = _loss_of_pairs(expanded, clip_features, pairs_e, scale_e)
        loss_d = torch.zeros_like(loss_e)
        if pixels is not None:
            loss_d = _loss_of_pairs(decoded, pixels, pairs_d, scale_d)
        loss = self._loss.weight_e * loss_e + self._loss.weight_d * loss_d
        num_pairs = loss.new_tensor([pairs_e.shape[1], pairs_d.shape[1]])
        return loss, loss_e, loss_d, scale_e.squeeze(), scale_d.squeeze(), num_pairs[0], num_pairs[1]


class PretrainTask:
    """The frozen towers beside the module, and the retrieval score."""

    term_names = ("loss", "loss_e", "loss_d", "logit_scale_e", "logit_scale_d", "pairs_e", "pairs_d")

    def __init__(
        self,
        towers: ClipTowers,
        model: ModelConfig,
        device: torch.device,
        validation: ValidationStream[PreparedFrame, Batch | PreparedBatch] | None,
        precision: Literal["fp32", "bf16"],
    ) -> None:
        """
        Args:
            precision: that the frozen image tower computes in; DeepSpeed's autocast begins behind it, in the module.
        """
        self._precision = precision
        self._towers = towers.to(device)
        self._device = device
        self._validation = validation
        self._text = towers.encode_synonyms(model.label_words, model.text_query.template).to(device)

    def inputs(self, batch: Batch | PreparedBatch) -> tuple[Tensor, ...]:
        """What PretrainModule takes: the batch with its images seen through the frozen image tower."""
        batch = batch.to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            clip_features = self._towers.dense_features(self._towers.normalize(batch.images))
        return (
            batch.voxel_coords,
            batch.voxel_features,
            clip_features,
            self._text,
            torch.stack([batch.voxel_of_pair_e, batch.cell_of_pair_e]),
            torch.stack([batch.voxel_of_pair_d, batch.pixel_of_pair_d]),
            batch.uniform_of_pair_e,
        )

    def check(self, record: StepRecord) -> None:
        """Refuse to go on from a step in which no frame had a pair."""
        if not record.terms["pairs_e"] or not record.terms["pairs_d"]:
            raise RunError(
                f"step {record.step}: no frame of the batch has a point that the image sees; look at one with "
                "`t4p shards show`, and check its depth scale and data.max_depth"
            )

    @torch.no_grad()
    def validate(self, module: nn.Module) -> Mapping[str, float]:
        """Top-1 retrieval of a voxel's cell among 256 of its frame, for L_e and L_d: the mean over frames.

        Frames with readings in fewer than 256 cells are left out; `frames_e`, `frames_d` count the others. A score
        without any frame is left out too.
        """
        if self._validation is None:
            return {}
        assert isinstance(module, PretrainModule)
        module.eval()
        sums = torch.zeros(4, dtype=torch.float64)
        for loaded in self._validation.batches():
            batch = loaded.to(self._device)
            pairs = module.embed(*self.inputs(batch))
            ends = (
                (pairs.points_e, pairs.cells_e, batch.cell_of_pair_e, batch.points_of_pair_e),
                (pairs.points_d, pairs.pixels_d, batch.pixel_of_pair_d, batch.points_of_pair_d),
            )
            for index, (points, pixels, cell, num_points) in enumerate(ends):
                rng = sample_rng(0, 0, batch.keys[0], "retrieval")
                chosen = choose_candidates(cell.cpu().numpy(), num_points.cpu().numpy(), NUM_CANDIDATES, rng)
                if chosen is not None:
                    rows = torch.from_numpy(chosen).to(self._device)
                    sums[2 * index] += top1_retrieval(points[rows].cpu().numpy(), pixels[rows].cpu().numpy())
                    sums[2 * index + 1] += 1
        retrieved_e, frames_e, retrieved_d, frames_d = all_reduce_sum(sums.to(self._device)).tolist()
        scores = {"frames_e": frames_e, "frames_d": frames_d}
        if frames_e:
            scores["retrieval_e"] = retrieved_e / frames_e
        if frames_d:
            scores["retrieval_d"] = retrieved_d / frames_d
        return scores


def run(config: PretrainConfig, on_step: Callable[[StepRecord], None] | None = None, show: Show | None = None) -> None:
    """Pre-train as one worker of those that the environment describes; alone without one. Collective.

    Args:
        on_step: called on every rank after every step.
        show: told on rank 0 how it goes; by default plain lines are printed.

    Raises:
        ConfigError, ClipError: the configuration cannot work; nothing has been written.
        ShardError, DataError, CheckpointError: what the run reads is missing or damaged.
    """
    device = start_worker(config.train)
    towers = load_towers_from(config.model.clip, config.run.seed)
    sample_settings = build_sample_settings(config, towers)
    catalogue = Catalogue(config.data.urls, config.data.weights)
    catalogue.require_frames()
    tell_missing_poses(config, catalogue)
    stream = build_training_stream(config, catalogue, recipe_for(device, sample_settings))
    validation = build_validation(config, sample_settings, device)
    torch.manual_seed(config.run.seed)
    module = PretrainModule(config.model, config.loss, towers.embed_dim).to(device)

    def wrap(checkpoint: Path | None) -> Engine:
        return build_engine(module, config.train, checkpoint, GroupSettings(undecayed=module.untrained))

    task = PretrainTask(towers, config.model, device, validation, config.train.precision)
    run_training(config, wrap, task, stream, catalogue, towers.sha256, on_step, show)


def embed_labels(config: PretrainConfig, towers: ClipTowers, weights: Mapping[str, Tensor]) -> Tensor:
    """(K', d) what the words of a run are to its network: the label embeddings of its export."""
    return towers.encode_synonyms(config.model.label_words, config.model.text_query.template)


def problem_of_start(config: PretrainConfig) -> str:
    """Why no export keeps a share of what a run began with: random weights know nothing."""
    return "is of a pre-training"


@torch.no_grad()
def voxel_scores(
    exported: ExportedNetwork, voxel_coords: Tensor, voxel_features: Tensor, bottleneck_of_voxel: Tensor
) -> VoxelScores:
    """The cosine of each voxel's bottleneck voxel and each label's text embedding.

    Args:
        voxel_coords, voxel_features, bottleneck_of_voxel: (V, 4) int32, (V, C_in) and (V,), as in LabelledBatch, on
            the network's device.
    """
    expanded, _ = exported.net(voxel_coords, voxel_features, exported.label_embeddings, read="bottleneck")
    score_map = compare_with_text(expanded, exported.label_embeddings, 1.0)
    return VoxelScores(score_map.index_select(0, bottleneck_of_voxel), expanded)


def untrained_network(config: PretrainConfig) -> ExportedNetwork:
    """The network that a pre-training begins with, as its export would be.

    Raises:
        ConfigError, ClipError: the configuration cannot work.
    """
    towers = load_towers_from(config.model.clip, config.run.seed)
    torch.manual_seed(config.run.seed)
    net = PretrainModule(config.model, config.loss, towers.embed_dim).net.eval().requires_grad_(False)
    text = embed_labels(config, towers, {})
    return ExportedNetwork(config, 0, net, config.model.label_names, text, towers.sha256, {}, 1.0, {})


def build_sample_settings(config: PretrainConfig, towers: ClipTowers) -> SampleSettings:
    """How frames become samples, given the grid of the towers.

    Raises:
        ConfigError: the image size is not a multiple of the tower's cell.
    """
    height, width = config.data.image_size
    if problem := problem_of_image_size((height, width), towers.cell_size, towers.name):
        raise ConfigError(str(problem))
    cell_grid = towers.grid_size(height, width)
    upsample = config.model.decoder2d.upsample
    return SampleSettings(
        image_size=config.data.image_size,
        cell_grid=cell_grid,
        decoder_grid=(cell_grid[0] * upsample, cell_grid[1] * upsample),
        pixel_stride=config.data.pixel_stride,
        max_depth=config.data.max_depth,
        in_world=config.data.frame == "world",
        voxel_size=config.model.voxel_size,
        num_strides=config.model.unet.num_strides,
        point_features=config.model.point_features,
        num_pairs_e=None if config.loss.balance_e else config.loss.num_pairs_e,  # then PretrainModule draws
        num_pairs_d=config.loss.num_pairs_d,
        augment=config.data.augment,
        seed=config.run.seed,
        drop_features=config.data.drop_features,
    )


def recipe_for(device: torch.device, settings: SampleSettings) -> PairRecipe | PreparedRecipe:
    """Points are made by what trains: a CPU in its loaders, an accelerator itself."""
    return PairRecipe(settings) if device.type == "cpu" else PreparedRecipe(settings)


def build_validation(
    config: PretrainConfig, sample_settings: SampleSettings, device: torch.device
) -> ValidationStream[PreparedFrame, Batch | PreparedBatch] | None:
    """Validation keeps every pair of a frame, unaugmented; None where no validation data is configured."""
    if not config.data.validation_shards:
        return None
    settings = replace(sample_settings, num_pairs_e=None, num_pairs_d=None, augment=None)
    return build_validation_stream(config, Catalogue(config.data.validation_shards), recipe_for(device, settings))


def _loss_of_pairs(voxels: Tensor, image: Tensor, pairs: Tensor, logit_scale: Tensor) -> Tensor:
    """The contrastive loss of (2, P) pairs of (V, C) rows with the places of (F, C, H, W). Collective.

    A voxel or a place that is the end of several pairs is normalised, sent to other ranks and multiplied once.
    """
    ends = distinct_ends(pairs)
    points, pixels = _unit(voxels[ends.points]), _unit(_rows_of(image)[ends.pixels])
    return contrastive_loss_of_ends(points, pixels, logit_scale, ends.pairs)


def _ends(voxels: Tensor, image: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The two ends of (2, P) pairs: of (V, C) rows and of the places of (F, C, H, W), unit-norm float32."""
    return _unit(voxels[pairs[0]]), _unit(_rows_of(image)[pairs[1]])


def _unit(embeddings: Tensor) -> Tensor:
    """Unit norm, in float32 at least whatever autocast made of the layers before."""
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)


def _rows_of(features: Tensor) -> Tensor:
    """(F, C, H, W) to (F * H * W, C)."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
