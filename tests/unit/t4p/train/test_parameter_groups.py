"""The groups of the optimizer of a real network: every weight in one of them, at the rate of its stage."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from small_model import TINY_NETWORK
from torch import nn

from t4p.config.check import leaves_ranks_bare, problems_of_world
from t4p.config.files import load_config_of
from t4p.config.plans import build_plan, norm_channels
from t4p.config.tasks import SemanticConfig
from t4p.models.text4point import Reading, build_text4point
from t4p.train.parameter_groups import GroupSettings, parameter_groups, slow_parts_of

WEIGHT_DECAY = 0.02
# Stages between a weight and the head that reads all of the decoder, of a network of two strides.
DISTANCES = {
    r"unet\.stem(_norm)?\.": 6,
    r"unet\.encoder\.0\.": 5,
    r"unet\.encoder\.1\.": 4,
    r"(expand|text_query|reduce)\.": 3,
    r"unet\.decoder\.0\.": 2,
    r"unet\.decoder\.1\.": 1,
    r"head\.": 0,
}


def network() -> nn.Module:
    config = load_config_of(SemanticConfig, [], ["run.dir=a", "data.shards=[a]", *TINY_NETWORK])
    return build_text4point(config.model, clip_dim=16, out_dim=5)


def rates_and_decays(net: nn.Module, settings: GroupSettings) -> dict[str, tuple[float, float]]:
    """Of every parameter by name: its share of the learning rate, and its weight decay."""
    groups, scales = parameter_groups(net, WEIGHT_DECAY, settings)
    name_of = {parameter: name for name, parameter in net.named_parameters()}
    assert all(group["params"] for group in groups)
    found = [
        (name_of[parameter], (scale, group["weight_decay"]))
        for group, scale in zip(groups, scales, strict=True)
        for parameter in group["params"]
    ]
    assert len(dict(found)) == len(found) == len(name_of), "each in one group"
    return dict(found)


def distance_of(name: str) -> int:
    (distance,) = (distance for pattern, distance in DISTANCES.items() if re.match(pattern, name))
    return distance


@pytest.mark.parametrize("decay", [1.0, 0.9, 0.65, 0.01])
@pytest.mark.parametrize("head_scale", [0.5, 1.0, 5.0])
def test_a_weight_learns_at_the_rate_of_its_stage(decay, head_scale):
    net = network()
    slow = slow_parts_of(net.stages(), decay)
    found = rates_and_decays(net, GroupSettings(("head",), head_scale, slow_parts=slow))
    shapes = {name: parameter.ndim for name, parameter in net.named_parameters()}
    for name, (rate, weight_decay) in found.items():
        distance = distance_of(name)
        assert rate == pytest.approx(head_scale if distance == 0 else decay**distance), name
        assert weight_decay == (WEIGHT_DECAY if shapes[name] >= 2 or distance == 0 else 0.0), name


@pytest.mark.parametrize("overrides", [[], ["model.unet.plan=Res16UNet14A"], ["model.unet.encoder_channels=[16,24]"]])
def test_the_norms_of_a_stage_are_as_many_as_worlds_are_checked_by(overrides):
    config = load_config_of(SemanticConfig, [], ["run.dir=a", "data.shards=[a]", *TINY_NETWORK, *overrides])
    with torch.device("meta"):
        net = build_text4point(config.model, clip_dim=16, out_dim=5)
    stages = net.stages()
    seen = [
        sum(value.numel() for name, value in net.named_parameters() if value.ndim < 2 and name.startswith(parts))
        for parts in (tuple(f"{part}." for part in stage) for stage in stages)
    ]
    encoder, decoder = norm_channels(build_plan(config.model.unet))
    middle = len(encoder)
    assert [size // 2 for size in seen[:middle] + seen[middle + 1 :]] == [*encoder, *decoder]
    assert seen[middle] > 2 * max(encoder)


def test_a_world_that_leaves_a_rank_without_a_group_is_refused_and_the_way_out_works():
    given = ["run.dir=a", "data.shards=[a]", "train.global_batch_size=64", "train.layer_decay=0.8"]

    def problems(num_workers, *overrides):
        return [
            str(each)
            for each in problems_of_world(load_config_of(SemanticConfig, [], [*given, *overrides]), num_workers)
        ]

    (problem,) = problems(24)
    assert "train.layer_decay: 0.8, with 24 workers" in problem
    assert "are 64 numbers" in problem
    assert "set train.zero_stage=0 or 3, use 16 workers, or" in problem
    for num_workers, *overrides in ((16,), (32,), (24, "train.zero_stage=3"), (24, "train.layer_decay=1")):
        assert not problems(num_workers, *overrides)
    for num_numbers in (1, 2, 63, 64, 320, 961):
        for num_ranks in range(1, 70):
            padded = -(-num_numbers // (2 * num_ranks)) * 2 * num_ranks
            parts = np.arange(padded).reshape(num_ranks, -1)
            assert leaves_ranks_bare(num_numbers, num_ranks) == (parts[:, 0] >= num_numbers).any()


@pytest.mark.parametrize(("read", "last"), [("voxels", "unet.decoder.1"), ("levels", "unet.decoder.0")])
def test_the_last_stage_that_is_read_is_next_to_the_head(read: Reading, last):
    stages = network().stages(read)
    assert slow_parts_of(stages, 0.5)[-1] == (last, 0.5)
    assert dict(slow_parts_of(stages, 0.5))["unet.stem"] == 0.5 ** len(stages)


def test_what_is_frozen_is_in_no_group_and_leaves_no_empty_one():
    net = network()
    net.freeze(("encoder", "text_query", "decoder"))
    assert set(rates_and_decays(net, GroupSettings(("head",)))) == {"head.weight", "head.bias"}


def test_one_rate_makes_the_two_groups_of_every_pre_training():
    groups, scales = parameter_groups(network(), WEIGHT_DECAY)
    assert scales == (1.0, 1.0)
    assert [group["weight_decay"] for group in groups] == [WEIGHT_DECAY, 0.0]
    assert {parameter.ndim for parameter in groups[1]["params"]} == {1}


def test_a_part_is_named_whole():
    """`net.head` is not `net.header`, and a parameter may be a part."""
    module = nn.ModuleDict({"head": nn.Linear(2, 2), "header": nn.Linear(2, 2)})
    module.register_parameter("tokens", nn.Parameter(torch.zeros(3, 2)))
    settings = GroupSettings(("head",), 3.0, ("tokens",), (("tokens", 0.5),))
    found = rates_and_decays(module, settings)
    assert found["head.bias"] == (3.0, WEIGHT_DECAY)
    assert found["header.bias"] == (1.0, 0.0)
    assert found["tokens"] == (0.5, 0.0)
