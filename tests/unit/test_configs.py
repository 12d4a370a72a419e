"""The packaged configurations: all of them load, and the full-size run is planned as it would be launched."""

from pathlib import Path

import pytest

from commands.plan import make_console, print_plan, verdict
from t4p.config.files import load_config, load_config_of, load_for_command
from t4p.config.network import NetworkConfig
from t4p.config.plans import build_plan
from t4p.config.tasks import DetectionConfig, InstanceConfig, SemanticConfig
from t4p.models.towers import load_towers_from
from t4p.plan.frames import look_at_frames
from t4p.plan.job import JobPlan, assemble, spread, usual_hours, with_checkpointing
from t4p.plan.measure import drawn_pairs, frozen_part, measure_network
from t4p.tasks.pretrain import build_sample_settings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FULL_SIZE = "configs/pretrain/scannet.yaml"
CLUSTERS = {"configs/cluster/1x8.yaml": 8, "configs/cluster/8x8.yaml": 64}
GIB = 2**30


def test_every_overlay_of_a_cluster_is_tested_here():
    assert {f"configs/cluster/{path.name}" for path in (CONFIGS / "cluster").glob("*.yaml")} == set(CLUSTERS)


@pytest.mark.parametrize("path", sorted((CONFIGS / "pretrain").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_pretraining_configuration_loads(path):
    load_config([path])


def test_every_fine_tuning_configuration_loads():
    names = ("rooms", "few_labels", "rooms_instance", "rooms_detection")
    rooms, few_labels, instance, detection = (f"configs/finetune/{name}.yaml" for name in names)
    found = {f"configs/finetune/{path.name}" for path in (CONFIGS / "finetune").glob("*.yaml")}
    assert found == {rooms, few_labels, instance, detection}
    assert load_config_of(SemanticConfig, [rooms]).model.head == "linear"
    assert load_config_of(SemanticConfig, [rooms, few_labels]).model.head == "words"
    for overlay, schema in ((instance, InstanceConfig), (detection, DetectionConfig)):
        loaded = load_for_command("finetune", [rooms, overlay])
        assert isinstance(loaded, schema)
        assert "wall" not in loaded.model.label_names


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
