"""The arithmetic of a plan against counting by hand, and its instrument against programs whose memory is known."""

import json
import random
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from commands.main import app
from t4p.config.files import load_config
from t4p.errors import ConfigError
from t4p.models.sparse.layers import SubmanifoldConv
from t4p.models.sparse.native_functions import widest_turns_only
from t4p.models.sparse.pyramid import build_pyramid
from t4p.plan.frames import look_at_frames, room_frame
from t4p.plan.job import RUNTIME_BYTES, needs_of, rank_memory, spread, usual_hours, with_checkpointing
from t4p.plan.live_memory import LiveMemory, SizesOnly
from t4p.plan.measure import Ends, NetworkFigures, PassBytes, tile_bytes
from t4p.plan.pairs import norm_bytes, pair_gather
from t4p.plan.zero import STAGES, Cluster, checkpoint_bytes, partition_numel, state_bytes, traffic

MINIMAL = ["run.dir=runs/x", "data.shards=[/nowhere]"]


def random_groups(rng: random.Random) -> list[list[int]]:
    return [[rng.randint(1, 500) for _ in range(rng.randint(1, 6))] for _ in range(2)]


def cluster(world_size: int, grad_accum_steps: int = 1) -> Cluster:
    return Cluster(world_size, bucket_numel=64, whole_below=50, grad_accum_steps=grad_accum_steps)


# -- ZeRO ----------------------------------------------------------------------------------------------------------


