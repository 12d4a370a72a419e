"""The packaged configurations: all of them load, and the full-size run is planned as it would be launched."""

from pathlib import Path

import pytest
import torch

from commands.plan import make_console, print_plan, verdict
from t4p.config.check import check
from t4p.config.files import load_config, load_config_of, load_for_command
from t4p.config.network import NetworkConfig
from t4p.config.plans import build_plan
from t4p.config.tasks import DetectionConfig, InstanceConfig, SemanticConfig
from t4p.data.transforms import num_channels
from t4p.metrics.scannet import SCANNET_IDS
from t4p.models.towers import load_towers_from
from t4p.models.unet import SparseUNet
from t4p.plan.frames import look_at_frames
from t4p.plan.job import JobPlan, assemble, spread, usual_hours, with_checkpointing
from t4p.plan.measure import drawn_pairs, frozen_part, measure_network
from t4p.tasks.pretrain import build_sample_settings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FULL_SIZE = "configs/pretrain/scannet.yaml"
CLUSTERS = {"configs/cluster/1x8.yaml": 8, "configs/cluster/8x8.yaml": 64}
GIB = 2**30
NETWORK = "configs/network/res16unet34c.yaml"
# Of each: schema, labels, steps of its published schedule (epochs x samples / batch, or steps), and samples of a batch.
BENCHMARKS = {
    "configs/finetune/scannet_semantic.yaml": (SemanticConfig, 20, 20_000, 48),
    "configs/finetune/scannet_instance.yaml": (InstanceConfig, 18, 512 * 1201 // 4, 4),
    "configs/finetune/scannet_detection.yaml": (DetectionConfig, 18, 12 * 15 * 1201 // 16, 16),
    "configs/finetune/s3dis.yaml": (SemanticConfig, 13, 60_000, 48),
    "configs/finetune/sunrgbd.yaml": (DetectionConfig, 10, round(12 * 5 * 5285 / 16), 16),
}


def test_every_overlay_of_a_cluster_is_tested_here():
    assert {f"configs/cluster/{path.name}" for path in (CONFIGS / "cluster").glob("*.yaml")} == set(CLUSTERS)


@pytest.mark.parametrize("path", sorted((CONFIGS / "pretrain").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pretraining_configuration_loads(path):
    load_config([path])


def test_every_fine_tuning_configuration_loads():
    names = ("rooms", "few_labels", "linear_probe", "rooms_instance", "rooms_detection")
    rooms, few_labels, probe, instance, detection = (f"configs/finetune/{name}.yaml" for name in names)
    found = {f"configs/finetune/{path.name}" for path in (CONFIGS / "finetune").glob("*.yaml")}
    assert found == {rooms, few_labels, probe, instance, detection, *BENCHMARKS}
    assert load_config_of(SemanticConfig, [rooms]).model.head == "linear"
    assert load_config_of(SemanticConfig, [rooms, few_labels]).model.head == "words"
    for overlays, schema in (([], SemanticConfig), ([instance], InstanceConfig), ([detection], DetectionConfig)):
        loaded = load_for_command("finetune", [rooms, *overlays])
        assert isinstance(loaded, schema)
        assert ("wall" in loaded.model.label_names) == (schema is SemanticConfig)
        loaded = load_for_command("finetune", [rooms, *overlays, probe], ["model.pretrained=a"])
        assert isinstance(loaded, schema)
        assert set(loaded.model.frozen) == {"encoder", "text_query", "decoder"}


@pytest.mark.parametrize(("path", "expected"), BENCHMARKS.items(), ids=lambda value: str(value))
def test_a_benchmark_is_fine_tuned_with_the_network_of_the_pre_training(path, expected):
    schema, num_labels, num_steps, batch = expected
    config = load_for_command("finetune", [NETWORK, path], ["model.pretrained=a"])
    assert isinstance(config, schema)
    assert len(config.model.label_names) == num_labels
    assert (config.train.global_batch_size, check(config, 4)) == (batch, ())
    assert config.train.num_steps == num_steps
    network = load_config([FULL_SIZE]).model
    told = {"labels"} | ({"voxel_size"} if path.endswith("s3dis.yaml") else set())  # taken, and told
    assert {
        name for name in NetworkConfig.model_fields if getattr(network, name) != getattr(config.model, name)
    } <= told
    with torch.device("meta"):
        unet = SparseUNet(num_channels(config.model.point_features), build_plan(config.model.unet))
        head = torch.nn.Linear(unet.out_channels, 20)
    assert sum(p.numel() for part in (unet, head) for p in part.parameters()) == 37_856_052
    tried = load_for_command("finetune", [path, "configs/network/small.yaml"])
    assert tried.model.unet == load_config(["configs/pretrain/rooms.yaml"]).model.unet


def test_the_files_of_networks_are_those_of_the_pre_trainings():
    for network, pretraining in ((NETWORK, FULL_SIZE), ("configs/network/small.yaml", "configs/pretrain/rooms.yaml")):
        alone, with_network = load_config([pretraining]), load_config([pretraining, network])
        assert with_network == alone, network
    assert {path.name for path in (CONFIGS / "network").glob("*.yaml")} == {"res16unet34c.yaml", "small.yaml"}


def test_the_labels_of_the_benchmarks_are_theirs():
    labels = {path: load_for_command("finetune", [NETWORK, path]).model.label_names for path in BENCHMARKS}
    semantic = labels["configs/finetune/scannet_semantic.yaml"]
    assert [SCANNET_IDS[name] for name in semantic] == [*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39]
    for objects in ("instance", "detection"):
        assert labels[f"configs/finetune/scannet_{objects}.yaml"] == semantic[2:]
    # The names of the annotation files of S3DIS, and VoteNet's of SUN RGB-D, in no order.
    s3dis = "beam, board, bookcase, ceiling, chair, clutter, column, door, floor, sofa, table, wall, window"
    assert ", ".join(sorted(labels["configs/finetune/s3dis.yaml"])) == s3dis
    sunrgbd = "bathtub, bed, bookshelf, chair, desk, dresser, night_stand, sofa, table, toilet"
    assert ", ".join(sorted(labels["configs/finetune/sunrgbd.yaml"])) == sunrgbd


def test_rooms_are_pre_trained_and_fine_tuned_with_one_network():
    before = load_config(["configs/pretrain/rooms.yaml"])
    after = load_config_of(SemanticConfig, ["configs/finetune/rooms.yaml"])
    assert before.data.frame == after.data.frame
    for name in NetworkConfig.model_fields:
        assert getattr(before.model, name) == getattr(after.model, name), name


def test_the_full_size_run_is_what_it_is_said_to_be():
    config = load_config([FULL_SIZE])
    plan = build_plan(config.model.unet)
    assert (plan.encoder_channels, plan.decoder_channels) == ((32, 64, 128, 256), (256, 128, 96, 96))
    assert (plan.encoder_blocks, plan.decoder_blocks) == ((2, 3, 4, 6), (2, 2, 2, 2))
    assert (config.model.voxel_size, config.model.clip.name) == (0.025, "RN50")
    assert (config.train.zero_stage, config.train.precision) == (1, "bf16")


@pytest.mark.parametrize(("overlay", "world_size"), CLUSTERS.items())
def test_an_overlay_gives_every_rank_the_same_whole_number_of_frames(overlay, world_size):
    config = load_config([FULL_SIZE, overlay])
    train = config.train
    assert config.cluster.num_workers == world_size
    assert train.global_batch_size % (world_size * train.grad_accum_steps) == 0
    assert spread(config, config.cluster.num_nodes, config.cluster.gpus_per_node).frames_per_rank == 4
    assert train.checkpoint_every * 4 <= train.num_steps
    # Norms share statistics within a node: over all ranks where there is one node.
    assert (config.model.norm_group_size or world_size) == config.cluster.gpus_per_node
    # Else model and data are the run's own: only loss, train, data.num_workers and cluster belong to the machine.
    alone = load_config([FULL_SIZE])
    assert config.model.model_copy(update={"norm_group_size": None}) == alone.model
    assert config.data.model_copy(update={"num_workers": alone.data.num_workers}) == alone.data


def test_both_overlays_see_the_same_number_of_frames():
    runs = [load_config([FULL_SIZE, overlay]).train for overlay in CLUSTERS]
    assert len({run.num_steps * run.global_batch_size for run in runs}) == 1


@pytest.fixture(scope="module")
def plans() -> dict[str, JobPlan]:
    """The full-size run on both clusters; the network, which they share, is measured once, without checkpointing."""
    network, plans = None, {}
    for overlay in CLUSTERS:
        config = load_config([FULL_SIZE, overlay], ["model.clip.pretrained=random", "data.shards=[/nowhere]"])
        towers = load_towers_from(config.model.clip, 0)
        settings = build_sample_settings(config, towers)
        frames = look_at_frames(config.data.shards, settings)
        network = network or measure_network(
            with_checkpointing(config, False), towers, frozen_part(config, towers), settings, frames.largest
        )
        world = spread(config, config.cluster.num_nodes, config.cluster.gpus_per_node)
        plans[overlay] = assemble(
            config, world, 80 * GIB, usual_hours(config, world.size), frames, network, network, towers.embed_dim
        )
    return plans


@pytest.mark.slow
def test_the_full_size_run_fits_its_gpus_and_feeds_them(plans):
    for overlay, plan in plans.items():
        assert 45e6 < plan.num_parameters < 50e6
        assert [stage.memory.fits for stage in plan.stages] == [True] * 4
        # An activation of the finest level, 96 channels in fp32, is kept more than ten times, by four frames.
        voxels = len(plan.frames.largest.voxel_coords)
        assert plan.micro_batch.activations > 10 * 4 * voxels * 96 * 4
        # Stage 1 holds less than stage 0, and stage 3 less than both, of parameters and optimizer.
        held = [stage.state.parameters + stage.state.optimizer for stage in plan.stages]
        assert held[3] < held[2] == held[1] < held[0]
        assert plan.needs.loader_processes < plan.config.data.num_workers * plan.world.size
        assert verdict(plan).startswith("ZeRO-1 fits")
        console = make_console()
        with console.capture() as captured:
            print_plan(plan, console)
        assert max(map(len, captured.get().splitlines())) <= 100, overlay


@pytest.mark.slow
def test_sixty_four_gpus_contrast_more_than_131_072_pairs_and_never_hold_their_matrix(plans):
    plan = plans["configs/cluster/8x8.yaml"]
    num_frames = plan.config.train.global_batch_size
    for loss, pairs in zip((plan.loss_e, plan.loss_d), drawn_pairs(plan.config.loss, plan.frames.largest), strict=True):
        assert pairs * num_frames >= 131_072
        assert loss.rows < pairs * plan.world.frames_per_rank  # distinct ends: fewer than the pairs
        assert loss.columns < pairs * num_frames
        assert loss.held_bytes < loss.matrix_bytes or loss.matrix_bytes < GIB
    assert plan.loss_d.matrix_bytes > 3.5 * 10**9
    # The points of one rank meet 64 ranks' cells; on one node of the same rows they met 8 ranks'.
    assert plan.loss_e.columns == 8 * plans["configs/cluster/1x8.yaml"].loss_e.columns
    # Norms meet the 8 ranks of a node on both.
    assert plan.norm_bytes == plans["configs/cluster/1x8.yaml"].norm_bytes > 0
