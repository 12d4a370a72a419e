"""The groups of the optimizer of a real network: every weight in one of them, at the rate of its stage."""

from __future__ import annotations

import re

import pytest
import torch
from small_model import TINY_NETWORK
from torch import nn

from t4p.config.files import load_config_of
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