def test_partitions_are_those_of_cutting_the_flat_parameters_number_by_number():
    rng = random.Random(1)
    for _ in range(300):
        numels, world_size = random_groups(rng)[0], rng.randint(1, 9)
        flat = [index for index, numel in enumerate(numels) for _ in range(numel)]
        while len(flat) % (2 * world_size):
            flat.append(-1)  # padding
        owned = [
            flat[rank * len(flat) // world_size : (rank + 1) * len(flat) // world_size] for rank in range(world_size)
        ]
        assert {len(part) for part in owned} == {partition_numel(numels, 1, cluster(world_size))}
        assert partition_numel(numels, 2, cluster(world_size)) == partition_numel(numels, 1, cluster(world_size))
        of_each = sum(len(range(0, numel, world_size)) for numel in numels)  # rank 0 of every parameter cut alone
        assert partition_numel(numels, 3, cluster(world_size)) == of_each
        assert partition_numel(numels, 0, cluster(world_size)) == sum(numels)


def test_states_are_the_bytes_per_parameter_that_are_documented():
    """4 for parameters, 4 for gradients, 8 for AdamW's moments; the master copy of stages 1 to 3 takes 4 more."""
    numels, world_size = [[2**20, 2**18], [2**12]], 8
    total = sum(map(sum, numels))
    per_parameter = {}
    for stage in STAGES:
        state = state_bytes(numels, stage, cluster(world_size), foreach=True)
        per_parameter[stage] = [value / total for value in (state.parameters, state.gradients, state.optimizer)]
    assert per_parameter[0] == [4, 4, 8]
    assert per_parameter[1] == [4, 4 / 8, 12 / 8]
    assert per_parameter[2] == [4, 4 / 8, 12 / 8]
    assert per_parameter[3] == [4 / 8, 4 / 8, 12 / 8]


def test_a_rank_never_holds_more_of_the_states_when_ranks_are_added_or_the_stage_goes_up():
    rng = random.Random(2)
    for _ in range(200):
        groups, world_size = random_groups(rng), rng.choice([2, 4, 8])

        def held(stage, ranks, groups=groups):
            state = state_bytes(groups, stage, cluster(ranks), foreach=True)
            return state.parameters + state.optimizer

        padding = 4 * 2 * 4 * world_size * sum(map(len, groups))
        for stage in (1, 2, 3):
            assert held(stage, 2 * world_size) <= held(stage, world_size) + padding
        assert held(3, world_size) <= held(2, world_size) + padding


def test_gradients_between_micro_batches_are_whole_at_stages_0_and_1_only():
    groups = [[1000, 24], [8]]
    for stage, standing in ((0, 4 * 1032), (1, 4 * 1032), (2, 4 * 258), (3, 4 * 258)):
        accumulating = state_bytes(groups, stage, cluster(4, grad_accum_steps=2), foreach=True)
        assert accumulating.standing_gradients == standing
        at_once = state_bytes(groups, stage, cluster(4), foreach=True)
        assert at_once.standing_gradients == (standing if stage == 3 else 0)


def ring_sent(numel: int, world_size: int, phases: int) -> int:
    """Numbers that rank 0 sends when `phases` phases of a ring run over `numel` numbers, chunk by chunk."""
    chunk = [len(part) for part in np.array_split(np.arange(numel), world_size)]
    return sum(chunk[-step % world_size] for _ in range(phases) for step in range(world_size - 1))


def test_traffic_is_that_of_rings_played_step_by_step():
    rng = random.Random(3)
    for _ in range(200):
        world_size, micro_batches = rng.randint(1, 9), rng.randint(1, 4)
        groups = [[world_size * rng.randint(1, 300)] for _ in range(2)]  # divides evenly
        total = sum(map(sum, groups))
        all_reduce, half = 4 * ring_sent(total, world_size, 2), 4 * ring_sent(total, world_size, 1)
        sent = [traffic(groups, stage, cluster(world_size, micro_batches)) for stage in STAGES]
        assert sent[0].total == all_reduce
        assert sent[1].total == all_reduce + half
        assert sent[2].total == all_reduce * micro_batches + half
        assert sent[3].total == half * micro_batches * 2
        assert world_size > 1 or not any(stage.total for stage in sent)


def test_a_checkpoint_holds_parameters_master_copy_and_moments():
    groups = [[1024], [64]]
    sizes = [checkpoint_bytes(groups, 100, stage, cluster(2)) for stage in STAGES]
    assert sizes == [12 * 1088 + 100, 16 * 1088 + 100, 16 * 1088 + 100, 12 * 1088 + 100]


# -- pairs and norms -----------------------------------------------------------------------------------------------


def test_gathered_pairs_are_counted_row_by_row():
    rng = random.Random(4)
    for _ in range(200):
        points, pixels, dim, world_size = rng.randint(0, 40), rng.randint(0, 40), rng.randint(1, 16), rng.randint(2, 6)
        columns = [(rank, pixel) for rank in range(world_size) for pixel in range(pixels)]
        for trained in (False, True):
            gather = pair_gather(points, pixels, dim, world_size, trained_pixels=trained)
            assert gather.columns == len(columns)
            assert gather.logits == points * len(columns)
            assert gather.matrix_bytes == 4 * gather.logits
            embeddings = sum(4 * dim for _ in columns)
            assert gather.held_bytes == embeddings * (1 + trained) + 2 * 4 * len(columns)
            # Embeddings of the other ranks arrive, their gradients leave; of each column two numbers arrive as well,
            # and two sums go round twice.
            others = 4 * pixels * (world_size - 1)
            assert gather.sent_bytes == others * dim * (1 + trained) + (2 + 4) * others


def test_one_rank_gathers_and_sends_nothing():
    gather = pair_gather(70, 100, 64, 1, trained_pixels=True)
    assert (gather.columns, gather.held_bytes, gather.sent_bytes) == (100, 0, 0)
    assert norm_bytes([32, 64], 1, recomputed=True) == 0


def test_norms_gather_their_statistics_and_sum_their_gradients():
    # Two norms, 4 ranks: (1 + 2 C) numbers to each of 3 others, then 2 C numbers around a ring twice.
    forward = 4 * 3 * (1 + 2 * 8 + 1 + 2 * 16)
    backward = 2 * 4 * 2 * (8 + 16) * 3 // 4
    assert norm_bytes([8, 16], 4, recomputed=False) == forward + backward
    assert norm_bytes([8, 16], 4, recomputed=True) == 2 * forward + backward


# -- the instrument ------------------------------------------------------------------------------------------------


def test_live_memory_follows_a_program_that_is_known():
    with LiveMemory() as live:
        first = torch.zeros(1000)  # 4000
        view = first[:10]  # shares
        view.add_(1)  # in place
        second = first * 2  # 8000
        del first
        at_view = live.now
        del view  # 4000
        third = torch.cat([second, second])  # 12000
    timeline = live.timeline()
    assert timeline[at_view] == 8000
    assert timeline[-1] == 12000
    assert timeline.max() == 12000
    assert live.timeline([third])[-1] == 8000


def test_what_autograd_keeps_counts_until_the_backward_pass_is_over():
    weight = torch.ones(100, 100, requires_grad=True)
    with LiveMemory() as live:
        loss = (torch.ones(50, 100) @ weight).exp().sum()
        kept = live.timeline()[-1]
        loss.backward()
    assert kept == 4 * (50 * 100 + 50 * 100 + 1)  # the input of the product, exp's output, the loss
    assert live.timeline([weight.grad])[-1] == 4 * 100 * 100
    assert live.timeline()[-1] == 4 * (100 * 100 + 1)


def test_products_are_zeros_of_their_true_size():
    weight = torch.ones(8, 16, requires_grad=True)
    out = torch.ones(4, 16)
    with SizesOnly() as live:
        product = torch.ones(4, 8) @ weight
        product.sum().backward()
        torch.mm(torch.ones(4, 8), torch.ones(8, 16), out=out)
    assert product.shape == (4, 16)
    assert not product.any()
    assert not out.any()
    assert weight.grad.shape == (8, 16)
    assert live.timeline([product])[-1] == 4 * 4 * 16
    assert live.timeline([out])[-1] == 0  # it was there before


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_widest_turn_of_a_convolution_holds_as_much_as_all_of_them(precision):
    rng = random.Random(2)
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        xyz = torch.randint(0, rng.choice([4, 9]), (rng.choice([30, 900]), 3), generator=generator)
        coords = torch.unique(torch.cat([torch.zeros(len(xyz), 1), xyz], 1).int(), dim=0)
        widths = rng.choice([(8, 16), (128, 96), (32, 128)])
        peaks = []
        for context in (nullcontext, widest_turns_only):
            layer = SubmanifoldConv(*widths, 3)
            pyramid = build_pyramid("native", coords, 1)
            features = torch.ones(len(coords), widths[0], requires_grad=True)
            with context(), SizesOnly() as live, torch.autocast("cpu", enabled=precision == torch.bfloat16):
                layer(pyramid, features, 0).sum().backward()
            peaks.append((live.timeline().max(), live.timeline()[-1], live.now))
        (whole, kept, turns), (widest, kept_by_widest, fewer) = peaks
        assert (whole, kept) == (widest, kept_by_widest)
        assert fewer < turns


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stand_ins_hold_what_the_real_operations_hold(dtype):
    """Casts, norms in training and in evaluation, their gradients, batched products."""

    def program() -> torch.Tensor:
        x = torch.rand(64, 16, requires_grad=True)
        norms = nn.BatchNorm1d(16), nn.BatchNorm1d(16, affine=False), nn.BatchNorm1d(16).eval()
        y = sum(norm(x.to(dtype).float()) for norm in norms)
        z = torch.bmm(y.view(4, 16, 16), y.view(4, 16, 16)).to(torch.float64)
        z.sum().backward()
        return y.detach().long().sum()

    timelines = []
    for instrument in (LiveMemory, SizesOnly):
        with instrument() as live:
            program()
        timelines.append(live.timeline().tolist())
    assert timelines[0] == timelines[1]


# -- frames --------------------------------------------------------------------------------------------------------


def smoke(*overrides: str):
    return load_config(["configs/smoke.yaml"], ["data.shards=[/nowhere]", *overrides])


def sample_settings(config):
    from t4p.models.towers import load_towers_from
    from t4p.tasks.pretrain import build_sample_settings

    return build_sample_settings(config, load_towers_from(config.model.clip, 0))


def test_without_a_dataset_a_drawn_room_stands_in_and_says_so():
    figures = look_at_frames(["/nowhere"], sample_settings(smoke("model.voxel_size=0.025", "data.pixel_stride=1")))
    assert "/nowhere" in figures.problem
    assert figures.num_samples is None
    assert 20_000 < len(figures.largest.voxel_coords) < 30_000  # as the docstring of room_frame says
    assert 0.1e6 < figures.stored_bytes < 1e6
    assert figures.load_seconds > 0
    assert len(room_frame().depth) > 100_000  # the noise of a sensor does not compress


def test_frames_of_a_dataset_are_read_where_there_is_one(tmp_path, tum_sample):
    url = str(tmp_path / "packed")
    assert CliRunner().invoke(app, ["shards", "pack", "tum", str(tum_sample), url]).exit_code == 0
    figures = look_at_frames([url], sample_settings(smoke()))
    assert figures.problem is None
    assert figures.num_samples == 4
    size_bytes = sum(path.stat().st_size for path in (tmp_path / "packed").glob("*.tar"))
    assert figures.stored_bytes == size_bytes / 4
    assert 0 < figures.mean_voxels <= len(figures.largest.voxel_coords)


# -- the plan ------------------------------------------------------------------------------------------------------


def figures(**changes: int) -> NetworkFigures:
    empty = PassBytes(batch=0, tower=10, forward=100, loss=40, tiles=0, backward=90, gradients=0, kept=0)
    one = PassBytes(batch=5, tower=110, forward=900, loss=1100, tiles=96, backward=700, gradients=0, kept=50)
    return NetworkFigures(((1000,), (10,)), 30, 70, Ends(3, 4), (8,), empty, replace(one, **changes))


def test_a_micro_batch_is_the_empty_one_and_a_multiple_of_a_frame_but_for_the_tiles():
    three = figures().of_frames(3)
    assert three.tiles == 8 * 9 * 12 == tile_bytes(Ends(9, 12))
    assert three == PassBytes(
        batch=15, tower=310, forward=2500, loss=40 + 3 * 964 + 864, tiles=864, backward=1920, gradients=0, kept=150
    )
    assert three.activations == three.loss
    assert figures().of_frames(1) == figures().one_frame


def test_tiles_stop_growing():
    assert tile_bytes(Ends(10**6, 10**6)) == tile_bytes(Ends(1024, 4096)) == 8 * 1024 * 4096


@pytest.mark.parametrize("turn", ["tower", "forward", "loss", "backward", "step"])
def test_the_peak_is_that_of_the_turn_that_needs_most(turn):
    network = figures(**({} if turn == "step" else {turn: 10**6}))
    state = state_bytes(network.groups, 0, Cluster(1, 0, 0), foreach=True)
    memory = rank_memory(network, state, 1, gathered=7, limit=None)
    held = 4 * 1010 + 8 * 1010 + 30 + 70 + 5 + 50
    wanted = {"step": 2 * 4 * 1010, "loss": 10**6 + 7}.get(turn, 10**6)
    assert (memory.peak, memory.fits) == (held + wanted, None)


def test_fitting_counts_the_reserve():
    network = figures()
    state = state_bytes(network.groups, 0, Cluster(1, 0, 0), foreach=True)
    needed = rank_memory(network, state, 1, 0, limit=1)
    assert needed.fits is False
    assert needed.reserve >= RUNTIME_BYTES
    in_all = needed.peak + needed.reserve
    assert [rank_memory(network, state, 1, 0, limit).fits for limit in (in_all - 1, in_all)] == [False, True]


@pytest.mark.parametrize(
    ("overrides", "nodes", "message"),
    [
        (["train.global_batch_size=32"], 8, "train.global_batch_size: 32, and there are 64 workers"),
        (
            ["train.global_batch_size=64", "model.norm_group_size=24"],
            8,
            "norm_group_size: 24, and there are 64 workers",
        ),
    ],
)
def test_a_batch_or_groups_that_the_world_cannot_share_are_refused_with_their_numbers(overrides, nodes, message):
    with pytest.raises(ConfigError, match=message):
        spread(load_config([], [*MINIMAL, *overrides]), nodes, 8)


def test_frames_per_rank_are_those_of_the_rank_with_most():
    config = load_config([], [*MINIMAL, "train.global_batch_size=36", "train.grad_accum_steps=2"])
    assert spread(config, 1, 8).frames_per_rank == 3  # 18 frames over 8 ranks
    assert spread(config, 1, 0).size == 1


def test_needs_are_rates_over_the_time_given():
    config = load_config([], [*MINIMAL, "train.num_steps=7200", "train.global_batch_size=32"])
    frames = look_at_frames(["/nowhere"], sample_settings(smoke()))
    needs = needs_of(config, replace(frames, stored_bytes=1e6, load_seconds=0.1), sent_bytes=1000, hours=2)
    assert (needs.steps_per_second, needs.frames_per_second) == (1, 32)
    assert (needs.stored_bytes_per_second, needs.sent_bytes_per_second) == (32e6, 1000)
    assert needs.loader_processes == pytest.approx(3.2)


def test_the_usual_pace_is_pointcontrasts():
    config = load_config([], [*MINIMAL, "train.num_steps=60000", "train.global_batch_size=32"])
    assert usual_hours(config, 8) == pytest.approx(40)
    assert usual_hours(config, 64) == pytest.approx(5)


def test_one_process_measures_without_the_norms_of_a_world():
    config = load_config([], [*MINIMAL, "model.norm_group_size=8"])
    measured = with_checkpointing(config, True).model
    assert (measured.norm, measured.norm_group_size, measured.unet.activation_checkpointing) == ("batch", None, True)


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_one_json_object_or_tables_of_100_columns():
    arguments = ["plan", "configs/smoke.yaml", "data.shards=[/nowhere]", "train.global_batch_size=8"]
    arguments += ["--nodes", "2", "--gpus-per-node", "2", "--hours", "1"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["world_size"], plan["frames_per_rank"], len(plan["stages"])) == (4, 2, 4)
    assert plan["stages"][1]["memory"]["fits"] is True
    assert plan["needs"]["frames_per_second"] == pytest.approx(40 * 8 / 3600)

    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "ZeRO-1 fits:" in result.stdout


def test_what_does_not_fit_says_what_would():
    result = CliRunner().invoke(
        app,
        ["plan", "configs/smoke.yaml", "data.shards=[/nowhere]", "--gpus-per-node", "2", "--gpu-memory", "1"],
    )
    assert result.exit_code == 0, result.output
    assert "ZeRO-1 does not fit" in result.stdout
    assert "one frame is the least" in result.stdout


def test_a_batch_smaller_than_the_world_ends_with_its_numbers():
    result = CliRunner().invoke(app, ["plan", "configs/smoke.yaml", "data.shards=[/nowhere]", "--nodes", "3"])
    assert isinstance(result.exception, ConfigError)
    assert "train.global_batch_size: 2, and there are 3 workers" in str(result.exception)


def test_only_the_pairs_that_are_drawn_are_planned_and_none_of_a_loss_without_weight():
    overrides = ["data.shards=[/nowhere]", "loss.weight_d=0", "train.global_batch_size=6"]
    arguments = ["plan", "configs/pretrain/rooms.yaml", *overrides, "--nodes", "2"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["frames"]["pairs_e"], plan["frames"]["pairs_d"]) == (384, 0)
    # 384 pairs at most have 384 voxels at most, the room has fewer; all of the image's 20 x 15 cells are seen.
    points = plan["loss_e"]["rows"] // 3
    assert 200 < points < 384
    assert (plan["loss_e"]["rows"], plan["loss_e"]["columns"]) == (3 * points, 6 * 300)
    assert (plan["loss_d"]["rows"], plan["loss_d"]["held_bytes"], plan["loss_d"]["sent_bytes"]) == (0, 0, 0)
    assert plan["micro_batch"]["tiles"] == 8 * min(3 * points, 1024) * 3 * 300  # those of L_e
